"""The blocking client. It differs from :mod:`.asynchronous` in the ``await`` alone: what to send and when to
send it again is decided in :mod:`.calls` and :mod:`.attempts`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

from airflow_provider_gradient.api import (
    BaseModelInfo,
    Capability,
    Completion,
    EmbeddingsModelInfo,
    FineTuneResult,
    ModelAdapterInfo,
    Sample,
    TokenizeResult,
)
from airflow_provider_gradient.client import calls
from airflow_provider_gradient.client.attempts import Done, NoAnswer, Wait
from airflow_provider_gradient.client.base import ClientBase
from airflow_provider_gradient.client.blocking_connections import BlockingConnections
from airflow_provider_gradient.client.policy import CallRecord

T = TypeVar("T")


class GradientClient(ClientBase):
    """The blocking client. May be used from several threads; connections are opened at the first call.

    Every call raises the errors of :mod:`airflow_provider_gradient.api`: :class:`InvalidRequestError` before
    anything is sent, :class:`GradientConnectionError` or :class:`GradientTimeoutError` without an answer,
    :class:`InvalidResponseError` for an answer that is not Gradient's or is too large, and the
    :class:`ApiError` that the server reports. ``error.outcome_unknown`` says whether the server may have
    carried the call out anyway.

    :param access_token: default: environment variable ``GRADIENT_ACCESS_TOKEN``.
    :param workspace_id: default: ``GRADIENT_WORKSPACE_ID``.
    :param base_url: with or without ``/api``; default: ``GRADIENT_API_URL``, else Gradient's own.
    :param timeouts: in seconds.
    :param retries: how often a call is tried. Listing, reading, completing and deleting are tried again after
        lost connections, 429 and 502 to 504; creating and fine-tuning only where the server surely did
        nothing (no connection, 429, 503 with ``Retry-After``), or where it honours the call's idempotency
        key.
    :param limits: bytes that an answer may have.
    :param verify: ``False`` trusts any certificate; a path is a PEM file of authorities to trust besides the
        system's.
    :param proxy: ``http://…`` or ``https://…``; default: what the environment says.
    :raises InvalidRequestError: an argument is missing or wrong.
    """

    def list_models(
        self, *, capability: Capability = "any", only_base: bool = False
    ) -> list[BaseModelInfo | ModelAdapterInfo]:
        """The models of this workspace.

        :param capability: only those that can do this; ``any`` for all.
        :param only_base: without model adapters.
        """
        return self._perform(calls.list_models(capability=capability, only_base=only_base))

    def find_base_model(self, slug_or_id: str) -> BaseModelInfo:
        """The base model of that slug or id.

        :raises UnknownModelError: there is none; the message names the slugs there are.
        """
        return calls.choose_base_model(self.list_models(only_base=True), slug_or_id=slug_or_id)

    def get_model_adapter(self, model_id: str) -> ModelAdapterInfo:
        """A model adapter.

        :raises UnknownModelError: there is none of that id.
        """
        return self._perform(calls.get_model_adapter(model_id))

    def create_model_adapter(
        self,
        *,
        base_model_id: str,
        name: str,
        rank: int | None = None,
        learning_rate: float | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Create a model adapter; gives its id. Rank and learning rate are fixed from then on.

        :param rank: of its LoRA matrices, 1 to 32; default: the server's.
        :param learning_rate: above 0 and below 1; default: the server's.
        :param idempotency_key: names this call, so that a server that honours keys creates once however often
            it comes.
        :raises UnknownModelError: there is no such base model.
        """
        call = calls.create_model_adapter(
            base_model_id=base_model_id,
            name=name,
            rank=rank,
            learning_rate=learning_rate,
            idempotency_key=idempotency_key,
            keys_honoured=self.honours_idempotency_keys,
        )
        return self._perform(call)

    def delete_model(self, model_id: str) -> None:
        """Delete a model adapter.

        :raises UnknownModelError: there is none of that id.
        """
        self._perform(calls.delete_model(model_id))

    def complete(
        self,
        model_id: str,
        query: str,
        *,
        auto_template: bool | None = None,
        max_generated_token_count: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: Sequence[str] | None = None,
        record: CallRecord | None = None,
    ) -> Completion:
        """Complete a query. What is ``None`` is left to the server.

        :param model_id: a base model's or an adapter's.
        :param auto_template: wrap the query in the base model's recommended template; the server's default is
            yes.
        :param max_generated_token_count: 1 to 511.
        :param temperature: 0 or more; 0 always takes the likeliest token.
        :param top_k: draw from this many likeliest tokens only.
        :param top_p: draw from the likeliest tokens that make up this probability, among those of ``top_k``.
        :param guidance: 1 to 10 choices of 1 to 32 characters; the completion is one of them.
        :param record: filled with what the call took.
        :raises UnknownModelError: there is no such model.
        """
        call = calls.complete(
            model_id,
            query,
            auto_template=auto_template,
            max_generated_token_count=max_generated_token_count,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
        )
        return self._perform(call, record)

    def fine_tune(
        self,
        model_id: str,
        samples: Sequence[Sample | Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        record: CallRecord | None = None,
    ) -> FineTuneResult:
        """Train a model adapter on ``samples``, once; answers when it is done.

        :param samples: :class:`Sample`, or the API's JSON of one (``inputs``, ``fineTuningParameters``).
        :param idempotency_key: names this call, so that a server that honours keys trains once however often
            it comes; see :attr:`honours_idempotency_keys`.
        :param record: filled with what the call took.
        :raises NanLossError: the training diverged; the adapter is as before.
        :raises ModelIncapableOfFineTuningError: a base model.
        """
        call = calls.fine_tune(
            model_id, samples, idempotency_key=idempotency_key, keys_honoured=self.honours_idempotency_keys
        )
        return self._perform(call, record)

    def tokenize(self, model_id: str, query: str, *, auto_template: bool | None = None) -> TokenizeResult:
        """The tokens that a model reads for ``query``: with the default ``auto_template``, as many as
        :meth:`complete` counts for its prompt. An extra of the server in this package.

        :param query: up to a million characters.
        :param auto_template: in the base model's recommended template; the server's default is yes.
        :raises UnknownModelError: there is no such model.
        :raises NotFoundError: the server has no such operation.
        """
        return self._perform(calls.tokenize(model_id, query, auto_template=auto_template))

    def list_embeddings_models(self) -> list[EmbeddingsModelInfo]:
        """The embeddings models there are."""
        return self._perform(calls.list_embeddings_models())

    def embed(self, slug: str, inputs: Sequence[str]) -> list[list[float]]:
        """The vectors of texts, in their order.

        More than 256 texts go in requests of 256, at most 8 of them at once; the first that fails fails all.

        :param slug: of an embeddings model, such as ``bge-large``.
        :param inputs: one text or more, none of them empty.
        :raises InvalidRequestError: names the input that is wrong by its place; nothing was sent.
        :raises NotFoundError: there is no such embeddings model.
        """
        shards = calls.embed(slug, inputs)
        if len(shards) == 1:
            return self._perform(shards[0])
        threads = ThreadPoolExecutor(min(calls.EMBED_IN_FLIGHT, len(shards)))
        try:
            return calls.joined(list(threads.map(self._perform, shards)))
        finally:
            threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close kept connections; a later call opens new ones."""
        if "_connections" in self.__dict__:  # else none was opened
            self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _connections(self) -> BlockingConnections:
        return BlockingConnections(self._endpoint, self._limits)

    def _perform(self, call: calls.Call[T], record: CallRecord | None = None) -> T:
        attempts = self._attempts(call, record)
        while True:
            begun = time.monotonic()
            try:
                answer = self._connections.send(call, timeouts=attempts.start(now=begun))
            except NoAnswer as failure:
                step: Done[T] | Wait = self._on_no_answer(call, attempts, failure, begun=begun)
            else:
                step = self._on_answer(call, attempts, answer, begun=begun)
            if not isinstance(step, Wait):
                return step.value
            time.sleep(step.seconds)
