"""The asynchronous client's connections: HTTP/1.1 as an asyncio protocol.

Clients that look at all of their connections for each call do little else with dozens in flight, and those
with threads of their own stand in the way of the event loop for Python's lock. Here a call costs one write,
one read and one future on the loop that awaits it.

A connection carries one call at a time. It is kept only after an answer behind which nothing came, and used
again only if nothing has come since: see :mod:`.pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
from typing import Any, cast

from airflow_provider_gradient.client import request_ids
from airflow_provider_gradient.client.attempts import Answer, NoAnswer
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.endpoint import Endpoint
from airflow_provider_gradient.client.policy import ResponseLimits, TimeLeft
from airflow_provider_gradient.client.pool import Pool
from airflow_provider_gradient.client.responses import ResponseReader
from airflow_provider_gradient.client.route import Route, in_words

_CLOCK = 0.002
"""Seconds by which a timer may come early: an event loop's clock is no finer."""


class AsyncConnections:
    """The connections to one endpoint. May be used from several event loops, each of which has its own.

    :raises InvalidRequestError: as :class:`Route`.
    """

    def __init__(self, endpoint: Endpoint, limits: ResponseLimits) -> None:
        self._route = Route(endpoint)
        self._limits = limits
        self._pools: dict[asyncio.AbstractEventLoop, Pool[_Connection]] = {}

    async def send(self, call: Call[Any], *, timeouts: TimeLeft) -> Answer:
        """One attempt.

        :raises NoAnswer: nothing came back that answers it.
        """
        loop = asyncio.get_running_loop()
        pool, now = self._pool_of(loop), loop.time()
        request_id = request_ids.new_id()
        request = self._route.request(call, request_id)
        kept = pool.take(now) if call.frequent else None
        connection = kept or await self._connect(loop, timeouts)
        try:
            answer = await connection.send(request, request_id, read=timeouts.read, end=now + timeouts.total)
        except BaseException:
            connection.close()
            raise
        if call.frequent:
            pool.put(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close the running loop's idle connections; a later call opens new ones."""
        self._pool_of(asyncio.get_running_loop()).close()

    def _pool_of(self, loop: asyncio.AbstractEventLoop) -> Pool[_Connection]:
        """The loop's idle connections."""
        pool = self._pools.get(loop)
        if pool is None:
            for other in list(self._pools):
                if other.is_closed():
                    del self._pools[other]
            pool = self._pools[loop] = Pool()
        return pool

    async def _connect(self, loop: asyncio.AbstractEventLoop, timeouts: TimeLeft) -> _Connection:
        connection = _Connection(loop, self._limits)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(connection.close)
            try:
                async with asyncio.timeout(min(timeouts.connect, timeouts.total)):
                    await self._open(connection, loop, timeouts)
            except TimeoutError:
                reason = f"no connection within {timeouts.connect:g} s"
                raise NoAnswer(reason=reason, sent=False, timed_out=True) from None
            except OSError as error:  # errors of TLS too
                raise NoAnswer(reason=f"no connection ({in_words(error)})", sent=False) from error
            except NoAnswer as failure:  # of the proxy: the server has seen nothing
                reason = f"no connection (the proxy: {failure.reason})"
                raise NoAnswer(reason=reason, sent=False, timed_out=failure.timed_out) from None
            on_failure.pop_all()
        return connection

    async def _open(
        self, connection: _Connection, loop: asyncio.AbstractEventLoop, timeouts: TimeLeft
    ) -> None:
        route = self._route
        host, port, tls = route.first
        if tls:
            await loop.create_connection(lambda: connection, host, port, ssl=route.tls, server_hostname=host)
        else:
            await loop.create_connection(lambda: connection, host, port)
        if route.tunnel is None:
            return
        answer = await connection.send(
            route.tunnel, "", read=timeouts.read, end=loop.time() + timeouts.total, tunnel=True
        )
        if not 200 <= answer.status < 300:
            raise NoAnswer(reason=f"it answers HTTP {answer.status}", sent=False)
        await connection.start_tls(route.tls, route.server.host)


class _Connection(asyncio.Protocol):
    """One connection.

    :ivar since: when the last answer ended, by the loop's clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: ResponseLimits) -> None:
        self._loop = loop
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader(limits)
        self._answer: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._readable = select.poll()
        self.since = 0.0

    @property
    def may_be_kept(self) -> bool:
        """Whether it is open, and the last answer left it fit for another call."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def may_rest_less(self) -> bool:
        """Whether the last answer bore its request's id."""
        return self._reader.is_told

    @property
    def has_more(self) -> bool:
        """Whether anything has come that the event loop has not read yet: nobody asked for it."""
        return bool(self._readable.poll(0))

    def send(
        self, request: bytes, request_id: str, *, read: float, end: float, tunnel: bool = False
    ) -> asyncio.Future[Answer]:
        """Send a request; its answer, or :class:`NoAnswer`.

        :param read: seconds of silence at most.
        :param end: of the loop's clock, by which the answer must be whole.
        :param tunnel: whether a proxy is asked for a tunnel: the head is all of its answer.
        """
        self._answer = answer = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            answer.set_exception(NoAnswer(reason="the connection was lost at once", sent=False))
            return answer
        self._reader.expect(request_id, tunnel=tunnel)
        self._read, self._end = read, end
        self._heard = now = self._loop.time()
        self._timer = self._loop.call_at(min(end, now + read), self._look_at_the_clock)
        self._transport.write(request)
        return answer

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """TLS from now on, through the tunnel."""
        self._reader = ResponseReader(self._limits)
        plain = cast(asyncio.Transport, self._transport)
        transport = await self._loop.start_tls(plain, self, context, server_hostname=host)
        if transport is None:
            raise ConnectionResetError("lost while TLS began")
        self._transport = transport

    def close(self) -> None:
        """Close it at once."""
        self._stop_clock()
        self._answer = None
        if self._transport is not None and not self._loop.is_closed():
            self._transport.abort()

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nothing was asked
            self.close()
            return
        self._heard = self._loop.time()
        try:
            answer = self._reader.feed(data)
        except NoAnswer as failure:
            self._fail(failure)
        else:
            if answer is not None:
                self._finish(answer)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is None:
            self.close()
            return
        reason = f"the connection was lost ({'it ended early' if error is None else in_words(error)})"
        failure = NoAnswer(reason=reason, sent=True)
        answer = None
        if error is None:
            try:
                answer = self._reader.feed_end()
            except NoAnswer as other:
                failure = other
        if answer is None:
            self._fail(failure)
        else:
            self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        waiting, self._answer = self._answer, None
        self._stop_clock()
        self.since = self._loop.time()
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
        transport = cast(asyncio.Transport, self._transport)
        if not self._reader.may_go_on or transport.get_write_buffer_size():
            self.close()  # said so, or answered before it had the whole request, or said more than it should

    def _fail(self, failure: NoAnswer) -> None:
        waiting = self._answer
        self.close()
        if waiting is not None and not waiting.done():
            waiting.set_exception(failure)

    def _look_at_the_clock(self) -> None:
        now = self._loop.time() + _CLOCK
        if now >= self._end:
            self._fail(NoAnswer(reason="the answer took too long", sent=True, timed_out=True))
        elif now >= self._heard + self._read:
            self._fail(NoAnswer(reason=f"no answer within {self._read:g} s", sent=True, timed_out=True))
        else:
            self._timer = self._loop.call_at(
                min(self._end, self._heard + self._read), self._look_at_the_clock
            )

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
