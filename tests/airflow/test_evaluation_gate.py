"""The gate in DAGs that run to their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.evaluation import EvaluationError

RIGHT = [{"id": f"r{n}", "output": "a", "row": {"answer": "a"}} for n in range(50)]
WRONG = [row | {"output": "b"} for row in RIGHT]
GATE = [{"rule": "better", "metric": "exact_match"}]


def evaluated(dag_id: str, new: Any, old: Any, **settings: Any) -> Any:
    from airflow.sdk import DAG, task

    from airflow_provider_gradient.operators import GradientEvaluateOperator

    with DAG(dag_id) as dag:

        @task
        def after() -> None:
            pass

        report = GradientEvaluateOperator(
            task_id="evaluate",
            completions=new,
            baseline=old,
            reference_column="answer",
            gate=GATE,
            retries=2,
            **settings,
        )
        report >> after()
    return dag


@pytest.mark.parametrize(
    ("choice", "states"),
    [
        ("fail", {"evaluate": "failed", "after": "upstream_failed"}),
        ("skip", {"evaluate": "skipped", "after": "skipped"}),
        ("continue", {"evaluate": "success", "after": "success"}),
    ],
)
def test_a_gate_that_is_not_passed_fails_skips_or_lets_go_on_and_leaves_its_report(
    run_dag: Any, choice: str, states: dict[str, str]
) -> None:
    run = run_dag(evaluated(f"gate_{choice}", WRONG, RIGHT, on_gate_failure=choice))
    assert run.states == states
    assert run.tries["evaluate"] <= 1
    gate = run.xcom("evaluate")["gate"]
    assert gate["verdict"] == "fail"
    assert "exact_match: 1.000 to 0.000" in gate["rules"][0]["reason"]


def test_a_passed_gate_lets_go_on(run_dag: Any, tmp_path: Path) -> None:
    run = run_dag(
        evaluated(
            "gate_passed",
            RIGHT,
            WRONG,
            output_path=tmp_path / "s.parquet",
            page_path=str(tmp_path / "{{ task.task_id }}.html"),
            report_path=tmp_path / "r.json",
        )
    )
    assert run.state == "success"
    report = run.xcom("evaluate")
    assert report["gate"]["verdict"] == "pass"
    assert report["page_path"] == str(tmp_path / "evaluate.html")
    assert {path.name for path in tmp_path.iterdir()} == {"s.parquet", "evaluate.html", "r.json"}


@pytest.mark.parametrize(
    ("new", "old", "chosen"), [(RIGHT, WRONG, "promote"), (WRONG, RIGHT, "discard"), (RIGHT, RIGHT, "ask")]
)
def test_the_gate_operator_goes_on_with_the_tasks_of_the_verdict(
    run_dag: Any, new: Any, old: Any, chosen: str
) -> None:
    from airflow.sdk import DAG, task

    from airflow_provider_gradient.operators import GradientEvaluateOperator, GradientGateOperator

    with DAG(f"gate_{chosen}") as dag:
        report = GradientEvaluateOperator(
            task_id="evaluate",
            completions=new,
            baseline=old,
            reference_column="answer",
            gate=GATE,
            on_gate_failure="continue",
        )
        gate = GradientGateOperator(
            task_id="gate", report=report.output, on_pass="promote", on_fail=["discard"], on_undecided="ask"
        )

        @task
        def done() -> None:
            pass

        gate >> [done.override(task_id=name)() for name in ("promote", "discard", "ask")]

    run = run_dag(dag)
    states = {name: run.states[name] for name in ("promote", "discard", "ask")}
    assert states == {name: "success" if name == chosen else "skipped" for name in states}


def test_a_gate_that_is_wrong_is_refused_when_the_dag_file_is_read() -> None:
    from airflow_provider_gradient.operators import GradientEvaluateOperator

    with pytest.raises(EvaluationError, match=r"gate\[0\]: better.metric: Field required"):
        GradientEvaluateOperator(task_id="e", completions=RIGHT, gate=[{"rule": "better"}])
    with pytest.raises(InvalidRequestError, match="on_gate_failure: must be one of fail, skip, continue"):
        GradientEvaluateOperator(task_id="e", completions=RIGHT, on_gate_failure="branch")  # type: ignore[arg-type]
