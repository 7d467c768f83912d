"""Embeddings models, and the threads they work on.

They run beside the engine, on threads of their own: a list of texts to embed never waits for a fine-tune, and
no completion waits for it. Each text's vector depends on that text alone, whatever shares its request.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic_core import to_json

from airflow_provider_gradient.api import NotFoundError, ServerError
from airflow_provider_gradient.server.settings import BUILT_IN_EMBEDDINGS_SLUG

Vectors = npt.NDArray[np.float32]
"""Of shape (texts, dimensions)."""

DIMENSIONS = 1024
_NGRAMS = (2, 4)
_BUCKETS = 2**16
_SPREAD = 8
"""Dimensions that one feature goes to, on average."""
_SEED = 1024
_AT_ONCE = 2
"""Requests that are worked on at once: a short one need not wait for one long one."""
_ROWS = 32
"""Texts between two looks at whether the server stops."""


class EmbeddingsModel(Protocol):
    """What turns texts into vectors; called from several threads."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text, in order; texts aren't empty."""


class LexicalModel:
    """Vectors of what texts are made of: their words and the character 2- to 4-grams of these, in lower case
    and without accents, hashed into buckets, their counts' square roots projected at random onto 1024
    dimensions and scaled to length 1.

    It knows spelling and no meaning: texts that share words, stems or parts of words are near, typing errors
    do little, word order does nothing, and synonyms that look different are as far apart as any two texts.
    Hash and projection are seeded, so vectors of different processes and machines can be compared.
    """

    def __init__(self) -> None:
        self._loading = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See :class:`EmbeddingsModel`. Two texts' cosine, rows being of length 1, is their dot product."""
        with self._loading:
            features, projection = self._parts
        counts = features.transform(texts)
        counts.data = np.sign(counts.data) * np.sqrt(np.abs(counts.data))
        vectors: Vectors = projection.transform(counts).astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[lengths[:, 0] == 0, 0] = 1.0  # a text of blanks: like each other and like nothing else
        vectors /= np.where(lengths == 0, 1.0, lengths)
        return vectors

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """Made at the first request: importing scikit-learn takes longer than all the rest of a start."""
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.pipeline import FeatureUnion
        from sklearn.random_projection import SparseRandomProjection

        common = {"n_features": _BUCKETS, "norm": None, "strip_accents": "unicode"}
        features = FeatureUnion(
            [
                ("grams", HashingVectorizer(analyzer="char_wb", ngram_range=_NGRAMS, **common)),
                ("words", HashingVectorizer(token_pattern=r"\w+", **common)),  # noqa: S106
            ]
        )
        projection = SparseRandomProjection(
            DIMENSIONS, density=_SPREAD / DIMENSIONS, dense_output=True, random_state=_SEED
        )
        projection.fit(np.zeros((1, 2 * _BUCKETS)))
        return features, projection


class EmbeddingsService:
    """The embeddings models by slug, ``bge-large`` among them, and the threads that run them.

    :param directories: local sentence-embedding models by slug; that of ``bge-large`` replaces the lexical.
    :param threads: CPU threads of torch.
    :raises StartError: a model can't be loaded.
    """

    def __init__(self, directories: Mapping[str, Path], *, threads: int) -> None:
        self._models: dict[str, EmbeddingsModel] = {BUILT_IN_EMBEDDINGS_SLUG: LexicalModel()}
        if directories:
            from airflow_provider_gradient.server.sentence_model import SentenceModel  # half a second

            self._models |= {slug: SentenceModel.load(slug, path) for slug, path in directories.items()}
        self._threads = ThreadPoolExecutor(
            _AT_ONCE, "gradient-embeddings", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._stopping = threading.Event()

    @property
    def slugs(self) -> list[str]:
        """The models there are, the default first."""
        return list(self._models)

    def embed(self, slug: str, texts: Sequence[str]) -> Future[bytes]:
        """Embed texts; the future gives the response's body, or raises an :class:`ApiError`.

        :raises NotFoundError: there is no such model; names those there are.
        """
        model = self._models.get(slug)
        if model is None:
            raise NotFoundError(
                f"there is no embeddings model {slug!r} here; this server has: {', '.join(self.slugs)}",
                status=404,
            )
        try:
            return self._threads.submit(self._answer, model, texts)
        except RuntimeError:  # the threads take nothing more
            raise _stopped() from None

    def stop(self) -> None:
        """Answer nothing more: what waits is refused at once, what runs within 32 texts."""
        self._stopping.set()
        self._threads.shutdown()

    def _answer(self, model: EmbeddingsModel, texts: Sequence[str]) -> bytes:
        """The body, written here too: of 256 texts it holds a quarter of a million numbers."""
        embeddings: list[dict[str, Any]] = []
        for start in range(0, len(texts), _ROWS):
            if self._stopping.is_set():
                raise _stopped()
            vectors = model.embed(texts[start : start + _ROWS])
            if not np.isfinite(vectors).all():
                raise ServerError("the embeddings model's output is not a number", status=500)
            for vector in vectors.tolist():
                embeddings.append({"embedding": vector, "index": len(embeddings)})
        return to_json({"embeddings": embeddings})


def _stopped() -> ServerError:
    return ServerError("the server is stopping", status=503, retry_after=1.0)
