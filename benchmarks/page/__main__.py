"""The command: one real run, copied ten thousand times; then each page is asked for, and timed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine

from benchmarks.completions.__main__ import machine
from benchmarks.page.copies import copy_run
from benchmarks.tuning.servers import gradient_server
from scripts.airflow_deployment import Deployment, cpu_seconds_of, deployed, memory_of

_ROOT = Path(__file__).resolve().parents[2]
_DAG = "benchmark_page"
_GOAL_SECONDS = 1.0


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few runs; shows that it works, no more")
    parser.add_argument("--runs", type=int, help="recorded runs; default 10000, with --quick 200")
    parser.add_argument(
        "--database", metavar="URL", help="of an empty PostgreSQL database for Airflow; default: SQLite"
    )
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "page.json")
    given = parser.parse_args()
    runs = given.runs or (200 if given.quick else 10_000)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=given.output.parent) as folder:
        measured = measure(
            Path(folder).resolve(), runs=runs, asked=3 if given.quick else 20, database=given.database
        )
    report = {
        "schema_version": 1,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "database": "PostgreSQL" if given.database else "SQLite",
        **measured,
    }
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(show(report))
    print(f"\nWritten to {given.output}")


def measure(folder: Path, *, runs: int, asked: int, database: str | None) -> dict[str, Any]:
    """Seconds and bytes of each page with one run and with ``runs``, and the API server's memory."""
    with gradient_server(folder / "server") as credentials:
        options = {"AIRFLOW_CONN_GRADIENT_DEFAULT": _connection(credentials)}
        if database:
            options["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
        dags = Path(__file__).parent / "dags"
        with deployed(folder / "airflow", dags=dags, components=("api-server",), options=options) as airflow:
            _say("one run of the real operators")
            conf = json.dumps({"folder": str(folder)})
            airflow.airflow("dags", "test", _DAG, "--conf", conf)
            with airflow.client("viewer") as client:
                path = _path_of_run(airflow)
                found = {"start": _megabytes(airflow), "one": _pages(airflow, client, asked, path)}
                _say(f"{runs - 1} copies")
                engine = create_engine(database or f"sqlite:///{airflow.home / 'airflow.db'}")
                begun = time.perf_counter()
                copy_run(engine, _DAG, runs - 1)
                _say(f"copied in {time.perf_counter() - begun:.0f} s")
                if database:
                    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                        connection.exec_driver_sql("ANALYZE")
                engine.dispose()
                last_page = f"completions?page={-(-runs // 50)}"
                found["all"] = _pages(airflow, client, asked, path, last_page)
    return {"runs": runs, "asked": asked, **found}


def _connection(credentials: dict[str, str]) -> str:
    return json.dumps(
        {
            "conn_type": "gradient",
            "host": credentials["base_url"],
            "password": credentials["access_token"],
            "extra": {"workspace_id": credentials["workspace_id"]},
        }
    )


def _path_of_run(airflow: Deployment) -> str:
    with airflow.client() as client:
        [run] = client.get(f"/api/v2/dags/{_DAG}/dagRuns").raise_for_status().json()["dag_runs"]
    assert run["state"] == "success", run
    return str(httpx.QueryParams({"dag_id": _DAG, "run_id": run["dag_run_id"], "task_id": "tune"}))


def _pages(
    airflow: Deployment, client: httpx.Client, asked: int, task: str, *more: str
) -> dict[str, dict[str, Any]]:
    pages = ("completions", *more, "evaluations", "tunings", "adapters", f"task?{task}")
    found = {page.partition("?dag_id")[0]: _page(airflow, client, page, asked) for page in pages}
    found["memory"] = {"megabytes": _megabytes(airflow)}
    return found


def _page(airflow: Deployment, client: httpx.Client, page: str, asked: int) -> dict[str, Any]:
    server = airflow.processes["api-server"]
    first, answer = _seconds(client, page)
    used = cpu_seconds_of(server)
    seconds = [_seconds(client, page)[0] for _ in range(asked)]
    return {
        "first_seconds": first,
        "median_seconds": statistics.median(seconds),
        "worst_seconds": max(seconds),
        "cpu_seconds": (cpu_seconds_of(server) - used) / asked,
        "bytes": len(answer.content),
    }


def _seconds(client: httpx.Client, page: str) -> tuple[float, httpx.Response]:
    begun = time.perf_counter()
    answer = client.get(f"/gradient/{page}").raise_for_status()
    return time.perf_counter() - begun, answer


def _megabytes(airflow: Deployment) -> float:
    return memory_of(airflow.processes["api-server"]) / 1e6


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    runs = f"{report['runs']:,} runs"
    lines = [
        f"| {report['database']} | one run: first, ms | median, ms | {runs}: first, ms | median, ms "
        "| slowest, ms | CPU, ms | answer, kB |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for page, many in report["all"].items():
        if page == "memory":
            continue
        one = report["one"].get(page)
        before = ["", ""] if one is None else [_ms(one["first_seconds"]), _ms(one["median_seconds"])]
        after = [_ms(many[f"{name}_seconds"]) for name in ("first", "median", "worst", "cpu")]
        lines.append(f"| {page} | {' | '.join([*before, *after])} | {many['bytes'] / 1e3:.0f} |")
    worst = max(page["worst_seconds"] for name, page in report["all"].items() if name != "memory")
    verdict = "met" if worst < _GOAL_SECONDS else "NOT met"
    memory = [report["start"], *(report[name]["memory"]["megabytes"] for name in ("one", "all"))]
    start, one_run, many_runs = (f"{each:.0f} MB" for each in memory)
    return "\n".join(
        [
            *lines,
            "",
            f"Every page under {_GOAL_SECONDS:.0f} s: {verdict}. The API server's memory: {start} before the "
            f"first page, {one_run} after the pages of one run, {many_runs} after those of {runs}.",
        ]
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
