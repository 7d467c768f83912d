"""The server's process and the peers': started, asked, ended."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).resolve().parents[2]


class PeerError(RuntimeError):
    """A peer ended with an error; its own words are on standard error."""


@dataclass(frozen=True, kw_only=True)
class LoopbackServer:
    """A running :mod:`benchmarks.completions.server`."""

    root: str

    @property
    def url(self) -> str:
        """Of the API."""
        return f"{self.root}/api"

    def stats(self) -> dict[str, Any]:
        """Its counts since the start or the last reset."""
        with urllib.request.urlopen(f"{self.root}/stats") as answer:  # noqa: S310 - http, on the loopback
            return dict(json.load(answer))

    def reset(self) -> None:
        """Set the counts to zero."""
        with urllib.request.urlopen(f"{self.root}/reset", data=b""):  # noqa: S310
            pass


@contextmanager
def serving(**options: float | None) -> Iterator[LoopbackServer]:
    """A server for as long as the context lasts; parameters as
    :class:`benchmarks.completions.server.Service` has them."""
    command = [sys.executable, "-m", "benchmarks.completions.server"]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(  # noqa: S603
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield LoopbackServer(root=f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


def start_peer(
    peer: str, server: LoopbackServer, *, dataset: Path, output: Path, in_flight: int
) -> subprocess.Popen[str]:
    """A peer's process, begun."""
    options = ["--url", server.url, "--dataset", str(dataset), "--output", str(output)]
    command = [sys.executable, "-m", "benchmarks.completions.peers", peer, *options]
    return subprocess.Popen(  # noqa: S603
        [*command, "--in-flight", str(in_flight)], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    )


def finish_peer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a peer reported.

    :raises PeerError: it failed.
    """
    reported, _ = process.communicate()
    if process.returncode:
        raise PeerError(f"a peer ended with {process.returncode}: {process.args!r}")
    return dict(json.loads(reported))


def run_peer(
    peer: str, server: LoopbackServer, *, dataset: Path, folder: Path, in_flight: int
) -> dict[str, Any]:
    """What a peer reported, with the server's counts, the seconds from the process's start to its end, and
    how many cores everything else on the machine took meanwhile."""
    server.reset()
    output = folder / f"{peer}.jsonl"
    remove_outputs(output)
    started, busy = time.perf_counter(), _busy_seconds()
    report = finish_peer(start_peer(peer, server, dataset=dataset, output=output, in_flight=in_flight))
    seconds, stats = time.perf_counter() - started, server.stats()
    others = _busy_seconds() - busy - report["process_cpu_seconds"] - stats["cpu_seconds"]
    remove_outputs(output)
    return report | {"process_seconds": seconds, "server": stats, "others_cores": others / seconds}


def _busy_seconds() -> float:
    """CPU seconds of the whole machine, other machines' on the same hardware included where that is known."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0) + getattr(times, "steal", 0))


def remove_outputs(output: Path) -> None:
    """Delete an output and what stands beside it."""
    for path in output.parent.glob(f"{output.stem}.*"):
        path.unlink()


def is_installed(peer: str) -> bool:
    """Whether the package of that peer can be imported."""
    packages = {"aiohttp", "gradientai", "httpx", "langchain_community"}
    return peer not in packages or importlib.util.find_spec(peer) is not None
