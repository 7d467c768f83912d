"""GradientEmbeddings: LangChain's standard tests, its parameters, its requests and its secrets."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from faults import ACCESS_TOKEN, WORKSPACE_ID, FaultyServer, reply
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from airflow_provider_gradient.api import InvalidRequestError, NotFoundError
from airflow_provider_gradient.client import GradientClient
from airflow_provider_gradient.langchain import GradientEmbeddings

HERE = {"gradient_access_token": ACCESS_TOKEN, "gradient_workspace_id": WORKSPACE_ID}


class TestStandardUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[GradientEmbeddings]:
        return GradientEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "bge-large", **HERE}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        variables = {
            "GRADIENT_ACCESS_TOKEN": ACCESS_TOKEN,
            "GRADIENT_WORKSPACE_ID": WORKSPACE_ID,
            "GRADIENT_API_URL": "https://gradient.example.com/api",
        }
        expected = {
            "gradient_workspace_id": WORKSPACE_ID,
            "gradient_api_url": "https://gradient.example.com/api",
        }
        return variables, {"model": "bge-large"}, expected


class TestStandardIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _server(self, gradient_environment: Any) -> None:
        """The real server's variables are set."""

    @property
    def embeddings_class(self) -> type[GradientEmbeddings]:
        return GradientEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "bge-large"}


def embeddings(server: FaultyServer | None = None, **fields: Any) -> GradientEmbeddings:
    url = server.url if server else "http://127.0.0.1:1"
    return GradientEmbeddings(**{"model": "a-model", "gradient_api_url": url, **HERE, **fields})


def counted(request):
    """Texts come back as vectors of their length and first character."""
    texts = [each["input"] for each in request.json()["inputs"]]
    found = [{"embedding": [len(text), ord(text[0])], "index": place} for place, text in enumerate(texts)]
    return reply(body={"embeddings": found})


def sent(server: FaultyServer) -> list[str]:
    return [each["input"] for request in server.requests for each in request.json()["inputs"]]


def test_a_vector_store_finds_the_nearest_text(gradient_environment):
    store = InMemoryVectorStore(GradientEmbeddings(model="bge-large"))
    store.add_texts(["The invoice was paid twice", "The charger is turquoise", "The office is in Bilbao"])
    (found,) = store.similarity_search("Which colour is the charger?", k=1)
    assert found.page_content == "The charger is turquoise"
    (found,) = asyncio.run(store.asimilarity_search("We paid that invoice twice", k=1))
    assert found.page_content == "The invoice was paid twice"


def test_the_parameters_of_the_published_class_work_unchanged():
    with FaultyServer(counted) as server:
        model = GradientEmbeddings(
            model="bge-large",
            gradient_workspace_id=WORKSPACE_ID,
            gradient_access_token=ACCESS_TOKEN,
            gradient_api_url=server.url,
            query_prompt_for_retrieval="Represent this:",
            client=None,
        )
        assert model.embed_query("abc") == [19.0, ord("R")]
        assert model.embed_documents(["abc"]) == [[3.0, ord("a")]]
    assert sent(server) == ["Represent this: abc", "abc"]
    assert {request.path for request in server.requests} == {"/api/embeddings/bge-large"}


def test_documents_go_in_requests_of_256_and_come_back_in_order():
    texts = [chr(97 + place % 26) * (place + 1) for place in range(600)]
    for embed in (GradientEmbeddings.embed_documents, GradientEmbeddings.aembed_documents):
        with FaultyServer(counted) as server:
            result = embed(embeddings(server), texts)
            found = asyncio.run(result) if asyncio.iscoroutine(result) else result
        assert found == [[len(text), ord(text[0])] for text in texts]
        assert sorted(len(request.json()["inputs"]) for request in server.requests) == [88, 256, 256]


def test_no_documents_need_no_request():
    with FaultyServer(counted) as server:
        assert embeddings(server).embed_documents([]) == []
        assert asyncio.run(embeddings(server).aembed_documents([])) == []
    assert server.connections == 0


def test_an_empty_text_is_named_and_nothing_is_sent():
    with FaultyServer(counted) as server:
        for call in (
            lambda model: model.embed_documents(["a"] * 300 + [""]),
            lambda model: asyncio.run(model.aembed_documents(["a"] * 300 + [""])),
        ):
            with pytest.raises(InvalidRequestError, match=r"inputs\[300\]: is empty"):
                call(embeddings(server))
        with pytest.raises(InvalidRequestError, match=r"inputs\[0\]: is empty"):
            embeddings(server).embed_query("")
    assert server.connections == 0


def test_an_unknown_model_names_those_there_are(gradient_environment):
    with pytest.raises(NotFoundError, match="this server has: bge-large"):
        GradientEmbeddings(model="bge-small").embed_query("a")


def test_a_client_gives_its_own_settings():
    with FaultyServer(counted) as server:
        client = GradientClient(access_token="other", workspace_id="other-workspace", base_url=server.url)
        model = GradientEmbeddings(model="m", client=client)
        model.embed_query("a")
        asyncio.run(model.aembed_query("a"))
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer other"}
    assert (model.gradient_workspace_id, model.gradient_api_url) == ("other-workspace", server.url)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"model": ""}, "model"), ({"modle": "x"}, "modle"), ({"gradient_access_token": " "}, "access_token")],
)
def test_what_is_wrong_is_said_at_construction_without_the_token(fields, words):
    with pytest.raises(ValueError, match=words) as refusal:
        embeddings(**fields)
    assert ACCESS_TOKEN not in str(refusal.value)


def test_the_token_is_in_no_text_form():
    model = embeddings()
    for text in (repr(model), str(model), model.model_dump_json(), repr(model.client)):
        assert ACCESS_TOKEN not in text


def test_copies_and_pickles_work():
    with FaultyServer(counted) as server:
        model = embeddings(server)
        model.embed_query("a")
        thawed = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
        for other in (copy.copy(model), copy.deepcopy(model), thawed):
            assert other.embed_query("abc") == [3.0, ord("a")]
