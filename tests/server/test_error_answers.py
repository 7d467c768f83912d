"""Every way a request can be wrong, and what the server says to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Caller

NO_BASE = "00000000-0000-4000-8000-000000000000_base_ml_model"
NO_ADAPTER = "00000000-0000-4000-8000-000000000000_model_adapter"


def create_body(base_id: str = NO_BASE, **hyperparameters: Any) -> dict[str, Any]:
    model = {"baseModelId": base_id, "name": "n"}
    return {"model": model, "initialHyperparameters": hyperparameters or None}


WRONG_BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("complete", {}, "query"),
    ("complete", {"query": ""}, "query"),
    ("complete", {"query": None}, "query"),
    ("complete", {"query": 5}, "query"),
    ("complete", {"query": "q", "maxGeneratedTokenCount": 0}, "maxGeneratedTokenCount"),
    ("complete", {"query": "q", "maxGeneratedTokenCount": 512}, "maxGeneratedTokenCount"),
    ("complete", {"query": "q", "maxGeneratedTokenCount": 2.5}, "maxGeneratedTokenCount"),
    ("complete", {"query": "q", "temperature": -0.1}, "temperature"),
    ("complete", {"query": "q", "topK": 0}, "topK"),
    ("complete", {"query": "q", "topP": 0}, "topP"),
    ("complete", {"query": "q", "topP": 1.5}, "topP"),
    ("complete", {"query": "q", "autoTemplate": "yes"}, "autoTemplate"),
    ("complete", {"query": "q", "max_tokens": 5}, "max_tokens"),
    ("complete", {"query": "q", "guidance": {"type": "cho", "value": ["a"]}}, "guidance.type"),
    ("complete", {"query": "q", "guidance": {"type": "choice", "value": []}}, "guidance.value"),
    ("complete", {"query": "q", "guidance": {"type": "choice", "value": ["a"] * 11}}, "guidance.value"),
    ("complete", {"query": "q", "guidance": {"type": "choice", "value": ["a" * 33]}}, "guidance.value[0]"),
    ("fine-tune", {"samples": []}, "samples"),
    ("fine-tune", {"samples": [{"inputs": ""}]}, "samples[0].inputs"),
    ("fine-tune", {"samples": [{"inputs": []}]}, "samples[0].inputs"),
    ("fine-tune", {"samples": [{"inputs": "a"}, {"inputs": "q", "response": "r"}]}, "samples[1].response"),
    ("fine-tune", {"samples": [{"inputs": [{"value": ""}]}]}, "samples[0].inputs[0].value"),
    (
        "fine-tune",
        {"samples": [{"inputs": "a", "fineTuningParameters": {"multiplier": 0}}]},
        "samples[0].fineTuningParameters.multiplier",
    ),
    (
        "create",
        create_body(loraHyperparameters={"rank": 64}),
        "initialHyperparameters.loraHyperparameters.rank",
    ),
    (
        "create",
        create_body(trainingArguments={"learningRate": 1}),
        "initialHyperparameters.trainingArguments.learningRate",
    ),
    ("create", {"model": {"baseModelId": NO_BASE}}, "model.name"),
]


def path_of(operation: str, model_id: str) -> str:
    return "/models" if operation == "create" else f"/models/{model_id}/{operation}"


@pytest.mark.parametrize(("operation", "body", "field"), WRONG_BODIES, ids=lambda value: str(value)[:60])
def test_a_wrong_body_is_a_body_parsing_error_that_names_the_field(
    operation: str, body: dict[str, Any], field: str, caller: Caller
) -> None:
    response = caller.http.post(path_of(operation, NO_ADAPTER), json=body)
    error = response.json()
    assert (response.status_code, error["type"]) == (400, "bodyParsingError")
    assert field in error["message"]
    assert field in error["payload"]["formattedValidationError"]
    assert error["payload"]["validationError"]


@pytest.mark.parametrize("operation", ["create", "complete", "fine-tune"])
@pytest.mark.parametrize("body", [b"", b"{not json", b"[]", b'"text"', b"\xff\xfe", b'{"query": "\\ud800"}'])
def test_a_body_that_is_no_json_object_is_a_body_parsing_error(
    operation: str, body: bytes, caller: Caller
) -> None:
    response = caller.http.post(path_of(operation, NO_ADAPTER), content=body)
    assert (response.status_code, response.json()["type"]) == (400, "bodyParsingError")
    assert "body" in response.json()["message"]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"capability": "all"}, "capability"),
        ({"capability": ""}, "capability"),
        ({"onlyBase": "yes"}, "onlyBase"),
        ({"onlyBase": "1"}, "onlyBase"),
    ],
)
def test_a_wrong_query_parameter_is_named(query: dict[str, str], name: str, caller: Caller) -> None:
    response = caller.http.get("/models", params=query)
    error = response.json()
    assert (response.status_code, error["type"]) == (400, "queryOrPathParsingError")
    assert error["message"].startswith(f"{name}:")
    assert error["payload"]["validationError"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/complete"), ("POST", "/fine-tune")],
)
def test_an_id_of_another_length_is_a_path_error(method: str, path: str, caller: Caller) -> None:
    response = caller.http.request(method, f"/models/tiny{path}", json={"query": "q"})
    assert (response.status_code, response.json()["type"]) == (400, "queryOrPathParsingError")
    assert "50" in response.json()["message"]


def test_an_unknown_model_is_404_with_its_type(caller: Caller) -> None:
    completion, samples = {"query": "q"}, {"samples": [{"inputs": "a"}]}
    found = {
        "get": caller.http.get(f"/models/{NO_ADAPTER}"),
        "delete": caller.http.delete(f"/models/{NO_ADAPTER}"),
        "complete": caller.http.post(f"/models/{NO_ADAPTER}/complete", json=completion),
        "fine-tune": caller.http.post(f"/models/{NO_ADAPTER}/fine-tune", json=samples),
        "complete by base": caller.http.post(f"/models/{NO_BASE}/complete", json=completion),
        "create": caller.http.post("/models", json=create_body(NO_BASE)),
    }
    adapter, base = (404, "unknownModelAdapter"), (404, "unknownBaseModel")
    assert {name: (answer.status_code, answer.json()["type"]) for name, answer in found.items()} == {
        "get": adapter,
        "delete": adapter,
        "complete": adapter,
        "fine-tune": adapter,
        "complete by base": base,
        "create": base,
    }
    assert "tiny, llama, gpt2" in found["create"].json()["message"], "it names the slugs there are"


def test_a_base_model_is_not_read_deleted_or_fine_tuned(caller: Caller) -> None:
    base_id = caller.base_id()
    assert caller.http.get(f"/models/{base_id}").status_code == 404
    assert caller.http.delete(f"/models/{base_id}").status_code == 404
    refused = caller.http.post(f"/models/{base_id}/fine-tune", json={"samples": [{"inputs": "a"}]})
    assert (refused.status_code, refused.json()["type"]) == (400, "modelIncapableOfFineTuning")
    assert caller.complete(base_id, "still there")


@pytest.mark.parametrize(
    ("auto_template", "type"),
    [(None, "unknownRagCollection"), (True, "unknownRagCollection"), (False, "ragRequiresAutoTemplating")],
)
def test_retrieval_is_refused_by_the_type_it_has(
    auto_template: bool | None, type: str, caller: Caller
) -> None:
    body = {"query": "q", "rag": {"collectionId": "c"}, "autoTemplate": auto_template}
    response = caller.http.post(f"/models/{caller.base_id()}/complete", json=body)
    assert (response.status_code, response.json()["type"]) == (400, type)


def test_a_query_longer_than_the_context_is_unprocessable_and_both_lengths_are_told(caller: Caller) -> None:
    body = {"query": "the red hen " * 200, "autoTemplate": False}
    response = caller.http.post(f"/models/{caller.base_id()}/complete", json=body)
    error = response.json()
    assert (response.status_code, error["type"]) == (400, "unprocessableContent")
    assert "128" in error["message"]
    assert "602 tokens" in error["message"]


def test_a_completion_stops_where_the_context_ends(caller: Caller) -> None:
    query = "the red hen " * 41
    answer = caller.complete(caller.base_id(), query, maxGeneratedTokenCount=500)
    usage = answer["usage"]
    assert answer["finishReason"] == "length" or usage["completionTokens"] < 500
    assert usage["promptTokens"] + usage["completionTokens"] <= 128


def test_a_sample_longer_than_the_context_or_with_nothing_to_learn_is_named(caller: Caller) -> None:
    adapter = caller.create()
    nothing = {"inputs": [{"value": "context", "trainable": False}]}
    for bad in ({"inputs": "the red hen " * 200}, nothing):
        body = {"samples": [{"inputs": "fine"}, bad]}
        response = caller.http.post(f"/models/{adapter}/fine-tune", json=body)
        assert (response.status_code, response.json()["type"]) == (400, "unprocessableContent")
        assert "samples[1]" in response.json()["message"]
        assert "reads at most 128" in response.json()["message"] or bad is nothing
    assert caller.complete(adapter, "q")["modelVersion"] == 0


def test_a_fine_tune_that_diverges_is_refused_and_the_adapter_stays_as_it_was(caller: Caller) -> None:
    body = create_body(caller.base_id(), trainingArguments={"learningRate": 0.9})
    adapter = caller.http.post("/models", json=body).json()["id"]
    first = caller.fine_tune(adapter, "the red hen")
    assert first["modelVersion"] == 1
    before = caller.complete(adapter, "the red")
    sample = {"inputs": "the green hen", "fineTuningParameters": {"multiplier": 1e300}}
    response = caller.http.post(f"/models/{adapter}/fine-tune", json={"samples": [sample] * 2})
    assert (response.status_code, response.json()["type"]) == (400, "nanLoss")
    assert "rolled back to version 1" in response.json()["message"]
    assert caller.complete(adapter, "the red") == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/models/", 404), ("PATCH", "/models", 405), ("PUT", "/models", 405)],
)
def test_a_route_that_is_not_there_is_said_in_json(
    method: str, path: str, status: int, caller: Caller
) -> None:
    response = caller.http.request(method, path)
    assert response.status_code == status
    assert set(response.json()) == {"message"}
