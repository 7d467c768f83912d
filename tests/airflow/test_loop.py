"""The improvement loop as a task group, and the example DAGs around a champion, with the real server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow_version import WAITS_FOR_PEOPLE

from airflow_provider_gradient.api import InvalidRequestError, UnknownModelError
from airflow_provider_gradient.datasets import read_rows, write_rows

DATA = Path(__file__).resolve().parents[2] / "example_dags" / "data"
CHALLENGE = "example_gradient_champion_challenger"
WATCH = "example_gradient_regression_watch"
MOMENT = {
    "logical_date": datetime(2026, 3, 4, tzinfo=UTC),
    "run_after": datetime(2026, 3, 4, tzinfo=UTC),
}
"""The run's id, in the adapters' names, decides their chance: so what they learn is the same each time."""

pytestmark = pytest.mark.usefixtures("registry_folder")

Respond = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def respond(api: Any) -> Iterator[Respond]:
    """Answers, by Airflow's API, the approval that a DAG is going to wait for: ``respond("Approve")``. What
    it gives holds what was asked, once it was."""
    over = threading.Event()
    asked: list[dict[str, Any]] = []
    threads: list[threading.Thread] = []

    def answer(choice: str) -> None:
        while not asked and not over.wait(0.5):
            found = api.get("/api/v2/dags/~/dagRuns/~/hitlDetails", params={"response_received": False})
            asked.extend(found.json()["hitl_details"])
        for detail in asked:
            ti = detail["task_instance"]
            path = f"/api/v2/dags/{ti['dag_id']}/dagRuns/{ti['dag_run_id']}/taskInstances/{ti['task_id']}"
            api.patch(f"{path}/-1/hitlDetails", json={"chosen_options": [choice], "params_input": {}})

    def start(choice: str) -> list[dict[str, Any]]:
        threads.append(threading.Thread(target=answer, args=(choice,)))
        threads[-1].start()
        return asked

    yield start
    over.set()
    for thread in threads:
        thread.join()


@WAITS_FOR_PEOPLE
def test_a_challenger_is_approved_by_a_person_and_watched_until_it_gets_worse(
    gradient_default: Any,
    example_dags: Any,
    run_dag: Any,
    client: Any,
    respond: Any,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    from airflow_provider_gradient.hooks.gradient import GradientHook

    conf = {"data_dir": str(data_dir), "output_dir": str(tmp_path / "champions")}
    asked = respond("Approve")
    run = run_dag(example_dags.dags[CHALLENGE], conf=conf, **MOMENT)

    assert run.state == "success"
    assert len(asked) == 1
    assert asked[0]["subject"] == "Promote the challenger to alias:support-bot?"
    assert asked[0]["body"].startswith("- exact_match")
    assert "/round-1/report.json" in asked[0]["body"]
    outcome = run.xcom("improve.round_1.settle")
    assert outcome["promoted"]
    champion = outcome["champion"]
    promotion = GradientHook().get_registry().current("support-bot")
    assert promotion.model_id == champion == run.xcom("improve.round_1.create_adapter")
    assert promotion.evaluation is not None
    assert promotion.evaluation["gate"]["verdict"] == "pass"
    assert promotion.tuning is not None

    watched = {"data_dir": str(data_dir), "output_dir": str(tmp_path / "watch")}
    calm = run_dag(example_dags.dags[WATCH], conf=watched)
    assert calm.state == "success"
    assert calm.states["alert"] == "skipped"

    questions = read_rows(data_dir / "support_questions.jsonl")
    nonsense = [
        {
            "inputs": [
                {"value": f"Question: {row['question']}\n\nAnswer:", "trainable": False},
                {"value": " Oslo"},
            ]
        }
        for row in questions
    ]
    for _ in range(8):
        client.fine_tune(champion, nonsense)
    alarmed = run_dag(example_dags.dags[WATCH], conf=watched)
    assert alarmed.state == "failed"
    assert alarmed.states["alert"] == "failed"
    assert alarmed.xcom("evaluate")["gate"]["verdict"] == "fail"
    client.delete_model(champion)


def loop(dag_id: str, folder: Path, **arguments: Any) -> Any:
    """A DAG with the loop over six questions that the tiny model knows."""
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import generate_evaluate_finetune

    old = [row for row in read_rows(DATA / "support_questions.jsonl") if row["set"] == "old"][:6]
    settings: dict[str, Any] = {
        "alias": "bot",
        "base_model": "tiny",
        "dataset": old,
        "prompt_template": "Question: {question}\n\nAnswer:",
        "reference_column": "answer",
        "samples": [{"inputs": "Question: Who?\n\nAnswer: Nobody"}],
        "gate": [{"rule": "at_least", "metric": "exact_match", "value": 0}],
        "output_dir": str(folder / "{{ run_id }}"),
        "completion": {"max_generated_token_count": 12, "temperature": 0, "auto_template": False},
    }
    with DAG(dag_id) as dag:
        generate_evaluate_finetune(**settings | arguments)
    return dag


@WAITS_FOR_PEOPLE
def test_a_person_who_says_no_keeps_the_champion(
    gradient_default: Any, run_dag: Any, client: Any, respond: Any, tmp_path: Path
) -> None:
    from airflow_provider_gradient.hooks.gradient import GradientHook

    asked = respond("Reject")
    run = run_dag(loop("loop_rejected", tmp_path, approval=True, page=True))

    assert run.state == "success"
    page = tmp_path / run.run_id / "round-1" / "report.html"
    assert str(page) in asked[0]["body"]
    assert "exact_match" in page.read_text()
    outcome = run.xcom("improve.round_1.settle")
    assert outcome["verdict"] == "pass"
    assert not outcome["promoted"]
    assert outcome["champion"] == client.find_base_model("tiny").id
    assert GradientHook().get_registry().aliases() == []
    with pytest.raises(UnknownModelError):
        client.get_model_adapter(outcome["challenger"])


def test_a_loser_is_deleted_a_winner_promoted_and_the_rounds_left_are_skipped_at_the_target(
    gradient_default: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    from airflow.sdk import task

    from airflow_provider_gradient.hooks.gradient import GradientHook

    @task
    def learn(report: dict[str, Any], path: str) -> str:
        """What was wrong: a wrong answer again in the first round, the right one in the second."""
        wrong = [row["row"] for row in read_rows(report["scores_path"]) if not row["exact_match"]]
        answer = {"answer": "Oslo"} if "round-1" in path else {}
        write_rows(path, [row | answer for row in wrong])
        return path

    template = "Question: {question}\n\nAnswer:"
    tuning = [
        {"prompt_template": template, "completion_template": " {answer}", "epochs": epochs}
        for epochs in (12, 14, 16)
    ]
    before = {model.id for model in client.list_models()}
    run = run_dag(
        loop(
            "loop_rounds",
            tmp_path,
            rounds=3,
            dataset=[{"question": "What colour is the Zyx?", "answer": "blue"}],
            samples=learn,
            gate=[{"rule": "at_least", "metric": "exact_match", "value": 1}],
            tuning=tuning,
            page=True,
            target={"metric": "exact_match", "value": "{{ 1 }}"},
            budget={"tokens": "{{ 10_000 }}", "seconds": 36_000},
        )
    )

    assert run.state == "success"
    first, second, third = (run.xcom(f"improve.round_{number}.settle") for number in (1, 2, 3))
    told = [(each["round"], each["model_id"], each.get("verdict")) for each in third["rounds"]]
    assert told == [
        (0, first["champion"], None),
        (1, first["challenger"], "fail"),
        (2, second["challenger"], "pass"),
    ]
    shorter, longer = (run.xcom(f"improve.round_{number}.fine_tune")["epochs"] for number in (1, 2))
    assert (shorter, longer) == (12, 14)
    assert third["rounds"][1]["tokens"] == run.xcom("improve.round_1.fine_tune")["trainable_tokens"] > 0
    page = GradientHook().get_registry().current("bot").evaluation["page_path"]
    assert page == str(tmp_path / run.run_id / "round-2" / "report.html")
    assert "exact_match" in Path(page).read_text()
    base = client.find_base_model("tiny").id
    assert (first["champion"], first["verdict"], first["promoted"]) == (base, "fail", False)
    assert run.states["improve.round_1.promote"] == "skipped"
    assert (second["champion"], second["verdict"]) == (second["challenger"], "pass")
    assert third["champion"] == second["champion"] == third["replaces"]
    assert third["challenger"] is None
    assert run.states["improve.round_3.create_adapter"] == "skipped"
    assert {model.id for model in client.list_models()} - before == {second["champion"]}
    client.delete_model(second["champion"])


def test_a_round_is_begun_while_the_budget_lasts_and_the_target_is_not_met() -> None:
    from airflow_provider_gradient.operators.loop import begin_round

    report = {"metrics": {"m": {"value": 0.5}}, "slices": {"set": {"old": {"m": {"value": 0.9}}}}}
    earlier = [{"round": 0}, {"round": 1, "tokens": 60, "seconds": None}, {"tokens": 40, "seconds": 2.5}]
    assert begin_round(report, earlier, None, None) == report
    assert begin_round(report, earlier, None, {"tokens": 101, "seconds": "2.6"}) == report
    assert begin_round(report, earlier, None, {"tokens": "100"}) is None
    assert begin_round(report, earlier, None, {"tokens": 1000, "seconds": 2.5}) is None
    assert begin_round(report, [], {"metric": "m", "value": 0.51}, {"tokens": 1}) == report
    assert begin_round(report, [], {"metric": "m", "value": "0.5"}, None) is None
    assert begin_round(report, [], {"metric": "m", "value": 0.9, "slice": {"set": "old"}}, None) is None
    with pytest.raises(InvalidRequestError, match=r"budget\.tokens"):
        begin_round(report, [], None, {"tokens": "many"})


def test_a_loop_that_can_not_be_is_refused_when_the_dag_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="rounds"):
        loop("loop_no_round", tmp_path, rounds=0)
    with pytest.raises(InvalidRequestError, match=r"tuning: 2 rounds need as many \(got 1\)"):
        loop("loop_short", tmp_path, rounds=2, tuning=[{"epochs": 1}])
    with pytest.raises(InvalidRequestError, match="budget: tokens, seconds or both"):
        loop("loop_rich", tmp_path, budget={"euros": 5})
    with pytest.raises(InvalidRequestError, match="target: metric and value are needed"):
        loop("loop_no_metric", tmp_path, target={"value": 1})
