"""A large dataset, completed by several workers at once and merged into one output.

Cuts ``dataset`` into at most eight shards, completes four of them at a time as mapped tasks, with 32 requests
in flight in all, merges their outputs into ``<output_dir>/answers.jsonl`` and scores it. A shard that failed
goes on where it stopped, and the others notice nothing. Dataset and folder may be URLs such as
``s3://aws_default@bucket/questions``.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import Param, dag

from airflow_provider_gradient.operators import (
    GradientCreateModelAdapterOperator,
    GradientEvaluateOperator,
    complete_dataset_in_shards,
)

HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111
QUESTIONS = Path(__file__).parent / "data" / "support_questions.jsonl"


@dag(
    schedule=None,
    default_args={"retries": 2},
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "adapter": Param("support", description="Name of the adapter; created where there is none."),
        "dataset": Param(str(QUESTIONS), description="File, folder or glob of questions and answers."),
        "output_dir": Param(f"{HOME}/gradient_sharded", description="Folder of the answers and scores."),
    },
)
def example_gradient_sharded_completions() -> None:
    """Questions, answered by several workers and scored."""
    adapter = GradientCreateModelAdapterOperator(
        task_id="adapter",
        base_model="{{ params.base_model }}",
        name="{{ params.adapter }}",
        if_exists="reuse",
    )
    answers = complete_dataset_in_shards(
        group_id="answer_questions",
        dataset="{{ params.dataset }}",
        output_path="{{ params.output_dir }}/answers.jsonl",
        shards=8,
        max_parallel_shards=4,
        concurrency=32,
        model_id=adapter.output,
        prompt_template="Question: {question}\n\nAnswer:",
        id_column="id",
        max_generated_token_count=8,
        temperature=0,
    )
    GradientEvaluateOperator(
        task_id="score",
        completions=answers,
        reference_column="answer",
        slice_columns=["set"],
        output_path="{{ params.output_dir }}/scores.jsonl",
    )


example_gradient_sharded_completions()
