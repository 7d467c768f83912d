"""What the two clients share: their settings, and a call's course as seen from outside."""

from __future__ import annotations

import logging
import time
from typing import Any, Self, TypeVar

from airflow_provider_gradient.api import IDEMPOTENCY_KEY_HEADER, KEYS_HEADER, KEYS_HONOURED
from airflow_provider_gradient.client import calls
from airflow_provider_gradient.client.attempts import Answer, Attempts, Done, NoAnswer, Wait
from airflow_provider_gradient.client.endpoint import endpoint
from airflow_provider_gradient.client.policy import CallRecord, ResponseLimits, RetryPolicy, Timeouts

T = TypeVar("T")

logger = logging.getLogger("airflow_provider_gradient.client")


class ClientBase:
    """See :class:`~airflow_provider_gradient.client.GradientClient` for the parameters."""

    def __init__(
        self,
        *,
        access_token: str | None = None,
        workspace_id: str | None = None,
        base_url: str | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        limits: ResponseLimits = ResponseLimits(),  # noqa: B008 - frozen
        verify: bool | str = True,
        proxy: str | None = None,
    ) -> None:
        self._endpoint = endpoint(
            access_token=access_token,
            workspace_id=workspace_id,
            base_url=base_url,
            verify=verify,
            proxy=proxy,
        )
        self._timeouts = timeouts
        self._retries = retries
        self._limits = limits
        self._honours_idempotency_keys = False

    @classmethod
    def like(cls, other: ClientBase, *, retries: RetryPolicy | None = None) -> Self:
        """A client of the same settings as ``other``, which may be one of the other kind.

        :param retries: in the place of ``other``'s.
        """
        settings = other._endpoint
        return cls(
            access_token=settings.access_token,
            workspace_id=settings.workspace_id,
            base_url=settings.base_url,
            timeouts=other._timeouts,
            retries=retries or other._retries,
            limits=other._limits,
            verify=settings.verify,
            proxy=settings.proxy,
        )

    @property
    def base_url(self) -> str:
        """Where calls go, ``/api`` included."""
        return self._endpoint.base_url

    @property
    def workspace_id(self) -> str:
        """The workspace whose models are used."""
        return self._endpoint.workspace_id

    @property
    def timeouts(self) -> Timeouts:
        """Seconds that a call may take."""
        return self._timeouts

    @property
    def retries(self) -> RetryPolicy:
        """How often a call is tried."""
        return self._retries

    @property
    def limits(self) -> ResponseLimits:
        """How large an answer may be."""
        return self._limits

    @property
    def honours_idempotency_keys(self) -> bool:
        """Whether the server was seen to honour idempotency keys: an answer has echoed the key it was sent
        with, or an adapter that was read came with the server's word for it.

        From then on a call with a key is repeated like any other; before, and on servers that don't know
        keys, it is repeated only where it surely was not carried out.
        """
        return self._honours_idempotency_keys

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: settings, without connections."""
        return {name: value for name, value in self.__dict__.items() if name != "_connections"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r}, workspace_id={self.workspace_id!r})"

    def _attempts(
        self,
        call: calls.Call[T],
        record: CallRecord | None,
        *,
        paced: bool = False,
        deadline: float | None = None,
    ) -> Attempts[T]:
        return Attempts(
            call,
            url=self.base_url + call.path,
            policy=self._retries,
            timeouts=self._timeouts,
            now=time.monotonic(),
            record=record,
            paced=paced,
            deadline=deadline,
        )

    def _on_answer(
        self, call: calls.Call[T], attempts: Attempts[T], answer: Answer, *, begun: float
    ) -> Done[T] | Wait:
        now = time.monotonic()
        logger.debug(
            "%s %s: HTTP %d in %.3f s (attempt %d)",
            call.method,
            call.path,
            answer.status,
            now - begun,
            attempts.made,
        )
        if _honours_keys(answer, call.idempotency_key):
            self._honours_idempotency_keys = True
        return attempts.on_answer(answer, now=now)

    def _on_no_answer(
        self, call: calls.Call[T], attempts: Attempts[T], failure: NoAnswer, *, begun: float
    ) -> Wait:
        now = time.monotonic()
        logger.debug(
            "%s %s: %s after %.3f s (attempt %d)",
            call.method,
            call.path,
            failure.reason,
            now - begun,
            attempts.made,
        )
        return attempts.on_no_answer(failure, now=now)


def _honours_keys(answer: Answer, key: str | None) -> bool:
    echoed = key is not None and answer.headers.get(IDEMPOTENCY_KEY_HEADER.lower()) == key
    return echoed or answer.headers.get(KEYS_HEADER.lower()) == KEYS_HONOURED
