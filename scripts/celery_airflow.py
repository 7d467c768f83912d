"""An Airflow with CeleryExecutor on this machine: its database, its processes, its REST API.

It needs a PostgreSQL, in which it makes a database of its own, and a database of Redis that is empty. Both
are left as they were found.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil

from scripts.demo_server import ROOT, free_port, migrate_airflow

POSTGRES = os.environ.get("DEMO_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("DEMO_REDIS", "redis://127.0.0.1:6379/9")
PACKAGES = {"psycopg2": "psycopg2-binary", "asyncpg": "asyncpg", "redis": "redis", "celery": "celery"}
SLOTS = 2
"""Tasks that a worker runs at once."""
HEARTBEAT_TIMEOUT = 20
"""Seconds without a sign of life after which the scheduler holds a task for dead."""


def missing_services() -> list[str]:
    """What is not there of what this Airflow needs, a sentence each; empty where all of it is."""
    if packages := [name for module, name in PACKAGES.items() if not find_spec(module)]:
        return [f"{', '.join(packages)}: not installed; scripts/install demo-celery installs it"]
    return [sentence for sentence in (_missing_postgres(), _missing_redis()) if sentence]


def _missing_postgres() -> str | None:
    import psycopg2

    try:
        psycopg2.connect(POSTGRES, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        return (
            f"PostgreSQL does not answer: {reason}. Start it, or name another in the variable DEMO_POSTGRES"
        )
    return None


def _missing_redis() -> str | None:
    import redis

    place = urlsplit(REDIS)
    where = f"Redis at {place.hostname}:{place.port}, database {place.path.strip('/') or 0},"
    try:
        with redis.Redis.from_url(REDIS, socket_connect_timeout=5) as client:
            keys = client.dbsize()
    except redis.RedisError as error:
        return f"{where} does not answer: {error}. Start it, or name another in DEMO_REDIS"
    return f"{where} is not empty; name an empty one in DEMO_REDIS" if keys else None


@contextmanager
def celery_airflow(folder: Path, environment: dict[str, str]) -> Iterator[CeleryAirflow]:
    """An Airflow with two workers; everything it started has ended after the block.

    :param folder: gets the processes' logs.
    :param environment: of all processes, with ``AIRFLOW_HOME`` and the DAGs' folder.
    """
    with _database() as database, _broker() as broker:
        environment = environment | _settings(database, broker)
        migrate_airflow(environment, folder / "airflow-migrate.log")
        with CeleryAirflow(folder, environment) as airflow:
            yield airflow


def _settings(database: str, broker: str) -> dict[str, str]:
    port = free_port()
    return {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CELERY__BROKER_URL": broker,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
        # How soon a task that lost its worker is tried again.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",  # the DAG does not change
        # What every process has to know alike.
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }


@contextmanager
def _database() -> Iterator[str]:
    """A new database in PostgreSQL; yields its URL, in the form that SQLAlchemy takes."""
    name = f"gradient_demo_{os.getpid()}"
    _postgres(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    _postgres(f'CREATE DATABASE "{name}"')
    try:
        yield urlsplit(POSTGRES)._replace(scheme="postgresql+psycopg2", path=f"/{name}").geturl()
    finally:
        _postgres(f'DROP DATABASE "{name}" WITH (FORCE)')


def _postgres(statement: str) -> None:
    import psycopg2

    connection = psycopg2.connect(POSTGRES)
    try:
        connection.autocommit = True  # a database is not made within a transaction
        connection.cursor().execute(statement)
    finally:
        connection.close()


@contextmanager
def _broker() -> Iterator[str]:
    import redis

    try:
        yield REDIS
    finally:
        with redis.Redis.from_url(REDIS) as client:
            client.flushdb()  # it was empty


class CeleryAirflow:
    """The processes, and what a REST client asks of them.

    :ivar workers: the two workers by name.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.url = environment["AIRFLOW__API__BASE_URL"]
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = environment
        self._processes: list[subprocess.Popen[bytes]] = []
        self._api = httpx.Client(base_url=f"{self.url}/api/v2", timeout=120)

    def __enter__(self) -> Self:
        try:
            for component in ("api-server", "scheduler", "dag-processor"):
                self._start(component, component)
            for name in ("w1", "w2"):
                options = ("--celery-hostname", f"{name}@%h", "--concurrency", str(SLOTS))
                self.workers[name] = self._start(name, "celery", "worker", *options, "--skip-serve-logs")
            self._log_in()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self._end()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _log_in(self) -> None:
        def token() -> str | None:
            with suppress(httpx.TransportError):
                answer = self._api.get(f"{self.url}/auth/token")
                return str(answer.json()["access_token"]) if answer.is_success else None
            return None

        self._api.headers["Authorization"] = f"Bearer {self.wait_for(token, 'API server')}"

    def wait_for(self, condition: Any, what: str, *, seconds: float = 300, every: float = 0.5) -> Any:
        """What ``condition()`` gives, once it gives something; ends the demo if a process ended before.

        :param what: is waited for, for the message.
        :param every: seconds between two looks.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            if ended := [process for process in self._processes if process.poll() is not None]:
                command = " ".join(str(argument) for argument in ended[0].args[2:])
                sys.exit(f"{command} ended with status {ended[0].returncode}; see its log in {self.folder}")
            time.sleep(every)
        sys.exit(f"{what}: nothing in {seconds:.0f} s; see the logs in {self.folder}")

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run of a DAG, as soon as the DAG processor has read it; the run's id."""
        body = {"logical_date": None, "conf": conf}

        def run_id() -> str | None:
            answer = self._api.post(f"/dags/{dag_id}/dagRuns", json=body)
            return str(answer.json()["dag_run_id"]) if answer.is_success else None

        return str(self.wait_for(run_id, dag_id))

    def run_state(self, dag_id: str, run_id: str) -> str:
        """``queued``, ``running``, ``success`` or ``failed``."""
        return str(self._api.get(f"/dags/{dag_id}/dagRuns/{run_id}").raise_for_status().json()["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances as the REST API gives them."""
        answer = self._api.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100})
        instances: list[dict[str, Any]] = answer.raise_for_status().json()["task_instances"]
        return instances

    def runs_on(self, worker: str, task_instance: dict[str, Any]) -> bool:
        """Whether the task's process is one of the worker's."""
        with suppress(ProcessLookupError):
            pid: int | None = task_instance["pid"]
            return pid is not None and os.getsid(pid) == self.workers[worker].pid
        return False

    def kill(self, worker: str) -> None:
        """End a worker and its tasks as a power cut would: all at once, without a last word."""
        process = self.workers[worker]
        self._processes.remove(process)
        _kill_session(process)

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            _kill_session(process)


def _kill_session(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL for every process of a session: tasks have process groups of their own, but stay in it."""
    while members := [process for process in psutil.process_iter(["status"]) if _is_in(leader.pid, process)]:
        for process in members:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
    leader.wait()


def _is_in(session: int, process: psutil.Process) -> bool:
    with suppress(OSError):
        return os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE
    return False
