"""Every week a challenger is tuned against the support assistant's champion, and people decide.

What the champion answers wrong is tuned with twice the weight. A challenger that answers more of the tuned
questions, with 95 % confidence, and no fewer of the old ones than ``gate`` allows, waits under *Required
Actions* in Airflow's UI until somebody approves it or a week has passed. Then ``alias:support-bot`` stands
for it, and DAGs that are scheduled on ``gradient://<workspace>/support-bot`` run.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_gradient.operators import generate_evaluate_finetune

PROMPT = "Question: {question}\n\nAnswer:"
HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111


@task
def build_samples(report: dict[str, Any], path: str, params: dict[str, Any]) -> str:
    """The tuned questions in all their wordings, those that the champion got wrong with twice the weight."""
    from airflow_provider_gradient.datasets import read_rows, write_rows

    right = {
        row["row"]["fact"]: row["exact_match"]
        for row in read_rows(report["scores_path"])
        if row["row"]["set"] == "tuned"
    }
    wordings = read_rows(f"{params['data_dir']}/support_phrasings.jsonl")
    write_rows(
        path,
        (
            {**row, "multiplier": 1.0 if right[row["fact"]] else 2.0}
            for row in wordings
            if row["fact"] in right
        ),
    )
    return path


@dag(
    schedule="@weekly",
    catchup=False,
    max_active_runs=1,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "alias": Param("support-bot", description="What stands for the champion."),
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "data_dir": Param(str(Path(__file__).parent / "data"), description="Folder of the questions."),
        "output_dir": Param(f"{HOME}/gradient_champions", description="Folder of all that it writes."),
    },
)
def example_gradient_champion_challenger() -> None:
    """One challenger, one decision."""
    generate_evaluate_finetune(
        alias="{{ params.alias }}",
        base_model="{{ params.base_model }}",
        dataset="{{ params.data_dir }}/support_questions.jsonl",
        prompt_template=PROMPT,
        reference_column="answer",
        samples=build_samples,
        gate=[
            {"rule": "better", "metric": "exact_match", "slice": {"set": "tuned"}},
            {"rule": "not_worse", "metric": "exact_match", "slice": {"set": "old"}, "by": 0.1},
        ],
        output_dir="{{ params.output_dir }}/{{ run_id }}",
        completion={
            "id_column": "id",
            "concurrency": 32,
            "auto_template": False,
            "max_generated_token_count": 24,
            "temperature": 0,
        },
        evaluation={"slice_columns": ["set"]},
        adapter={"rank": 16},
        tuning={
            "prompt_template": PROMPT,
            "completion_template": " {answer}",
            "multiplier_column": "multiplier",
            "group_column": "fact",
            "epochs": 20,
            "batch_size": 32,
        },
        target={"metric": "exact_match", "value": 0.97, "slice": {"set": "tuned"}},
        approval={"response_timeout": timedelta(days=7), "defaults": "Reject"},
    )


example_gradient_champion_challenger()
