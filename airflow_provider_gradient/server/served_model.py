"""One base model in memory: its weights, its tokenizer, how it is asked and what it answers."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from airflow_provider_gradient.api import (
    ChoiceGuidance,
    CompleteRequest,
    describe_validation_error,
)
from airflow_provider_gradient.server.encoding import encode_prompt
from airflow_provider_gradient.server.failures import unprocessable
from airflow_provider_gradient.server.generation import Prompt
from airflow_provider_gradient.server.guidance import log_probabilities
from airflow_provider_gradient.server.model_config import BaseModelConfig
from airflow_provider_gradient.server.sampling import Sampling
from airflow_provider_gradient.server.settings import StartError

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
_LONGEST_CHARACTER = 4
"""Tokens of the prompt that are decoded with a continuation, so that its beginning comes out right."""

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ServedModel:
    """A base model that is being served.

    :param context_length: the most tokens it reads at once, ``None`` where its configuration names no limit.
    :param stop_tokens: the ids that end its texts.
    """

    slug: str
    config: BaseModelConfig
    tokenizer: Any
    model: Any
    context_length: int | None
    stop_tokens: frozenset[int]

    @classmethod
    def load(cls, slug: str, directory: Path) -> ServedModel:
        """Load a Hugging Face directory, in float32.

        :raises StartError: the directory holds no causal language model that reads with a key-value cache.
        """
        source = f"base model {slug!r} in {directory}"
        try:
            config = BaseModelConfig.load(directory)
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory, local_files_only=True, dtype="float32"
            )
        except ValidationError as error:
            raise StartError(f"{source}: gradient.json: {describe_validation_error(error)}") from None
        except Exception as error:  # whatever a broken directory makes the libraries raise
            reason = str(error).strip().partition(os.linesep)[0]
            raise StartError(f"{source} can't be loaded: {reason or type(error).__name__}") from error
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise StartError(f"{source}: {type(model).__name__} has no key-value cache and can't be served")
        return cls(
            slug=slug,
            config=config,
            tokenizer=tokenizer,
            model=model.eval(),
            context_length=_context_length(model.config),
            stop_tokens=_stop_tokens(model, tokenizer),
        )

    def prompt(self, request: CompleteRequest) -> Prompt:
        """The request as a row of a batch: templated, encoded, within the context.

        :raises UnprocessableContentError: there is no room for a token after the query; gives the lengths.
        """
        text = request.query
        if request.auto_template is not False:
            text = self.config.apply_auto_template(text, self.tokenizer)
        tokens = encode_prompt(self.tokenizer, text)
        wanted = request.max_generated_token_count or self.config.default_max_generated_token_count
        return Prompt(
            tokens=tokens,
            max_new_tokens=min(wanted, self._room_after(tokens)),
            sampling=Sampling(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p),
        )

    def text(self, prompt: Prompt, tokens: list[int]) -> str:
        """A continuation as text, without special tokens, with the blank it may begin with."""
        tail = prompt.tokens[-_LONGEST_CHARACTER:]
        before = self._decode(tail)
        whole = self._decode([*tail, *tokens])
        return whole.removeprefix(before) if whole.startswith(before) else self._decode(tokens)

    def choose(self, prompt: Prompt, guidance: ChoiceGuidance) -> tuple[str, int]:
        """The likeliest of the given values after the prompt, and its length in tokens.

        :raises UnprocessableContentError: a value doesn't fit in the context.
        """
        spellings = [
            [tokens for tokens in (self._encode(blank + value) for blank in (" ", "")) if tokens]
            for value in guidance.value
        ]
        room = self._room_after(prompt.tokens)
        for value, spelled in zip(guidance.value, spellings, strict=True):
            if not spelled or max(map(len, spelled)) > room:
                raise unprocessable(
                    f"guidance: {value!r} doesn't fit: {room} tokens are left after the query"
                )
        scores = log_probabilities(self.model, prompt.tokens, spellings)
        best = max(range(len(scores)), key=scores.__getitem__)
        return guidance.value[best], len(spellings[best][-1])

    def _room_after(self, tokens: list[int]) -> int:
        """How many tokens may follow, at least one."""
        if not tokens:
            raise unprocessable("query: this model's tokenizer makes no token of it")
        if self.context_length is None:
            return 1 << 30
        if len(tokens) >= self.context_length:
            raise unprocessable(
                f"query: {len(tokens)} tokens with the template; this model reads at most "
                f"{self.context_length} and needs room for one more. Shorten it."
            )
        return self.context_length - len(tokens)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _context_length(config: Any) -> int | None:
    for name in _CONTEXT_FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)
