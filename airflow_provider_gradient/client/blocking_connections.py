"""The blocking client's connections: :mod:`.connections`' ways on sockets that are waited for.

The sockets, their time-outs and TLS are httpcore's network backend; what goes over them and comes back is
written and read by the same code as the asynchronous client's.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import httpcore

from airflow_provider_gradient.client import request_ids
from airflow_provider_gradient.client.attempts import Answer, NoAnswer
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.endpoint import Endpoint
from airflow_provider_gradient.client.policy import ResponseLimits, TimeLeft
from airflow_provider_gradient.client.pool import Pool
from airflow_provider_gradient.client.responses import ResponseReader
from airflow_provider_gradient.client.route import Route, in_words

_AT_ONCE = 1 << 18
"""Bytes written or read between two looks at the clock."""
_LOST = (httpcore.NetworkError, OSError)


class BlockingConnections:
    """The connections to one endpoint. May be used from several threads; a forked process opens its own.

    :raises InvalidRequestError: as :class:`Route`.
    """

    def __init__(self, endpoint: Endpoint, limits: ResponseLimits) -> None:
        self._route = Route(endpoint)
        self._limits = limits
        self._lock = threading.Lock()
        self._pool: Pool[_Connection] = Pool()
        self._process = os.getpid()
        # TLS within TLS hides from the socket what has come: such connections carry one call each
        self._in_two_layers = self._route.first.tls and self._route.tunnel is not None

    def send(self, call: Call[Any], *, timeouts: TimeLeft) -> Answer:
        """One attempt.

        :raises NoAnswer: nothing came back that answers it.
        """
        end = time.monotonic() + timeouts.total
        request_id = request_ids.new_id()
        request = self._route.request(call, request_id)
        kept = self._take() if call.frequent else None
        connection = kept or self._connect(timeouts, end=end)
        try:
            answer = connection.send(request, request_id, read=timeouts.read, end=end)
        except BaseException:
            connection.close()
            raise
        if call.frequent and not self._in_two_layers:
            with self._lock:
                self._pool_of_this_process().put(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        with self._lock:
            self._pool_of_this_process().close()

    def _take(self) -> _Connection | None:
        with self._lock:
            return self._pool_of_this_process().take(time.monotonic())

    def _pool_of_this_process(self) -> Pool[_Connection]:
        if self._process != os.getpid():
            self._pool, self._process = Pool(), os.getpid()
        return self._pool

    def _connect(self, timeouts: TimeLeft, *, end: float) -> _Connection:
        route, within = self._route, min(timeouts.connect, timeouts.total)
        stream: httpcore.NetworkStream | None = None
        try:
            stream = httpcore.SyncBackend().connect_tcp(route.first.host, route.first.port, timeout=within)
            if route.first.tls:
                stream = stream.start_tls(route.tls, route.first.host, timeout=within)
            connection = _Connection(stream, self._limits)
            if route.tunnel is None:
                return connection
            answer = connection.send(route.tunnel, "", read=timeouts.read, end=end, tunnel=True)
            if not 200 <= answer.status < 300:
                raise NoAnswer(reason=f"it answers HTTP {answer.status}", sent=False)
            return _Connection(stream.start_tls(route.tls, route.server.host, timeout=within), self._limits)
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, httpcore.TimeoutException):
                reason = f"no connection within {timeouts.connect:g} s"
                raise NoAnswer(reason=reason, sent=False, timed_out=True) from None
            if isinstance(error, _LOST):
                raise NoAnswer(reason=f"no connection ({in_words(error)})", sent=False) from error
            if isinstance(error, NoAnswer):  # of the proxy: the server has seen nothing
                reason = f"no connection (the proxy: {error.reason})"
                raise NoAnswer(reason=reason, sent=False, timed_out=error.timed_out) from None
            raise


class _Connection:
    """One connection.

    :ivar since: when the last answer ended, by the monotonic clock.
    """

    def __init__(self, stream: httpcore.NetworkStream, limits: ResponseLimits) -> None:
        self._stream = stream
        self._reader = ResponseReader(limits)
        self.since = 0.0
        self.may_be_kept = False

    @property
    def may_rest_less(self) -> bool:
        """Whether the last answer bore its request's id."""
        return self._reader.is_told

    @property
    def has_more(self) -> bool:
        """Whether anything has come that nobody asked for."""
        return bool(self._stream.get_extra_info("is_readable"))

    def send(
        self, request: bytes, request_id: str, *, read: float, end: float, tunnel: bool = False
    ) -> Answer:
        """Send a request; its answer.

        :param read: seconds of silence at most.
        :param end: of the monotonic clock, by which the answer must be whole.
        :param tunnel: whether a proxy is asked for a tunnel: the head is all of its answer.
        :raises NoAnswer: there is none.
        """
        self._reader.expect(request_id, tunnel=tunnel)
        unsent = self._write(request, read=read, end=end)
        try:
            answer = self._read(read=read, end=end)
        except httpcore.NetworkError as error:
            raise NoAnswer(
                reason=f"the connection was lost ({in_words(unsent or error)})", sent=True
            ) from error
        self.since = time.monotonic()
        self.may_be_kept = self._reader.may_go_on and unsent is None
        return answer

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def _write(self, request: bytes, *, read: float, end: float) -> httpcore.NetworkError | None:
        """The error that broke it off; a server may have answered all the same, before it had everything."""
        try:
            for start in range(0, len(request), _AT_ONCE):
                self._stream.write(request[start : start + _AT_ONCE], timeout=_left(read, end))
        except httpcore.TimeoutException:
            raise _timed_out(read, end) from None
        except httpcore.NetworkError as error:
            return error
        return None

    def _read(self, *, read: float, end: float) -> Answer:
        while True:
            try:
                data = self._stream.read(_AT_ONCE, timeout=_left(read, end))
            except httpcore.TimeoutException:
                raise _timed_out(read, end) from None
            answer = self._reader.feed(data) if data else self._reader.feed_end()
            if answer is not None:
                return answer
            if not data:
                raise NoAnswer(reason="the connection was lost (it ended early)", sent=True)


def _left(read: float, end: float) -> float:
    """Seconds that the next write or read may take."""
    left = end - time.monotonic()
    if left <= 0:
        raise _timed_out(read, end)
    return min(read, left)


def _timed_out(read: float, end: float) -> NoAnswer:
    late = end - time.monotonic() <= 0
    reason = "the answer took too long" if late else f"no answer within {read:g} s"
    return NoAnswer(reason=reason, sent=True, timed_out=True)
