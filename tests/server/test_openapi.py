"""The server against its own OpenAPI: whatever fits it is answered, without a 5xx, as it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    "GET /api/models",
    "POST /api/models",
    "GET /api/models/{id}",
    "DELETE /api/models/{id}",
    "POST /api/models/{id}/complete",
    "POST /api/models/{id}/fine-tune",
    "POST /api/models/{id}/tokenize",
    "GET /api/embeddings",
    "POST /api/embeddings/{slug}",
    "GET /health",
    "GET /ready",
    "GET /metrics",
]


@pytest.fixture(scope="module")
def schema(random_server: Any) -> Any:
    return schemathesis.openapi.from_url(f"{random_server.url.removesuffix('/api')}/openapi.json")


def operation_of(schema: Any, label: str) -> Any:
    method, path = label.split()
    return schema[path][method]


def test_every_route_is_described(schema: Any) -> None:
    described = {result.ok().label for result in schema.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_fits_the_description_is_answered_as_it_says(
    label: str, schema: Any, random_server: Any, make_caller: Callable[[Any], Any]
) -> None:
    caller = make_caller(random_server)
    base, adapter = caller.base_id(), caller.create()
    operation = operation_of(schema, label)
    seen: set[int] = set()

    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), id=st.sampled_from([adapter, base, None]), known=st.booleans())
    def check(case: Any, id: str | None, known: bool) -> None:
        if "{id}" in label and id is not None and not label.startswith("DELETE"):
            case.path_parameters["id"] = id
        if "{slug}" in label and known:
            case.path_parameters["slug"] = "bge-large"
        if label == "POST /api/models" and known and isinstance(case.body, dict):
            case.body["model"]["baseModelId"] = base
        answer = case.call(headers=random_server.headers, timeout=120)  # the first embedding is slow
        case.validate_response(answer, checks=CHECKS)
        seen.add(answer.status_code)

    check()
    assert seen >= ({404} if "{" in label else set()) | (set() if label.startswith("DELETE") else {200}), seen


def test_what_breaks_the_description_is_refused_as_it_says(
    schema: Any, random_server: Any, make_caller: Callable[[Any], Any]
) -> None:
    base = make_caller(random_server).base_id()
    operation = operation_of(schema, "POST /api/models/{id}/complete")

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def check(case: Any) -> None:
        case.path_parameters["id"] = base
        answer = case.call(headers=random_server.headers, timeout=120)  # the first embedding is slow
        case.validate_response(answer, checks=CHECKS)

    check()


def test_refusals_by_token_and_workspace_are_described_too(schema: Any, random_server: Any) -> None:
    answers = schema["/api/models"]["GET"].definition.raw["responses"]
    assert {"401", "403", "429", "503"} <= set(answers)
    nobody = httpx.get(f"{random_server.url}/models")
    assert (nobody.status_code, set(nobody.json())) == (401, {"message"})
