"""What goes over the wire, and what is refused before anything does."""

from __future__ import annotations

import math
from types import MappingProxyType

import pytest
from faults import ACCESS_TOKEN, MODEL_ID, WORKSPACE_ID, FaultyServer, completion, reply, trained

from airflow_provider_gradient import __version__
from airflow_provider_gradient.api import InputSegment, InvalidRequestError, Sample

CREATED = reply(body={"id": MODEL_ID})


@pytest.mark.parametrize(
    ("operation", "args", "answer"),
    [
        ("complete", (MODEL_ID, "hello"), completion("yes")),
        ("list_models", (), reply(body={"models": []})),
        ("fine_tune", (MODEL_ID, [{"inputs": "text"}]), trained()),
    ],
)
def test_every_call_says_who_calls(connect, operation, args, answer):
    with FaultyServer(answer) as server:
        connect(base_url=server.url)(operation, *args)
    headers = server.requests[0].headers
    assert headers["authorization"] == f"Bearer {ACCESS_TOKEN}"
    assert headers["x-gradient-workspace-id"] == WORKSPACE_ID
    assert headers["accept"] == "application/json"
    assert headers["user-agent"] == f"airflow-provider-gradient/{__version__}"
    assert headers.get("content-type") == ("application/json" if args else None)


def test_a_completion_sends_what_was_given_and_nothing_else(connect):
    with FaultyServer(completion("yes")) as server:
        call = connect(base_url=server.url)
        call("complete", MODEL_ID, "plain")
        call(
            "complete",
            MODEL_ID,
            "Grüße, 世界\n",
            auto_template=False,
            max_generated_token_count=511,
            temperature=0,
            top_k=1,
            top_p=1,
            guidance=("yes", "no"),
        )
    plain, full = server.requests
    assert (plain.method, plain.path) == ("POST", f"/api/models/{MODEL_ID}/complete")
    assert plain.json() == {"query": "plain"}
    assert full.json() == {
        "query": "Grüße, 世界\n",
        "autoTemplate": False,
        "maxGeneratedTokenCount": 511,
        "temperature": 0,
        "topK": 1,
        "topP": 1,
        "guidance": {"type": "choice", "value": ["yes", "no"]},
    }


def test_the_other_operations_send_what_the_api_takes(connect):
    adapter = {
        "type": "modelAdapter",
        "id": MODEL_ID,
        "name": "n",
        "baseModelId": "b",
        "latestUpdateTime": "2024-05-06T07:08:09Z",
    }
    script = [reply(body={"models": []}), CREATED, CREATED, reply(body=adapter), reply()]
    with FaultyServer(*script) as server:
        call = connect(base_url=server.url)
        call("list_models", capability="fineTune")
        assert call("create_model_adapter", base_model_id="b", name="n") == MODEL_ID
        call("create_model_adapter", base_model_id="b", name="n", rank=32, learning_rate=0.5)
        call("get_model_adapter", MODEL_ID)
        call("delete_model", MODEL_ID)
    listed, plain, full, got, deleted = server.requests
    assert (listed.method, listed.path) == ("GET", "/api/models?capability=fineTune&onlyBase=false")
    assert (plain.method, plain.path) == ("POST", "/api/models")
    assert plain.json() == {"model": {"baseModelId": "b", "name": "n"}}
    assert full.json()["initialHyperparameters"] == {
        "loraHyperparameters": {"rank": 32},
        "trainingArguments": {"learningRate": 0.5},
    }
    assert (got.method, got.path) == ("GET", f"/api/models/{MODEL_ID}")
    assert (deleted.method, deleted.path) == ("DELETE", f"/api/models/{MODEL_ID}")


def test_samples_may_be_values_or_the_apis_json_in_either_spelling(connect):
    samples = [
        Sample(inputs=[InputSegment(value="Q", trainable=False), InputSegment(value="A")]),
        {"inputs": "text", "fineTuningParameters": {"multiplier": 2.5}},
        MappingProxyType({"inputs": "text", "fine_tuning_parameters": {"multiplier": 1}}),
    ]
    with FaultyServer(trained(tokens=4, loss=2.0)) as server:
        result = connect(base_url=server.url)("fine_tune", MODEL_ID, samples, idempotency_key="k")
    assert result.mean_loss == 0.5
    assert server.requests[0].headers["idempotency-key"] == "k"
    assert server.requests[0].json() == {
        "samples": [
            {"inputs": [{"value": "Q", "trainable": False}, {"value": "A"}]},
            {"inputs": "text", "fineTuningParameters": {"multiplier": 2.5}},
            {"inputs": "text", "fineTuningParameters": {"multiplier": 1}},
        ]
    }


def test_an_id_cannot_lead_to_another_path(connect):
    with FaultyServer(completion("yes")) as server:
        connect(base_url=server.url)("complete", "../models/ü?x=1#y", "hello")
    assert server.requests[0].path == "/api/models/..%2Fmodels%2F%C3%BC%3Fx%3D1%23y/complete"


LONG = "x" * 33
REFUSED = {
    "rank": ("create_model_adapter", {"base_model_id": "b", "name": "n", "rank": 64}, "rank.*32.*64"),
    "rank 0": ("create_model_adapter", {"base_model_id": "b", "name": "n", "rank": 0}, "rank"),
    "learning rate 1": (
        "create_model_adapter",
        {"base_model_id": "b", "name": "n", "learning_rate": 1.0},
        "learning_rate",
    ),
    "learning rate nan": (
        "create_model_adapter",
        {"base_model_id": "b", "name": "n", "learning_rate": math.nan},
        "learning_rate",
    ),
    "no name": ("create_model_adapter", {"base_model_id": "b", "name": ""}, "name"),
    "empty query": ("complete", {"model_id": "m", "query": ""}, "query"),
    "query of another type": ("complete", {"model_id": "m", "query": 5}, "query"),
    "lone surrogate": ("complete", {"model_id": "m", "query": "\ud800"}, "query"),
    "no model": ("complete", {"model_id": "", "query": "q"}, "model_id"),
    "dots": ("complete", {"model_id": "..", "query": "q"}, "model_id"),
    "512 tokens": (
        "complete",
        {"model_id": "m", "query": "q", "max_generated_token_count": 512},
        "max_generated_token_count.*511.*512",
    ),
    "temperature": ("complete", {"model_id": "m", "query": "q", "temperature": -1}, "temperature"),
    "top_k": ("complete", {"model_id": "m", "query": "q", "top_k": 0}, "top_k"),
    "top_p": ("complete", {"model_id": "m", "query": "q", "top_p": 1.1}, "top_p"),
    "11 choices": ("complete", {"model_id": "m", "query": "q", "guidance": ["x"] * 11}, "guidance.*10"),
    "no choice": ("complete", {"model_id": "m", "query": "q", "guidance": []}, "guidance"),
    "long choice": (
        "complete",
        {"model_id": "m", "query": "q", "guidance": ["a", LONG]},
        r"guidance.value\[1\]",
    ),
    "one string": ("complete", {"model_id": "m", "query": "q", "guidance": "yes"}, "guidance.*list"),
    "no samples": ("fine_tune", {"model_id": "m", "samples": []}, "samples"),
    "empty text": (
        "fine_tune",
        {"model_id": "m", "samples": [{"inputs": "x"}, {"inputs": ""}]},
        r"samples\[1\]",
    ),
    "unknown key": (
        "fine_tune",
        {"model_id": "m", "samples": [{"inputs": "x", "response": "y"}]},
        r"samples\[0\].response",
    ),
    "nothing trainable": (
        "fine_tune",
        {"model_id": "m", "samples": [{"inputs": [{"value": "x", "trainable": False}]}]},
        r"samples\[0\].*trainable",
    ),
    "no mapping": ("fine_tune", {"model_id": "m", "samples": ["text"]}, r"samples\[0\]"),
    "key": (
        "fine_tune",
        {"model_id": "m", "samples": [{"inputs": "x"}], "idempotency_key": "a\nb"},
        "idempotency_key",
    ),
    "capability": ("list_models", {"capability": "fine_tune"}, "capability.*fineTune"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_limit_is_named_and_not_sent(connect, case):
    operation, arguments, names = REFUSED[case]
    with FaultyServer() as server, pytest.raises(InvalidRequestError, match=names):
        connect(base_url=server.url)(operation, **arguments)
    assert server.connections == 0
