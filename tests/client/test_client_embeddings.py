"""Embeddings: what goes over the wire, how long lists are divided, and which answers are believed."""

from __future__ import annotations

import json
import threading

import pytest
from faults import FaultyServer, Received, error, reply

from airflow_provider_gradient.api import (
    EmbeddingsModelInfo,
    InvalidRequestError,
    InvalidResponseError,
    NotFoundError,
)


def vectors(request: Received, *, wait: float = 0.0):
    """Texts that are numbers come back as vectors of them."""
    texts = [each["input"] for each in request.json()["inputs"]]
    found = [{"embedding": [float(text), 0.5], "index": index} for index, text in enumerate(texts)]
    return reply(body={"embeddings": found}, wait=wait)


def test_texts_are_sent_as_the_api_takes_them(connect):
    with FaultyServer(vectors) as server:
        answer = connect(base_url=server.url)("embed", "a model/ü", ["1", "2"])
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/api/embeddings/a%20model%2F%C3%BC")
    assert request.json() == {"inputs": [{"input": "1"}, {"input": "2"}]}
    assert answer == [[1.0, 0.5], [2.0, 0.5]]


def test_the_models_are_listed(connect):
    with FaultyServer(reply(body={"embeddingsModels": [{"slug": "bge-large", "new": 1}]})) as server:
        listed = connect(base_url=server.url)("list_embeddings_models")
    assert listed == [EmbeddingsModelInfo(slug="bge-large")]
    assert (server.requests[0].method, server.requests[0].path) == ("GET", "/api/embeddings")


@pytest.mark.parametrize(("texts", "sizes"), [(256, [256]), (257, [1, 256]), (1000, [232, 256, 256, 256])])
def test_a_request_holds_256_texts_and_the_order_is_kept(connect, texts, sizes):
    with FaultyServer(vectors) as server:
        answer = connect(base_url=server.url)("embed", "m", [str(number) for number in range(texts)])
    assert sorted(len(request.json()["inputs"]) for request in server.requests) == sizes
    assert answer == [[float(number), 0.5] for number in range(texts)]


def test_at_most_eight_requests_of_one_list_are_under_way(connect):
    eight = threading.Event()

    def act(request: Received):
        if server.most_in_flight >= 8:
            eight.set()
        eight.wait(20)
        return vectors(request, wait=0.05)

    with FaultyServer(act) as server:
        answer = connect(base_url=server.url)("embed", "m", ["7"] * (256 * 20))
    assert len(answer) == 256 * 20
    assert server.most_in_flight == 8


def test_an_error_of_one_request_is_the_error_of_the_list(connect):
    def act(request: Received):
        return error(404, "no such model") if b'"300"' in request.body else vectors(request)

    with FaultyServer(act) as server, pytest.raises(NotFoundError, match="no such model"):
        connect(base_url=server.url)("embed", "m", [str(number) for number in range(600)])


def test_a_request_is_repeated_after_trouble(connect):
    with FaultyServer(error(503, "busy"), vectors) as server:
        assert connect(base_url=server.url)("embed", "m", ["3"]) == [[3.0, 0.5]]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("slug", "inputs", "words"),
    [
        ("m", [], "inputs: at least one text"),
        ("m", "a text", "inputs: a list of texts, not one string"),
        ("m", ["1", ""], r"inputs\[1\]: is empty"),
        ("m", ["1"] * 500 + [""], r"inputs\[500\]: is empty"),
        ("m", ["1", None], r"inputs\[1\]: a text \(got NoneType\)"),
        ("m", ["1", "\ud800"], r"inputs\[1\]: holds half a surrogate"),
        ("", ["1"], "slug: the slug of an embeddings model"),
        ("..", ["1"], "slug: the slug of an embeddings model"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_sent(connect, slug, inputs, words):
    with FaultyServer(vectors) as server, pytest.raises(InvalidRequestError, match=words):
        connect(base_url=server.url)("embed", slug, inputs)
    assert server.connections == 0


@pytest.mark.parametrize(
    "embeddings",
    [
        [],
        [([1.0], 0)],
        [([1.0], 0), ([1.0], 1), ([1.0], 2)],
        [([1.0], 1), ([1.0], 0)],
        [([1.0], 0), ([1.0], 0)],
        [([1.0], 0), ([1.0, 2.0], 1)],
        [([], 0), ([], 1)],
        [([1.0], 0), ([float("nan")], 1)],
        [([1.0], 0), (["1"], 1.5)],
    ],
    ids=json.dumps,
)
def test_an_answer_that_does_not_fit_the_texts_is_refused(connect, embeddings):
    body = {"embeddings": [{"embedding": vector, "index": index} for vector, index in embeddings]}
    with FaultyServer(reply(body=body)) as server, pytest.raises(InvalidResponseError):
        connect(base_url=server.url)("embed", "m", ["1", "2"])


def test_vectors_of_two_lengths_are_refused_across_requests_too(connect):
    def act(request: Received):
        found = [
            {"embedding": [0.0] * (2 if b'"300"' in request.body else 3), "index": index}
            for index in range(len(request.json()["inputs"]))
        ]
        return reply(body={"embeddings": found})

    with FaultyServer(act) as server, pytest.raises(InvalidResponseError, match=r"\[2, 3\]"):
        connect(base_url=server.url)("embed", "m", [str(number) for number in range(400)])
