"""Connections to clients that may stall.

uvicorn waits for ever for the head of a request and for a client that doesn't read its answer. Here a client
that takes too long to send a whole head is cut off, and on Linux the kernel cuts off one that doesn't read.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def patient_for(seconds: float) -> type[asyncio.Protocol]:
    """The protocol for uvicorn of connections that are waited for so long and no longer."""
    return type("Connection", (_Connection,), {"seconds": seconds})


class _Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    seconds: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        with suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.seconds * 1000)
            )
        self._start()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._lacks_head():
            self._start()
        super().data_received(data)
        if not self._lacks_head():
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _lacks_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(self.seconds, self._cut_off)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_off(self) -> None:
        if self._lacks_head():
            self.transport.abort()
