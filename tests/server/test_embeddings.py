"""Operations 7 and 8 over HTTP, with the built-in model and with a BERT that is made here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradientai
import httpx
import numpy as np
import pytest
from gradientai.openapi.client.exceptions import NotFoundException
from typer.testing import CliRunner

from airflow_provider_gradient.api import ApiError, NotFoundError
from airflow_provider_gradient.client import AsyncGradientClient, GradientClient
from airflow_provider_gradient.server.__main__ import app
from airflow_provider_gradient.server.embeddings import EmbeddingsService, LexicalModel
from airflow_provider_gradient.server.sentence_model import SentenceModel

TEXTS = ["the red hen", "no", "the green hen said no to the bread"]


@pytest.fixture(scope="module")
def http(gradient_server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gradient_server.url, headers=gradient_server.headers, timeout=120) as http:
        yield http


def embed(http: httpx.Client, *texts: Any, slug: str = "bge-large") -> httpx.Response:
    return http.post(f"/embeddings/{slug}", json={"inputs": [{"input": text} for text in texts]})


@pytest.fixture(scope="module")
def bert_server(
    tmp_path_factory: pytest.TempPathFactory, server_process: Any, bert_directory: Path
) -> Iterator[Any]:
    option = f"--embeddings-model=mine={bert_directory}"
    server = server_process(tmp_path_factory.mktemp("embeddings") / "data", option)
    yield server
    assert server.stop() == 0, server.log()
    assert "Traceback" not in server.log(), server.log()


class TestTheWire:
    def test_the_built_in_model_is_listed(self, http: httpx.Client) -> None:
        assert http.get("/embeddings").json() == {"embeddingsModels": [{"slug": "bge-large"}]}

    def test_each_text_has_its_vector_and_its_place(self, http: httpx.Client) -> None:
        answer = embed(http, *TEXTS)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        found = answer.json()["embeddings"]
        assert [set(each) for each in found] == [{"embedding", "index"}] * 3
        assert [each["index"] for each in found] == [0, 1, 2]
        expected = LexicalModel().embed(TEXTS)
        assert (np.array([each["embedding"] for each in found], np.float32) == expected).all()

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({}, "inputs: Field required"),
            ({"inputs": []}, "inputs: List should have at least 1 item"),
            ({"inputs": [{"input": "a"}, {"input": ""}]}, "inputs[1].input: String should have at least 1"),
            ({"inputs": [{"input": "a"}] * 257}, "inputs: List should have at most 256 items"),
            ({"inputs": ["a"]}, "inputs[0]: "),
            ({"inputs": [{"input": 5}]}, "inputs[0].input: "),
            ({"inputs": [{"input": None}]}, "inputs[0].input: "),
            ({"inputs": [{"input": "a"}], "model": "x"}, "model: Extra inputs are not permitted"),
        ],
    )
    def test_a_body_that_is_wrong_is_a_message_that_names_the_field(
        self, http: httpx.Client, body: Any, said: str
    ) -> None:
        answer = http.post("/embeddings/bge-large", json=body)
        assert answer.status_code == 400
        assert set(answer.json()) == {"message"}
        assert said in answer.json()["message"]

    def test_a_body_that_is_no_json_is_said(self, http: httpx.Client) -> None:
        answer = http.post("/embeddings/bge-large", content=b"{")
        assert (answer.status_code, set(answer.json())) == (400, {"message"})
        assert "JSON" in answer.json()["message"]

    def test_an_unknown_slug_is_answered_with_the_slugs_there_are(self, http: httpx.Client) -> None:
        answer = embed(http, "a", slug="bge-small")
        assert answer.status_code == 404
        assert answer.json() == {
            "message": "there is no embeddings model 'bge-small' here; this server has: bge-large"
        }

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_callers_need_their_token_and_workspace(self, gradient_server: Any, method: str) -> None:
        url = gradient_server.url + "/embeddings" + ("" if method == "GET" else "/bge-large")
        assert httpx.request(method, url, json={}).status_code == 401
        other = gradient_server.headers | {"x-gradient-workspace-id": "another"}
        assert httpx.request(method, url, json={}, headers=other).status_code == 403

    def test_many_callers_at_once_all_get_their_own(self, http: httpx.Client) -> None:
        def vectors(number: int) -> bool:
            texts = [f"text {number}/{place}" for place in range(number % 7 + 1)]
            found = [each["embedding"] for each in embed(http, *texts).json()["embeddings"]]
            return bool((np.array(found, np.float32) == expected.embed(texts)).all())

        expected = LexicalModel()
        expected.embed(["ready"])
        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(vectors, range(64)))


class TestOurClients:
    def test_a_long_list_comes_back_in_order(
        self, client: GradientClient, async_client: Callable[[], AsyncGradientClient]
    ) -> None:
        texts = [f"text number {number}" for number in range(700)]
        expected = LexicalModel().embed(texts)
        assert [model.slug for model in client.list_embeddings_models()] == ["bge-large"]
        assert (np.array(client.embed("bge-large", texts), np.float32) == expected).all()

        async def embed() -> list[list[float]]:
            async with async_client() as other:
                return await other.embed("bge-large", texts)

        assert (np.array(asyncio.run(embed()), np.float32) == expected).all()

    def test_an_unknown_slug_names_those_there_are(self, client: GradientClient) -> None:
        with pytest.raises(NotFoundError, match="this server has: bge-large"):
            client.embed("bge-small", ["a"])


class TestThePublishedSdk:
    @pytest.fixture
    def gradient(self, gradient_server: Any) -> gradientai.Gradient:
        return gradientai.Gradient(
            access_token=gradient_server.access_token,
            workspace_id=gradient_server.workspace_id,
            host=gradient_server.url,
        )

    def test_it_embeds_a_few_and_many(self, gradient: gradientai.Gradient) -> None:
        assert [model.slug for model in gradient.list_embeddings_models()] == ["bge-large"]
        model = gradient.get_embeddings_model(slug="bge-large")
        texts = [f"text number {number}" for number in range(600)]
        expected = LexicalModel().embed(texts)
        for count in (2, 600):
            found = model.embed(inputs=[{"input": text} for text in texts[:count]]).embeddings
            assert [each.index for each in found] == list(range(count))
            assert (np.array([each.embedding for each in found], np.float32) == expected[:count]).all()
        awaited = asyncio.run(model.aembed(inputs=[{"input": "text number 0"}])).embeddings
        assert (np.array(awaited[0].embedding, np.float32) == expected[0]).all()

    def test_an_unknown_slug_is_the_error_that_it_knows(self, gradient: gradientai.Gradient) -> None:
        model = gradient.get_embeddings_model(slug="bge-large")
        model._slug = "bge-small"
        with pytest.raises(NotFoundException, match="this server has: bge-large"):
            model.embed(inputs=[{"input": "a"}])


class TestLocalModels:
    def test_one_is_served_beside_the_built_in_one(self, bert_server: Any, bert_directory: Path) -> None:
        with httpx.Client(base_url=bert_server.url, headers=bert_server.headers, timeout=120) as http:
            listed = http.get("/embeddings").json()["embeddingsModels"]
            assert [model["slug"] for model in listed] == ["bge-large", "mine"]
            texts = [*TEXTS, *(f"hen number {number}" for number in range(90))]
            found = [each["embedding"] for each in embed(http, *texts, slug="mine").json()["embeddings"]]
            expected = SentenceModel.load("mine", bert_directory).embed(texts)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert len(embed(http, "no").json()["embeddings"][0]["embedding"]) == 1024

    def test_one_can_take_the_built_in_ones_place(self, bert_directory: Path) -> None:
        service = EmbeddingsService({"bge-large": bert_directory}, threads=1)
        assert service.slugs == ["bge-large"]
        assert b'"index":0' in service.embed("bge-large", ["no"]).result()
        service.stop()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["mine"], "--embeddings-model mine: must be two names with '=' between them"),
            (["m=/nowhere"], "--embeddings-model m=/nowhere: no model directory"),
            (["a b=/somewhere"], "slug 'a b'"),
            (["m=/a", "m=/b"], "'m' is given twice"),
        ],
    )
    def test_options_that_make_no_sense_are_named(
        self, options: list[str], said: str, tmp_path: Path
    ) -> None:
        given = [part for option in options for part in ("--embeddings-model", option)]
        result = CliRunner().invoke(app, ["--data-dir", str(tmp_path), *given])
        assert result.exit_code == 1
        assert said in result.stderr


def test_a_server_that_stops_answers_every_request_under_way(start_server: Callable[..., Any]) -> None:
    server = start_server()
    body = {"inputs": [{"input": f"text {number} of many " * 20} for number in range(256)]}
    url = f"{server.url}/embeddings/bge-large"

    def status(_: int) -> tuple[int, dict[str, Any]]:
        answer = httpx.post(url, json=body, headers=server.headers, timeout=120)
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(24) as threads:
        under_way = threads.map(status, range(24))
        assert next(under_way)[0] == 200
        assert server.stop() == 0
        rest = list(under_way)
    refused = [answer for code, answer in rest if code == 503]
    assert all(code in (200, 503) for code, _ in rest)
    assert all(answer == {"message": "the server is stopping"} for answer in refused)
    assert "Traceback" not in server.log()


def test_a_service_that_has_stopped_takes_nothing_new() -> None:
    service = EmbeddingsService({}, threads=1)
    service.stop()
    with pytest.raises(ApiError, match="stopping"):
        service.embed("bge-large", ["text"])
