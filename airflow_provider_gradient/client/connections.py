"""Kept connections for hundreds of calls at once: HTTP/1.1 as an asyncio protocol, parsed by httptools.

httpx looks at all of its connections for each call, and with dozens in flight does little else; clients with
threads of their own stand in the way of the event loop for Python's lock. Here a call costs one write, one
read and one future on the loop that awaits it.

A connection carries one call at a time and is kept only after an answer that ended where it said it would:
nothing of one call can be taken for another's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import urllib.request
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
import httpx

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client.attempts import Answer, NoAnswer
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.endpoint import Endpoint
from airflow_provider_gradient.client.policy import TimeLeft

KEPT_SECONDS = 4.0
"""How long an idle connection is used again: less than the 5 s after which uvicorn closes it."""
_PORTS = {"http": 80, "https": 443}
_CLOCK = 0.002
"""Seconds by which a timer may come early: an event loop's clock is no finer."""


class Connections:
    """The connections to one endpoint. May be used from several event loops, each of which has its own.

    :param tls: makes the context of connections that need one; called only if one does.
    :raises InvalidRequestError: the proxy is no HTTP proxy.
    """

    def __init__(self, endpoint: Endpoint, *, tls: Callable[[], ssl.SSLContext]) -> None:
        url = httpx.URL(endpoint.base_url)
        self._tls = tls
        self._proxy = _proxy(url, endpoint.proxy)
        self._scheme, self._host, self._netloc = url.scheme, url.raw_host.decode(), url.netloc.decode()
        self._port = url.port or _PORTS[url.scheme]
        fields = {"Host": self._netloc, **endpoint.headers}
        target = url.raw_path.decode().rstrip("/")
        if self._proxy is not None and self._scheme == "http":
            target = f"http://{self._netloc}{target}"
            fields |= _credentials(self._proxy)
        self._target, self._fields = target, _lines(fields)
        self._idle: dict[asyncio.AbstractEventLoop, deque[_Connection]] = {}

    async def send(self, call: Call[Any], *, timeouts: TimeLeft) -> Answer:
        """One attempt.

        :raises NoAnswer: nothing came back.
        """
        body = call.body or b""
        head = (
            f"{call.method} {self._target}{call.path} HTTP/1.1\r\n{self._fields}{_lines(call.headers)}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        idle, end = self._idle_of(loop), loop.time() + timeouts.total
        connection = _take(idle, loop.time()) or await self._connect(loop, timeouts)
        try:
            answer = await connection.send(head.encode("ascii") + body, read=timeouts.read, end=end)
        except BaseException:
            connection.drop()
            raise
        if connection.is_open:
            while idle and loop.time() - idle[0].since > KEPT_SECONDS:
                idle.popleft().drop()
            idle.append(connection)
        return answer

    def close(self) -> None:
        """Close the running loop's idle connections; a later call opens new ones."""
        for connection in self._idle.pop(asyncio.get_running_loop(), ()):
            connection.drop()

    def _idle_of(self, loop: asyncio.AbstractEventLoop) -> deque[_Connection]:
        """The loop's idle connections, the one used last at the end."""
        idle = self._idle.get(loop)
        if idle is None:
            for other in list(self._idle):
                if other.is_closed():
                    del self._idle[other]
            idle = self._idle[loop] = deque()
        return idle

    async def _connect(self, loop: asyncio.AbstractEventLoop, timeouts: TimeLeft) -> _Connection:
        connection = _Connection(loop)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(connection.drop)
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
        proxy = self._proxy
        scheme, host, port = self._scheme, self._host, self._port
        if proxy is not None:
            scheme, host, port = proxy.scheme, proxy.raw_host.decode(), proxy.port or _PORTS[proxy.scheme]
        if scheme == "https":
            await loop.create_connection(
                lambda: connection, host, port, ssl=self._tls(), server_hostname=host
            )
        else:
            await loop.create_connection(lambda: connection, host, port)
        if proxy is None or self._scheme == "http":
            return
        where = f"{self._netloc.removesuffix(f':{self._port}')}:{self._port}"
        head = f"CONNECT {where} HTTP/1.1\r\n{_lines({'Host': where, **_credentials(proxy)})}\r\n"
        answer = await connection.send(
            head.encode("ascii"), read=timeouts.read, end=loop.time() + timeouts.total, tunnel=True
        )
        if not 200 <= answer.status < 300:
            raise NoAnswer(reason=f"it answers HTTP {answer.status}", sent=False)
        await connection.start_tls(self._tls(), self._host)


class _Connection(asyncio.Protocol):
    """One connection: what is sent over it, and the answer as it comes.

    :ivar since: when the last answer ended, by the loop's clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_tunnel = False
        self._begin_answer()
        self.since = 0.0

    @property
    def is_open(self) -> bool:
        """Whether another call may use it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(
        self, request: bytes, *, read: float, end: float, tunnel: bool = False
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
        self._begin_answer()  # else the end of the connection could end an earlier answer again
        self._read, self._end, self._is_tunnel = read, end, tunnel
        self._heard = now = self._loop.time()
        self._timer = self._loop.call_at(min(end, now + read), self._look_at_the_clock)
        self._transport.write(request)
        return answer

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """TLS from now on, through the tunnel."""
        self._parser = httptools.HttpResponseParser(self)
        plain = cast(asyncio.Transport, self._transport)
        transport = await self._loop.start_tls(plain, self, context, server_hostname=host)
        if transport is None:
            raise ConnectionResetError("lost while TLS began")
        self._transport = transport

    def drop(self) -> None:
        """Close it at once."""
        self._stop_clock()
        self._answer = None
        if self._transport is not None and not self._loop.is_closed():
            self._transport.abort()

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nothing was asked
            self.drop()
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the answer is no HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        lengths = {"content-length", "transfer-encoding"} & self._headers.keys()
        if error is None and self._head_is_whole and not lengths:
            self._finish()  # its end is the connection's
        else:
            self._fail(f"the connection was lost ({'it ended early' if error is None else in_words(error)})")

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        if self._answer is None:  # a second answer to one request
            self.drop()
        self._begin_answer()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._head_is_whole = self._parser.get_status_code() >= 200
        if self._is_tunnel and self._head_is_whole:
            self._finish()

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        if not self._head_is_whole:
            return  # 100 Continue and the like: the answer is still to come
        keep = self._parser.should_keep_alive()
        self._finish()
        if not keep:
            self.drop()

    def _begin_answer(self) -> None:
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._head_is_whole = False

    def _finish(self) -> None:
        answer, self._answer = self._answer, None
        self._stop_clock()
        self.since = self._loop.time()
        if answer is not None and not answer.done():
            answer.set_result(
                Answer(
                    status=self._parser.get_status_code(), headers=self._headers, body=b"".join(self._body)
                )
            )

    def _fail(self, reason: str, *, timed_out: bool = False) -> None:
        answer = self._answer
        self.drop()
        if answer is not None and not answer.done():
            answer.set_exception(NoAnswer(reason=reason, sent=True, timed_out=timed_out))

    def _look_at_the_clock(self) -> None:
        now = self._loop.time() + _CLOCK
        if now >= self._end:
            self._fail("the answer took too long", timed_out=True)
        elif now >= self._heard + self._read:
            self._fail(f"no answer within {self._read:g} s", timed_out=True)
        else:
            self._timer = self._loop.call_at(
                min(self._end, self._heard + self._read), self._look_at_the_clock
            )

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _take(idle: deque[_Connection], now: float) -> _Connection | None:
    """The connection used last, if it may be used again."""
    while idle:
        connection = idle.pop()
        if connection.is_open and now - connection.since < KEPT_SECONDS:
            return connection
        connection.drop()
    return None


def _lines(fields: dict[str, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in fields.items()])


def in_words(error: BaseException) -> str:
    """What the error at the bottom says, where the operating system's reason is."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif (cause := error.__cause__ or error.__context__) is not None:
            error = cause
        else:
            break
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _proxy(url: httpx.URL, given: str | None) -> httpx.URL | None:
    """The proxy that is given, or else the environment's for ``url``."""
    if given is None and not urllib.request.proxy_bypass(url.netloc.decode()):
        proxies = urllib.request.getproxies()
        given = proxies.get(url.scheme) or proxies.get("all")
    if not given:
        return None
    try:
        proxy = httpx.URL(given if "://" in given else f"http://{given}")
        proxy.raw_host.decode().encode("idna")  # as a resolver is asked
    except (httpx.InvalidURL, UnicodeError):
        proxy = None
    if proxy is None or proxy.scheme not in _PORTS or not proxy.host:
        raise InvalidRequestError(
            "proxy: an HTTP proxy is needed, as in http://proxy.example.com:3128; see proxy, and HTTP_PROXY, "
            "HTTPS_PROXY and ALL_PROXY in the environment"
        )
    return proxy


def _credentials(proxy: httpx.URL) -> dict[str, str]:
    if not proxy.username and not proxy.password:
        return {}
    pair = f"{proxy.username}:{proxy.password}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}
