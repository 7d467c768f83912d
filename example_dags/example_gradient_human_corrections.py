"""Every night people correct what the support assistant is least sure of or gets wrong.

``alias:support-bot`` answers each of the night's questions several times, at temperature 1. Where its answers
agree least, or the row has an ``answer`` that is another, the question goes to people: a form under *Required
Actions* in Airflow's UI, one for each question. What they write is added to ``labels_dir``, and the asset
``support_labels`` tells so: ``example_gradient_asset_retraining`` then tunes on it.

*Ask again*, a form without an answer, and a form that nobody answers in half a day leave the question open:
it is among the next night's.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.providers.standard.operators.hitl import HITLEntryOperator
from airflow.sdk import Asset, Param, dag, task

from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

LABELS = Asset("support_labels")
DRAWS = 5
"""Answers to each question; how many of them are the same says how sure the model is."""
HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111


@task
def repeat(params: dict[str, Any], run_id: str) -> str:
    """The path of the questions, each as often as it is asked."""
    from airflow_provider_gradient.datasets import read_rows, write_rows

    path = f"{params['output_dir']}/{run_id}/questions.jsonl"
    write_rows(path, (row for row in read_rows(params["questions"]) for _ in range(DRAWS)))
    return path


@task
def choose(manifest: dict[str, Any], params: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions for people: those still open, then those answered wrong, then those of the least
    agreement."""
    from collections import Counter, defaultdict

    from airflow_provider_gradient.datasets import read_rows

    answers: dict[str, list[str]] = defaultdict(list)
    known = {}
    for row in read_rows(manifest["output_path"]):
        question = row["row"]["question"]
        answers[question].append((row["output"] or "").strip())
        known[question] = row["row"].get("answer")
    doubts = []
    for question, given in answers.items():
        answer, count = Counter(given).most_common(1)[0]
        is_right = known[question] in (None, answer)
        if count < DRAWS or not is_right:
            doubts.append((is_right, count, {"question": question, "said": answer, "times": count}))
    chosen = {doubt["question"]: doubt for doubt in still_open(params)}
    for _, _, doubt in sorted(doubts, key=lambda each: each[:2]):
        if len(chosen) < params["forms"]:
            chosen.setdefault(doubt["question"], doubt)
    return list(chosen.values())


def still_open(params: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions that were not answered."""
    from airflow_provider_gradient.datasets import as_path, read_rows

    path = f"{params['output_dir']}/open.jsonl"
    return list(next(read_rows(path))["questions"]) if as_path(path).exists() else []


def form(doubt: dict[str, Any]) -> dict[str, str]:
    """The form for a question. Airflow renders its texts: what rows and models say must be no template. What
    the model said is indented, so that it is no Markdown either."""
    said = "\n".join(f"    {line}" for line in (doubt["said"] or "(nothing)").splitlines())
    texts = {
        "subject": doubt["question"],
        "body": f"The model said, {doubt['times']} times of {DRAWS}:\n\n{said}",
    }
    return {name: text.replace("{", "{{ '{' }}") for name, text in texts.items()}


@task(trigger_rule="all_done", outlets=[LABELS])
def collect(
    doubts: list[dict[str, Any]], params: dict[str, Any], run_id: str, ti: Any, outlet_events: Any
) -> None:
    """Adds what people wrote to the labels; skipped where they wrote nothing."""
    from airflow_provider_gradient.datasets import write_rows

    labels, unanswered = [], []
    for index, doubt in enumerate(doubts):
        response = ti.xcom_pull(task_ids="correct", map_indexes=index) or {}
        choice = response.get("chosen_options", ["Ask again"])[0]
        answer = str((response.get("params_input") or {}).get("answer") or "").strip()
        if choice == "Learn" and answer:
            labels.append(
                {
                    "question": doubt["question"],
                    "answer": answer,
                    "by": (response["responded_by_user"] or {}).get("name"),
                    "at": str(response["responded_at"]),
                }
            )
        elif choice != "Leave out":
            unanswered.append(doubt)
    if labels:
        write_rows(f"{params['labels_dir']}/{run_id}.jsonl", labels)
    write_rows(f"{params['output_dir']}/open.jsonl", [{"questions": unanswered}])
    if not labels:
        raise AirflowSkipException(f"Nothing was corrected; {len(unanswered)} questions are open")
    outlet_events[LABELS].extra = {"rows": len(labels)}


@dag(
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "alias": Param("support-bot", description="Who is corrected."),
        "questions": Param(
            str(Path(__file__).parent / "data" / "daily" / "2026-11-01.jsonl"),
            description="Rows with a question, and the right answer where it is known.",
        ),
        "forms": Param(5, type="integer", minimum=1, description="Questions a night at most."),
        "labels_dir": Param(f"{HOME}/gradient_labels", description="Folder of what people wrote."),
        "output_dir": Param(f"{HOME}/gradient_corrections", description="Folder of all else."),
    },
)
def example_gradient_human_corrections() -> None:
    """Ask the model, ask people."""
    answers = GradientCompleteDatasetOperator(
        task_id="answer",
        model_id="alias:{{ params.alias }}",
        dataset=repeat(),
        prompt_template="Question: {question}\n\nAnswer:",
        output_path="{{ params.output_dir }}/{{ run_id }}/answers.jsonl",
        concurrency=32,
        auto_template=False,
        max_generated_token_count=24,
        temperature=1,
    )
    doubts = choose(answers.output)
    people = HITLEntryOperator.partial(
        task_id="correct",
        options=["Learn", "Leave out", "Ask again"],
        defaults="Ask again",
        params={"answer": Param("", type="string", title="The right answer")},
        response_timeout=timedelta(hours=12),
    ).expand_kwargs(doubts.map(form))
    people >> collect(doubts)


example_gradient_human_corrections()
