"""Requests that published clients really sent, replayed as they were: header for header, explicit nulls,
``onlyBase=True``.

``wire/*.jsonl`` holds the recorded requests of operations 1 to 8, one a line, in the order they were
sent. Only the token, the workspace and the ids are replaced by those of the server under test.
"""

from __future__ import annotations

import http.client
import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Caller

RECORDINGS = sorted((Path(__file__).parent / "wire").glob("*.jsonl"))
BASE_ID = re.compile(r"[0-9a-f-]{36}_base_ml_model")
ADAPTER_ID = re.compile(r"[0-9a-f-]{36}_model_adapter")


class Replay:
    """Sends recorded requests; the adapters the server makes stand in for the recorded ones, in order."""

    def __init__(self, caller: Caller) -> None:
        self.server = caller.server
        self.base_id = caller.base_id()
        self.created: list[str] = []
        self.recorded: list[str] = []

    def send(self, recorded: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path = self._with_ids(recorded["path"]) + (f"?{recorded['query']}" if recorded["query"] else "")
        body = self._with_ids(json.dumps(recorded["body"])).encode() if recorded["body"] is not None else None
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=120)
        connection.putrequest(recorded["method"], path, skip_accept_encoding=True)
        for name, value in recorded["headers"]:
            connection.putheader(name, self._header(name.lower(), value, body))
        connection.endheaders(body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if recorded["path"].endswith("/models") and recorded["method"] == "POST":
            self.created.append(answer["id"])
        return response.status, answer

    def _header(self, name: str, value: str, body: bytes | None) -> str:
        return {
            "authorization": self.server.headers["Authorization"],
            "x-gradient-workspace-id": self.server.workspace_id,
            "content-length": str(len(body or b"")),
        }.get(name, value)

    def _with_ids(self, text: str) -> str:
        return ADAPTER_ID.sub(lambda match: self._stand_in(match[0]), BASE_ID.sub(self.base_id, text))

    def _stand_in(self, recorded: str) -> str:
        if recorded not in self.recorded:
            self.recorded.append(recorded)
        return self.created[self.recorded.index(recorded)]


def operation(recorded: dict[str, Any]) -> str:
    *_, kind, last = recorded["path"].split("/")
    named = last in ("models", "complete", "fine-tune", "embeddings")
    other = "{slug}" if kind == "embeddings" else "{id}"
    return f"{recorded['method']} {last if named else other}"


def check_answer(recorded: dict[str, Any], answer: dict[str, Any], base_id: str) -> None:
    """What the operation's answer must have, field by field."""
    match operation(recorded):
        case "GET models":
            bases = [model for model in answer["models"] if model["type"] == "baseModel"]
            assert base_id in [model["id"] for model in bases]
            for model in bases:
                assert len(model["id"]) == 50
                assert model["name"]
                assert model["slug"]
                able = ["complete"] if model["slug"] == "fixed" else ["complete", "fineTune"]
                assert model["capabilities"] == able
            only_base = recorded["query"].lower().endswith("onlybase=true")
            assert only_base <= (len(bases) == len(answer["models"]))
        case "POST models":
            assert ADAPTER_ID.fullmatch(answer["id"])
        case "GET {id}":
            assert set(answer) == {"type", "id", "name", "baseModelId", "latestUpdateTime"}
            assert answer["type"] == "modelAdapter"
            assert answer["baseModelId"] == base_id
            assert datetime.fromisoformat(answer["latestUpdateTime"]).tzinfo is not None
        case "DELETE {id}":
            assert answer == {}
        case "POST complete":
            assert isinstance(answer["generatedOutput"], str)
            assert answer["finishReason"] in ("stop", "length")
            guidance = recorded["body"].get("guidance")
            assert not guidance or answer["generatedOutput"] in guidance["value"]
        case "POST fine-tune":
            assert answer["numberOfTrainableTokens"] > 0
            assert answer["sumLoss"] > 0
        case "GET embeddings":
            assert {"slug": "bge-large"} in answer["embeddingsModels"]
        case "POST {slug}":
            vectors = [each["embedding"] for each in answer["embeddings"]]
            assert [len(vector) for vector in vectors] == [1024] * len(recorded["body"]["inputs"])
            assert [each["index"] for each in answer["embeddings"]] == list(range(len(vectors)))


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_what_a_published_client_sent_is_answered(recording: Path, caller: Caller) -> None:
    requests = [json.loads(line) for line in recording.read_text().splitlines()]
    models = {"GET models", "POST models", "GET {id}", "DELETE {id}", "POST complete", "POST fine-tune"}
    embeddings = {"GET embeddings", "POST {slug}"}
    first_sdk = recording.stem == "py_sdk_1_0_0"  # it knew no embeddings
    assert {operation(request) for request in requests} == models | (set() if first_sdk else embeddings)
    replay = Replay(caller)
    for request in requests:
        status, answer = replay.send(request)
        if request["body"] and request["body"].get("rag"):
            assert (status, answer["type"]) == (400, "unknownRagCollection")
            continue
        assert status == 200, (request, answer)
        check_answer(request, answer, replay.base_id)
    assert len(replay.created) == 2


def test_a_client_that_omits_every_optional_field_gets_what_explicit_nulls_get(caller: Caller) -> None:
    base_id = caller.base_id()
    optional = ("autoTemplate", "maxGeneratedTokenCount", "temperature", "topK", "topP", "guidance", "rag")
    absent = caller.complete(base_id, "the red hen")
    assert caller.complete(base_id, "the red hen", **dict.fromkeys(optional)) == absent


def test_a_chunked_body_is_read(caller: Caller) -> None:
    chunks = iter([b'{"query": "the re', b'd hen", "maxGener', b'atedTokenCount": 3}'])
    response = caller.http.post(f"/models/{caller.base_id()}/complete", content=chunks)
    assert response.json() == caller.complete(caller.base_id(), "the red hen", maxGeneratedTokenCount=3)
