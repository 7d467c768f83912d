"""Gradient's embeddings as langchain-core has them, in place of the class of ``langchain_community``."""

from __future__ import annotations

from typing import Self

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from airflow_provider_gradient.client import AsyncGradientClient, GradientClient


class GradientEmbeddings(BaseModel, Embeddings):
    """An embeddings model of a Gradient server.

    ::

        embeddings = GradientEmbeddings(model="bge-large")
        vectors = embeddings.embed_documents(["a text", "another text"])

    Takes every parameter of ``langchain_community``'s class. Texts go in requests of up to 256, several at
    once; an empty one is an error that names its place, and nothing is sent.

    :raises ValueError: at construction, a missing credential.
    """

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # the input holds the token
    )

    model: str = Field(min_length=1)
    """Slug of an embeddings model, such as ``bge-large``."""
    gradient_workspace_id: str | None = None
    """Default: environment variable ``GRADIENT_WORKSPACE_ID``."""
    gradient_access_token: SecretStr | None = None
    """Default: environment variable ``GRADIENT_ACCESS_TOKEN``."""
    gradient_api_url: str | None = None
    """Default: environment variable ``GRADIENT_API_URL``, else Gradient's own."""
    query_prompt_for_retrieval: str | None = None
    """Put before a query, with a blank between, never before a document; some models were trained so."""
    client: GradientClient | None = Field(default=None, exclude=True, repr=False)
    """Make all calls with this client's settings: its credentials, time-outs, certificates and proxy."""

    _client: GradientClient = PrivateAttr()
    _async_client: AsyncGradientClient = PrivateAttr()

    @model_validator(mode="after")
    def _settle(self) -> Self:
        token = self.gradient_access_token
        self._client = self.client or GradientClient(
            access_token=token.get_secret_value() if token else None,
            workspace_id=self.gradient_workspace_id,
            base_url=self.gradient_api_url,
        )
        self._async_client = AsyncGradientClient.like(self._client)
        self.gradient_workspace_id = self._client.workspace_id
        self.gradient_api_url = self._client.base_url
        return self

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of texts, in their order.

        :raises InvalidRequestError: a text is empty; names its place.
        :raises NotFoundError: there is no such model.
        """
        return self._client.embed(self.model, texts) if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self.embed_documents([self._query(text)])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """:meth:`embed_documents`, awaited."""
        return await self._async_client.embed(self.model, texts) if texts else []

    async def aembed_query(self, text: str) -> list[float]:
        """:meth:`embed_query`, awaited."""
        return (await self.aembed_documents([self._query(text)]))[0]

    def _query(self, text: str) -> str:
        prompt = self.query_prompt_for_retrieval
        return f"{prompt} {text}" if prompt else text
