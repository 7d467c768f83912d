"""Both clients through every operation of a real Gradient server."""

from __future__ import annotations

import pytest

from airflow_provider_gradient.api import (
    AuthenticationError,
    ModelIncapableOfFineTuningError,
    PermissionDeniedError,
    UnknownModelError,
)


@pytest.fixture
def call(connect, gradient_server):
    return connect(
        base_url=gradient_server.url,
        access_token=gradient_server.access_token,
        workspace_id=gradient_server.workspace_id,
    )


def test_an_adapter_lives_from_its_creation_to_its_deletion(call):
    base = call("find_base_model", "tiny")
    assert set(base.capabilities) == {"complete", "fineTune"}
    adapter_id = call("create_model_adapter", base_model_id=base.id, name="mine", rank=4, learning_rate=0.001)
    adapter = call("get_model_adapter", adapter_id)
    assert (adapter.id, adapter.name, adapter.base_model_id) == (adapter_id, "mine", base.id)
    assert adapter_id in [model.id for model in call("list_models")]
    assert adapter_id not in [model.id for model in call("list_models", only_base=True)]
    assert call("fine_tune", adapter_id, [{"inputs": "The sky is green."}]).number_of_trainable_tokens > 0
    answer = call("complete", adapter_id, "What is the sky?", max_generated_token_count=5, temperature=0)
    assert answer.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 5
    assert call("complete", adapter_id, "Yes or no?", guidance=["yes", "no"]).generated_output in (
        "yes",
        "no",
    )
    call("delete_model", adapter_id)
    with pytest.raises(UnknownModelError):
        call("complete", adapter_id, "Are you there?")


def test_the_server_trains_once_for_one_key_and_the_client_learns_that_it_does(call):
    base = call("find_base_model", "tiny")
    adapter_id = call("create_model_adapter", base_model_id=base.id, name="mine")
    samples = [{"inputs": "The sky is green."}]
    assert not call.client.honours_idempotency_keys
    first = call("fine_tune", adapter_id, samples, idempotency_key="call-1")
    assert call.client.honours_idempotency_keys
    assert call("fine_tune", adapter_id, samples, idempotency_key="call-1") == first
    assert call("fine_tune", adapter_id, samples, idempotency_key="call-2").sum_loss != first.sum_loss
    call("delete_model", adapter_id)


def test_an_unknown_slug_names_the_slugs_of_the_server(call):
    with pytest.raises(UnknownModelError, match=r"'llama9'; the server has: .*tiny"):
        call("find_base_model", "llama9")


def test_a_base_model_is_not_trained(call):
    base = call("find_base_model", "tiny")
    with pytest.raises(ModelIncapableOfFineTuningError):
        call("fine_tune", base.id, [{"inputs": "text"}])


def test_a_wrong_token_and_a_wrong_workspace_are_told_apart(connect, gradient_server):
    right = {"access_token": gradient_server.access_token, "workspace_id": gradient_server.workspace_id}
    with pytest.raises(AuthenticationError):
        connect(base_url=gradient_server.url, **right | {"access_token": "wrong"})("list_models")
    with pytest.raises(PermissionDeniedError):
        connect(base_url=gradient_server.url, **right | {"workspace_id": "wrong"})("list_models")
