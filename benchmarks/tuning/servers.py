"""The servers: the real one in a process of its own, and one that answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def gradient_server(folder: Path) -> Iterator[dict[str, str]]:
    """The package's own server with the built-in model; gives a client's arguments."""
    command = [sys.executable, "-m", "airflow_provider_gradient.server", "--port", "0", "--data-dir"]
    with subprocess.Popen(  # noqa: S603
        [*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            lines = (folder / "credentials.env").read_text().splitlines()
            values = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            yield {
                "base_url": next(word for word in ready.split() if word.startswith("http")),
                "access_token": values["GRADIENT_ACCESS_TOKEN"],
                "workspace_id": values["GRADIENT_WORKSPACE_ID"],
            }
        finally:
            process.terminate()


class _Immediate(BaseHTTPRequestHandler):
    """Answers every fine-tune with the same figures, and echoes its key."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"numberOfTrainableTokens": 100, "sumLoss": 50.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if key := self.headers.get("Idempotency-Key"):
            self.send_header("Idempotency-Key", key)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def immediate_server() -> Iterator[dict[str, str]]:
    """A server that trains nothing and answers at once; gives a client's arguments."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Immediate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/api"
        yield {"base_url": url, "access_token": "benchmark", "workspace_id": "benchmark"}
    finally:
        server.shutdown()
