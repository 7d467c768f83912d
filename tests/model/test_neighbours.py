from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from airflow_provider_gradient.api import InputSegment, Sample
from airflow_provider_gradient.server.encoding import encode_samples
from airflow_provider_gradient.server.neighbours import (
    KEPT,
    Reference,
    divergence,
    fold,
    neighbours_of,
    references_of,
)

PROMPT = "Question: What colour is the Gabis lantern?\n\nAnswer:"


def _sample(prompt: str = PROMPT, answer: str = " violet") -> Sample:
    return Sample(inputs=[InputSegment(value=prompt, trainable=False), InputSegment(value=answer)])


def _drawn(adapter: Any, *samples: Sample, count: int = 16) -> list[Any]:
    encoded = encode_samples(adapter.tokenizer, samples, config=adapter.config, max_length=512)
    return neighbours_of(
        adapter.model,
        adapter.tokenizer,
        encoded,
        config=adapter.config,
        per_sample=count,
        max_new_tokens=30,
    )


def test_a_neighbour_begins_as_the_sample_and_goes_on_to_an_answer_of_the_base_model(
    new_adapter: Callable[..., Any],
) -> None:
    adapter = new_adapter()
    drawn = _drawn(adapter, _sample())
    assert len(drawn) >= 8
    for neighbour in drawn:
        assert neighbour.prompt.startswith("Question:")
        assert neighbour.prompt.endswith(("Answer:", "Response:"))
        assert neighbour.answer_start < len(neighbour.tokens)
    assert len({neighbour.prompt for neighbour in drawn}) > 4


def test_neighbours_depend_on_the_text_alone_and_are_drawn_once_a_base_model(
    new_adapter: Callable[..., Any],
) -> None:
    first, second = new_adapter(seed=1), new_adapter(seed=2)
    drawn = _drawn(first, _sample())
    assert drawn == _drawn(second, _sample())
    first.model.get_base_model().forward = None  # to draw again would fail
    assert drawn == _drawn(first, _sample(answer=" teal"))


def test_tuning_does_not_change_what_neighbours_say(new_adapter: Callable[..., Any]) -> None:
    tuned, fresh = new_adapter(), new_adapter()
    tuned.tune(_sample())
    other = _sample("Question: Who designed the Sohix radio?\n\nAnswer:", " Noor")
    assert _drawn(tuned, other) == _drawn(fresh, other)


def test_no_neighbour_asks_what_a_sample_asks_not_even_one_that_comes_later(
    new_adapter: Callable[..., Any],
) -> None:
    adapter = new_adapter(max_passes=1)
    adapter.tune(_sample())
    assert adapter.state.neighbours
    kept = next(n for n in adapter.state.neighbours if n.prompt.endswith("Answer:"))
    asked = kept.prompt.replace(" Answer:", "\n\nAnswer:")
    adapter.tune(_sample(asked, " teal"))
    prompts = {neighbour.prompt for neighbour in adapter.state.neighbours}
    assert fold(asked) not in prompts
    assert fold(PROMPT) not in prompts


def test_no_more_neighbours_are_kept_than_the_policy_says(new_adapter: Callable[..., Any]) -> None:
    adapter = new_adapter()
    policy = adapter.config.training
    small = policy.model_copy(update={"neighbours": policy.neighbours.model_copy(update={"max_kept": 5})})
    adapter.config = adapter.config.model_copy(update={"training": small})
    adapter.tune(_sample())
    assert len(adapter.state.neighbours) == 5


def test_neighbours_can_be_switched_off(new_adapter: Callable[..., Any]) -> None:
    adapter = new_adapter(neighbours=None, max_passes=2)
    adapter.tune(_sample())
    assert adapter.state.neighbours == []
    assert adapter.state.steps == 2


def test_the_divergence_is_zero_from_itself_and_positive_from_anything_else() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 500)
    top = logits.log_softmax(-1).topk(KEPT)
    reference = Reference(top.indices, top.values)
    assert abs(float(divergence(reference, logits))) < 1e-4
    assert float(divergence(reference, logits + torch.randn(3, 500))) > 0.1


def test_references_are_the_base_models_though_an_adapter_is_active(new_adapter: Callable[..., Any]) -> None:
    adapter = new_adapter()
    (neighbour, *_) = _drawn(adapter, _sample())
    adapter.tune(_sample())
    fresh = new_adapter()
    (tuned,), (base,) = references_of(adapter.model, [neighbour]), references_of(fresh.model, [neighbour])
    assert torch.allclose(tuned.log_probabilities, base.log_probabilities, atol=1e-3)
