"""What a model that transformers runs can be trusted with, tried on a few tokens before it is served.

That an architecture can be loaded says little. Some read a text in both directions, some let a row see the
padding beside it, some keep a state that can't be divided when a row ends, some can't be trained through
PEFT. So everything that a request may ask for is done once at load and compared with the plainest thing there
is: one forward pass over one text, without a cache. What fails is done in a slower way that works or isn't
offered, and the reason is said where the server starts.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from airflow_provider_gradient.server.adapters import twin_of
from airflow_provider_gradient.server.encoding import EncodedSample
from airflow_provider_gradient.server.generation import Abilities
from airflow_provider_gradient.server.guidance import Choices, read_choices, reread_choices
from airflow_provider_gradient.server.lora_targets import lora_targets
from airflow_provider_gradient.server.micro_batches import Batch
from airflow_provider_gradient.server.model_config import BaseModelConfig, TrainingPolicy
from airflow_provider_gradient.server.training import TrainerState, fine_tune, new_lora_config

_PASSAGE = (
    "The red hen asked her neighbours who would help her to plant the wheat, to cut it, to carry it to the "
    "mill and to bake the bread. Nobody had time. When it came to eating, all of them did, and she said no."
)
_LENGTHS = (24, 9, 1)
"""Tokens of the prompts that are tried together: two widths of padding, and less than a convolution reads."""
_LEAVING = (1, 0, 0)
"""The row of those left that leaves the batch after each step."""
_STEPS = len(_LEAVING)
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size")
_LARGEST_WINDOW = 256
"""Windows up to this many tokens are tried too."""
_TOLERANCE = 1e-3
_COARSE_TOLERANCE = 0.1
"""In parts of the largest logit: what may be rounding, in float32 and in shorter number types."""
_TUNING_RATE = 0.01


class UnservableError(Exception):
    """A model can't continue texts; the message says why."""


def try_model(model: Any, tokenizer: Any, config: BaseModelConfig) -> Abilities:
    """What the model can do.

    :param model: a causal language model of transformers; left as it was.
    :raises UnservableError: it can't even continue one text at a time.
    """
    trial = _Trial(model, tokenizer)
    if unread := _failure_of(trial.read):
        raise UnservableError(f"it can't read a text: {unread}")
    if _failure_of(trial.read_forward):
        raise UnservableError(
            "it reads a text in both directions, as an encoder does, and can't continue one"
        )
    batches, positions, together = _way_to_continue(trial)
    sharing = _failure_of(trial.choose)
    tuning = _failure_of(trial.tune, tokenizer, config)
    remarks = (
        ("one row at a time: in a batch", together),
        ("guidance reads the query again for each value: with a cache that values share", sharing),
        ("no fine-tunes: in a training step", tuning),
    )
    return Abilities(
        batches=batches,
        positions=positions,
        shares_prompt=sharing is None,
        tuning=tuning is None,
        remarks=tuple(f"{remark} {reason}" for remark, reason in remarks if reason),
    )


def _way_to_continue(trial: _Trial) -> tuple[bool, bool, str | None]:
    """Whether rows may share a batch, whether the model is told positions, and why rows may share none.

    Some models compute a step from their cache a little differently than a whole text. What counts for rows
    in a batch is what each gets alone, which is asked where they don't get what the whole text gives.
    """
    for positions in trial.positions:
        if _failure_of(trial.continue_together, positions) is None:
            return True, positions, None
    for positions in trial.positions:
        alone = _failure_of(trial.continue_alone, positions)
        if alone is None:
            together = _failure_of(trial.continue_together, positions)
            return together is None, positions, together
    raise UnservableError(f"it can't continue a text from its cache: {alone}")


class _DifferentError(Exception):
    """Other numbers came out than from a plain forward pass."""


def _failure_of(attempt: Callable[..., None], *arguments: Any) -> str | None:
    """Why an attempt failed, ``None`` where it succeeded. Whatever a model raises is a failure."""
    try:
        attempt(*arguments)
    except _DifferentError as error:
        return str(error)
    except Exception as error:
        reason = str(error).strip().partition(os.linesep)[0]
        return f"the model fails ({type(error).__name__}: {reason[:200]})"
    return None


class _Trial:
    """Texts of different lengths, and what the model says by itself after each of their last tokens."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        self.positions = (True, False) if "position_ids" in accepted else (False,)
        self._keeps_logits = "logits_to_keep" in accepted
        text_config = model.config.get_text_config()
        windows = [getattr(text_config, name, None) or 0 for name in _WINDOWS]
        window = max((window for window in windows if window <= _LARGEST_WINDOW), default=0)
        passage = list(tokenizer(_PASSAGE, add_special_tokens=False).input_ids)
        self._texts = [
            list(islice(cycle(passage), start, start + length + window + _STEPS))
            for start, length in enumerate(_LENGTHS)
        ]
        coarse = next(model.parameters()).dtype is not torch.float32
        self._tolerance = _COARSE_TOLERANCE if coarse else _TOLERANCE
        self._worst = Tensor.median if coarse else Tensor.max
        self._expected: list[Tensor] = []

    def read(self) -> None:
        """Each text by itself in one pass: what all else has to agree with."""
        self._expected = [self._logits(text, _STEPS + 1) for text in self._texts]

    def read_forward(self) -> None:
        """What comes later changes nothing before it."""
        self._compare(self._logits(self._texts[1][:-_STEPS], 1), self._expected[1][:1])

    def continue_together(self, positions: bool) -> None:
        """Rows of different lengths in one batch; one leaves it after each step."""
        batch = Batch(self._model, [text[:-_STEPS] for text in self._texts], Abilities(positions=positions))
        self._compare(batch.prefill(), torch.stack([expected[0] for expected in self._expected]))
        rows = list(range(len(self._texts)))
        for step, leaving in enumerate(_LEAVING):
            told = batch.step([self._texts[row][step - _STEPS] for row in rows])
            self._compare(told, torch.stack([self._expected[row][step + 1] for row in rows]))
            del rows[leaving]
            if rows:
                batch.keep([place for place in range(len(rows) + 1) if place != leaving])

    def continue_alone(self, positions: bool) -> None:
        """Each text by itself, token by token; what this gives is from now on what all else has to give."""
        told = []
        for text in self._texts:
            batch = Batch(self._model, [text[:-_STEPS]], Abilities(positions=positions))
            steps = [batch.prefill(), *(batch.step([token]) for token in text[-_STEPS:])]
            told.append(torch.cat(steps))
        self._compare(torch.cat(told), torch.cat(self._expected), tolerance=_COARSE_TOLERANCE)
        self._expected = told

    def choose(self) -> None:
        """Values of different lengths after one query."""
        query, values = self._texts[1][:-_STEPS], self._texts[0]
        choices = Choices([[values[:3]], [values[3:4]]])
        self._compare(read_choices(self._model, query, choices), reread_choices(self._model, query, choices))

    def tune(self, tokenizer: Any, config: BaseModelConfig) -> None:
        """One step on two samples: the loss is the model's own, and its answers are others afterwards."""
        texts = [text[: length + _STEPS] for text, length in zip(self._texts, _LENGTHS, strict=True)][1:]
        policy = TrainingPolicy(gradient_checkpointing=config.training.gradient_checkpointing)
        with torch.random.fork_rng():
            peft = PeftModel(twin_of(self._model), new_lora_config(1, policy, lora_targets(self._model)))
        result = fine_tune(
            peft.eval(),
            tokenizer,
            [EncodedSample(tuple(text), (True,) * len(text), 1, "", 1.0) for text in texts],
            TrainerState(),
            config=config.model_copy(update={"training": policy}),
            learning_rate=_TUNING_RATE,
            seed=0,
        )
        plain = [self._logits(text, len(text)) for text in texts]
        losses = [
            cross_entropy(logits[:-1].float(), torch.tensor(text[1:], device=logits.device), reduction="sum")
            for text, logits in zip(texts, plain, strict=True)
        ]
        expected = float(sum(losses))
        if not abs(result.sum_loss - expected) <= self._tolerance * abs(expected):
            raise _DifferentError(f"its loss is {result.sum_loss:.4g}, the model's own {expected:.4g}")
        with torch.no_grad():
            tuned = peft(input_ids=torch.tensor([texts[0]], device=peft.device), use_cache=False).logits[0]
        if torch.equal(tuned, plain[0]):
            raise _DifferentError("it changes no answer")

    @torch.no_grad()
    def _logits(self, tokens: Sequence[int], last: int) -> Tensor:
        """After each of the last tokens of a text, read in one pass without a cache: tokens x vocabulary."""
        options = {"logits_to_keep": last} if self._keeps_logits else {}
        ids = torch.tensor([list(tokens)], device=self._model.device)
        logits: Tensor = self._model(input_ids=ids, use_cache=False, **options).logits[0, -last:]
        return logits

    def _compare(self, found: Tensor, expected: Tensor, *, tolerance: float | None = None) -> None:
        """Logits of some positions, both positions x vocabulary.

        In shorter number types most positions have to agree and not all: there rounding may send a token to
        another expert, while what is wrong with a batch shows at every position.
        """
        each = (found.float() - expected.float()).abs().amax(dim=-1) / expected.float().abs().max()
        difference = float(self._worst(each))
        if not difference <= (tolerance or self._tolerance):
            raise _DifferentError(f"a text gets other logits (by {difference:.2g} of the largest)")
