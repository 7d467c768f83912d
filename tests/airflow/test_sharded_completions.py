"""A dataset completed in shards, as a task group that runs to its end in a real Airflow."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, completion, error, reply

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import read_rows, write_rows

QUESTIONS = [
    {"id": f"{number}/ä", "question": f"What is {number} plus 1?", "answer": str(number + 1)}
    for number in range(30)
]
PROMPT = "Question: {question}\n\nAnswer:"


class Answers:
    """A server's answers: an echo, unless ``fails`` has something else for the question.

    :ivar most: requests that were answered at the same time, at most.
    """

    def __init__(self) -> None:
        self.fails: Callable[[str], Act | None] = lambda _: None
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, request: Received) -> Act:
        if request.method == "GET":
            adapter = {"type": "modelAdapter", "id": MODEL_ID, "name": "a", "baseModelId": "b"}
            return reply(body=adapter | {"latestUpdateTime": "2026-01-01T00:00:00Z"})
        query = request.json()["query"]
        with self.lock:
            self.asked.append(query)
            failure = self.fails(query)
        return failure or completion(f"echo {query}")


@pytest.fixture
def answers(airflow_connection: Callable[..., None]) -> Iterator[Answers]:
    """A counting server that ``gradient_default`` points to."""
    answers = Answers()
    with FaultyServer(answers) as server:
        airflow_connection(
            "gradient_default",
            host=server.url,
            password=server.credentials["access_token"],
            extra={"workspace_id": server.credentials["workspace_id"], "total_timeout": 60},
        )
        yield answers


def sharded(folder: Path, name: str = "sharded", **options: Any) -> Any:
    """A DAG that completes ``in.jsonl`` of ``folder`` in three shards."""
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import complete_dataset_in_shards

    write_rows(folder / "in.jsonl", QUESTIONS)
    given = {
        "dataset": f"file://{folder}/in.jsonl",
        "output_path": str(folder / "{{ dag.dag_id }}.jsonl"),
        "shards": 3,
        "concurrency": 8,
        "model_id": MODEL_ID,
        "prompt_column": "question",
        "id_column": "id",
    }
    with DAG(name) as dag:
        complete_dataset_in_shards(group_id="answers", **(given | options))
    return dag


def test_sharded_equals_unsharded_against_the_real_server(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import (
        GradientCompleteDatasetOperator,
        GradientEvaluateOperator,
        complete_dataset_in_shards,
    )

    write_rows(tmp_path / "in.jsonl", QUESTIONS)
    asked: dict[str, Any] = {
        "dataset": f"file://{tmp_path}/in.jsonl",
        "model_id": client.find_base_model("tiny").id,
        "prompt_template": PROMPT,
        "id_column": "id",
        "max_generated_token_count": 4,
        "temperature": 0,
    }
    with DAG("whole_and_sharded") as dag:
        whole = GradientCompleteDatasetOperator(
            task_id="whole", output_path=f"file://{tmp_path}/whole.jsonl", **asked
        )
        merged = complete_dataset_in_shards(
            group_id="sharded", output_path=f"file://{tmp_path}/merged.jsonl", shards=3, **asked
        )
        for name, completions in (("score_whole", whole.output), ("score_merged", merged)):
            GradientEvaluateOperator(task_id=name, completions=completions, reference_column="answer")
    run = run_dag(dag)

    assert run.state == "success"
    assert {f"sharded.complete[{number}]" for number in range(3)} <= set(run.states)
    lines = [(tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "merged.jsonl")]
    unmeasured = [[json.dumps(json.loads(line) | {"latency_ms": 0}) for line in part] for part in lines]
    assert unmeasured[0] == unmeasured[1]
    manifests = run.xcom("whole"), run.xcom("sharded.merge")
    for name in ("rows", "counts", "prompt_tokens", "completion_tokens", "attempts", "retries", "source"):
        assert manifests[0][name] == manifests[1][name], name
    assert run.xcom("score_whole")["metrics"] == run.xcom("score_merged")["metrics"]


def test_a_shard_that_failed_is_retried_alone_and_goes_on_where_it_was(
    answers: Answers, run_dag: Any, tmp_path: Path
) -> None:
    """The second shard meets an error that concerns every row, once; the shards before and after it are done
    in one try."""
    withdrawn = QUESTIONS[15]["question"]

    def once(query: str) -> Act | None:
        return error(401, "withdrawn") if query == withdrawn and answers.asked.count(query) == 1 else None

    answers.fails = once
    run = run_dag(sharded(tmp_path, concurrency=3, retries=1, retry_delay=timedelta(0)))

    assert run.state == "success"
    tries = {
        instance.map_index: instance.try_number
        for instance in run._dag_run.get_task_instances()
        if instance.task_id == "answers.complete"
    }
    assert tries == {0: 1, 1: 2, 2: 1}
    shards = [run.xcom("answers.complete", map_index=number) for number in range(3)]
    assert shards[1]["resumed_rows"] > 0
    assert Counter(answers.asked) == Counter(row["question"] for row in QUESTIONS) + Counter([withdrawn])
    merged = run.xcom("answers.merge")
    assert merged["counts"]["success"] == len(QUESTIONS)
    assert merged["resumed_rows"] == shards[1]["resumed_rows"]
    rows = list(read_rows(tmp_path / "sharded.jsonl"))
    assert [row["output"] for row in rows] == [f"echo {row['question']}" for row in QUESTIONS]
    assert [row["index"] for row in rows] == list(range(len(QUESTIONS)))
    assert run.rendered("answers.complete", map_index=1)["dataset"]["number"] == 1


def test_a_shard_of_which_all_rows_fail_does_not_fail_the_whole_but_all_of_them_do(
    answers: Answers, run_dag: Any, tmp_path: Path
) -> None:
    first = {row["question"] for row in QUESTIONS[:15]}
    answers.fails = lambda query: error(400, "too long") if query in first else None
    run = run_dag(sharded(tmp_path, "half", keep_shards=False))
    assert run.state == "success"
    assert (
        run.xcom("answers.merge")["counts"] | {"success": 15, "error": 15}
        == run.xcom("answers.merge")["counts"]
    )
    assert len(list(read_rows(tmp_path / "half.jsonl.errors.jsonl"))) == 15
    assert not (tmp_path / "half.jsonl.shards").exists()

    answers.fails = lambda _: error(400, "too long")
    run = run_dag(sharded(tmp_path, "nothing"))
    assert (run.state, run.states["answers.merge"]) == ("failed", "failed")
    assert run.states["answers.complete[0]"] == "success"


def test_a_shard_that_lacks_rows_is_red_and_nothing_is_merged_without_them(
    answers: Answers, run_dag: Any, tmp_path: Path
) -> None:
    lacking = QUESTIONS[15]["question"]
    answers.fails = lambda query: error(429, "busy") if query == lacking else None
    run = run_dag(sharded(tmp_path, "lacking", row_deadline=0.5))
    states = {name.partition(".")[2]: state for name, state in run.states.items()}
    assert states == {
        "plan": "success",
        "complete[0]": "success",
        "complete[1]": "failed",
        "complete[2]": "success",
        "merge": "upstream_failed",
    }
    assert not (tmp_path / "_SUCCESS.lacking.jsonl").exists()


def test_the_shares_of_the_shards_are_those_of_the_plan(
    answers: Answers, run_dag: Any, tmp_path: Path
) -> None:
    dag = sharded(tmp_path, "shares", max_parallel_shards=2, concurrency=5, requests_per_minute=9000)
    assert dag.get_task("answers.complete").max_active_tis_per_dagrun == 2
    run = run_dag(dag)
    assert run.state == "success"
    fields = [run.rendered("answers.complete", map_index=number) for number in range(3)]
    assert [field["concurrency"] for field in fields] == [3, 2, 2]
    assert [field["requests_per_minute"] for field in fields] == [4500.0] * 3


def test_no_more_shards_run_at_once_than_leave_each_a_place(tmp_path: Path) -> None:
    dag = sharded(tmp_path, "places", shards=16, concurrency=5, tokens_per_minute=3)
    assert dag.get_task("answers.complete").max_active_tis_per_dagrun == 3
    assert dag.get_task("answers.plan").max_parallel_shards == 3
    with pytest.raises(InvalidRequestError, match="shards: must be at least 1"):
        sharded(tmp_path, "none", shards=0)


def test_inline_rows_are_refused_before_anything_is_sent(
    answers: Answers, run_dag: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    run = run_dag(sharded(tmp_path, "inline", dataset=QUESTIONS))
    assert run.states["answers.plan"] == "failed"
    assert run.states["answers.merge"] == "upstream_failed"
    assert answers.asked == []
