"""The demo of several machines: a dataset in shards over two Celery workers, one of which is killed.

It runs ``example_gradient_sharded_completions`` under CeleryExecutor with PostgreSQL and Redis, kills a
worker and its tasks in the middle of their shards, and looks at what comes out. Everything it makes lies in
``.demo-celery/`` under the checkout and is made anew at each run. It exits with 1 unless the output holds
every row once and nothing was sent again but what was in flight.
"""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.celery_airflow import CeleryAirflow, celery_airflow, missing_services
from scripts.demo_server import ROOT, airflow_environment, gradient_server, make_empty, say, shown

DEMO = ROOT / ".demo-celery"
DAG = "example_gradient_sharded_completions"
SHARDS = 8
IN_FLIGHT_PER_SHARD = 8
"""The DAG's 32 requests at once among the 4 shards that run at once."""
FINAL_STATES = ("success", "failed", "skipped", "upstream_failed", "removed")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run with a killed worker came to.

    :ivar state: of the DAG run.
    :ivar ids: of the output's rows, in their order, with their status.
    :ivar expected: what ``ids`` is if every row is answered once, in order.
    :ivar requests: completions that the Gradient server was asked for.
    :ivar killed: the shards whose tasks were killed.
    :ivar tries: each shard's tries.
    :ivar retried_after: seconds from the kill to the first of its tasks' next tries.
    """

    state: str
    ids: list[tuple[str, str]]
    expected: list[tuple[str, str]]
    requests: int
    killed: list[int]
    tries: dict[int, int]
    retried_after: float

    @property
    def sent_again(self) -> int:
        """Requests beyond one a row."""
        return self.requests - len(self.expected)

    @property
    def most_in_flight(self) -> int:
        """Requests that the killed tasks can have had in flight, at most."""
        return len(self.killed) * IN_FLIGHT_PER_SHARD

    @property
    def is_right(self) -> bool:
        """Every row once, and nothing sent again but what was in flight."""
        return (
            self.state == "success"
            and self.ids == self.expected
            and 0 <= self.sent_again <= self.most_in_flight
        )


def main() -> int:
    """Run it all; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if missing := missing_services():
        print("This demo needs PostgreSQL and Redis, and not all of it is there:", file=sys.stderr)
        print("\n".join(f"  {sentence}" for sentence in missing), file=sys.stderr)
        return 1
    started = time.monotonic()
    make_empty(DEMO)
    outcome = run_with_a_killed_worker(DEMO, rows=4000)
    print(f"\nThe run ended as {outcome.state}, {time.monotonic() - started:.0f} s after the start.")
    whole = "each once and in order" if outcome.ids == outcome.expected else "NOT each once and in order"
    print(f"  {len(outcome.ids)} rows in the output for {len(outcome.expected)} in the dataset, {whole}")
    print(f"  {outcome.requests} requests by the Gradient server's count: {outcome.sent_again} sent again,")
    print(f"  where at most {outcome.most_in_flight} were in flight when the worker was killed")
    print(f"  answers, scores and logs are in {shown(DEMO)}")
    return 0 if outcome.is_right else 1


def run_with_a_killed_worker(folder: Path, *, rows: int) -> Outcome:
    """Start all that is needed in ``folder``, run the DAG, kill a worker in the middle of it.

    :param rows: of the dataset.
    """
    dataset = folder / "questions.jsonl"
    expected = write_questions(dataset, rows)
    output = folder / "output"
    say("Gradient server", "starting")
    with gradient_server(folder) as connection:
        say("Airflow with CeleryExecutor", "starting, with the workers w1 and w2")
        environment = airflow_environment(folder / "airflow", connection)
        environment["AIRFLOW__CORE__DAGS_FOLDER"] = str(only_this_dag(folder / "dags"))
        with celery_airflow(folder, environment) as airflow:
            say("Airflow's UI", airflow.url)
            run_id = airflow.trigger(DAG, {"dataset": str(dataset), "output_dir": str(output)})
            say(DAG, "triggered")
            killed = kill_in_the_middle(
                airflow, run_id, output / "answers.jsonl.shards", rows // SHARDS // 10
            )
            retried_after = watch(airflow, run_id, killed)
            instances = airflow.task_instances(DAG, run_id)
            return Outcome(
                state=airflow.run_state(DAG, run_id),
                ids=read_ids(output / "answers.jsonl"),
                expected=expected,
                requests=completions_asked(connection["GRADIENT_API_URL"]),
                killed=killed,
                tries={ti["map_index"]: ti["try_number"] for ti in instances if is_shard(ti)},
                retried_after=retried_after,
            )


def only_this_dag(folder: Path) -> Path:
    """A folder of DAGs with no other in it, since Airflow reads them all before it starts one."""
    folder.mkdir()
    (folder / f"{DAG}.py").symlink_to(ROOT / "example_dags" / f"{DAG}.py")
    return folder


def write_questions(path: Path, rows: int) -> list[tuple[str, str]]:
    """The example's questions over and over, each time with other ids; what the output should hold."""
    lines = (ROOT / "example_dags" / "data" / "support_questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    made = [questions[n % len(questions)] | {"id": f"question {n}"} for n in range(rows)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    return [(row["id"], "success") for row in made]


def kill_in_the_middle(airflow: CeleryAirflow, run_id: str, shards: Path, answered: int) -> list[int]:
    """Kill w1 once every shard it works on has some rows answered; the numbers of those shards.

    :param answered: rows that a shard must have in its journal.
    """

    def shards_on_w1() -> list[int]:
        if not any(journaled(shards, number) >= answered for number in range(SHARDS)):
            return []
        instances = [ti for ti in airflow.task_instances(DAG, run_id) if is_shard(ti)]
        mine = [ti["map_index"] for ti in instances if ti["state"] == "running" and airflow.runs_on("w1", ti)]
        return mine if mine and all(journaled(shards, number) >= answered for number in mine) else []

    numbers: list[int] = airflow.wait_for(shards_on_w1, "shards at work on worker w1", every=0.1)
    airflow.kill("w1")
    done = ", ".join(f"{number} ({journaled(shards, number)} rows done)" for number in numbers)
    say("worker w1", f"killed, with the tasks of the shards {done}")
    return numbers


def is_shard(task_instance: dict[str, Any]) -> bool:
    """Whether it is the task of one shard."""
    return task_instance["task_id"] == "answer_questions.complete" and task_instance["map_index"] >= 0


def journaled(shards: Path, number: int) -> int:
    """Rows in a shard's journal, whose first lines are its head and the rows' keys."""
    journal = shards / f"{number:05}.jsonl.journal.jsonl"
    return journal.read_bytes().count(b'\n{"index":') if journal.exists() else 0


def watch(airflow: CeleryAirflow, run_id: str, killed: list[int]) -> float:
    """Tell of tasks that end and are tried again, until the run ends; seconds to the first next try."""
    killed_at = time.monotonic()
    told: set[tuple[str, int, str]] = set()
    retried_after = math.nan

    def ended() -> bool:
        nonlocal retried_after
        for ti in airflow.task_instances(DAG, run_id):
            retried = is_shard(ti) and ti["map_index"] in killed and airflow.runs_on("w2", ti)
            key = (ti["task_id"], ti["map_index"], "retried" if retried else ti["state"])
            if key in told or not (retried or ti["state"] in FINAL_STATES):
                continue
            told.add(key)
            name = ti["task_id"] if ti["map_index"] < 0 else f"{ti['task_id']}[{ti['map_index']}]"
            seconds = time.monotonic() - killed_at
            if retried:
                retried_after = seconds if math.isnan(retried_after) else retried_after
                say(name, f"try {ti['try_number']} began on w2, {seconds:.0f} s after the kill")
            else:
                say(name, f"{ti['state']} in try {ti['try_number']}")
        return airflow.run_state(DAG, run_id) in FINAL_STATES

    airflow.wait_for(ended, "the end of the run", seconds=500)
    return retried_after


def read_ids(path: Path) -> list[tuple[str, str]]:
    """Id and status of each row of an output; none where there is no output."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row["id"], row["status"]) for row in map(json.loads, lines)]


def completions_asked(api_url: str) -> int:
    """Completions that the Gradient server was asked for, answered or not, by its own count."""
    with urllib.request.urlopen(f"{api_url.removesuffix('/api')}/metrics", timeout=30) as answer:  # noqa: S310
        text = answer.read().decode()
    counts = re.findall(r'^gradient_request_seconds_count\{operation="complete".*\} (\S+)$', text, re.M)
    return round(sum(float(count) for count in counts))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; what it started is stopped.")
