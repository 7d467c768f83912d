"""Tokens and workspaces: who gets in, and that no secret gets out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Caller

SOME_ID = "00000000-0000-4000-8000-000000000000_model_adapter"
OPERATIONS = [
    ("GET", "/models"),
    ("POST", "/models"),
    ("GET", f"/models/{SOME_ID}"),
    ("DELETE", f"/models/{SOME_ID}"),
    ("POST", f"/models/{SOME_ID}/complete"),
    ("POST", f"/models/{SOME_ID}/fine-tune"),
]


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_wants_the_token(method: str, path: str, random_server: Any) -> None:
    url, headers = random_server.url + path, random_server.headers
    token = random_server.access_token
    wrong = ["", "Bearer", f"Basic {token}", token, f"Bearer {token}x", f"Bearer {token[:-1]}"]
    answers = [httpx.request(method, url, headers=headers | {"Authorization": value}) for value in wrong]
    answers.append(httpx.request(method, url, headers=without(headers, "Authorization")))
    for answer in answers:
        assert answer.status_code == 401
        assert answer.json()["message"]
        assert token not in answer.text


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_wants_the_tokens_workspace(method: str, path: str, random_server: Any) -> None:
    url, headers = random_server.url + path, random_server.headers
    name = "x-gradient-workspace-id"
    answers = [
        httpx.request(method, url, headers=headers | {name: value}) for value in ("", "other_workspace")
    ]
    answers.append(httpx.request(method, url, headers=without(headers, name)))
    for answer in answers:
        assert answer.status_code == 403
        assert "workspace" in answer.json()["message"]


def test_header_names_may_be_in_lower_case_and_the_scheme_in_any(random_server: Any) -> None:
    headers = {
        "authorization": f"bearer {random_server.access_token}",
        "X-GRADIENT-WORKSPACE-ID": random_server.workspace_id,
    }
    assert httpx.get(f"{random_server.url}/models", headers=headers).status_code == 200


def test_health_needs_no_token_and_tells_no_secret(random_server: Any) -> None:
    answer = httpx.get(f"{random_server.url.removesuffix('/api')}/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["version"]
    assert answer.json()["models"] == ["tiny", "llama", "gpt2", "fixed", "llama2-7b-chat"]
    assert random_server.access_token not in answer.text
    assert random_server.workspace_id not in answer.text


def test_neither_the_token_nor_a_prompt_is_in_the_log(random_server: Any, caller: Caller) -> None:
    caller.complete(caller.base_id(), "a very private question")
    caller.fine_tune(caller.create(), "a very private sample")
    assert "fine-tuned" in random_server.log()
    assert "very private" not in random_server.log()
    assert random_server.access_token not in random_server.log() + random_server.ready_line


def test_the_records_hold_no_token(random_server: Any) -> None:
    for path in random_server.data_dir.glob("gradient.db*"):
        assert random_server.access_token.encode() not in path.read_bytes()
