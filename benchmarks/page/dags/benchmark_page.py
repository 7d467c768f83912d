"""One run with every kind of work that the page shows; the benchmark copies what it left."""

from __future__ import annotations

import json
from pathlib import Path

from airflow.sdk import dag

from airflow_provider_gradient import operators as op

_SAMPLES = Path(__file__).resolve().parents[3] / "example_dags" / "data" / "support_phrasings.jsonl"


@dag(schedule=None, params={"folder": ""})
def benchmark_page() -> None:
    """An adapter is made, tuned, asked, evaluated and promoted."""
    rows = [json.loads(line) for line in _SAMPLES.read_text().splitlines()[:200]]
    adapter = op.GradientCreateModelAdapterOperator(task_id="adapter", base_model="tiny", name="benchmark")
    tuning = op.GradientFineTuneOperator(
        task_id="tune",
        model_id=adapter.output,
        samples=rows,
        prompt_template="Question: {question}\n\nAnswer:",
        completion_template=" {answer}",
        batch_size=8,
        journal_path="{{ params.folder }}/tuning.jsonl",
    )
    answers = op.GradientCompleteDatasetOperator(
        task_id="answers",
        model_id=adapter.output,
        dataset=rows,
        prompt_template="Question: {question}\n\nAnswer:",
        output_path="{{ params.folder }}/answers.jsonl",
        max_generated_token_count=8,
    )
    report = op.GradientEvaluateOperator(
        task_id="report",
        completions=answers.output,
        reference_column="answer",
        metrics=["exact_match", "token_f1", "rouge_l"],
    )
    promotion = op.GradientPromoteModelAdapterOperator(
        task_id="promote", alias="benchmark", model_id=adapter.output
    )
    tuning >> answers
    report >> promotion


benchmark_page()
