"""A support assistant learns this season's catalogue without forgetting the last one.

Each round tunes a fresh adapter on the questions the champion answered wrong, and rehearses those it got
right; evaluates it on the tuned questions, on paraphrases that are never tuned, and on old facts; and keeps
it only if it answers more of the tuned questions and still enough of the old ones. The loser's adapter is
deleted. When the champion meets the target the rounds left are skipped. ``summary.json`` in ``output_dir``
has every round's figures.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task, task_group

from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.operators import (
    GradientCompleteDatasetOperator,
    GradientCreateModelAdapterOperator,
    GradientEvaluateOperator,
    GradientFineTuneOperator,
)

EPOCHS = (4, 10, 20)
"""Passes over the samples, round by round: a round that isn't enough is followed by a longer one."""
PROMPT = "Question: {question}\n\nAnswer:"
HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111


@task
def find_base_model(params: dict[str, Any]) -> str:
    """The base model's id."""
    with GradientHook().get_conn() as client:
        return client.find_base_model(params["base_model"]).id


def answer_and_evaluate(model_id: Any, folder: str) -> tuple[Any, Any]:
    """Two tasks: the model answers all questions, and its answers are scored. Their outputs."""
    answers = GradientCompleteDatasetOperator(
        task_id="answer",
        model_id=model_id,
        dataset="{{ params.data_dir }}/support_questions.jsonl",
        prompt_template=PROMPT,
        output_path="{{ params.output_dir }}/" + folder + "/answers.jsonl",
        id_column="id",
        concurrency=32,
        auto_template=False,
        max_generated_token_count=24,
        temperature=0,
    )
    report = GradientEvaluateOperator(
        task_id="evaluate",
        completions=answers.output,
        reference_column="answer",
        slice_column="set",
        output_path="{{ params.output_dir }}/" + folder + "/scores.jsonl",
    )
    return answers.output, report.output


@task.short_circuit(ignore_downstream_trigger_rules=False)
def build_samples(earlier: dict[str, Any], folder: str, params: dict[str, Any]) -> str | None:
    """The path of the round's samples: the tuned questions in all their wordings, those that the champion got
    wrong with twice the weight; ``None``, which skips the round, if the champion meets the target."""
    from airflow_provider_gradient.datasets import read_rows, write_rows

    champion = earlier["champion"]
    if champion["exact_match"]["tuned"]["value"] >= params["target"]:
        return None
    scores = {
        row["row"]["fact"]: row for row in read_rows(champion["scores_path"]) if row["row"]["set"] == "tuned"
    }
    path = f"{params['output_dir']}/{folder}/samples.jsonl"
    write_rows(
        path,
        (
            {**wording, "multiplier": 1.0 if scores[wording["fact"]]["exact_match"] else 2.0}
            for wording in read_rows(f"{params['data_dir']}/support_phrasings.jsonl")
            if wording["fact"] in scores
        ),
    )
    return path


@task(multiple_outputs=False)
def judge(
    number: int,
    report: dict[str, Any],
    answers: dict[str, Any],
    params: dict[str, Any],
    tuning: dict[str, Any] | None = None,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The round's figures, and as ``champion`` those of the best model so far; the loser's adapter is
    deleted."""
    from airflow_provider_gradient.api import UnknownModelError

    slices = {name: metrics["exact_match"] for name, metrics in report["slices"].items()}
    challenger = {
        "round": number,
        "adapter": tuning and tuning["model_id"],
        "exact_match": {
            name: {key: metric[key] for key in ("value", "low", "high")} for name, metric in slices.items()
        },
        "mean_loss": tuning and tuning["epoch_losses"][-1],
        "seconds": round(answers["seconds"] + (tuning["seconds"] if tuning else 0), 1),
        "scores_path": report["scores_path"],
    }
    if earlier is None:
        return {**challenger, "accepted": True, "champion": challenger}
    champion = earlier["champion"]
    accepted = (
        challenger["exact_match"]["tuned"]["value"] > champion["exact_match"]["tuned"]["value"]
        and challenger["exact_match"]["old"]["value"] >= params["retention_floor"]
    )
    winner, loser = (challenger, champion) if accepted else (champion, challenger)
    if loser["adapter"]:
        # An earlier try of this task may have deleted it.
        with GradientHook().get_conn() as client, contextlib.suppress(UnknownModelError):
            client.delete_model(loser["adapter"])
    return {**challenger, "accepted": accepted, "champion": winner}


@task_group
def improve(earlier: Any, number: int, epochs: int) -> Any:
    """One round."""
    folder = f"round-{number}"
    samples = build_samples(earlier, folder)
    adapter = GradientCreateModelAdapterOperator(
        task_id="create_adapter",
        base_model="{{ params.base_model }}",
        name=f"support {{{{ run_id }}}} round {number}",
        rank=16,
        if_exists="create",
    )
    tuning = GradientFineTuneOperator(
        task_id="fine_tune",
        model_id=adapter.output,
        samples=samples,
        prompt_template=PROMPT,
        completion_template=" {answer}",
        multiplier_column="multiplier",
        group_column="fact",
        epochs=epochs,
        batch_size=32,
        seed="{{ params.seed }}",
    )
    samples >> adapter
    answers, report = answer_and_evaluate(adapter.output, folder)
    tuning >> answers.operator
    return judge(number, report, answers, tuning=tuning.output, earlier=earlier)


@task(trigger_rule="none_failed", multiple_outputs=False)
def summarize(rounds: list[dict[str, Any] | None], params: dict[str, Any]) -> dict[str, Any]:
    """The rounds that ran, also written to ``summary.json``."""
    from airflow_provider_gradient.datasets import write_rows

    ran = [{key: value for key, value in row.items() if key != "champion"} for row in rounds if row]
    best = next(row for row in reversed(ran) if row["accepted"])
    summary = {"champion": best["adapter"], "rounds": ran}
    write_rows(f"{params['output_dir']}/summary.json", [summary])
    return summary


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "target": Param(
            0.97, type="number", description="Exact match on the tuned questions at which it ends."
        ),
        "retention_floor": Param(
            0.88, type="number", description="Exact match on old facts a new adapter must keep."
        ),
        "seed": Param(0, type="integer", description="Of the order of the samples."),
        "data_dir": Param(str(Path(__file__).parent / "data"), description="Folder of the questions."),
        "output_dir": Param(f"{HOME}/gradient_loop", description="Folder of all that it writes."),
    },
)
def example_gradient_improvement_loop() -> None:
    """Generate, evaluate, fine-tune; three rounds at most."""
    answers, report = answer_and_evaluate(find_base_model(), "round-0")
    rounds = [judge(0, report, answers)]
    for number, epochs in enumerate(EPOCHS, start=1):
        rounds.append(improve.override(group_id=f"round_{number}")(rounds[-1], number, epochs))
    summarize(rounds)


example_gradient_improvement_loop()
