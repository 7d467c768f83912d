"""What Airflow's UI shows of a task while it runs: the link to its page, and how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, completion, error, reply, trained, wait_until

ADAPTER = {
    "type": "modelAdapter",
    "id": MODEL_ID,
    "name": "a",
    "baseModelId": "b",
    "latestUpdateTime": "2026-01-01T00:00:00Z",
}
LINK_KEY = "_link_GradientPageLink"
Answer = Callable[[Received], Act]


@pytest.fixture
def serve(airflow_connection: Callable[..., None]) -> Iterator[Callable[[Answer], FaultyServer]]:
    """Starts a server that answers as a function says, where ``gradient_default`` points to."""
    with contextlib.ExitStack() as servers:

        def start(answer: Answer) -> FaultyServer:
            server = servers.enter_context(FaultyServer(answer))
            airflow_connection(
                "gradient_default",
                host=server.url,
                password=server.credentials["access_token"],
                extra={"workspace_id": server.credentials["workspace_id"]},
            )
            return server

        yield start


def seen_of(dag_id: str, task_id: str) -> Any:
    """What the Gradient page knows of the DAG's running task, and the link that Airflow's UI has."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_provider_gradient.plugins.records import record

    with create_session() as session:
        task = session.scalars(
            select(TaskInstance).where(TaskInstance.dag_id == dag_id, TaskInstance.task_id == task_id)
        ).one()
        ids = {"dag_id": dag_id, "run_id": task.run_id, "task_id": task_id, "map_index": task.map_index}
        link = session.scalar(XComModel.get_many(key=LINK_KEY, run_id=task.run_id, task_ids=task_id))
        value = None if link is None else XComModel.deserialize_value(link)
        return record(session, **ids), value


def tuning(dag_id: str, folder: Path, **options: Any) -> Any:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientFineTuneOperator

    with DAG(dag_id) as dag:
        GradientFineTuneOperator(
            task_id="tune",
            model_id=MODEL_ID,
            samples=[{"inputs": f"sample {number}"} for number in range(3)],
            batch_size=1,
            journal_path=str(folder / "journal.jsonl"),
            **options,
        )
    return dag


def test_link_and_progress_are_there_while_the_task_runs(
    serve: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.com/team/airflow/")
    seen: list[Any] = []

    def answer(request: Received) -> Act:
        if request.method == "GET":
            return reply(body=ADAPTER)
        if seen:
            wait_until(lambda: seen_of("told_meanwhile", "tune")[0].progress is not None)
        seen.append(seen_of("told_meanwhile", "tune"))
        return trained()(request)  # type: ignore[operator]

    serve(answer)
    run = run_dag(tuning("told_meanwhile", tmp_path))
    assert run.state == "success"

    links = {link for _, link in seen}
    assert links == {run.xcom("tune", key=LINK_KEY)}
    url = urlsplit(links.pop())
    assert url[:3] == ("https", "example.com", "/team/airflow/gradient/task")
    assert parse_qs(url.query) == {
        "dag_id": ["told_meanwhile"],
        "run_id": [run.run_id],
        "task_id": ["tune"],
        "map_index": ["-1"],
    }
    [(begun, _), (running, _), _] = seen
    assert begun.progress is None
    assert running.state == "running"
    assert (running.progress["done"], running.progress["calls"]) == (1, 3)
    assert run.xcom("tune", key="gradient_progress")["done"] == 3


def test_the_rows_of_a_dataset_that_are_done_are_told(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    with DAG("told_rows") as dag:
        GradientCompleteDatasetOperator.partial(
            task_id="answers",
            model_id=client.find_base_model("tiny").id,
            prompt_column="q",
            max_generated_token_count=1,
        ).expand_kwargs(
            [
                {"dataset": [{"q": "a"}] * rows, "output_path": str(tmp_path / f"{rows}.jsonl")}
                for rows in (1, 2)
            ]
        )
    run = run_dag(dag)
    for map_index, rows in enumerate((1, 2)):
        progress = run.xcom("answers", key="gradient_progress", map_index=map_index)
        assert (progress["done"], progress["rows"]) == (rows, rows)
        link = run.xcom("answers", key=LINK_KEY, map_index=map_index)
        assert f"map_index={map_index}" in link


def test_the_storage_of_a_task_says_how_far_it_got_and_the_retry_says_so_too(
    serve: Any, run_dag: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("airflow.models.task_state_store")
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    calls = iter(range(9))

    def answer(request: Received) -> Act:
        if request.method == "GET":
            return reply(body=ADAPTER)
        return error(400, "no more") if next(calls) in (1, 2) else trained()(request)  # type: ignore[operator]

    serve(answer)
    dag = tuning("stored_progress", tmp_path, retries=1, retry_delay=timedelta(0))
    assert run_dag(dag).state == "failed"
    assert capfd.readouterr().out.count("An earlier try told of 1 of 3 done") == 1
    with create_session() as session:
        query = select(TaskStateStoreModel.key, TaskStateStoreModel.value)
        stored = dict(session.execute(query.where(TaskStateStoreModel.dag_id == "stored_progress")).all())
    assert '"done": 1' in stored["progress"]


def test_a_task_whose_progress_cannot_be_stored_succeeds(
    serve: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    push = RuntimeTaskInstance.xcom_push

    def refuse(self: Any, key: str, value: Any) -> None:
        if key != "return_value":
            raise ConnectionError("the API server is away")
        push(self, key, value)

    serve(lambda request: reply(body=ADAPTER) if request.method == "GET" else completion("x"))
    monkeypatch.setattr(RuntimeTaskInstance, "xcom_push", refuse)
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    with DAG("untold") as dag:
        GradientCompleteDatasetOperator(
            task_id="answers",
            model_id=MODEL_ID,
            dataset=[{"q": "a"}],
            prompt_column="q",
            output_path=str(tmp_path / "out.jsonl"),
        )
    assert run_dag(dag).state == "success"


def test_the_links_rest_route_has_the_link(
    gradient_default: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.app import create_app
    from airflow.sdk import DAG
    from fastapi.testclient import TestClient

    from airflow_provider_gradient.operators import GradientEvaluateOperator

    with DAG("linked") as dag:
        GradientEvaluateOperator(
            task_id="report", completions=[{"output": "a", "answer": "a"}], reference_column="answer"
        )
    run = run_dag(dag)
    with TestClient(create_app()) as api:
        token = api.get("/auth/token").json()["access_token"]
        links = api.get(
            f"/api/v2/dags/linked/dagRuns/{run.run_id}/taskInstances/report/links",
            headers={"Authorization": f"Bearer {token}"},
        )
    assert links.json()["extra_links"]["Gradient"] == run.xcom("report", key=LINK_KEY)
    assert links.json()["extra_links"]["Gradient"].startswith("/gradient/task?dag_id=linked&")
