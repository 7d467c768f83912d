"""A server that goes wrong on purpose, on a real socket in a thread, for what a sound server won't do.

::

    with FaultyServer(reply(503, headers={"Retry-After": "0"}), cut(), completion("hello")) as server:
        ...                                  # talk to server.url
    assert len(server.requests) == 3

Each request takes the next entry of the script; the last entry answers all that follow. An entry may also be
a function from the request to an entry.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

ACCESS_TOKEN = "token-that-must-not-leak"
WORKSPACE_ID = "workspace-of-the-tests"
MODEL_ID = "0" * 36 + "_model_adapter"


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Act:
    """What the server does with a request.

    :param read: whether it reads the request before it acts; unread means that it sends nothing and cuts.
    :param wait: seconds before it acts.
    :param early: whether it acts when it has the head, and reads the body after that.
    :param send: bytes to send, as they are.
    :param then: what it sends after ``then_after`` seconds.
    :param endless: what it sends over and over, until the client is gone.
    :param close: whether it then cuts the connection.
    """

    read: bool = True
    wait: float = 0.0
    early: bool = False
    send: bytes = b""
    then: bytes = b""
    then_after: float = 0.0
    endless: bytes = b""
    close: bool = False


Script = Act | Callable[[Received], Act]


def reply(
    status: int = 200,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    wait: float = 0.0,
    content_type: str = "application/json",
) -> Act:
    """An HTTP answer; ``body`` is sent as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    head = [f"HTTP/1.1 {status} Status", f"Content-Type: {content_type}", f"Content-Length: {len(content)}"]
    head += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return Act(wait=wait, send="\r\n".join(head).encode() + b"\r\n\r\n" + content)


def completion(text: str, *, wait: float = 0.0) -> Act:
    """A completion as the API answers it."""
    return reply(body={"finishReason": "stop", "generatedOutput": text}, wait=wait)


def trained(*, tokens: int = 10, loss: float = 5.0, echo_key: bool = False) -> Script:
    """A fine-tune as the API answers it; with ``echo_key`` as one that honours idempotency keys."""

    def act(request: Received) -> Act:
        key = request.headers.get("idempotency-key")
        echoed = {"Idempotency-Key": key} if key is not None and echo_key else {}
        return reply(body={"numberOfTrainableTokens": tokens, "sumLoss": loss}, headers=echoed)

    return act


def error(
    status: int, message: str, *, type: str | None = None, headers: Mapping[str, str] | None = None
) -> Act:
    """An error as the API answers it."""
    return reply(status, {"message": message} | ({"type": type} if type else {}), headers=headers)


def html(status: int = 200) -> Act:
    """What a web server that isn't Gradient's says."""
    page = b"<!doctype html><title>Welcome</title><p>Please sign in.</p>"
    return reply(status, page, content_type="text/html; charset=utf-8")


def cut(*, read: bool = True) -> Act:
    """Cut the connection, after reading the request or before."""
    return Act(read=read, close=True)


def cut_answer() -> Act:
    """Cut the connection in the middle of an answer."""
    return Act(
        send=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{", close=True
    )


class FaultyServer:
    """See the module. ``requests`` holds what was read; ``connections`` counts those accepted."""

    def __init__(self, *script: Script, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.script = list(script) or [reply()]
        self.requests: list[Received] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._taken = 0
        self._tls = tls
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/api"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def credentials(self) -> dict[str, str]:
        """Arguments of a client of this server."""
        return {"access_token": ACCESS_TOKEN, "workspace_id": WORKSPACE_ID, "base_url": self.url}

    @property
    def acted(self) -> int:
        """How many entries of the script were played, requests that were not read included."""
        return self._taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.close()
        with self._lock:
            sockets = list(self._open)
        for open_socket in sockets:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        raw = connection
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection.makefile("rb") as stream:
                while self._answer(connection, stream, number):
                    pass
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(raw)
            connection.close()

    def _answer(self, connection: socket.socket, stream: Any, number: int) -> bool:
        """Play one entry; whether the connection stays."""
        if not stream.peek(1):
            return False
        entry = self._next()
        if isinstance(entry, Act) and not entry.read:
            self._stopped.wait(entry.wait)
            return _reset(connection)
        request = _read(stream, number, body=not (isinstance(entry, Act) and entry.early))
        if request is None:
            return False
        with self._lock:
            self.requests.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            act = entry if isinstance(entry, Act) else entry(request)
            self._stopped.wait(act.wait)
        finally:
            with self._lock:
                self.in_flight -= 1
        connection.sendall(act.send)
        if act.then:
            self._stopped.wait(act.then_after)
            connection.sendall(act.then)
        if act.early:
            stream.read(0 if act.close else int(request.headers["content-length"]))
        while act.endless:
            connection.sendall(act.endless)
        return _reset(connection) if act.close and not act.send else not act.close

    def _next(self) -> Script:
        with self._lock:
            entry = self.script[min(self._taken, len(self.script) - 1)]
            self._taken += 1
            return entry


def _reset(connection: socket.socket) -> bool:
    """Close with a reset rather than in good order."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def _read(stream: Any, number: int, *, body: bool = True) -> Received | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (header := stream.readline().decode("latin-1").strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    content = stream.read(int(headers.get("content-length", "0"))) if body else b""
    return Received(method=line[0], path=line[1], headers=headers, body=content, connection=number)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait for ``condition``; fail where it doesn't come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)
