"""Estimates, budgets and the failed rows of an earlier task, in DAGs against the real server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import read_rows

ROWS = [{"question": f"What is {number} plus 1?"} for number in range(6)]
TOKENIZER = Path(__file__).parents[2] / "airflow_provider_gradient" / "server" / "tiny_model"
MOMENT = {
    "logical_date": datetime(2026, 3, 1, tzinfo=UTC),
    "run_after": datetime(2026, 3, 1, tzinfo=UTC),
}
"""Makes ``dag.test`` run the same DAG run again, as clearing it would."""


def test_an_estimate_sends_nothing_a_budget_ends_a_task_and_a_cleared_one_goes_on(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    shared: dict[str, Any] = {
        "model_id": client.find_base_model("tiny").id,
        "prompt_template": "Question: {question}\n\nAnswer:",
        "max_generated_token_count": "{{ params.tokens }}",
        "temperature": 0,
    }
    params = {"tokens": 4, "most": 4, "dry": True, "twice": False}
    with DAG("budgets", params=params) as dag:
        estimate = GradientCompleteDatasetOperator(
            task_id="estimate",
            dataset=ROWS,
            output_path=str(tmp_path / "estimate.jsonl"),
            estimate="{{ params.dry }}",
            tokenizer=str(TOKENIZER),
            deduplicate="{{ params.twice }}",
            **shared,
        )
        some = GradientCompleteDatasetOperator(
            task_id="some",
            dataset=ROWS,
            output_path=str(tmp_path / "some.jsonl"),
            max_rows="{{ params.most }}",
            max_seconds="600",
            max_tokens="{{ 1000 * params.tokens }}",
            row_deadline="60",
            **shared,
        )
        rest = GradientCompleteDatasetOperator(
            task_id="rest",
            only_failed_of=some.output,
            output_path=str(tmp_path / "all.jsonl"),
            **shared,
        )
        estimate >> some >> rest

    run = run_dag(dag, **MOMENT)
    assert run.state == "success"
    found = run.xcom("estimate")
    assert (found["rows"], found["done_rows"], found["max_completion_tokens"]) == (6, 0, 24)
    assert found["prompt_tokens"] > 6 * 8
    assert not (tmp_path / "estimate.jsonl").exists()
    assert run.xcom("some")["counts"] == {"success": 4, "error": 0, "invalid_output": 0, "not_run": 2}
    assert "max_rows, 4, is reached" in run.xcom("some")["ended"]
    assert run.xcom("rest")["counts"]["success"] == 6
    assert [row["row"] for row in read_rows(run.xcom("rest")["output_path"])] == ROWS

    again = run_dag(dag, **MOMENT)
    assert again.xcom("some")["counts"]["success"] == 6
    assert again.xcom("some")["resumed_rows"] == 4
    assert (tmp_path / "_SUCCESS.some.jsonl").exists()


def test_the_failed_rows_of_a_task_whose_files_are_on_object_storage(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    shared: dict[str, Any] = {
        "model_id": client.find_base_model("tiny").id,
        "prompt_column": "question",
        "max_generated_token_count": 2,
    }
    bucket = f"file://{tmp_path}"  # opened by ObjectStoragePath, as a bucket is
    with DAG("budgets_on_object_storage") as dag:
        some = GradientCompleteDatasetOperator(
            task_id="some", dataset=ROWS, output_path=f"{bucket}/some.jsonl", max_rows=4, **shared
        )
        GradientCompleteDatasetOperator(
            task_id="rest", only_failed_of=some.output, output_path=f"{bucket}/all.jsonl", **shared
        )
    run = run_dag(dag)
    assert run.state == "success"
    assert run.xcom("rest")["counts"]["success"] == 6


@pytest.mark.parametrize("field", ["max_rows", "max_tokens"])
def test_a_budget_below_one_is_refused_when_the_dag_file_is_read(field: str, tmp_path: Path) -> None:
    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    with pytest.raises(InvalidRequestError, match=field):
        GradientCompleteDatasetOperator(
            task_id="x",
            model_id="m",
            dataset=ROWS,
            output_path=tmp_path / "x.jsonl",
            prompt_column="question",
            **{field: 0},
        )


@pytest.mark.parametrize("value", ["maybe", 3])
def test_what_is_neither_true_nor_false_is_refused(value: Any) -> None:
    from airflow_provider_gradient.operators.base import boolean

    assert [boolean("x", known) for known in (True, "True", "true", False, "False", "", None)] == [
        *(True, True, True, False, False, False, False)
    ]
    with pytest.raises(InvalidRequestError, match="x: must be true or false"):
        boolean("x", value)
