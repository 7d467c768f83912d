"""The command: an Airflow with LocalExecutor and PostgreSQL, one Gradient server, and many tasks."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url

from airflow_provider_gradient.client import GradientClient
from benchmarks.airflow_load.runs import Run
from benchmarks.airflow_load.sampling import Samples
from benchmarks.completions.__main__ import machine
from benchmarks.tuning.servers import gradient_server
from scripts.airflow_deployment import Deployment, deployed

_ROOT = Path(__file__).resolve().parents[2]
_POSTGRES = "postgresql+psycopg2://postgres@127.0.0.1:5432/postgres"
_ROWS = 5
_WAITED_SECONDS = 60.0
"""How long all sensors wait at once before the adapter is made."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.airflow_load", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200, help="task instances of each kind; default 200")
    parser.add_argument(
        "--parallelism",
        type=int,
        default=32,
        help="tasks that Airflow runs at once; default 32, Airflow's own",
    )
    parser.add_argument("--only", choices=("completions", "sensors"), help="one kind alone")
    parser.add_argument(
        "--postgres",
        default=_POSTGRES,
        help="a server on which a database is made and dropped; default %(default)s",
    )
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "airflow-load.json")
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "schema_version": 1,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "tasks": given.tasks,
        "parallelism": given.parallelism,
        "rows_a_task": _ROWS,
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        credentials = stack.enter_context(gradient_server(folder / "server"))
        database = stack.enter_context(_database(given.postgres))
        options = _options(credentials, database, parallelism=given.parallelism)
        dags = Path(__file__).parent / "dags"
        airflow = stack.enter_context(deployed(folder / "airflow", dags=dags, options=options))
        client = stack.enter_context(GradientClient(**credentials))
        for kind, measure in (("completions", completions), ("sensors", sensors)):
            if given.only in (None, kind):
                report[kind] = measure(airflow, client, folder, tasks=given.tasks)
                given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(show(report))
    print(f"\nWritten to {given.output}")


def completions(airflow: Deployment, client: GradientClient, folder: Path, *, tasks: int) -> dict[str, Any]:
    """All task instances from the trigger to the end; each completes a few rows on the one server."""
    conf = {
        "folder": str(folder),
        "tasks": tasks,
        "rows": _ROWS,
        "model_id": client.find_base_model("tiny").id,
    }
    with Samples(airflow=airflow) as samples:
        run = Run(airflow, "benchmark_completions", "complete", conf)
        seconds = run.follow_to_the_end()
    lines = [line for path in folder.glob("answers-*.jsonl") for line in path.read_text().splitlines()]
    return {
        "seconds": seconds,
        "task_states": run.counts(),
        "rows_answered": sum(json.loads(line).get("status") == "success" for line in lines),
        "most_running_at_once": run.most["running"],
        **samples.to_dict(),
    }


def sensors(airflow: Deployment, client: GradientClient, _: Path, *, tasks: int) -> dict[str, Any]:
    """All sensors are deferred, wait together for a minute, and end once the adapter is there."""
    with Samples(airflow=airflow) as samples:
        run = Run(airflow, "benchmark_sensors", "wait", {"tasks": tasks})
        until_deferred = run.follow(lambda counts: counts.get("deferred", 0) >= tasks)
        time.sleep(_WAITED_SECONDS)
        still = run.counts().get("deferred", 0)
        client.create_model_adapter(base_model_id=client.find_base_model("tiny").id, name="late")
        until_ended = run.follow_to_the_end()
    return {
        "seconds_until_all_deferred": until_deferred,
        "most_deferred_at_once": run.most["deferred"],
        "deferred_after_the_wait": still,
        "seconds_from_adapter_to_end": until_ended,
        "task_states": run.counts(),
        **samples.to_dict(),
    }


def _options(credentials: dict[str, str], database: str, *, parallelism: int) -> dict[str, str]:
    connection = {
        "conn_type": "gradient",
        "host": credentials["base_url"],
        "password": credentials["access_token"],
        "extra": {"workspace_id": credentials["workspace_id"]},
    }
    return {
        "AIRFLOW_CONN_GRADIENT_DEFAULT": json.dumps(connection),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
    }


@contextlib.contextmanager
def _database(server: str) -> Iterator[str]:
    """A database of its own; its URL."""
    name = f"gradient_load_{uuid.uuid4().hex[:8]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"drop database {name} with (force)")
        engine.dispose()


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    tasks, at_once = report["tasks"], report["parallelism"]
    lines = [f"Airflow runs {at_once} tasks at once (LocalExecutor, PostgreSQL)", ""]
    if found := report.get("completions"):
        lines += [
            f"| {tasks} task instances of {report['rows_a_task']} rows | |",
            "| --- | --- |",
            f"| from the trigger to the end, s | {found['seconds']:.0f} |",
            f"| states | {found['task_states']} |",
            f"| rows answered | {found['rows_answered']} of {tasks * report['rows_a_task']} |",
            f"| most running at once | {found['most_running_at_once']} |",
            *_health(found),
            "",
        ]
    if found := report.get("sensors"):
        lines += [
            f"| {tasks} deferred sensors | |",
            "| --- | --- |",
            f"| until all were deferred, s | {found['seconds_until_all_deferred']:.0f} |",
            f"| most deferred at once | {found['most_deferred_at_once']} |",
            f"| still deferred after a minute | {found['deferred_after_the_wait']} |",
            f"| from the adapter to the end, s | {found['seconds_from_adapter_to_end']:.0f} |",
            f"| states | {found['task_states']} |",
            *_health(found),
        ]
    return "\n".join(lines)


def _health(found: dict[str, Any]) -> list[str]:
    states = "; ".join(f"{name} {states}" for name, states in sorted(found["health"].items()))
    memory = ", ".join(f"{name} {size:.0f}" for name, size in found["peak_megabytes"].items())
    return [
        f"| health, samples by state | {states} |",
        f"| slowest answer of the health route, s | {found['slowest_health_answer_seconds']:.1f} |",
        f"| peak memory, MB | {memory} |",
    ]


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
