"""Every night, answers to the questions of the day before.

Reads ``<input_dir>/<day>.jsonl``, a JSON object with a ``question`` a line, and writes
``<output_dir>/day=<day>/answers.jsonl``. Both folders may be URLs such as
``s3://aws_default@bucket/questions``. A day that failed in the middle goes on where it stopped, and a day's
answers appear whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import Param, dag
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_gradient.operators import (
    GradientCompleteDatasetOperator,
    GradientCreateModelAdapterOperator,
)

HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111
QUESTIONS = Path(__file__).parent / "data" / "daily"


@dag(
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2},
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "adapter": Param("support", description="Name of the adapter; created where there is none."),
        "input_dir": Param(str(QUESTIONS), description="Folder of the days' questions."),
        "output_dir": Param(f"{HOME}/gradient_answers", description="Folder of the days' answers."),
    },
)
def example_gradient_scheduled_completions() -> None:
    """A day's questions, answered."""
    adapter = GradientCreateModelAdapterOperator(
        task_id="adapter",
        base_model="{{ params.base_model }}",
        name="{{ params.adapter }}",
        if_exists="reuse",
    )
    GradientCompleteDatasetOperator(
        task_id="answer_questions",
        model_id=adapter.output,
        dataset="{{ params.input_dir }}/{{ data_interval_start | ds }}.jsonl",
        prompt_template="Question: {question}\n\nAnswer:",
        output_path="{{ params.output_dir }}/day={{ data_interval_start | ds }}/answers.jsonl",
        max_generated_token_count=32,
        temperature=0,
    )


example_gradient_scheduled_completions()
