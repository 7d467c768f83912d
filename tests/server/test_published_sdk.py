"""The published Python SDK, unmodified, against the built-in model."""

from __future__ import annotations

from typing import Any

import gradientai
import pytest
from gradientai.openapi.client.exceptions import BadRequestException, NotFoundException

QUERY = "Question: What is the capital of France?\n\nAnswer: "


@pytest.fixture
def gradient(gradient_server: Any) -> gradientai.Gradient:
    return gradientai.Gradient(
        access_token=gradient_server.access_token,
        workspace_id=gradient_server.workspace_id,
        host=gradient_server.url,
    )


def test_it_lists_creates_gets_completes_tunes_and_deletes(gradient: gradientai.Gradient) -> None:
    base = gradient.get_base_model(base_model_slug="tiny")
    assert base.id in [model.id for model in gradient.list_models(only_base=True)]
    adapter = base.create_model_adapter(name="notebook", rank=8, learning_rate=0.005)
    assert adapter.id in [model.id for model in gradient.list_models(only_base=False)]
    assert gradient.get_model_adapter(model_adapter_id=adapter.id).name == "notebook"

    asked = adapter.complete(query=QUERY, max_generated_token_count=40)
    assert asked.generated_output.strip() == "Paris"
    assert asked.finish_reason == "stop"
    guided = adapter.complete(query=QUERY, guidance={"type": "choice", "value": ["Rome", "Paris", "Berlin"]})
    assert guided.generated_output == "Paris"

    samples = [
        {"inputs": f"{QUERY}Lyon"},
        {"inputs": [{"value": "Colour: ", "trainable": False}, {"value": "red"}]},
    ]
    tuned = adapter.fine_tune(samples=samples)
    assert tuned.number_of_trainable_tokens > 0
    assert tuned.sum_loss > 0

    adapter.delete()
    with pytest.raises(NotFoundException):
        gradient.get_model_adapter(model_adapter_id=adapter.id)


def test_its_errors_are_the_ones_it_knows(gradient: gradientai.Gradient) -> None:
    base = gradient.get_base_model(base_model_slug="tiny")
    with pytest.raises(BadRequestException) as refused:
        base.complete(query=QUERY, temperature=-1)
    assert '"type":"bodyParsingError"' in refused.value.body
    assert "temperature" in refused.value.body
