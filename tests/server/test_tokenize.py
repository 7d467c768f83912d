"""The tokens that a model reads for a text, as the server tells them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from transformers import AutoTokenizer

from airflow_provider_gradient.api import MAX_TOKENIZED_CHARACTERS
from airflow_provider_gradient.server.catalogue import new_adapter_id

if TYPE_CHECKING:
    from tests.server.conftest import CONTEXT, Caller
else:
    from tests.server.conftest import CONTEXT


def tokenize(caller: Caller, model_id: str, **body: Any) -> httpx.Response:
    return caller.http.post(f"/models/{model_id}/tokenize", json=body)


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_a_text_has_the_tokens_of_the_models_own_tokenizer(
    slug: str, caller: Caller, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(f"{slug}_directory")
    text = "the red hen said no, \u00e9t\u00e9 \U0001f600 <s> "
    expected = AutoTokenizer.from_pretrained(directory)(text).input_ids
    for model in (caller.base_id(slug), caller.create(slug)):
        answer = tokenize(caller, model, query=text, autoTemplate=False)
        assert answer.json() == {"count": len(expected), "tokens": expected, "contextLength": CONTEXT}


@pytest.mark.parametrize("template", [{}, {"autoTemplate": None}, {"autoTemplate": False}])
def test_the_count_is_the_prompt_tokens_of_a_completion(template: dict[str, Any], caller: Caller) -> None:
    model = caller.base_id()
    completion = caller.complete(model, "the red hen", maxGeneratedTokenCount=1, **template)
    counted = tokenize(caller, model, query="the red hen", **template).json()["count"]
    assert counted == completion["usage"]["promptTokens"]


def test_texts_longer_than_the_context_are_counted_up_to_a_limit(caller: Caller) -> None:
    model = caller.base_id()
    counted = tokenize(caller, model, query="hen " * 5000, autoTemplate=False).json()
    assert counted["count"] == len(counted["tokens"]) > 5000 > CONTEXT
    refusal = tokenize(caller, model, query="h" * (MAX_TOKENIZED_CHARACTERS + 1))
    assert (refusal.status_code, refusal.json()["type"]) == (400, "bodyParsingError")
    assert str(MAX_TOKENIZED_CHARACTERS) in refusal.json()["message"]


def test_what_is_wrong_is_answered_as_elsewhere(caller: Caller, random_server: Any) -> None:
    model = caller.base_id()
    for body in ({}, {"query": ""}, {"prompt": "hen"}, {"query": "hen", "more": 1}):
        assert tokenize(caller, model, **body).json()["type"] == "bodyParsingError"
    unknown = tokenize(caller, new_adapter_id(), query="hen")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "unknownModelAdapter")
    assert tokenize(caller, "short", query="hen").json()["type"] == "queryOrPathParsingError"
    url = f"{random_server.url}/models/{model}/tokenize"
    assert httpx.post(url, json={"query": "hen"}).status_code == 401
    elsewhere = random_server.headers | {"x-gradient-workspace-id": "another"}
    assert httpx.post(url, json={"query": "hen"}, headers=elsewhere).status_code == 403
