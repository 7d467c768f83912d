"""The ready retry policy, and the notifier of reports."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import pytest
from faults import Act, FaultyServer, error

from airflow_provider_gradient.retry_policy import gradient_retry_policy

MODEL = "0" * 36 + "_model_adapter"


def asking(dag_id: str, **options: Any) -> Any:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteOperator

    with DAG(dag_id) as dag:
        GradientCompleteOperator(task_id="ask", model_id=MODEL, query="Hello", **options)
    return dag


@pytest.mark.parametrize(
    ("status", "tries"), [(400, 1), (401, 1), (403, 1), (404, 1), (429, 2), (503, 2), (500, 2)]
)
def test_what_passes_is_tried_again_and_what_does_not_fails_at_once(
    status: int, tries: int, run_dag: Any, airflow_connection: Any
) -> None:
    pytest.importorskip("airflow.sdk.definitions.retry_policy")
    refused: list[Act] = [error(status, "no")]
    policy = gradient_retry_policy(wait=timedelta(0))
    with FaultyServer(lambda _: refused[0]) as server:
        airflow_connection(
            "gradient_default",
            host=server.url,
            password=server.credentials["access_token"],
            extra={"workspace_id": server.credentials["workspace_id"], "total_timeout": 0.2},
        )
        options = {"retries": 1, "retry_delay": timedelta(0), "retry_policy": policy}
        run = run_dag(asking(f"policy_{status}", **options))
    assert (run.state, run.tries) == ("failed", {"ask": tries})


def test_a_lost_connection_waits() -> None:
    pytest.importorskip("airflow.sdk.definitions.retry_policy")
    from airflow.sdk import RetryAction

    from airflow_provider_gradient.api import GradientTimeoutError, UnknownModelError

    policy = gradient_retry_policy(wait=timedelta(minutes=7))
    lost = policy.evaluate(GradientTimeoutError("late"), 1, 3)
    assert (lost.action, lost.retry_delay) == (RetryAction.RETRY, timedelta(minutes=7))
    assert policy.evaluate(UnknownModelError("x", status=404), 1, 3).action is RetryAction.FAIL
    assert policy.evaluate(OSError("disk"), 1, 3).action is RetryAction.DEFAULT


def test_an_airflow_without_retry_policies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.sdk", type(sys)("airflow.sdk"))
    with pytest.raises(ImportError, match=r"need Airflow 3\.3 or later"):
        gradient_retry_policy()


REPORT_ROWS = [{"output": "a", "answer": "a"}, {"output": "b", "answer": "c"}]


def test_a_report_is_told_through_another_notifier_or_a_function(run_dag: Any) -> None:
    from airflow.sdk import DAG, BaseNotifier

    from airflow_provider_gradient.notifications import GradientReportNotifier
    from airflow_provider_gradient.operators import GradientEvaluateOperator

    told: list[str] = []

    class Channel(BaseNotifier):
        template_fields = ("text",)

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

        def notify(self, context: Any) -> None:  # noqa: ARG002
            told.append(self.text)

    with DAG("told_reports") as dag:
        GradientEvaluateOperator(
            task_id="report",
            completions=REPORT_ROWS,
            reference_column="answer",
            on_success_callback=[
                GradientReportNotifier(Channel("News: {{ gradient_report }}")),
                GradientReportNotifier(told.append, task_id="report"),
            ],
        )
    assert run_dag(dag).state == "success"
    assert told[1].startswith("told_reports, report: exact_match 0.500 (0.")
    assert told[0] == f"News: {told[1]}"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {
                "metrics": {"em": {"value": 0.25, "low": 0.1, "high": 0.5}},
                "gate": {"verdict": "fail", "reasons": ["em fell"]},
            },
            "em 0.250 (0.100 to 0.500); gate: fail, em fell",
        ),
        (
            {
                "alias": "bot",
                "model_id": "m",
                "version": 2,
                "evaluation": {"metrics": {"em": {"value": 0.5, "low": 0, "high": 1}}},
            },
            "alias:bot is m now (version 2); em 0.500 (0.000 to 1.000)",
        ),
        ({"rows": 3, "counts": {"success": 2, "error": 1, "not_run": 0}}, "3 rows: 2 success, 1 error"),
        (
            {"model_id": "m", "calls": 4, "epoch_losses": [1.5, None]},
            "m tuned in 4 calls, mean loss by epoch: 1.500, -",
        ),
        (None, "no report"),
        ({"other": 1}, "no report"),
    ],
)
def test_each_kind_of_report_is_one_line(fields: Any, text: str) -> None:
    from airflow_provider_gradient.notifications.report import describe

    assert describe(fields) == text
