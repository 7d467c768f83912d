"""Every night the champion answers again, and it is an alarm if it got worse than when it was promoted.

The answers of ``alias:support-bot`` are compared, row by row, with the scores that spoke for its promotion.
The run fails where the whole 95 % interval of the difference is on the wrong side, and not for less: a fall
that may be chance is not worth being woken for. Hang ``on_failure_callback`` or a notifier on ``alert``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.operators import (
    GradientCompleteDatasetOperator,
    GradientEvaluateOperator,
    GradientGateOperator,
)

HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111


@task
def find_report(params: dict[str, Any]) -> str:
    """The path of the report that spoke for the champion's promotion."""
    promotion = GradientHook().get_registry().current(params["alias"])
    report = (promotion.evaluation or {}).get("report_path")
    if not report:
        raise ValueError(
            f"alias:{params['alias']} (version {promotion.version}) was promoted without a report that is "
            "kept; promote with evaluation=..., evaluated with report_path and output_path"
        )
    return str(report)


@task
def alert(report: dict[str, Any]) -> None:
    """Fail with what was found."""
    from airflow.providers.common.compat.sdk import AirflowFailException

    raise AirflowFailException(f"{report['model_id']} got worse: {'; '.join(report['gate']['reasons'])}")


@task
def rest() -> None:
    """Nothing to be done."""


@dag(
    schedule="@daily",
    catchup=False,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "alias": Param("support-bot", description="What is watched."),
        "data_dir": Param(str(Path(__file__).parent / "data"), description="Folder of the questions."),
        "output_dir": Param(f"{HOME}/gradient_watch", description="Folder of all that it writes."),
    },
)
def example_gradient_regression_watch() -> None:
    """Answer, compare, and fail or rest."""
    folder = "{{ params.output_dir }}/{{ run_id }}"
    answers = GradientCompleteDatasetOperator(
        task_id="answer",
        model_id="alias:{{ params.alias }}",
        dataset="{{ params.data_dir }}/support_questions.jsonl",
        prompt_template="Question: {question}\n\nAnswer:",
        output_path=f"{folder}/answers.jsonl",
        id_column="id",
        concurrency=32,
        auto_template=False,
        max_generated_token_count=24,
        temperature=0,
    )
    report = GradientEvaluateOperator(
        task_id="evaluate",
        completions=answers.output,
        baseline=find_report(),
        reference_column="answer",
        slice_columns=["set"],
        gate=[{"rule": "not_worse", "metric": "exact_match", "confidence": 0.95}],
        on_gate_failure="continue",
        output_path=f"{folder}/scores.jsonl",
        report_path=f"{folder}/report.json",
    )
    choice = GradientGateOperator(
        task_id="choose",
        report=report.output,
        on_pass="rest",  # noqa: S106 - a task, no password
        on_undecided="rest",
        on_fail="alert",
    )
    choice >> [alert(report.output), rest()]


example_gradient_regression_watch()
