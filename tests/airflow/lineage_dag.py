"""A DAG that tunes, completes, evaluates and promotes on files, for the tests of what it tells of them."""

from __future__ import annotations

import os

from airflow.sdk import DAG, Asset, AssetAlias

from airflow_provider_gradient import operators as op

FOLDER = os.environ["LINEAGE_FOLDER"]
ASK = {"prompt_template": "Question: {q}\n\nAnswer:", "max_generated_token_count": 1}
BETTER_THAN_CAN_BE = {"rule": "at_least", "metric": "exact_match", "value": 1.0}
NOT_BELOW_NOTHING = {"rule": "at_least", "metric": "exact_match", "value": 0.0}

with DAG("lineage") as dag:
    adapter = op.GradientCreateModelAdapterOperator(task_id="adapter", base_model="tiny", name="lineage")
    tuning = op.GradientFineTuneOperator(
        task_id="tune",
        model_id=adapter.output,
        samples=f"{FOLDER}/samples.jsonl",
        journal_path=f"{FOLDER}/tuning.jsonl",
        outlets=[AssetAlias("tuned")],
    )
    answers = op.GradientCompleteDatasetOperator(
        task_id="answers",
        model_id=adapter.output,
        dataset=f"{FOLDER}/questions.jsonl",
        output_path=f"{FOLDER}/answers-{{{{ run_id }}}}.jsonl",
        outlets=[Asset("lineage answers"), AssetAlias("answered")],
        **ASK,
    )
    report = op.GradientEvaluateOperator(
        task_id="report",
        completions=answers.output,
        reference_column="a",
        gate=[NOT_BELOW_NOTHING],
        output_path=f"{FOLDER}/scores.jsonl",
        report_path=f"{FOLDER}/report.json",
    )
    refused = op.GradientEvaluateOperator(
        task_id="refused",
        completions=answers.output,
        reference_column="a",
        gate=[BETTER_THAN_CAN_BE],
        output_path=f"{FOLDER}/refused.jsonl",
    )
    promotion = op.GradientPromoteModelAdapterOperator(
        task_id="promote",
        alias="lineage-bot",
        model_id=adapter.output,
        evaluation=report.output,
        tuning=tuning.output,
    )
    again = op.GradientCompleteDatasetOperator(
        task_id="again",
        model_id="alias:lineage-bot",
        dataset=answers.output,
        output_path=f"{FOLDER}/again.jsonl",
        prompt_template="And then: {output}",
        max_generated_token_count=1,
    )
    missing = op.GradientCompleteDatasetOperator(
        task_id="missing",
        model_id=adapter.output,
        dataset=f"{FOLDER}/missing.jsonl",
        output_path=f"{FOLDER}/never.jsonl",
        **ASK,
    )
    vectors = op.GradientEmbedDatasetOperator(
        task_id="vectors",
        model="bge-large",
        dataset=f"{FOLDER}/questions.jsonl",
        output_path=f"{FOLDER}/vectors.jsonl",
        text_column="q",
    )
    op.complete_dataset_in_shards(
        group_id="sharded",
        dataset=f"{FOLDER}/questions.jsonl",
        output_path=f"{FOLDER}/merged.jsonl",
        shards=1,
        model_id=adapter.output,
        **ASK,
    )
    tuning >> answers
    promotion >> again
