"""A whole Airflow of its own, for what has to be seen in a running one: browser tests and measurements.

Its home is a folder of the caller's, its components are processes that listen on free loopback ports, and it
asks for a login. The connections and settings of the user's own shell don't reach it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
PASSWORDS = {"admin": "the-admin's-password", "viewer": "the-viewer's-password"}
"""By user; each has the role of that name."""


class DeploymentError(RuntimeError):
    """A component ended or did not get where it was waited for; the logs are in the home's ``output``."""


class Deployment:
    """A running Airflow.

    :ivar url: of the UI, without a trailing slash.
    :ivar environment: in which ``airflow`` commands speak of this Airflow.
    :ivar processes: the components' processes, each the leader of its own group.
    """

    def __init__(self, home: Path, *, dags: Path, options: Mapping[str, str]) -> None:
        self.home = home = home.resolve()
        self.output = home / "output"
        self.output.mkdir(parents=True)
        port, worker_logs, trigger_logs = free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps(PASSWORDS))
        self.environment = clean_environment() | {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{name}" for name in PASSWORDS),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__FERNET_KEY": "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker_logs),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_logs),
            # a busy machine is no error: with the usual 5 s, a task's start may fail
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            **options,
        }

    def airflow(self, *arguments: str) -> str:
        """What an ``airflow`` command printed.

        :raises DeploymentError: it failed.
        """
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(
            command, cwd=self.home, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DeploymentError(f"airflow {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start(self, component: str) -> None:
        """One of Airflow's long-running commands, its output in ``output/<component>.log``."""
        with (self.output / f"{component}.log").open("ab") as log:
            self.processes[component] = subprocess.Popen(
                [sys.executable, "-m", "airflow", component],
                cwd=self.home,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all components: asked first, killed with all that they started if they don't end."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def client(self, user: str = "admin") -> httpx.Client:
        """Airflow's REST API as that user."""
        login = {"username": user, "password": PASSWORDS[user]}
        token = httpx.post(f"{self.url}/auth/token", json=login, timeout=60).raise_for_status().json()
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def health(self, *, within: float = 60) -> dict[str, str | None]:
        """What Airflow says of its components in so many seconds, ``{"scheduler": "healthy", ...}``."""
        answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=within).raise_for_status().json()
        return {name: about["status"] for name, about in answer.items()}

    def wait_until(self, what: str, is_so: Callable[[], Any], *, seconds: float = 180) -> Any:
        """The first true answer of ``is_so``; a refused connection counts as false.

        :raises DeploymentError: a component ended meanwhile, or it took longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise DeploymentError(f"{name} ended with {process.returncode}:\n{self.log(name)}")
            with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):
                if answer := is_so():
                    return answer
            time.sleep(0.25)
        raise DeploymentError(f"waited {seconds:.0f} s in vain for {what}")

    def log(self, component: str) -> str:
        """What a component wrote."""
        return (self.output / f"{component}.log").read_text(errors="replace")

    def _is_healthy(self) -> bool:
        wanted = {"scheduler": "scheduler", "triggerer": "triggerer", "dag-processor": "dag_processor"}
        found = self.health()
        return all(found[wanted[name]] == "healthy" for name in self.processes if name in wanted)


@contextlib.contextmanager
def deployed(
    home: Path,
    *,
    dags: Path,
    components: Sequence[str] = COMPONENTS,
    options: Mapping[str, str] | None = None,
) -> Iterator[Deployment]:
    """An Airflow with its database migrated and ``components`` healthy, for as long as the context lasts.

    :param home: a folder that doesn't hold an Airflow yet.
    :param options: further environment variables, ``{"AIRFLOW__CORE__PARALLELISM": "8"}``.
    """
    airflow = Deployment(home, dags=dags, options=options or {})
    airflow.airflow("db", "migrate")
    try:
        for component in components:
            airflow.start(component)
        airflow.wait_until("Airflow to be healthy", airflow._is_healthy)
        yield airflow
    finally:
        airflow.stop()


def clean_environment() -> dict[str, str]:
    """The user's environment without what would point Airflow or the client elsewhere, or slow the start."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "GRADIENT_")) and name != "PYTHONDONTWRITEBYTECODE"
    }


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on."""
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(count):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
        return found


def memory_of(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that a process and all that it started take; what they share counts once (PSS)."""
    total = 0
    for each in _family(process):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            about = each.memory_full_info()
            total += getattr(about, "pss", about.uss)
    return total


def cpu_seconds_of(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds, user and system, of a process and all that it started and that still run."""
    total = 0.0
    for each in _family(process):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
