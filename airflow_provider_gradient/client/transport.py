"""The bytes' way: calls over httpx, and the frequent ones of the asynchronous client over kept connections of
their own, because httpx's pool collapses with dozens of calls in flight.

A call that is not frequent goes over httpx, on a connection of its own. Nothing is opened before the first
call, and no kept socket is used on in a forked child.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
import urllib.request
from functools import cached_property
from typing import Any

import httpx

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client.attempts import Answer, NoAnswer
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.connections import KEPT_SECONDS, Connections, in_words
from airflow_provider_gradient.client.endpoint import Endpoint
from airflow_provider_gradient.client.policy import TimeLeft

_KEPT = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEPT_SECONDS)


class _Transport:
    """What both transports share: the endpoint, and certificates read once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def _uses_tls(self) -> bool:
        proxies = (self._endpoint.proxy or "", *urllib.request.getproxies().values())
        return any(url.startswith("https:") for url in (self._endpoint.base_url, *proxies))

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

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
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
    """:class:`~.connections.Connections` for frequent calls, httpx for the others. Not bound to an event
    loop."""

    async def send(self, call: Call[Any], *, timeouts: TimeLeft) -> Answer:
        """One attempt.

        :raises NoAnswer: nothing came back.
        """
        if call.frequent:
            return await self._connections.send(call, timeouts=timeouts)
        async with httpx.AsyncClient(**self._httpx_arguments()) as client:
            return await _asend(client, call, url=self._endpoint.base_url + call.path, timeouts=timeouts)

    async def aclose(self) -> None:
        """Close kept connections; a later call opens new ones."""
        self._connections.close()

    @cached_property
    def _connections(self) -> Connections:
        return Connections(self._endpoint, tls=lambda: self._tls)


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
    return NoAnswer(reason=f"{what} ({in_words(error)})", sent=not unsent)
