"""The example DAGs, run to their end against the real server with its tiny model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_provider_gradient.datasets import read_rows, write_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "example_dags"
LOOP = "example_gradient_improvement_loop"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_airflow_imports_them_without_a_connection_an_error_or_a_warning(example_dags: Any) -> None:
    assert example_dags.import_errors == {}
    assert not any(example_dags.captured_warnings.values())
    assert set(example_dags.dags) == {
        "example_gradient_notebook",
        "example_gradient_improvement_loop",
        "example_gradient_scheduled_completions",
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
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    run = run_dag(example_dags.dags[LOOP], conf={"output_dir": str(tmp_path)})

    assert run.state == "success"
    summary = read(tmp_path / "summary.json")
    assert summary == run.xcom("summarize")
    before, last = summary["rounds"][0], summary["rounds"][-1]
    wrong = sum(
        not row["exact_match"] for row in scores(tmp_path / "round-0") if row["row"]["set"] == "tuned"
    )
    assert wrong >= 100
    assert before["exact_match"]["old"]["value"] >= 0.95
    assert last["accepted"], summary
    assert last["exact_match"]["tuned"]["value"] >= 0.86, summary
    assert last["exact_match"]["paraphrase"]["value"] >= 0.80, summary
    assert last["exact_match"]["old"]["value"] >= 0.85, summary
    assert last["mean_loss"] < summary["rounds"][1]["mean_loss"]
    made = {row["adapter"] for row in summary["rounds"][1:]}
    assert made & {model.id for model in client.list_models()} == {summary["champion"]}
    client.delete_model(summary["champion"])


def test_the_loop_weighs_what_the_champion_got_wrong_and_trains_on_nothing_it_is_tested_on(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    """Besides, a floor that nothing reaches: every round is rejected and its adapter deleted."""
    conf = {
        "data_dir": str(small_story(tmp_path / "data")),
        "output_dir": str(tmp_path),
        "retention_floor": 1.01,
    }
    before = {model.id for model in client.list_models()}
    run = run_dag(example_dags.dags[LOOP], conf=conf)

    assert run.state == "success"
    summary = read(tmp_path / "summary.json")
    assert [row["accepted"] for row in summary["rounds"]] == [True, False, False, False]
    assert summary["champion"] is None
    assert {model.id for model in client.list_models()} == before
    right = {row["row"]["fact"]: row["exact_match"] for row in scores(tmp_path / "round-0") if is_tuned(row)}
    tested = {row["row"]["question"] for row in scores(tmp_path / "round-0") if not is_tuned(row)}
    samples = list(read_rows(tmp_path / "round-1" / "samples.jsonl"))
    assert {row["fact"] for row in samples} == set(right)
    assert all(row["multiplier"] == (1.0 if right[row["fact"]] else 2.0) for row in samples)
    assert not tested & {row["question"] for row in samples}


def test_the_loop_ends_early_and_still_sums_up_when_the_target_is_met(
    gradient_default: Any, example_dags: Any, run_dag: Any, tmp_path: Path
) -> None:
    conf = {"data_dir": str(small_story(tmp_path / "data")), "output_dir": str(tmp_path), "target": 0}
    run = run_dag(example_dags.dags[LOOP], conf=conf)

    assert run.state == "success"
    assert len(read(tmp_path / "summary.json")["rounds"]) == 1
    skipped = {task_id for task_id, state in run.states.items() if state == "skipped"}
    assert skipped == {
        task_id
        for task_id in run.states
        if task_id.startswith("round_") and task_id != "round_1.build_samples"
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


def scores(folder: Path) -> list[dict[str, Any]]:
    return list(read_rows(folder / "scores.jsonl"))


def is_tuned(row: dict[str, Any]) -> bool:
    return bool(row["row"]["set"] == "tuned")
