"""The example DAGs, run to their end against the real server with its tiny model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_version import OLD_AIRFLOW

from airflow_provider_gradient.datasets import read_rows, write_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "example_dags"
LOOP = "example_gradient_improvement_loop"
MOMENT = {
    "logical_date": datetime(2026, 3, 1, tzinfo=UTC),
    "run_after": datetime(2026, 3, 1, tzinfo=UTC),
}
"""The run's id, in the adapters' names, decides their chance: so what they learn is the same each time."""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_airflow_imports_them_without_a_connection_an_error_or_a_warning(example_dags: Any) -> None:
    assert example_dags.import_errors == {}
    if not OLD_AIRFLOW:  # whose own modules warn of each other
        assert not any(example_dags.captured_warnings.values())
    assert set(example_dags.dags) == {
        "example_gradient_notebook",
        "example_gradient_improvement_loop",
        "example_gradient_scheduled_completions",
        "example_gradient_sharded_completions",
        "example_gradient_champion_challenger",
        "example_gradient_regression_watch",
        "example_gradient_human_corrections",
        "example_gradient_asset_retraining",
    }
    assert all(dag.doc_md and "gradient" in dag.tags for dag in example_dags.dags.values())


def test_the_notebooks_adapter_learns_the_right_answer_and_is_deleted(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    run = run_dag(example_dags.dags["example_gradient_notebook"], conf={"output_dir": str(tmp_path)})

    assert run.state == "success"
    answers = read(tmp_path / "answers.json")
    assert "Cowboys" not in answers["before"]
    assert "Dallas Cowboys" in answers["after"]
    assert run.xcom("create_adapter") not in {model.id for model in client.list_models()}


def small_story(folder: Path, *, facts: int = 6) -> Path:
    """The loop's data, cut down to a few facts and a few old questions."""
    data = EXAMPLES / "data"
    questions = list(read_rows(data / "support_questions.jsonl"))
    chosen = [row["fact"] for row in questions if row["set"] == "tuned"][:facts]
    old = [row for row in questions if row["set"] == "old"][:facts]
    write_rows(folder / "support_questions.jsonl", [row for row in questions if row["fact"] in chosen] + old)
    write_rows(
        folder / "support_phrasings.jsonl",
        [row for row in read_rows(data / "support_phrasings.jsonl") if row["fact"] in chosen],
    )
    return folder


def test_the_loop_lifts_what_was_wrong_and_keeps_what_was_right(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, registry_folder: Path, tmp_path: Path
) -> None:
    from airflow_provider_gradient.hooks.gradient import GradientHook

    conf = {"data_dir": str(small_story(tmp_path / "data", facts=24)), "output_dir": str(tmp_path)}
    run = run_dag(example_dags.dags[LOOP], conf=conf, **MOMENT)

    assert run.state == "success"
    summary = read(tmp_path / "summary.json")
    assert summary == run.xcom("summarize")
    before, *rounds = summary["rounds"]
    last = next(each for each in reversed(rounds) if each["promoted"])
    asked = list(read_rows(tmp_path / run.run_id / "champion" / "scores.jsonl"))
    right = {row["row"]["fact"]: row["exact_match"] for row in asked if is_tuned(row)}
    assert sum(not each for each in right.values()) >= 20
    assert before["exact_match"]["old"]["value"] >= 0.95
    assert last["exact_match"]["tuned"]["value"] >= 0.86, summary
    assert last["exact_match"]["paraphrase"]["value"] >= 0.80, summary
    assert last["exact_match"]["old"]["value"] >= 0.85, summary
    assert rounds[-1]["mean_loss"] < rounds[0]["mean_loss"]
    promoted = {row["model_id"] for row in summary["rounds"] if row["promoted"]}
    made = {row["model_id"] for row in summary["rounds"][1:]}
    assert made & {model.id for model in client.list_models()} == promoted
    assert summary["champion"] == last["model_id"] == GradientHook().resolve("alias:support-bot")

    samples = list(read_rows(tmp_path / run.run_id / "round-1" / "samples.jsonl"))
    assert {row["fact"] for row in samples} == set(right)
    assert all(row["multiplier"] == (1.0 if right[row["fact"]] else 2.0) for row in samples)
    tested = {row["row"]["question"] for row in asked if not is_tuned(row)}
    assert not tested & {row["question"] for row in samples}
    for model_id in promoted:
        client.delete_model(model_id)


def test_the_loop_ends_early_and_still_sums_up_when_the_target_is_met(
    gradient_default: Any, example_dags: Any, run_dag: Any, registry_folder: Path, tmp_path: Path
) -> None:
    conf = {"data_dir": str(small_story(tmp_path / "data")), "output_dir": str(tmp_path), "target": 0}
    run = run_dag(example_dags.dags[LOOP], conf=conf)

    assert run.state == "success"
    [only] = read(tmp_path / "summary.json")["rounds"]
    assert (only["round"], only["promoted"], only["mean_loss"]) == (0, None, None)
    ran = {task_id for task_id, state in run.states.items() if state == "success"}
    rounds = {f"improve.round_{number}.{name}" for number in (1, 2, 3) for name in ("begin_round", "settle")}
    assert ran == rounds | {
        "improve.find_champion",
        "improve.answer_champion",
        "improve.evaluate_champion",
        "summarize",
    }


def test_the_daily_dag_answers_the_questions_of_its_data_interval(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    run = run_dag(
        example_dags.dags["example_gradient_scheduled_completions"],
        conf={"output_dir": str(tmp_path)},
        logical_date=datetime(2026, 11, 2, tzinfo=UTC),
    )

    assert run.state == "success"
    questions = list(read_rows(EXAMPLES / "data" / "daily" / "2026-11-01.jsonl"))
    answers = list(read_rows(tmp_path / "day=2026-11-01" / "answers.jsonl"))
    assert [row["row"] for row in answers] == questions
    assert all(row["status"] == "success" and row["output"] for row in answers)
    client.delete_model(run.xcom("adapter"))


def test_the_sharded_dag_answers_every_question_in_order_and_scores_the_whole(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    questions = list(read_rows(EXAMPLES / "data" / "support_questions.jsonl"))[::8]
    write_rows(tmp_path / "in" / "questions.jsonl", questions)
    run = run_dag(
        example_dags.dags["example_gradient_sharded_completions"],
        conf={"dataset": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")},
    )

    assert run.state == "success"
    assert "answer_questions.complete[7]" in run.states
    answers = list(read_rows(tmp_path / "out" / "answers.jsonl"))
    assert [row["row"] for row in answers] == questions
    assert [row["index"] for row in answers] == list(range(len(questions)))
    assert run.xcom("score")["rows"] == len(questions)
    client.delete_model(run.xcom("adapter"))


def is_tuned(row: dict[str, Any]) -> bool:
    return bool(row["row"]["set"] == "tuned")
