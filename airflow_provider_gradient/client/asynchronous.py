"""The asynchronous client. It differs from :mod:`.blocking` in the ``await`` alone: what to send and when to
send it again is decided in :mod:`.calls` and :mod:`.attempts`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from airflow_provider_gradient.api import (
    MAX_EMBEDDING_INPUTS,
    BaseModelInfo,
    Capability,
    Completion,
    EmbeddingsModelInfo,
    FineTuneResult,
    InvalidRequestError,
    ModelAdapterInfo,
    Sample,
    TokenizeResult,
)
from airflow_provider_gradient.client import calls
from airflow_provider_gradient.client.attempts import Attempts, Done, NoAnswer, Wait
from airflow_provider_gradient.client.base import ClientBase
from airflow_provider_gradient.client.connections import AsyncConnections
from airflow_provider_gradient.client.policy import CallRecord

T = TypeVar("T")


class BeginCompletion(Protocol):
    """Makes the attempts of a completion; see :meth:`AsyncGradientClient.completions`."""

    def __call__(
        self, query: str, *, record: CallRecord | None = None, deadline: float | None = None
    ) -> Callable[[], Awaitable[Done[Completion] | Wait]]:
        """The attempts of ``query``.

        :param record: filled with what they took.
        :param deadline: seconds from now for all of them and the waits between, instead of the client's total
            time; no attempt outlasts it.
        """


class AsyncGradientClient(ClientBase):
    """The asynchronous client: :class:`GradientClient`'s parameters, calls and errors, awaited.

    It keeps hundreds of completions in flight at little cost, and may be used from one event loop after
    another.
    """

    async def list_models(
        self, *, capability: Capability = "any", only_base: bool = False
    ) -> list[BaseModelInfo | ModelAdapterInfo]:
        """The models of this workspace.

        :param capability: only those that can do this; ``any`` for all.
        :param only_base: without model adapters.
        """
        return await self._perform(calls.list_models(capability=capability, only_base=only_base))

    async def find_base_model(self, slug_or_id: str) -> BaseModelInfo:
        """The base model of that slug or id.

        :raises UnknownModelError: there is none; the message names the slugs there are.
        """
        return calls.choose_base_model(await self.list_models(only_base=True), slug_or_id=slug_or_id)

    async def get_model_adapter(self, model_id: str) -> ModelAdapterInfo:
        """A model adapter.

        :raises UnknownModelError: there is none of that id.
        """
        return await self._perform(calls.get_model_adapter(model_id))

    async def create_model_adapter(
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
        return await self._perform(call)

    async def delete_model(self, model_id: str) -> None:
        """Delete a model adapter.

        :raises UnknownModelError: there is none of that id.
        """
        await self._perform(calls.delete_model(model_id))

    async def complete(
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
        return await self._perform(call, record)

    def completions(self, model_id: str, **parameters: Any) -> BeginCompletion:
        """Begin one completion after another, for a caller who has many to make and chooses the moment of
        each attempt.

        What is given back is called with a query, and gives a function of which each call is one attempt: it
        gives the result, or the seconds to wait before the next with the error that made it necessary, or
        raises as :meth:`complete` does. What says nothing of the query, refusals for too much load (429, 503)
        and missing connections, doesn't use up the client's attempts: its total time bounds them, which
        counts from the query's beginning. Any other 5xx is tried again too.

        :param parameters: those of :meth:`complete`.
        """
        make = calls.completions(model_id, **parameters)

        def begin(
            query: str, *, record: CallRecord | None = None, deadline: float | None = None
        ) -> Callable[[], Awaitable[Done[Completion] | Wait]]:
            call = make(query)
            return partial(self._attempt, call, self._attempts(call, record, paced=True, deadline=deadline))

        return begin

    async def fine_tune(
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
        return await self._perform(call, record)

    async def tokenize(
        self, model_id: str, query: str, *, auto_template: bool | None = None
    ) -> TokenizeResult:
        """The tokens that a model reads for ``query``: with the default ``auto_template``, as many as
        :meth:`complete` counts for its prompt. An extra of the server in this package.

        :param query: up to a million characters.
        :param auto_template: in the base model's recommended template; the server's default is yes.
        :raises UnknownModelError: there is no such model.
        :raises NotFoundError: the server has no such operation.
        """
        return await self._perform(calls.tokenize(model_id, query, auto_template=auto_template))

    async def list_embeddings_models(self) -> list[EmbeddingsModelInfo]:
        """The embeddings models there are."""
        return await self._perform(calls.list_embeddings_models())

    async def embed(self, slug: str, inputs: Sequence[str]) -> list[list[float]]:
        """The vectors of texts, in their order: see :meth:`GradientClient.embed`."""
        places = asyncio.Semaphore(calls.EMBED_IN_FLIGHT)

        async def perform(call: calls.Call[list[list[float]]]) -> list[list[float]]:
            async with places:
                return await self._perform(call)

        tasks = [asyncio.ensure_future(perform(call)) for call in calls.embed(slug, inputs)]
        try:
            return calls.joined(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def begin_embedding(
        self, slug: str, inputs: Sequence[str], *, record: CallRecord | None = None
    ) -> Callable[[], Awaitable[Done[list[list[float]]] | Wait]]:
        """The vectors of 1 to 256 texts, one request, whose caller chooses the moment of each attempt: as
        :meth:`completions` has them.

        :raises InvalidRequestError: more texts than a request may hold, or one of them is empty.
        """
        requests = calls.embed(slug, inputs)
        if len(requests) > 1:
            raise InvalidRequestError(f"inputs: at most {MAX_EMBEDDING_INPUTS} texts (got {len(inputs)})")
        return partial(self._attempt, requests[0], self._attempts(requests[0], record, paced=True))

    async def aclose(self) -> None:
        """Close kept connections; a later call opens new ones."""
        if "_connections" in self.__dict__:  # else none was opened
            self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @cached_property
    def _connections(self) -> AsyncConnections:
        return AsyncConnections(self._endpoint, self._limits)

    async def _perform(self, call: calls.Call[T], record: CallRecord | None = None) -> T:
        attempts = self._attempts(call, record)
        while isinstance(step := await self._attempt(call, attempts), Wait):
            await asyncio.sleep(step.seconds)
        return step.value

    async def _attempt(self, call: calls.Call[T], attempts: Attempts[T]) -> Done[T] | Wait:
        begun = time.monotonic()
        try:
            answer = await self._connections.send(call, timeouts=attempts.start(now=begun))
        except NoAnswer as failure:
            return self._on_no_answer(call, attempts, failure, begun=begun)
        return self._on_answer(call, attempts, answer, begun=begun)
