"""A Gradient server and an Airflow for a demo: their environment, their start, their end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def gradient_server(folder: Path) -> Iterator[dict[str, str]]:
    """A Gradient server on a free loopback port; yields the environment variables that a client needs.

    :param folder: gets its data (``server/``) and its log (``server.log``).
    """
    log_path = folder / "server.log"
    command = [sys.executable, "-m", "airflow_provider_gradient.server", "--port", "0"]
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [*command, "--data-dir", str(folder / "server")],
            cwd=ROOT,
            env=clean_environment(),
            stdout=log,
            stderr=log,
        )
    try:
        yield _wait_for_credentials(server, folder / "server" / "credentials.env", log_path)
    finally:
        stop(server)


def _wait_for_credentials(server: subprocess.Popen[bytes], path: Path, log: Path) -> dict[str, str]:
    """What the server writes for its clients once it answers."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        if path.exists() and "ready" in log.read_text():
            lines = path.read_text().replace("export ", "").splitlines()
            return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        time.sleep(0.1)
    sys.exit(f"The Gradient server did not start; see {shown(log)}")


def airflow_environment(home: Path, connection: dict[str, str]) -> dict[str, str]:
    """Airflow with its home there, the example DAGs, and the Gradient connection in a variable."""
    return clean_environment() | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_GRADIENT_DEFAULT": json.dumps(
            {
                "conn_type": "gradient",
                "host": connection["GRADIENT_API_URL"],
                "password": connection["GRADIENT_ACCESS_TOKEN"],
                "extra": {"workspace_id": connection["GRADIENT_WORKSPACE_ID"]},
            }
        ),
    }


def clean_environment() -> dict[str, str]:
    """The user's environment without what would point Airflow or the client elsewhere, or slow the start."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "GRADIENT_")) and name != "PYTHONDONTWRITEBYTECODE"
    }


def migrate_airflow(environment: dict[str, str], log: Path) -> None:
    """Make Airflow's metadata database; ends the demo if that fails."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    with log.open("wb") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        sys.exit(f"airflow db migrate failed; see {shown(log)}")


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and end it if it does not in a few seconds."""
    process.terminate()
    try:
        process.wait(timeout=8)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def say(step: str, what: str) -> None:
    """One line, at once."""
    print(f"  {step:<44} {what}", flush=True)


def shown(path: Path) -> str:
    """A path as seen from the checkout."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def make_empty(folder: Path) -> None:
    """A folder with nothing in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
