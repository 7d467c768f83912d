"""What a second try of a task does with what the first one left: after an error, a time-out, a kill, a
clear."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faults import (
    ACCESS_TOKEN,
    Act,
    FaultyServer,
    Received,
    completion,
    cut,
    error,
    reply,
    trained,
    wait_until,
)

ADAPTER = "0" * 36 + "_model_adapter"
MOMENT = {
    "logical_date": datetime(2026, 3, 1, tzinfo=UTC),
    "run_after": datetime(2026, 3, 1, tzinfo=UTC),
}
"""Makes ``dag.test`` run the same DAG run again, as clearing it would."""
BASE = {
    "type": "baseModel",
    "id": "1" * 36 + "_base_ml_model",
    "name": "Tiny",
    "slug": "tiny",
    "capabilities": ["complete", "fineTune"],
}
ROWS = [{"question": f"question {number}"} for number in range(12)]


class Script:
    """A server that answers each operation from a function, and what it was asked."""

    def __init__(self, **answers: Callable[[Received], Act]) -> None:
        self.answers = answers
        self.asked: dict[str, list[Received]] = {}

    def __call__(self, request: Received) -> Act:
        operation = self._operation(request)
        self.asked.setdefault(operation, []).append(request)
        if operation in self.answers:
            return self.answers[operation](request)
        if operation == "get":
            return reply(
                body={
                    "type": "modelAdapter",
                    "id": ADAPTER,
                    "name": "x",
                    "baseModelId": BASE["id"],
                    "latestUpdateTime": "2026-01-01T00:00:00Z",
                }
            )
        return reply(body={"models": [BASE]} if operation == "list" else {})

    @staticmethod
    def _operation(request: Received) -> str:
        last = request.path.partition("?")[0].rpartition("/")[2]
        if last in ("complete", "fine-tune"):
            return last
        if last == "models":
            return "list" if request.method == "GET" else "create"
        return request.method.lower()

    def queries(self) -> Counter[str]:
        """How often each question was asked."""
        return Counter(request.json()["query"] for request in self.asked.get("complete", []))


@pytest.fixture
def serve(airflow_connection: Callable[..., None]) -> Iterator[Callable[[Script], FaultyServer]]:
    """Starts a server of a script and makes ``gradient_default`` point to it."""
    servers: list[FaultyServer] = []

    def start(script: Script) -> FaultyServer:
        server = FaultyServer(script)
        servers.append(server)
        airflow_connection(
            "gradient_default",
            host=server.url,
            password=server.credentials["access_token"],
            extra={"workspace_id": server.credentials["workspace_id"], "total_timeout": 60},
        )
        return server

    yield start
    for server in servers:
        server.__exit__()


def complete_rows(output: Path, **options: Any) -> Any:
    """A DAG with one dataset to complete."""
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    with DAG("retried") as dag:
        GradientCompleteDatasetOperator(
            task_id="answers",
            model_id=ADAPTER,
            dataset=ROWS,
            prompt_column="question",
            output_path=str(output),
            concurrency=1,
            **options,
        )
    return dag


def test_a_retry_after_an_error_for_all_asks_only_for_the_rows_that_are_left(
    serve: Any, run_dag: Any, tmp_path: Path
) -> None:
    def answer(request: Received) -> Act:
        if len(script.asked["complete"]) == 6:
            return error(401, "the token was withdrawn")
        return completion("fine")

    script = Script(complete=answer)
    serve(script)
    run = run_dag(complete_rows(tmp_path / "answers.jsonl", retries=1, retry_delay=timedelta(0)))

    assert run.state == "success"
    assert run.tries == {"answers": 2}
    assert run.xcom("answers")["resumed_rows"] == 5
    assert script.queries() == Counter(row["question"] for row in ROWS) + Counter([ROWS[5]["question"]])


def test_a_task_that_lacks_rows_is_red_and_green_once_its_retry_has_sent_just_these(
    serve: Any, run_dag: Any, tmp_path: Path
) -> None:
    missing = {ROWS[3]["question"], ROWS[7]["question"]}
    states: list[bool] = []

    def answer(request: Received) -> Act:
        first = not (tmp_path / "answers.jsonl.manifest.json").exists()
        states.append(first)
        return error(502, "bad gateway") if first and request.json()["query"] in missing else completion("x")

    script = Script(complete=answer)
    serve(script)
    dag = complete_rows(tmp_path / "answers.jsonl", retries=1, retry_delay=timedelta(0), row_deadline=1.5)
    run = run_dag(dag)

    assert run.state == "success"
    assert run.tries == {"answers": 2}
    manifest = run.xcom("answers")
    assert (manifest["counts"]["success"], manifest["left_over"], manifest["resumed_rows"]) == (12, 0, 10)
    again = script.asked["complete"][states.index(False) :]
    assert {request.json()["query"] for request in again} == missing


def test_a_task_that_lacks_rows_and_has_no_retry_fails_and_leaves_its_journal(
    serve: Any, run_dag: Any, tmp_path: Path
) -> None:
    def answer(request: Received) -> Act:
        return error(429, "busy") if request.json()["query"] == ROWS[3]["question"] else completion("x")

    serve(Script(complete=answer))
    run = run_dag(complete_rows(tmp_path / "answers.jsonl", row_deadline=0.5))
    assert run.states == {"answers": "failed"}
    beside = {path.name for path in tmp_path.iterdir()}
    assert {"answers.jsonl", "answers.jsonl.manifest.json", "answers.jsonl.journal.jsonl"} <= beside
    assert "_SUCCESS.answers.jsonl" not in beside


def test_of_two_mapped_instances_with_one_output_the_second_fails_and_the_first_keeps_its_own(
    serve: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    script = Script(complete=lambda _: completion("x"))
    serve(script)
    with DAG("one_output") as dag:
        GradientCompleteDatasetOperator.partial(
            task_id="answers",
            model_id=ADAPTER,
            prompt_column="question",
            output_path=str(tmp_path / "answers.jsonl"),
        ).expand(dataset=[ROWS[:3], ROWS[3:8]])
    run = run_dag(dag)
    assert sorted(run.states.values()) == ["failed", "success"]
    [done] = [name for name, state in run.states.items() if state == "success"]
    rows = ROWS[:3] if done == "answers[0]" else ROWS[3:8]
    assert script.queries() == Counter(row["question"] for row in rows)


def test_a_task_that_ran_out_of_time_goes_on_where_it_was(serve: Any, run_dag: Any, tmp_path: Path) -> None:
    def answer(request: Received) -> Act:
        return completion("fine", wait=30 if len(script.asked["complete"]) == 4 else 0)

    script = Script(complete=answer)
    serve(script)
    run = run_dag(
        complete_rows(
            tmp_path / "answers.jsonl",
            retries=1,
            retry_delay=timedelta(0),
            execution_timeout=timedelta(seconds=5),
        )
    )

    assert run.state == "success"
    assert run.tries == {"answers": 2}
    assert run.xcom("answers")["resumed_rows"] == 3
    assert script.queries() == Counter(row["question"] for row in ROWS) + Counter([ROWS[3]["question"]])


DAG_FILE = """
from datetime import datetime, UTC
from airflow.sdk import DAG
from airflow_provider_gradient.operators import {operator}

with DAG("{dag_id}") as dag:
    {operator}(task_id="work", model_id="{adapter}", {arguments})

if __name__ == "__main__":
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    dag.test(logical_date=moment, run_after=moment)
"""


@pytest.fixture
def killed_then_run(airflow_database: Path, run_dag: Any) -> Callable[..., Any]:
    """Runs a one-task DAG in a process of its own, kills that when a condition holds, and runs it again
    here."""

    def run(
        dag_id: str,
        kill: signal.Signals,
        condition: Callable[[], bool],
        *,
        stops_within: float | None = None,
        **task: str,
    ) -> Any:
        path = airflow_database / "dags" / f"{dag_id}.py"
        path.write_text(DAG_FILE.format(dag_id=dag_id, adapter=ADAPTER, **task))
        command = [sys.executable, str(path)]
        log = airflow_database / f"{dag_id}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
        try:
            wait_until(lambda: condition() or process.poll() is not None, seconds=60)
            assert process.poll() is None, log.read_text()
            process.send_signal(kill)
            if stops_within is not None:
                wait_until(lambda: "The task was stopped." in log.read_text(), seconds=stops_within)
            process.wait(30)
        finally:
            process.kill()
            process.wait()
        dag = runpy.run_path(str(path))["dag"]
        return run_dag(dag, **MOMENT), log.read_text()

    return run


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_killed_in_the_middle_of_a_dataset_goes_on_where_it_was(
    kill: signal.Signals, serve: Any, killed_then_run: Any, tmp_path: Path
) -> None:
    def answer(request: Received) -> Act:
        return completion("fine", wait=60 if len(script.asked["complete"]) == 8 else 0)

    script = Script(complete=answer)
    serve(script)
    run, log = killed_then_run(
        f"killed_rows_{kill.name.lower()}",
        kill,
        lambda: len(script.asked.get("complete", [])) == 8,
        operator="GradientCompleteDatasetOperator",
        arguments=f'dataset={ROWS!r}, prompt_column="question", concurrency=1, '
        f"output_path={str(tmp_path / 'answers.jsonl')!r}",
    )

    assert run.state == "success"
    assert run.xcom("work")["resumed_rows"] == 7
    assert script.queries() == Counter(row["question"] for row in ROWS) + Counter([ROWS[7]["question"]])
    assert ("The task was stopped." in log) == (kill is signal.SIGTERM)


def test_a_task_that_is_stopped_with_many_requests_in_flight_ends_within_five_seconds(
    serve: Any, killed_then_run: Any, tmp_path: Path
) -> None:
    def answer(request: Received) -> Act:
        number = int(request.json()["query"].split()[1])
        hangs = number >= 40 and len(script.asked["complete"]) <= 72
        return completion("an answer", wait=60 if hangs else 0)

    script = Script(complete=answer)
    serve(script)
    rows = [{"question": f"question {number}"} for number in range(80)]
    run, log = killed_then_run(
        "stopped_rows",
        signal.SIGTERM,
        lambda: len(script.asked.get("complete", [])) == 72,
        stops_within=5.0,
        operator="GradientCompleteDatasetOperator",
        arguments=f'dataset={rows!r}, prompt_column="question", concurrency=32, '
        f"output_path={str(tmp_path / 'answers.jsonl')!r}",
    )

    assert run.state == "success"
    assert run.xcom("work")["resumed_rows"] == 40
    assert len(script.asked["complete"]) == 80 + 32
    shown = [log, str(run.rendered("work")), str(run.xcom("work"))]
    assert all(ACCESS_TOKEN not in text for text in shown + [f.read_text() for f in tmp_path.iterdir()])


def test_a_task_killed_in_the_middle_of_a_fine_tune_repeats_no_acknowledged_call(
    serve: Any, killed_then_run: Any
) -> None:
    def answer(request: Received) -> Act:
        calls = len(script.asked["fine-tune"])
        act = trained(echo_key=True)(request)
        return Act(wait=60, send=act.send) if calls == 3 else act

    script = Script(**{"fine-tune": answer})
    serve(script)
    samples = [{"inputs": f"sample {number}"} for number in range(5)]
    run, _ = killed_then_run(
        "killed_tuning",
        signal.SIGKILL,
        lambda: len(script.asked.get("fine-tune", [])) == 3,
        operator="GradientFineTuneOperator",
        arguments=f"samples={samples!r}, batch_size=1",
    )

    assert run.state == "success"
    report = run.xcom("work")
    assert (report["calls"], report["resumed_calls"]) == (5, 2)
    keys = [request.headers["idempotency-key"] for request in script.asked["fine-tune"]]
    bodies = [request.body for request in script.asked["fine-tune"]]
    assert len(keys) == 6
    assert (keys[2], bodies[2]) == (keys[3], bodies[3])
    assert len(set(keys)) == len(set(bodies)) == 5


def test_a_fine_tune_that_finished_is_not_trained_again_when_its_task_is_cleared(
    serve: Any, run_dag: Any
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientFineTuneOperator

    script = Script(**{"fine-tune": trained(echo_key=True)})
    serve(script)
    with DAG("cleared_tuning") as dag:
        GradientFineTuneOperator(task_id="work", model_id=ADAPTER, samples=[{"inputs": "a"}], epochs=3)
    first = run_dag(dag, **MOMENT).xcom("work")
    second = run_dag(dag, **MOMENT).xcom("work")

    assert len(script.asked["fine-tune"]) == 3
    assert (first["resumed_calls"], second["resumed_calls"]) == (0, 3)
    assert second["epoch_losses"] == first["epoch_losses"]


def test_mapped_fine_tunes_keep_journals_of_their_own(serve: Any, run_dag: Any) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientFineTuneOperator

    script = Script(**{"fine-tune": trained(echo_key=True)})
    serve(script)
    with DAG("mapped_tuning") as dag:
        GradientFineTuneOperator.partial(task_id="work", samples=[{"inputs": "a"}]).expand(
            model_id=[ADAPTER, ADAPTER]
        )
    run = run_dag(dag)

    assert run.states == {"work[0]": "success", "work[1]": "success"}
    assert len({request.headers["idempotency-key"] for request in script.asked["fine-tune"]}) == 2


def test_a_creation_that_was_sent_but_not_answered_is_repeated_with_its_key(serve: Any, run_dag: Any) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCreateModelAdapterOperator

    def answer(request: Received) -> Act:
        return cut() if len(script.asked["create"]) == 1 else reply(body={"id": ADAPTER})

    script = Script(create=answer)
    serve(script)
    with DAG("lost_answer") as dag:
        GradientCreateModelAdapterOperator(
            task_id="adapter",
            base_model="tiny",
            name="x",
            if_exists="create",
            retries=1,
            retry_delay=timedelta(0),
        )
    run = run_dag(dag)

    assert run.xcom("adapter") == ADAPTER
    assert run.tries == {"adapter": 2}
    [first, second] = script.asked["create"]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


def test_a_cleared_run_whose_adapter_was_deleted_gets_a_new_one(
    gradient_default: Any, client: Any, run_dag: Any
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import (
        GradientCompleteOperator,
        GradientCreateModelAdapterOperator,
        GradientDeleteModelAdapterOperator,
    )

    with DAG("cleared_creation") as dag:
        adapter = GradientCreateModelAdapterOperator(
            task_id="adapter", base_model="tiny", name="cleared", if_exists="create"
        )
        (
            GradientCompleteOperator(
                task_id="ask", model_id=adapter.output, query="Hello", max_generated_token_count=1
            )
            >> GradientDeleteModelAdapterOperator(task_id="delete", model_id=adapter.output)
        )
    first = run_dag(dag, **MOMENT)
    second = run_dag(dag, **MOMENT)

    assert (first.state, second.state) == ("success", "success")
    assert second.xcom("adapter") not in {first_model.id for first_model in client.list_models()}


def test_a_journal_path_may_be_templated_and_shared_between_workers(
    serve: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientFineTuneOperator

    script = Script(**{"fine-tune": trained(echo_key=True)})
    serve(script)
    with DAG("journal_path", params={"folder": str(tmp_path)}) as dag:
        GradientFineTuneOperator(
            task_id="work",
            model_id=ADAPTER,
            samples=[{"inputs": "a"}],
            journal_path="{{ params.folder }}/{{ task.task_id }}.jsonl",
        )
    assert run_dag(dag).state == "success"
    lines = [json.loads(line) for line in (tmp_path / "work.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "acknowledged"
