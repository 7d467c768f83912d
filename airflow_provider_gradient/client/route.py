"""The way to a server: where to connect to, through which proxy, with which certificates, and the bytes of a
request."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import urllib.request
from typing import Any, NamedTuple

import httpx

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import request_ids
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.endpoint import Endpoint

_PORTS = {"http": 80, "https": 443}
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody: where TLS isn't spoken, the tenth of a second is spared that reading certificates takes."""


class Hop(NamedTuple):
    """Where a connection leads, and whether TLS is spoken there."""

    host: str
    port: int
    tls: bool


class Route:
    """The way to an endpoint.

    :ivar first: what is connected to, the proxy if there is one, else the server.
    :ivar tunnel: the request that asks the proxy for a tunnel to the server, with which TLS is spoken through
        it; ``None`` where none is needed.
    :ivar server: the server.
    :ivar tls: the certificates that are trusted.
    :raises InvalidRequestError: the proxy is no HTTP proxy, or the bundle of certificates can't be used.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        url = httpx.URL(endpoint.base_url)
        proxy = _proxy(url, endpoint.proxy)
        netloc = url.netloc.decode()
        self.first = self.server = _hop(url)
        self.tunnel: bytes | None = None
        # no server is asked to compress: what comes is the size that it has in memory
        fields = {"Host": netloc, **endpoint.headers, "Accept-Encoding": "identity"}
        target = url.raw_path.decode().rstrip("/")
        if proxy is not None:
            self.first = _hop(proxy)
            if self.server.tls:
                where = f"{netloc.removesuffix(f':{self.server.port}')}:{self.server.port}"
                asked = _lines({"Host": where, **_credentials(proxy)})
                self.tunnel = f"CONNECT {where} HTTP/1.1\r\n{asked}\r\n".encode("ascii")
            else:
                target = f"http://{netloc}{target}"
                fields |= _credentials(proxy)
        self._target, self._fields = target, _lines(fields)
        self._latest: tuple[tuple[object, ...], bytes] = ((), b"")
        self.tls = _tls(endpoint.verify) if self.first.tls or self.tunnel else _NO_TLS

    def request(self, call: Call[Any], request_id: str) -> bytes:
        """A request, as it goes over the connection."""
        body = call.body or b""
        asked = (call.method, call.path, call.idempotency_key, call.body is None)
        latest = self._latest  # whole, as several threads may ask
        if latest[0] != asked:  # all requests of a run but the first have the same head
            self._latest = latest = (asked, self._head_of(call))
        return b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (latest[1], request_id.encode(), len(body), body)

    def _head_of(self, call: Call[Any]) -> bytes:
        fields = f"{self._fields}{_lines(call.headers)}{request_ids.HEADER}: "
        return f"{call.method} {self._target}{call.path} HTTP/1.1\r\n{fields}".encode("ascii")


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


def _hop(url: httpx.URL) -> Hop:
    return Hop(url.raw_host.decode(), url.port or _PORTS[url.scheme], url.scheme == "https")


def _tls(verify: bool | str) -> ssl.SSLContext:
    """Trusts httpx's authorities, the system's, and those of the bundle."""
    context = httpx.create_ssl_context(verify=verify is not False)
    if verify is not False:
        context.load_default_certs()
    if isinstance(verify, str):
        try:
            context.load_verify_locations(cafile=verify)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequestError(f"verify: CA bundle {verify!r} cannot be used: {error}") from None
    return context


def _lines(fields: dict[str, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in fields.items()])


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
