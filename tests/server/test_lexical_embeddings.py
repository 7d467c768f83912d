"""The built-in embeddings model: what it knows, what it does not, and that its vectors stay the same."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from airflow_provider_gradient.server.embeddings import LexicalModel

MARGIN = 0.35
"""By so much the cosine of related texts exceeds that of unrelated ones, in each of the cases below."""
PINNED = {8: 0.06523, 11: -0.06523, 20: -0.13047, 21: -0.06523}
"""Of "Grüße, world". Vectors that people have stored are worth nothing once these differ."""
RELATED_AND_NOT = [
    ("How do I reset my password?", "I forgot my password and want to reset it", "Where can I buy a bike?"),
    (
        "The invoice was paid twice",
        "We were invoiced twice and paid both invoices",
        "The cat sleeps in the sun",
    ),
    (
        "Ship the order to Berlin",
        "The order was shipped to Berlin yesterday",
        "Our office is closed on Sunday",
    ),
    ("database connection refused", "cannot connect to the database: refused", "how to bake sourdough bread"),
    ("The phone's battery drains quickly", "Phone battery draining too quick", "The concert starts at eight"),
    ("What colour is the charger?", "The colour of the charger", "The weather forecast for tomorrow"),
    ("recieve teh pakage", "receive the package", "monthly subscription price"),
    ("Crème brûlée", "CREME BRULEE RECIPE", "tyre pressure"),
    ("Die Rechnung wurde doppelt bezahlt", "Doppelt bezahlte Rechnungen", "Der Hund schläft im Garten"),
]


@pytest.fixture(scope="module")
def model() -> LexicalModel:
    return LexicalModel()


def cosines(model: LexicalModel, text: str, *others: str) -> list[float]:
    first, *rest = model.embed([text, *others])
    return [float(first @ other) for other in rest]


@pytest.mark.parametrize(("text", "related", "unrelated"), RELATED_AND_NOT)
def test_related_texts_are_nearer_than_unrelated_ones_by_the_margin(
    model: LexicalModel, text: str, related: str, unrelated: str
) -> None:
    near, far = cosines(model, text, related, unrelated)
    assert near - far > MARGIN


def test_texts_without_blanks_between_words_are_told_apart_too(model: LexicalModel) -> None:
    near, far = cosines(model, "数据库连接失败", "无法连接数据库", "明天的天气预报")
    assert near - far > 0.15


def test_it_knows_no_meaning(model: LexicalModel) -> None:
    assert abs(cosines(model, "car", "automobile")[0]) < 0.15
    assert cosines(model, "The dog bit the man", "The man bit the dog")[0] > 0.99


def test_vectors_have_1024_dimensions_and_length_1_whatever_the_text(model: LexicalModel) -> None:
    texts = ["x", " ", "\n\t", "\u0301", "!?", "\0", "🙂", "a" * 5000, "word " * 2000]
    vectors = model.embed(texts)
    assert vectors.shape == (len(texts), 1024)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (model.embed([" "]) == model.embed(["\n\t"])).all()


def test_a_text_has_the_same_vector_whatever_shares_its_request(model: LexicalModel) -> None:
    texts = [f"text number {number} of many" for number in range(40)]
    together = model.embed(texts)
    assert (together == np.concatenate([model.embed([text]) for text in texts])).all()


def test_vectors_are_the_same_in_every_process_and_of_every_release(model: LexicalModel) -> None:
    code = (
        "from airflow_provider_gradient.server.embeddings import LexicalModel;"
        "print(LexicalModel().embed(['Grüße, world']).tobytes().hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    (vector,) = model.embed(["Grüße, world"])
    assert vector.tobytes().hex() == other.stdout.strip()
    places = [int(place) for place in vector.nonzero()[0][:4]]
    assert {place: round(float(vector[place]), 5) for place in places} == PINNED
