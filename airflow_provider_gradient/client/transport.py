"""The bytes' way: calls over httpx, and the frequent ones of the asynchronous client over pyreqwest, because
httpx's pool collapses with dozens of calls in flight.

Only httpx tells reliably whether there was a connection when a call failed (pyreqwest names both a
failed connection), and the repetition of a fine-tune hangs on that: so every call that is not frequent goes
over httpx, on a connection of its own. Nothing is opened before the first call, and nothing is used on in a
forked child: neither kept sockets nor pyreqwest's threads survive a fork.

pyreqwest is loaded by the first call that goes over it. Its allocator (mimalloc 3) can crash a process in
which threads come and go, when a new thread first needs it: Airflow's API server and triggerer, which make no
frequent calls, never load it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import socket
import ssl
import threading
import time
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client.attempts import Answer, NoAnswer
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.endpoint import Endpoint
from airflow_provider_gradient.client.policy import TimeLeft, Timeouts

if TYPE_CHECKING:
    from pyreqwest.client import Client
    from pyreqwest.exceptions import PyreqwestError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEPT = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=4.0)
"""Idle connections go before uvicorn, which keeps them for 5 s, closes them."""


class _Transport:
    """What both transports share: the endpoint, and certificates read once."""

    def __init__(self, endpoint: Endpoint, *, timeouts: Timeouts) -> None:
        self._endpoint = endpoint
        self._timeouts = timeouts

    @property
    def _uses_tls(self) -> bool:
        return any(url.startswith("https:") for url in (self._endpoint.base_url, self._endpoint.proxy or ""))

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trusts httpx's authorities, the system's, and those of the endpoint's bundle."""
        if not self._uses_tls:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts none, and spares reading them: 0.1 s
        verify = self._endpoint.verify
        context = httpx.create_ssl_context(verify=verify is not False)
        if verify is not False:
            context.load_default_certs()
        if isinstance(verify, str):
            try:
                context.load_verify_locations(cafile=verify)
            except (OSError, ssl.SSLError) as error:
                raise InvalidRequestError(f"verify: CA bundle {verify!r} cannot be used: {error}") from None
        return context

    def _httpx_arguments(self) -> dict[str, Any]:
        return {
            "verify": self._tls,
            "proxy": self._endpoint.proxy,
            "headers": self._endpoint.headers,
            "follow_redirects": False,
            "limits": _KEPT,
        }


class BlockingTransport(_Transport):
    """httpx; frequent calls keep their connections. May be used from several threads."""

    def __init__(self, endpoint: Endpoint, *, timeouts: Timeouts) -> None:
        super().__init__(endpoint, timeouts=timeouts)
        self._lock = threading.Lock()
        self._kept: httpx.Client | None = None
        self._kept_in = 0

    def send(self, call: Call[Any], *, timeouts: TimeLeft) -> Answer:
        """One attempt.

        :raises NoAnswer: nothing came back.
        """
        if call.frequent:
            return _send(self._keep(), call, url=self._endpoint.base_url + call.path, timeouts=timeouts)
        with httpx.Client(**self._httpx_arguments()) as client:
            return _send(client, call, url=self._endpoint.base_url + call.path, timeouts=timeouts)

    def close(self) -> None:
        """Close kept connections; a later call opens new ones."""
        with self._lock:
            if self._kept is not None and self._kept_in == os.getpid():
                self._kept.close()
            self._kept = None

    def _keep(self) -> httpx.Client:
        with self._lock:
            if self._kept is None or self._kept_in != os.getpid():
                self._kept = httpx.Client(**self._httpx_arguments())
                self._kept_in = os.getpid()
            return self._kept


class AsyncTransport(_Transport):
    """pyreqwest for frequent calls, httpx for the others. Not bound to an event loop."""

    def __init__(self, endpoint: Endpoint, *, timeouts: Timeouts) -> None:
        super().__init__(endpoint, timeouts=timeouts)
        self._kept: Client | None = None
        self._kept_in = 0

    async def send(self, call: Call[Any], *, timeouts: TimeLeft) -> Answer:
        """One attempt.

        :raises NoAnswer: nothing came back.
        """
        url = self._endpoint.base_url + call.path
        if call.frequent and (client := self._keep()) is not None:
            return await _send_fast(client, call, url=url, timeouts=timeouts)
        async with httpx.AsyncClient(**self._httpx_arguments()) as client_:
            return await _asend(client_, call, url=url, timeouts=timeouts)

    async def aclose(self) -> None:
        """Close kept connections; a later call opens new ones."""
        kept, self._kept = self._kept, None
        if kept is not None and self._kept_in == os.getpid():
            await kept.close()

    def _keep(self) -> Client | None:
        """The kept client; ``None`` in a process forked from one that used pyreqwest."""
        if self._kept is None or self._kept_in != os.getpid():
            try:
                self._kept = self._build()
            except RuntimeError:
                return None
            self._kept_in = os.getpid()
        return self._kept

    def _build(self) -> Client:
        from pyreqwest.client import ClientBuilder
        from pyreqwest.proxy import ProxyBuilder

        _end_well()
        endpoint = self._endpoint
        builder = (
            ClientBuilder()
            .runtime_multithreaded(True)  # one thread would stand still whenever it waits for Python's lock
            .default_headers(endpoint.headers)
            .user_agent(endpoint.headers["User-Agent"])
            .follow_redirects(False)
            .connect_timeout(timedelta(seconds=self._timeouts.connect))
            .read_timeout(timedelta(seconds=self._timeouts.read))
            .pool_idle_timeout(timedelta(seconds=4))
        )
        if endpoint.verify is False:
            builder = builder.danger_accept_invalid_certs(True)
        elif isinstance(endpoint.verify, str) and self._uses_tls:
            _ = self._tls  # says what is wrong with the bundle
            for certificate in _CERTIFICATE.findall(Path(endpoint.verify).read_bytes()):
                builder = builder.add_root_certificate_pem(certificate)
        if endpoint.proxy is not None:
            builder = builder.proxy(ProxyBuilder.all(endpoint.proxy))
        return builder.build()


@cache
def _end_well() -> None:
    """Have the process wait a moment before it ends, once: pyreqwest's thread needs Python for an instant
    after it has handed over an answer, and an interpreter that ends just then aborts (exit status -6)."""
    atexit.register(time.sleep, 0.05)


def _send(client: httpx.Client, call: Call[Any], *, url: str, timeouts: TimeLeft) -> Answer:
    end = time.monotonic() + timeouts.total
    try:
        with client.stream(call.method, url, **_httpx_request(call, timeouts)) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > end:
                    raise NoAnswer(reason="the answer took too long", sent=True, timed_out=True)
            return Answer(status=response.status_code, headers=response.headers, body=bytes(body))
    except httpx.RequestError as error:
        raise _no_answer_of_httpx(error, timeouts) from error


async def _asend(client: httpx.AsyncClient, call: Call[Any], *, url: str, timeouts: TimeLeft) -> Answer:
    try:
        async with asyncio.timeout(timeouts.total):
            response = await client.request(call.method, url, **_httpx_request(call, timeouts))
            return Answer(status=response.status_code, headers=response.headers, body=response.content)
    except TimeoutError:
        raise NoAnswer(reason="the answer took too long", sent=True, timed_out=True) from None
    except httpx.RequestError as error:
        raise _no_answer_of_httpx(error, timeouts) from error


async def _send_fast(client: Client, call: Call[Any], *, url: str, timeouts: TimeLeft) -> Answer:
    from pyreqwest.exceptions import PyreqwestError

    request = client.request(call.method, url).headers(call.headers)
    request = request.timeout(timedelta(seconds=timeouts.total))
    if call.body is not None:
        request = request.body_bytes(call.body)
    try:
        response = await request.build().send()
        return Answer(status=response.status, headers=response.headers, body=bytes(await response.bytes()))
    except PyreqwestError as error:
        raise _no_answer_of_pyreqwest(error, timeouts) from error


def _httpx_request(call: Call[Any], timeouts: TimeLeft) -> dict[str, Any]:
    return {
        "content": call.body,
        "headers": call.headers,
        "timeout": httpx.Timeout(
            connect=timeouts.connect, read=timeouts.read, write=timeouts.read, pool=timeouts.total
        ),
    }


def _no_answer_of_httpx(error: Exception, timeouts: TimeLeft) -> NoAnswer:
    if isinstance(error, httpx.ConnectTimeout):
        reason = f"no connection within {timeouts.connect:g} s"
        return NoAnswer(reason=reason, sent=False, timed_out=True)
    if isinstance(error, httpx.TimeoutException):
        return NoAnswer(reason=f"no answer within {timeouts.read:g} s", sent=True, timed_out=True)
    unsent = isinstance(error, httpx.ConnectError | httpx.ProxyError)
    what = "no connection" if unsent else "the connection was lost"
    return NoAnswer(reason=f"{what} ({_innermost(error)})", sent=not unsent)


def _innermost(error: BaseException) -> str:
    """The words of the error at the bottom, where the operating system's reason is."""
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


def _no_answer_of_pyreqwest(error: PyreqwestError, timeouts: TimeLeft) -> NoAnswer:
    from pyreqwest.exceptions import RequestTimeoutError

    causes = [cause["message"] for cause in (getattr(error, "details", None) or {}).get("causes") or []]
    unsent = "client error (Connect)" in causes
    if isinstance(error, RequestTimeoutError):  # which of the time-outs it was, it doesn't say
        limits = (
            f"connection {timeouts.connect:g} s, silence {timeouts.read:g} s, in all {timeouts.total:g} s"
        )
        return NoAnswer(reason=f"no answer in time ({limits})", sent=not unsent, timed_out=True)
    what = "no connection" if unsent else "the connection was lost"
    return NoAnswer(reason=f"{what} ({causes[-1] if causes else error.message})", sent=not unsent)
