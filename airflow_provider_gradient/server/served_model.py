"""One base model in memory: its weights, its tokenizer, how it is asked and what it answers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers.utils import logging as transformers_logging

from airflow_provider_gradient.api import (
    CompleteRequest,
    describe_validation_error,
)
from airflow_provider_gradient.server.devices import Placement
from airflow_provider_gradient.server.encoding import encode_prompt
from airflow_provider_gradient.server.failures import unprocessable
from airflow_provider_gradient.server.generation import Abilities, Prompt
from airflow_provider_gradient.server.guidance import Choices
from airflow_provider_gradient.server.lean_llama import LeanConfig, LeanLlama
from airflow_provider_gradient.server.model_config import CONFIG_FILE, BaseModelConfig
from airflow_provider_gradient.server.sampling import Sampling
from airflow_provider_gradient.server.settings import StartError

_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
    "context_length",
    "max_target_positions",
)
_LONGEST_CONTEXT = 1 << 30
"""A larger number stands for no limit in a configuration."""
_LONGEST_CHARACTER = 4
"""Tokens of the prompt that are decoded with a continuation, so that its beginning comes out right."""

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ServedModel:
    """A base model that is being served.

    :param core: its weights: transformers' model, or a :class:`LeanLlama`.
    :param context_length: the most tokens it reads at once, ``None`` where its configuration names no limit.
    :param stop_tokens: the ids that end its texts.
    :param longest: tokens of a completion, prompt and all, that there is memory for.
    :param abilities: what it was found to be able to do.
    """

    slug: str
    directory: Path
    config: BaseModelConfig
    tokenizer: Any
    core: Any
    context_length: int | None
    stop_tokens: frozenset[int]
    longest: int = 1 << 30
    abilities: Abilities = field(default_factory=Abilities)

    @classmethod
    def load(
        cls, slug: str, directory: Path, placement: Placement | None = None, *, retain: bool = False
    ) -> ServedModel:
        """Load a Hugging Face directory.

        :param placement: device and number type; float32 on the CPU if not given.
        :param retain: neighbour distillation in its fine-tunes, also where its configuration has none.
        :raises StartError: the directory holds no causal language model that reads with a key-value cache, or
            there is no room for it.
        """
        placement = placement or Placement.of("cpu", "float32")
        source = f"base model {slug!r} in {directory}"
        placement.check_room(directory, source)
        try:
            config = BaseModelConfig.load(directory)
            tokenizer, core = _load(directory, placement)
            _check_template(config, tokenizer, core)
        except ValidationError as error:
            raise StartError(f"{source}: gradient.json: {describe_validation_error(error)}") from None
        except Exception as error:  # whatever a broken directory makes the libraries raise
            raise StartError(f"{source} can't be loaded: {_first_line(error)}") from error
        lean = isinstance(core, LeanLlama)
        if not lean and "past_key_values" not in inspect.signature(core.forward).parameters:
            raise StartError(f"{source}: {type(core).__name__} has no key-value cache and can't be served")
        return cls(
            slug=slug,
            directory=directory,
            config=config.retaining() if retain else config,
            tokenizer=tokenizer,
            core=core,
            context_length=_context_length(core.config),
            stop_tokens=_stop_tokens(core, tokenizer),
        )

    @cached_property
    def model(self) -> Any:
        """transformers' model, over the same weights; made when it is first asked for, which may take
        seconds."""
        if not isinstance(self.core, LeanLlama):
            return self.core
        from transformers import AutoModelForCausalLM

        some = next(self.core.parameters())
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.directory, local_files_only=True, dtype=some.dtype
        )
        for name, parameter in model.named_parameters():
            parameter.data = self.core.get_parameter(name).data
        return model.to(some.device).eval()

    def prompt(self, request: CompleteRequest) -> Prompt:
        """The request as a row of a batch: templated, encoded, within the context.

        :raises UnprocessableContentError: there is no room for a token after the query, or for a value to
            choose; gives the lengths.
        """
        tokens = self.tokens(request.query, auto_template=request.auto_template)
        wanted = request.max_generated_token_count or self.config.default_max_generated_token_count
        room = self._room_after(tokens)
        return Prompt(
            tokens=tokens,
            max_new_tokens=min(wanted, room),
            sampling=Sampling(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                seed=request.seed,
            ),
            choices=self._choices(request.guidance.value, room) if request.guidance else None,
        )

    def tokens(self, query: str, *, auto_template: bool | None) -> list[int]:
        """What the model reads for a query, in its template unless that is declined."""
        if auto_template is not False:
            query = self.config.apply_auto_template(query, self.tokenizer)
        return encode_prompt(self.tokenizer, query)

    def text(self, prompt: Prompt, tokens: list[int]) -> str:
        """A continuation as text, without special tokens, with the blank it may begin with."""
        tail = prompt.tokens[-_LONGEST_CHARACTER:]
        before = self._decode(tail)
        whole = self._decode([*tail, *tokens])
        return whole.removeprefix(before) if whole.startswith(before) else self._decode(tokens)

    def _choices(self, values: Sequence[str], room: int) -> Choices:
        """The given values, each with and without one blank before it."""
        spellings = [
            [tokens for tokens in (self._encode(blank + value) for blank in (" ", "")) if tokens]
            for value in values
        ]
        for value, spelled in zip(values, spellings, strict=True):
            if not spelled or max(map(len, spelled)) > room:
                raise unprocessable(
                    f"guidance: {value!r} doesn't fit: {room} tokens are left after the query"
                )
        return Choices(spellings)

    def _room_after(self, tokens: list[int]) -> int:
        """How many tokens may follow, at least one."""
        if not tokens:
            raise unprocessable("query: this model's tokenizer makes no token of it")
        longest = min(self.longest, self.context_length or self.longest)
        if len(tokens) >= longest:
            reads = "reads" if longest == self.context_length else "has memory here to read"
            raise unprocessable(
                f"query: {len(tokens)} tokens with the template; this model {reads} at most "
                f"{longest} and needs room for one more. Shorten it."
            )
        return longest - len(tokens)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _load(directory: Path, placement: Placement) -> tuple[Any, Any]:
    """The tokenizer, and the model: lean where it is a plain Llama, else transformers' own."""
    config = LeanConfig.of(directory)
    if config is not None:
        from transformers import PreTrainedTokenizerFast

        core = LeanLlama.load(directory, config, dtype=placement.dtype, device=placement.device)
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True), core
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype=placement.dtype, output_loading_info=True
    )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{len(missing)} of the weights of {type(model).__name__} are missing, {missing[0]} for one: "
            "it is no causal language model, or not all of one"
        )
    return tokenizer, model.to(placement.device).eval()


def _check_template(config: BaseModelConfig, tokenizer: Any, core: Any) -> None:
    """Try the query template, so that one that can't be used is refused here and not at every request.

    :raises ValueError: it fails, loses the query, or writes tokens that the model hasn't got.
    """
    query = "Hello"
    own = config.auto_template is not None
    source = f"{CONFIG_FILE}'s auto_template" if own else "its tokenizer's chat template"
    try:
        text = config.apply_auto_template(query, tokenizer)
    except Exception as error:
        raise ValueError(
            f"{source} fails on the one message of a user ({_first_line(error)}); mend it, or write an "
            f"auto_template into {CONFIG_FILE}"
        ) from error
    if query not in text:
        raise ValueError(f"{source} loses the query: it makes {text!r} of {query!r}")
    largest = max(encode_prompt(tokenizer, text), default=0)
    if largest >= (vocabulary := core.config.get_text_config().vocab_size):
        raise ValueError(
            f"its tokenizer makes {tokenizer.decode([largest])!r} of a query, token {largest}; the model has "
            f"{vocabulary} tokens"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition(os.linesep)[0] or type(error).__name__


def _context_length(config: Any) -> int | None:
    """Tokens that the text model reads at once: what a multimodal configuration says at its top, if anything,
    may be of another of its models."""
    text_config = config.get_text_config()
    for name in _CONTEXT_FIELDS:
        value = getattr(text_config, name, None)
        if isinstance(value, (int, float)) and 0 < value < _LONGEST_CONTEXT:
            return int(value)
    return None


def _stop_tokens(core: Any, tokenizer: Any) -> frozenset[int]:
    if isinstance(core, LeanLlama):
        ids = core.eos_token_ids
    else:
        configured = core.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)
