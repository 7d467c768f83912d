"""The demo: a Gradient server and an Airflow of its own, the notebook's story, and the improvement loop.

Everything it makes lies in ``.demo/`` under the checkout and is made anew at each run. It prints one line a
step and at the end a table of the loop's rounds; it exits with 1 if a DAG failed or the last round is no
better than the first. What it started it stops, also on Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

from scripts.demo_server import (
    ROOT,
    airflow_environment,
    gradient_server,
    make_empty,
    migrate_airflow,
    say,
    shown,
    stop,
)

DEMO = ROOT / ".demo"
OUTPUT = DEMO / "output"
DATABASE = DEMO / "airflow" / "airflow.db"
NOTEBOOK = "example_gradient_notebook"
LOOP = "example_gradient_improvement_loop"
FINAL_STATES = ("success", "failed", "skipped", "upstream_failed", "removed")


def main() -> int:
    """Run it all; the exit code."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    make_empty(DEMO)
    say("Gradient server", "starting")
    with gradient_server(DEMO) as connection:
        say("Gradient server", f"serves {connection['GRADIENT_API_URL']}")
        environment = airflow_environment(DEMO / "airflow", connection)
        migrate_airflow(environment, DEMO / "airflow-migrate.log")
        say("Airflow", f"has its home in {shown(DEMO / 'airflow')}")
        dags_started = time.monotonic()
        notebook_passed = run_dag(NOTEBOOK, environment)
        loop_passed = run_dag(LOOP, environment)
        dag_seconds = time.monotonic() - dags_started
    if not (notebook_passed and loop_passed):
        print(f"\nA DAG failed; see the logs in {shown(DEMO)}.")
        return 1
    rounds = json.loads((OUTPUT / LOOP / "summary.json").read_text())["rounds"]
    print_notebook()
    print_rounds(rounds)
    print_files()
    print(f"\nThe two DAGs took {dag_seconds:.0f} s, all of it {time.monotonic() - started:.0f} s.")
    return 0 if is_better(rounds[-1], rounds[0]) else 1


def run_dag(dag_id: str, environment: dict[str, str]) -> bool:
    """Runs a DAG once and prints a line for each task that ends; whether the DAG run succeeded."""
    print(f"\n{dag_id}")
    conf = json.dumps({"output_dir": str(OUTPUT / dag_id)})
    command = [sys.executable, "-m", "airflow", "dags", "test", dag_id, "--conf", conf]
    with (DEMO / f"{dag_id}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            told: set[tuple[str, int]] = set()
            while process.poll() is None:
                tell_finished_tasks(dag_id, told)
                time.sleep(0.5)
            tell_finished_tasks(dag_id, told)
        finally:
            stop(process)
    states = query("select state from dag_run where dag_id = ?", dag_id)
    return bool(states) and states[-1][0] == "success"


def tell_finished_tasks(dag_id: str, told: set[tuple[str, int]]) -> None:
    """A line for each task instance that ended since the last call."""
    for task_id, map_index, state, seconds in query(
        "select task_id, map_index, state, (julianday(end_date) - julianday(start_date)) * 86400"
        " from task_instance where dag_id = ? order by end_date",
        dag_id,
    ):
        if state in FINAL_STATES and (task_id, map_index) not in told:
            told.add((task_id, map_index))
            name = task_id if map_index < 0 else f"{task_id}[{map_index}]"
            say(name, state if seconds is None else f"{state} in {seconds:.1f} s")


def query(sql: str, *parameters: str) -> list[tuple[Any, ...]]:
    """Rows of Airflow's metadata database, which is only read here."""
    with sqlite3.connect(f"{DATABASE.as_uri()}?mode=ro", uri=True, timeout=30) as database:
        return database.execute(sql, parameters).fetchall()


def print_notebook() -> None:
    """The question, and the answers before and after the fine-tune."""
    answers = json.loads((OUTPUT / NOTEBOOK / "answers.json").read_text())
    print(f"\n{answers['question']}")
    print(f"  before the fine-tune: {answers['before']}")
    print(f"  after it:             {answers['after']}")


def print_rounds(rounds: list[dict[str, Any]]) -> None:
    """The loop's table."""
    sets = {"tuned": "tuned questions", "paraphrase": "paraphrases", "old": "old facts"}
    print("\nExact match with its 95 % interval, by round (0 is the base model)")
    print(
        f"{'round':<7}"
        + "".join(f"{title:<24}" for title in sets.values())
        + f"{'loss':<8}{'seconds':<9}promoted"
    )
    for row in rounds:
        cells = "".join(f"{interval(row['exact_match'][name]):<24}" for name in sets)
        if row["round"]:
            cells += f"{row['mean_loss']:<8.3f}{row['seconds']:<9.1f}{'yes' if row['promoted'] else 'no'}"
        print(f"{row['round']:<7}{cells}".rstrip())


def interval(metric: dict[str, float]) -> str:
    """``91.3 % (85.1-95.0)``."""
    value, low, high = (100 * metric[name] for name in ("value", "low", "high"))
    return f"{value:5.1f} % ({low:.1f}-{high:.1f})"


def print_files() -> None:
    """The files that the DAGs wrote."""
    print("\nFiles")
    for path in sorted(path for path in OUTPUT.rglob("*") if path.is_file()):
        print(f"  {shown(path)}")


def is_better(last: dict[str, Any], first: dict[str, Any]) -> bool:
    """Whether the last round answers more of the tuned questions than the first."""
    return bool(last["exact_match"]["tuned"]["value"] > first["exact_match"]["tuned"]["value"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; what it started is stopped.")
