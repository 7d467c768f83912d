"""New labels retrain the support assistant.

Scheduled on the asset ``support_labels``, this runs whenever labels were added: by the people of
``example_gradient_human_corrections``, by a task of yours with that asset among its outlets, or by *Create
asset event* in Airflow's UI. A fresh adapter is tuned on the season's wordings and on all labels so far,
which weigh twice. Labels are checked like any samples: empty, overlong or repeated ones, and questions that
the evaluation asks, are left out and told of in the fine-tune's report. The adapter is promoted to
``alias:support-bot`` if no set of questions is answered worse, by 10 points or more, than by the champion.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Param, dag, task

from airflow_provider_gradient.operators import generate_evaluate_finetune

LABELS = Asset("support_labels")
PROMPT = "Question: {question}\n\nAnswer:"
QUESTIONS = "{{ params.data_dir }}/support_questions.jsonl"
HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111


@task
def build_samples(_report: dict[str, Any], path: str, params: dict[str, Any]) -> str:
    """The wordings and the labels; of two labels of a question, the later one."""
    from airflow_provider_gradient.datasets import read_rows, write_rows

    wordings = list(read_rows(f"{params['data_dir']}/support_phrasings.jsonl"))
    labels = {}
    for row in sorted(read_rows(params["labels_dir"]), key=lambda row: str(row.get("at", ""))):
        labels[row.get("question")] = {**row, "fact": row.get("question"), "multiplier": 2.0}
    write_rows(
        path,
        [
            *({**row, "multiplier": 1.0} for row in wordings if row["question"] not in labels),
            *labels.values(),
        ],
    )
    return path


@dag(
    schedule=[LABELS],
    catchup=False,
    max_active_runs=1,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "alias": Param("support-bot", description="What stands for the champion."),
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "data_dir": Param(str(Path(__file__).parent / "data"), description="Folder of the questions."),
        "labels_dir": Param(f"{HOME}/gradient_labels", description="Folder of the labels."),
        "output_dir": Param(f"{HOME}/gradient_retraining", description="Folder of all that it writes."),
    },
)
def example_gradient_asset_retraining() -> None:
    """One challenger for each set of labels."""
    generate_evaluate_finetune(
        alias="{{ params.alias }}",
        base_model="{{ params.base_model }}",
        dataset=QUESTIONS,
        prompt_template=PROMPT,
        reference_column="answer",
        samples=build_samples,
        gate=[{"rule": "no_slice_worse", "metric": "exact_match", "column": "set", "by": 0.1}],
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
            "evaluation_dataset": QUESTIONS,
            "max_sample_characters": 500,
            "on_bad_sample": "skip",
        },
    )


example_gradient_asset_retraining()
