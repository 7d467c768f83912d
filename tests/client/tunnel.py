"""A proxy on a real socket that opens tunnels (``CONNECT``), in a thread."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Self


class TunnelProxy:
    """Each tunnel leads to ``target``, whatever name it is asked for.

    :param status: what it answers instead, if it opens no tunnel.
    :ivar heads: of the requests, as they came.
    """

    def __init__(self, target: int, *, status: int = 200, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[str] = []
        self._target, self._status, self._tls = target, status, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.netloc = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"{scheme}://{self.netloc}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            self.heads.append(head.decode())
            connection.sendall(f"HTTP/1.1 {self._status} As it is\r\n\r\n".encode())
            if self._status == 200:
                with socket.create_connection(("127.0.0.1", self._target)) as target:
                    back = threading.Thread(target=_pass_on, args=(target, connection), daemon=True)
                    back.start()
                    _pass_on(connection, target)
                    back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
