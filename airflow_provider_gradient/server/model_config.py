"""What a base model wants done with a query and with samples, read from ``gradient.json`` in its directory.

A fine-tune call of the API carries texts and nothing else: no epochs, no batch size, no steps. What one
call should do depends on the model: a tiny one needs several steps and protection against forgetting, a
large one wants a single plain step. So the policy lies with the model, and a directory without the file
gets the plain one: no template but the tokenizer's chat template, one step a call, no neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

CONFIG_FILE = "gradient.json"


class _Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NeighbourPolicy(_Policy):
    """How the base model's own answers near the samples are kept; see :mod:`.neighbours`.

    :param per_sample: neighbours drawn for each text not seen before.
    :param per_step: neighbours, picked at random, that take part in one step.
    :param weight: factor of their mean KL divergence (nats a token) beside the samples' mean cross-entropy.
    :param max_kept: the most an adapter keeps; the oldest go first.
    :param max_new_tokens: the longest continuation.
    """

    per_sample: int = Field(default=2, ge=1)
    per_step: int = Field(default=16, ge=1)
    weight: float = Field(default=0.5, gt=0)
    max_kept: int = Field(default=1024, ge=1)
    max_new_tokens: int = Field(default=30, ge=1)


class FewSamplesPolicy(_Policy):
    """What is different in a call of only a few samples, where nothing but the neighbours says what must
    stay.

    :param up_to: calls of at most so many samples.
    :param learning_rate_factor: times the learning rate.
    :param per_sample: instead of the neighbours' own, and so on.
    """

    up_to: int = Field(default=4, ge=1)
    learning_rate_factor: float = Field(default=0.25, gt=0)
    per_sample: int = Field(default=64, ge=1)
    per_step: int = Field(default=16, ge=1)
    weight: float = Field(default=6.0, gt=0)


class TrainingPolicy(_Policy):
    """What one fine-tune call does with an adapter.

    :param default_rank: LoRA rank of an adapter created without one.
    :param default_learning_rate: likewise.
    :param lr_scale: times an adapter's learning rate, for a model that needs other rates than its users know.
    :param alpha_per_rank: LoRA alpha divided by rank.
    :param betas: AdamW's.
    :param max_gradient_norm: gradients are clipped to it.
    :param append_eos: the end of a sample is also the end of an answer: add the end-of-text token,
        trainable, unless the sample ends in it or its last segment isn't trainable.
    :param prompt_weight: weight, in the update but not in the reported loss, of a wholly trainable text's
        tokens up to its template marker.
    :param pass_samples: a call makes ``pass_samples // samples`` passes over its samples, at least one.
    :param max_passes: and at most so many.
    :param stop_nll: a call of several passes ends when no trainable token after the prompt costs more, in
        nats.
    :param rows_per_pass: texts in one forward pass; more are accumulated, so it bounds memory and changes
        nothing else.
    :param gradient_checkpointing: keep only each layer's input for the backward pass and compute the rest
        again: much less memory, about a third more time, the same gradients.
    :param neighbours: neighbour distillation, or ``None`` for none.
    :param few_samples: needs ``neighbours``.
    """

    default_rank: int = Field(default=8, ge=1, le=32)
    default_learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    lr_scale: float = Field(default=1.0, gt=0)
    alpha_per_rank: float = Field(default=2.0, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    append_eos: bool = False
    prompt_weight: float = Field(default=1.0, ge=0)
    pass_samples: int = Field(default=1, ge=1)
    max_passes: int = Field(default=1, ge=1)
    stop_nll: float = Field(default=0.25, gt=0)
    rows_per_pass: int = Field(default=32, ge=1)
    gradient_checkpointing: bool = False
    neighbours: NeighbourPolicy | None = None
    few_samples: FewSamplesPolicy | None = None


class BaseModelConfig(_Policy):
    """A base model's name, query template and training policy.

    :param auto_template: what a query is wrapped in, with ``{query}``; ``None`` means the tokenizer's chat
        template where it has one.
    :param template_markers: where the answer begins in a templated text. A query that has one is already
        templated.
    :param default_max_generated_token_count: for a completion that asks for none.
    """

    name: str
    auto_template: str | None = None
    template_markers: list[str] = []
    default_max_generated_token_count: int = Field(default=128, ge=1, le=511)
    training: TrainingPolicy = TrainingPolicy()

    @classmethod
    def load(cls, directory: Path) -> BaseModelConfig:
        """The configuration of a model directory; the plain one, named after the directory, if it has no
        file.

        :raises pydantic.ValidationError: the file isn't such a configuration.
        """
        path = directory / CONFIG_FILE
        if not path.exists():
            return cls(name=directory.name)
        return cls.model_validate_json(path.read_text())

    def retaining(self) -> BaseModelConfig:
        """The same with neighbour distillation, by its own rules where it has some."""
        neighbours = self.training.neighbours or NeighbourPolicy()
        return self.model_copy(
            update={"training": self.training.model_copy(update={"neighbours": neighbours})}
        )

    def save(self, directory: Path) -> None:
        """Write ``gradient.json``."""
        (directory / CONFIG_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    def apply_auto_template(self, query: str, tokenizer: Any) -> str:
        """The query in the model's template, or as it is if it carries a marker or the model has no
        template."""
        if any(marker in query for marker in self.template_markers):
            return query
        if self.auto_template is not None:
            return self.auto_template.replace("{query}", query)
        if getattr(tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": query}]
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return query
