from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_gradient.api import (
    FineTuningParameters,
    InputSegment,
    Sample,
    UnprocessableContentError,
)
from airflow_provider_gradient.server.encoding import EncodedSample, encode_prompt, encode_samples
from airflow_provider_gradient.server.model_config import BaseModelConfig


def _encode(
    tokenizer: Any, config: BaseModelConfig, *samples: Sample, max_length: int = 512
) -> list[EncodedSample]:
    return encode_samples(tokenizer, samples, config=config, max_length=max_length)


def _trained(tokenizer: Any, sample: EncodedSample) -> str:
    return tokenizer.decode([t for t, on in zip(sample.tokens, sample.trainable, strict=True) if on])


def test_segments_that_are_not_trainable_are_masked(tokenizer: Any, config: BaseModelConfig) -> None:
    inputs = [
        InputSegment(value="Question: Why?\n\nAnswer:", trainable=False),
        InputSegment(value=" because"),
    ]
    (sample,) = _encode(tokenizer, config, Sample(inputs=inputs))
    assert _trained(tokenizer, sample) == " because</s>"
    assert sample.prompt_text == "Question: Why?\n\nAnswer:"
    assert list(sample.tokens[: sample.prompt_length]) == encode_prompt(tokenizer, sample.prompt_text)


def test_a_plain_text_is_trained_whole_and_its_prompt_ends_at_the_marker(
    tokenizer: Any, config: BaseModelConfig
) -> None:
    (sample,) = _encode(tokenizer, config, Sample(inputs="Question: Why?\n\nAnswer: because"))
    assert _trained(tokenizer, sample) == "Question: Why?\n\nAnswer: because</s>"
    assert sample.prompt_text == "Question: Why?\n\nAnswer:"


def test_a_text_without_a_marker_has_no_prompt(tokenizer: Any, config: BaseModelConfig) -> None:
    (sample,) = _encode(tokenizer, config, Sample(inputs="just so"))
    assert (sample.prompt_text, sample.prompt_length) == ("", 1)


def test_the_end_is_appended_once_and_only_to_a_trainable_end(
    tokenizer: Any, config: BaseModelConfig
) -> None:
    masked_end = [InputSegment(value="so"), InputSegment(value=" it is", trainable=False)]
    plain, written_out, masked = _encode(
        tokenizer, config, Sample(inputs="so"), Sample(inputs="so</s>"), Sample(inputs=masked_end)
    )
    assert plain.tokens == written_out.tokens
    assert plain.tokens[-1] == tokenizer.eos_token_id
    assert masked.tokens[-1] != tokenizer.eos_token_id


def test_nothing_is_appended_where_the_policy_does_not_say_so(tokenizer: Any) -> None:
    (sample,) = _encode(tokenizer, BaseModelConfig(name="plain"), Sample(inputs="so"))
    assert sample.tokens[-1] != tokenizer.eos_token_id


def test_special_tokens_are_parsed_unless_a_segment_says_otherwise(
    tokenizer: Any, config: BaseModelConfig
) -> None:
    literal = [InputSegment(value="so</s>", parse_special_tokens=False)]
    (sample,) = _encode(tokenizer, config, Sample(inputs=literal))
    assert sample.tokens.count(tokenizer.eos_token_id) == 1  # the appended one
    assert tokenizer.decode(sample.tokens[:-1], skip_special_tokens=True) == "so</s>"


def test_the_opening_token_is_there_once_even_if_written_out(tokenizer: Any, config: BaseModelConfig) -> None:
    plain, written_out = _encode(tokenizer, config, Sample(inputs="so"), Sample(inputs="<s>so"))
    assert plain == written_out
    assert encode_prompt(tokenizer, "<s>so") == encode_prompt(tokenizer, "so")


def test_the_multiplier_defaults_to_one(tokenizer: Any, config: BaseModelConfig) -> None:
    doubled = Sample(inputs="so", fine_tuning_parameters=FineTuningParameters(multiplier=2.0))
    assert [s.multiplier for s in _encode(tokenizer, config, Sample(inputs="so"), doubled)] == [1.0, 2.0]


def test_a_sample_that_is_too_long_is_named_with_its_length(tokenizer: Any, config: BaseModelConfig) -> None:
    with pytest.raises(
        UnprocessableContentError, match=r"samples\[1\] has \d+ tokens; .* at most 20"
    ) as error:
        _encode(tokenizer, config, Sample(inputs="so"), Sample(inputs="so it is " * 20), max_length=20)
    assert (error.value.status, error.value.type) == (400, "unprocessableContent")


def test_a_sample_with_nothing_trainable_is_named(tokenizer: Any, config: BaseModelConfig) -> None:
    masked = Sample(inputs=[InputSegment(value="so", trainable=False)])
    with pytest.raises(UnprocessableContentError, match=r"samples\[0\] has no trainable token"):
        _encode(tokenizer, config, masked)
