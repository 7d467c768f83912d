"""What a cleared task does with what it had done: it keeps it, or begins anew, and its retries go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, completion, error, reply, trained

ADAPTER = {
    "type": "modelAdapter",
    "id": MODEL_ID,
    "name": "a",
    "baseModelId": "b",
    "latestUpdateTime": "2026-01-01T00:00:00Z",
}


class Server(FaultyServer):
    """Counts what it is asked; ``refused`` is the number of the request that it refuses."""

    def __init__(self) -> None:
        super().__init__(self._act)
        self.work: list[Received] = []
        self.refused = 0

    def _act(self, request: Received) -> Act:
        if request.method == "GET":
            return reply(body=ADAPTER)
        self.work.append(request)
        if len(self.work) == self.refused:
            return error(401, "not now")
        if request.path.endswith("fine-tune"):
            return trained(echo_key=True)(request)  # type: ignore[operator]
        return completion("x")

    def queries(self) -> Counter[str]:
        return Counter(request.json()["query"] for request in self.work)


@pytest.fixture
def server(airflow_connection: Callable[..., None]) -> Any:
    """The server of ``gradient_default``."""
    with Server() as server:
        airflow_connection(
            "gradient_default",
            host=server.url,
            password=server.credentials["access_token"],
            extra={"workspace_id": server.credentials["workspace_id"]},
        )
        yield server


def completing(on_clear: str, folder: Path) -> Any:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    with DAG(f"cleared_{on_clear}", params={"on_clear": on_clear}) as dag:
        GradientCompleteDatasetOperator(
            task_id="answers",
            model_id=MODEL_ID,
            dataset=[{"q": q} for q in "abc"],
            prompt_column="q",
            output_path=str(folder / "out.jsonl"),
            concurrency=1,
            on_clear="{{ params.on_clear }}",
            retries=1,
            retry_delay=timedelta(0),
        )
    return dag


def clear_and_run(dag: Any) -> dict[str, Any]:
    """Clear the DAG's tasks and run them to their end; their states and tries."""
    from airflow.models.taskinstance import TaskInstance, clear_task_instances
    from airflow.sdk.definitions.dag import _run_task
    from airflow.utils.session import create_session
    from sqlalchemy import select

    of_dag = select(TaskInstance).where(TaskInstance.dag_id == dag.dag_id)
    with create_session() as session:
        instances = list(session.scalars(of_dag))
        clear_task_instances(instances, session)
        for instance in instances:  # the scheduler would start the run again
            instance.dag_run.start_date = datetime.now(UTC)
    ended = {}
    for task in dag.tasks:
        state = None
        while state in (None, "up_for_retry"):
            with create_session() as session:
                instance = session.scalars(of_dag.where(TaskInstance.task_id == task.task_id)).one()
                instance.try_number += 1
                instance.state = "scheduled"
            _run_task(ti=instance, task=task)
            with create_session() as session:
                instance = session.scalars(of_dag.where(TaskInstance.task_id == task.task_id)).one()
                state = str(instance.state)
        ended[task.task_id] = (state, instance.try_number)
    return ended


def test_a_cleared_task_keeps_what_is_done(server: Server, run_dag: Any, tmp_path: Path) -> None:
    dag = completing("resume", tmp_path)
    assert run_dag(dag).state == "success"
    assert clear_and_run(dag) == {"answers": ("success", 2)}
    assert server.queries() == {"a": 1, "b": 1, "c": 1}


def test_a_cleared_task_begins_anew_once_and_its_retry_goes_on(
    server: Server, run_dag: Any, tmp_path: Path
) -> None:
    dag = completing("restart", tmp_path)
    run = run_dag(dag)
    assert run.state == "success"
    server.refused = 5
    assert clear_and_run(dag) == {"answers": ("success", 3)}
    assert server.queries() == {"a": 2, "b": 3, "c": 2}
    assert run.xcom("answers")["resumed_rows"] == 1
    assert clear_and_run(dag) == {"answers": ("success", 4)}
    assert server.queries() == {"a": 3, "b": 4, "c": 3}


def test_a_cleared_tuning_trains_once_more_with_other_keys(
    server: Server, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientFineTuneOperator

    with DAG("cleared_tuning") as dag:
        for on_clear in ("resume", "restart"):
            GradientFineTuneOperator(
                task_id=on_clear,
                model_id=MODEL_ID,
                samples=[{"inputs": on_clear}],
                journal_path=str(tmp_path / f"{on_clear}.jsonl"),
                on_clear=on_clear,
            )
    assert run_dag(dag).state == "success"
    assert clear_and_run(dag) == {"resume": ("success", 2), "restart": ("success", 2)}
    sent = Counter(request.json()["samples"][0]["inputs"] for request in server.work)
    assert sent == {"resume": 1, "restart": 2}
    assert len({request.headers["idempotency-key"] for request in server.work}) == 3


def test_another_word_is_refused_before_anything_is_sent(
    server: Server, run_dag: Any, tmp_path: Path
) -> None:
    assert run_dag(completing("again", tmp_path)).state == "failed"
    assert server.requests == []
