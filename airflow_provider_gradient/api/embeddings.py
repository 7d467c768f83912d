"""Requests and responses of the embeddings operations of the Gradient API (list, embed).

The manners are those of :mod:`.models`: camelCase on the wire, strict requests, lenient responses. The
vectors must come in the order of the request's texts: published clients number them anew by their place.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from airflow_provider_gradient.api.models import NonEmpty, RequestModel, ResponseModel

MAX_EMBEDDING_INPUTS = 256
"""The most texts that one request may hold."""
_LARGEST = 3.4028234663852886e38
"""The largest 32-bit float, as which vectors are kept."""


class EmbeddingsModelInfo(ResponseModel):
    """An embeddings model; its slug is all the API tells."""

    slug: str


class EmbeddingsModelList(ResponseModel):
    """The answer to a list call."""

    embeddings_models: list[EmbeddingsModelInfo]


class EmbeddingInput(RequestModel):
    """One text to embed."""

    input: NonEmpty


class EmbedRequest(RequestModel):
    """The texts to embed, 1 to 256."""

    inputs: Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]


class Embedding(ResponseModel):
    """A text's vector; ``index`` is the text's place in the request, from 0."""

    embedding: Annotated[list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]], Field(min_length=1)]
    index: Annotated[int, Field(ge=0)]


class EmbedResult(ResponseModel):
    """The vectors of a request's texts, all of one length, in the texts' order."""

    embeddings: list[Embedding]

    @model_validator(mode="after")
    def _check(self) -> Self:
        indices = [each.index for each in self.embeddings]
        if indices != list(range(len(indices))):
            raise ValueError("the embeddings are not in the order of their inputs, each once")
        if len({len(each.embedding) for each in self.embeddings}) > 1:
            raise ValueError("the embeddings differ in length")
        return self

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors alone."""
        return [each.embedding for each in self.embeddings]
