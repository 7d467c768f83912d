"""Texts to token ids, for completion and for training alike.

A completion must read a prompt exactly as training wrote it, so both come through here: the tokenizer's
opening token once and only once, even where a template or a user wrote it out, and never a closing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from airflow_provider_gradient.api import Sample, UnprocessableContentError
from airflow_provider_gradient.server.model_config import BaseModelConfig


@dataclass(frozen=True)
class EncodedSample:
    """A sample as the trainer takes it.

    :param tokens: ids, the opening token included.
    :param trainable: for each token whether its prediction adds to the loss.
    :param prompt_length: tokens before the answer: up to the first trainable one or, in a wholly trainable
        text, up to and with its template marker; the opening token alone where there is none.
    :param prompt_text: the text of those tokens.
    :param multiplier: weight of the sample's loss.
    """

    tokens: tuple[int, ...]
    trainable: tuple[bool, ...]
    prompt_length: int
    prompt_text: str
    multiplier: float


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The token ids a model continues: special tokens in the text are parsed, the opening one is there
    once."""
    tokens = _without_opening(tokenizer, _encode(tokenizer, text, parse_special=True))
    return [*_opening(tokenizer), *tokens]


def encode_samples(
    tokenizer: Any, samples: Sequence[Sample], *, config: BaseModelConfig, max_length: int
) -> list[EncodedSample]:
    """The samples as token ids with their masks.

    :param max_length: tokens the model can read at once.
    :raises UnprocessableContentError: names the first sample that is longer than that, or in which no token
        is trainable.
    """
    encoded = [_encode_sample(tokenizer, sample, config) for sample in samples]
    for index, sample in enumerate(encoded):
        if len(sample.tokens) > max_length:
            raise UnprocessableContentError(
                f"samples[{index}] has {len(sample.tokens)} tokens; this model reads at most {max_length}. "
                "Split it into shorter samples.",
                status=400,
                type="unprocessableContent",
            )
        if not any(sample.trainable[1:]):
            raise UnprocessableContentError(
                f"samples[{index}] has no trainable token: mark at least one segment trainable.",
                status=400,
                type="unprocessableContent",
            )
    return encoded


def _encode_sample(tokenizer: Any, sample: Sample, config: BaseModelConfig) -> EncodedSample:
    tokens = list(_opening(tokenizer))
    opening = len(tokens)
    trainable = [False] * opening
    for segment in sample.segments:
        ids = _encode(tokenizer, segment.value, parse_special=segment.parse_special_tokens is not False)
        if len(tokens) == opening:
            ids = _without_opening(tokenizer, ids)
        tokens += ids
        trainable += [segment.trainable is not False] * len(ids)
    eos = tokenizer.eos_token_id
    if config.training.append_eos and eos is not None and trainable and trainable[-1] and tokens[-1] != eos:
        tokens.append(eos)
        trainable.append(True)
    prompt_text, prompt_length = _prompt_of(tokenizer, sample, config, opening)
    parameters = sample.fine_tuning_parameters
    multiplier = parameters.multiplier if parameters and parameters.multiplier else 1.0
    return EncodedSample(tuple(tokens), tuple(trainable), prompt_length, prompt_text, multiplier)


def _prompt_of(tokenizer: Any, sample: Sample, config: BaseModelConfig, opening: int) -> tuple[str, int]:
    text, length = "", opening
    for segment in sample.segments:
        value, whole = segment.value, segment.trainable is False
        if not whole:
            value = value[: _end_of_marker(value, config.template_markers)]
        if value:
            ids = _encode(tokenizer, value, parse_special=segment.parse_special_tokens is not False)
            length += len(ids if text else _without_opening(tokenizer, ids))
            text += value
        if not whole:
            break
    return text, length


def _end_of_marker(text: str, markers: Sequence[str]) -> int:
    return max((text.rfind(marker) + len(marker) for marker in markers if marker in text), default=0)


def _encode(tokenizer: Any, text: str, *, parse_special: bool) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_special).input_ids
    return list(ids)


@lru_cache(maxsize=16)
def _opening(tokenizer: Any) -> tuple[int, ...]:
    """The token with which the tokenizer begins its texts, where it was trained so: it is asked once."""
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and list(tokenizer("a").input_ids)[:1] == [bos] else ()


def _without_opening(tokenizer: Any, ids: list[int]) -> list[int]:
    return ids[1:] if ids and tuple(ids[:1]) == _opening(tokenizer) else ids
