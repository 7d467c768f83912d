"""A Gradient server that answers a completion after a fixed time, and does nothing else.

It is a bare protocol that answers constant bytes, so that it isn't what is measured. ``GET /stats`` gives its
counts; ``POST /reset`` sets them to zero and lifts ``--hold-after``. Run as a process; it prints its port,
and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import time

MODEL_ID = "00000000-0000-4000-8000-000000000000_model_adapter"
OUTPUT = " A completion of ordinary length, about a dozen tokens of text."


def _answer(status: int, reason: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


_COMPLETION = _answer(
    200,
    "OK",
    {
        "finishReason": "stop",
        "generatedOutput": OUTPUT,
        "usage": {"promptTokens": 24, "completionTokens": 14, "totalTokens": 38},
    },
)
_ADAPTER = _answer(
    200,
    "OK",
    {
        "type": "modelAdapter",
        "id": MODEL_ID,
        "name": "benchmark",
        "baseModelId": "base",
        "latestUpdateTime": "2026-01-01T00:00:00Z",
    },
)
_TOO_MANY = _answer(429, "Too Many Requests", {"message": "too many requests"})
_UNAVAILABLE = _answer(503, "Service Unavailable", {"message": "unavailable"})
_FAULTS = (_TOO_MANY, _UNAVAILABLE, None)
"""In equal parts; ``None`` cuts the connection."""


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Counts:
    """Since the start or the last reset.

    :ivar completed: completions answered.
    :ivar first_request: when the first completion was asked for, on the machine's monotonic clock.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.completed = 0
        self.refused = 0
        self.faults = 0
        self.connections = 0
        self.most_in_flight = 0
        self.first_request: float | None = None
        self.cpu_before = _cpu_seconds()


class Service:
    """How completions are answered.

    :param latency: seconds.
    :param bears: completions at once; more are refused with 429. ``None`` for any number.
    :param faults: share of completions that end as a fault instead.
    :param hold_after: so many completions are answered, the others not until :meth:`reset`.
    """

    def __init__(
        self,
        *,
        latency: float,
        bears: int | None = None,
        faults: float = 0.0,
        hold_after: int | None = None,
    ) -> None:
        self.latency = latency
        self.bears = bears
        self.faults = faults
        self.hold_after = hold_after
        self.counts = Counts()
        self.in_flight = 0
        self._random = random.Random(0)

    def complete(self, connection: Connection) -> None:
        """Answer ``connection`` when it is time."""
        counts = self.counts
        counts.requests += 1
        if counts.first_request is None:
            counts.first_request = time.monotonic()
        if self.bears is not None and self.in_flight >= self.bears:
            counts.refused += 1
            connection.send(_TOO_MANY)
            return
        self.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, self.in_flight)
        faulty = self.faults and self._random.random() < self.faults
        answer = self._random.choice(_FAULTS) if faulty else _COMPLETION
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self._end, connection, answer)
        else:
            self._end(connection, answer)

    def _end(self, connection: Connection, answer: bytes | None) -> None:
        if self.hold_after is not None and self.counts.completed >= self.hold_after:
            return
        self.in_flight -= 1
        if answer is _COMPLETION:
            self.counts.completed += 1
        else:
            self.counts.faults += 1
        connection.send(answer)

    def reset(self) -> None:
        """Begin anew; what is held stays unanswered, its client being gone."""
        self.counts = Counts()
        self.hold_after = None
        self.in_flight = 0

    def stats(self) -> bytes:
        """The answer to ``GET /stats``."""
        cpu_seconds = _cpu_seconds() - self.counts.cpu_before
        return _answer(200, "OK", vars(self.counts) | {"cpu_seconds": cpu_seconds})


class Connection(asyncio.Protocol):
    """One client connection, its requests one after another."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._service.counts.connections += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (head_end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:head_end].lower()
            _, found, length = head.partition(b"content-length:")
            end = head_end + 4 + (int(length.split(b"\r\n", 1)[0]) if found else 0)
            if len(self._received) < end:
                return
            self._received = self._received[end:]
            self._serve(head)

    def send(self, answer: bytes | None) -> None:
        """Send ``answer``; ``None`` cuts the connection."""
        if answer is None:
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.write(answer)

    def _serve(self, head: bytes) -> None:
        if head.startswith(b"post /reset"):
            self._service.reset()
            self.send(_answer(200, "OK", {}))
        elif head.startswith(b"post"):
            self._service.complete(self)
        elif head.startswith(b"get /stats"):
            self.send(self._service.stats())
        else:
            self.send(_ADAPTER)


async def _serve(service: Service) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def raise_file_limit() -> None:
    """Allow this process as many open sockets as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.completions.server", description=__doc__)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--bears", type=int)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--hold-after", type=int)
    raise_file_limit()
    asyncio.run(_serve(Service(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
