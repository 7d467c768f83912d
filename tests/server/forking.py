"""Servers forked from a process that has imported torch already, since importing it is most of a start.

Each is the whole server in a process of its own, started by the command's own function; only its imports are
older than it is. ``python -m tests.server.forking`` reads one line a server from standard input, its options
as JSON, and answers with its process id on one line and its ready lines after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class ForkingServer:
    """Starts servers one after another; ``server(...)`` gives one that listens."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.forking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("GRADIENT_")},
        )

    def server(self, data_dir: Path, *options: str) -> ForkedServer:
        """A new server."""
        assert self.process.stdin is not None
        print(json.dumps(["--port", "0", "--data-dir", str(data_dir), *options]), file=self.process.stdin)
        self.process.stdin.flush()
        pid = int(self._line(str.isdigit))  # what else the servers before it printed is passed over
        ready = self._line(lambda line: line.startswith("Gradient server ready"))
        return ForkedServer(pid, ready, data_dir)

    def _line(self, wanted: Callable[[str], bool]) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if wanted(line.strip()):
                return line
        raise AssertionError("the process that forks has ended")

    def close(self) -> None:
        """End the process that forks; the servers must have ended."""
        self.process.kill()
        self.process.communicate()
        self._log.close()


class ForkedServer:
    """One server, as :class:`tests.conftest.ServerProcess` is."""

    def __init__(self, pid: int, ready: str, data_dir: Path) -> None:
        self.pid = pid
        self.data_dir = data_dir
        self.url = next(word for word in ready.split() if word.startswith("http"))
        lines = (data_dir / "credentials.env").read_text().splitlines()
        values = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.headers = {
            "Authorization": f"Bearer {values['GRADIENT_ACCESS_TOKEN']}",
            "x-gradient-workspace-id": values["GRADIENT_WORKSPACE_ID"],
        }

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)
        while _exists(self.pid):
            time.sleep(0.001)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _serve_as_told() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    from airflow_provider_gradient.server.__main__ import app

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed are gone at once
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            print(os.getpid(), flush=True)
            options: list[Any] = json.loads(line)
            app(options, standalone_mode=False)
            os._exit(0)


if __name__ == "__main__":
    _serve_as_told()
