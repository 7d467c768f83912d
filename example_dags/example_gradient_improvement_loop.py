"""A support assistant learns this season's catalogue without forgetting the last one.

Each round tunes a fresh adapter on the tuned questions in all their wordings, for more passes than the round
before, those that the champion answered wrong with twice the weight. It is asked the tuned questions,
paraphrases that are never tuned, and old facts, and promoted to ``alias:support-bot`` only if it answers more
of the tuned questions, with 95 % confidence, and still enough of the old ones. Other adapters are deleted.
When the champion meets the target the rounds left are skipped. ``summary.json`` in ``output_dir`` has the
figures of every round.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_gradient.operators import generate_evaluate_finetune

EPOCHS = (4, 10, 20)
"""Passes over the samples, round by round: a round that isn't enough is followed by a longer one."""
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


@task
def summarize(champion: str, rounds: list[dict[str, Any]], params: dict[str, Any]) -> dict[str, Any]:
    """The rounds that ran, also written to ``summary.json``."""
    from airflow_provider_gradient.datasets import write_rows

    figures = [
        {
            "round": each["round"],
            "model_id": each["model_id"],
            "exact_match": {
                name: metrics["exact_match"] for name, metrics in each["report"]["slices"]["set"].items()
            },
            "mean_loss": each.get("mean_loss"),
            "seconds": each.get("seconds"),
            "promoted": each.get("promoted"),
        }
        for each in rounds
    ]
    summary = {"champion": champion, "rounds": figures}
    write_rows(f"{params['output_dir']}/summary.json", [summary])
    return summary


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "alias": Param("support-bot", description="What stands for the champion."),
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "target": Param(
            0.97, type="number", description="Exact match on the tuned questions at which it ends."
        ),
        "seed": Param(0, type="integer", description="Of the order of the samples."),
        "data_dir": Param(str(Path(__file__).parent / "data"), description="Folder of the questions."),
        "output_dir": Param(f"{HOME}/gradient_loop", description="Folder of all that it writes."),
    },
)
def example_gradient_improvement_loop() -> None:
    """Generate, evaluate, fine-tune; three rounds at most."""
    outcome = generate_evaluate_finetune(
        alias="{{ params.alias }}",
        base_model="{{ params.base_model }}",
        dataset="{{ params.data_dir }}/support_questions.jsonl",
        prompt_template=PROMPT,
        reference_column="answer",
        samples=build_samples,
        gate=[
            {"rule": "better", "metric": "exact_match", "slice": {"set": "tuned"}},
            {"rule": "at_least", "metric": "exact_match", "slice": {"set": "old"}, "value": 0.88},
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
        tuning=[
            {
                "prompt_template": PROMPT,
                "completion_template": " {answer}",
                "multiplier_column": "multiplier",
                "group_column": "fact",
                "epochs": epochs,
                "batch_size": 32,
                "seed": "{{ params.seed }}",
            }
            for epochs in EPOCHS
        ],
        rounds=len(EPOCHS),
        target={"metric": "exact_match", "value": "{{ params.target }}", "slice": {"set": "tuned"}},
    )
    summarize(outcome["champion"], outcome["rounds"])


example_gradient_improvement_loop()
