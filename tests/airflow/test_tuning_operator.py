"""The fine-tune operator's checks, plan and rules, in a real Airflow on the real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import read_rows, write_rows

TALKS = [
    {
        "talk": [
            {"role": "user", "content": f"What colour is the Zorp {name}?"},
            {"role": "assistant", "content": name},
        ]
    }
    for name in ("red", "blue", "green", "black", "white", "pink", "brown")
]


def test_conversations_are_checked_reckoned_tuned_and_scored(
    run_dag: Any, gradient_environment: Any, adapter: str, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, Param

    from airflow_provider_gradient.operators import GradientFineTuneOperator

    write_rows(tmp_path / "talks.jsonl", [*TALKS, TALKS[0], {"talk": []}])
    arguments: dict[str, Any] = {
        "model_id": adapter,
        "samples": "{{ params.folder }}/talks.jsonl",
        "messages_column": "talk",
        "chat_template": "question",
        "on_bad_sample": "skip",
        "evaluation_dataset": [{"question": "what colour is the zorp BROWN"}],
        "evaluation_column": "question",
        "max_sample_characters": "{{ 1000 }}",
        "rehearsal_samples": [{"talk": [{"role": "user", "content": "Old?"}, TALKS[0]["talk"][1]]}],
        "rehearsal_share": "{{ 0.2 }}",
        "validation_share": "{{ 0.2 }}",
        "validation_metric": "token_f1",
        "epochs": "{{ 9 }}",
        "order": "by_length",
    }
    with DAG("tuning_rules", params={"folder": Param(str(tmp_path))}) as dag:
        estimate = GradientFineTuneOperator(task_id="estimate", estimate=True, **arguments)
        tune = GradientFineTuneOperator(
            task_id="tune",
            max_tokens="{{ 1 }}",
            patience="{{ 3 }}",
            max_loss="{{ 90.5 }}",
            curve_path="{{ params.folder }}/curve.jsonl",
            **arguments,
        )
        estimate >> tune
    run = run_dag(dag)

    assert run.state == "success"
    reckoned = run.xcom("estimate")
    assert (reckoned["status"], reckoned["calls"], reckoned["call_results"]) == ("estimated", 9, [])
    assert reckoned["rows"]["left_out"] == {"duplicate": 1, "empty": 1, "leakage": 1}
    assert [problem["row"] for problem in reckoned["rows"]["problems"]] == [6, 7, 8]
    tuned = run.xcom("tune")
    assert (tuned["status"], tuned["stop_reason"]) == ("stopped", "max_tokens")
    assert (tuned["samples"], tuned["held_out"], tuned["rehearsal_samples"]) == (6, 1, 1)
    assert len(tuned["call_results"]) == len(tuned["epoch_scores"]) == 1
    assert tuned["curve_path"] == f"{tmp_path}/curve.jsonl"
    assert len(list(read_rows(tuned["curve_path"]))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_tokens": 0}, "batch_tokens: must be at least 1"),
        ({"patience": 0}, "patience: must be at least 1"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"on_bad_sample": "hope"}, "on_bad_sample: one of fail, skip"),
        ({"order": "random"}, "order: one of shuffle, as_given, by_length"),
    ],
)
def test_a_wrong_literal_fails_when_the_dag_file_is_read(arguments: dict[str, Any], words: str) -> None:
    from airflow_provider_gradient.operators import GradientFineTuneOperator

    with pytest.raises(InvalidRequestError, match=words):
        GradientFineTuneOperator(task_id="wrong", model_id="m", samples=[], **arguments)
