"""People correct the model in Airflow's forms, and what they wrote retrains it: two example DAGs, with the
real server, Airflow's API and the scheduler's own code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from airflow_version import WAITS_FOR_PEOPLE

from airflow_provider_gradient.datasets import read_rows, write_rows

CORRECTIONS = "example_gradient_human_corrections"
RETRAINING = "example_gradient_asset_retraining"

LEARNT = "What colour is the Zyx lamp?"
SECRET = "What is {{ 7 * 7 }} in <b>Zyx</b>?"
QUESTIONS = {
    LEARNT: ("Learn", " blue \n"),
    SECRET: ("Learn", "x" * 600),
    "Who made the Zyx lamp?": ("Leave out", "nobody"),
    "Where is the Zyx lamp made?": ("Learn", "  "),
    "When was the Zyx lamp made?": None,
}
"""What people choose and write; the last form is not answered."""


@pytest.fixture
def answering(api: Any) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Fills in the forms of a DAG that is going to wait for them, by Airflow's API, and lets the time of the
    one that is left run out. What it gives holds the forms, once they were there."""
    over = threading.Event()
    found: list[dict[str, Any]] = []

    def answer() -> None:
        while len(found) < len(QUESTIONS) and not over.wait(0.5):
            answer = api.get("/api/v2/dags/~/dagRuns/~/hitlDetails", params={"response_received": False})
            found[:] = answer.json()["hitl_details"]
        for form in found:
            ti = form["task_instance"]
            path = f"/api/v2/dags/{ti['dag_id']}/dagRuns/{ti['dag_run_id']}/taskInstances/{ti['task_id']}"
            if chosen := QUESTIONS.get(form["subject"]):
                body = {"chosen_options": [chosen[0]], "params_input": {"answer": chosen[1]}}
                api.patch(f"{path}/{ti['map_index']}/hitlDetails", json=body)
        time_runs_out()

    thread = threading.Thread(target=answer)

    def start() -> list[dict[str, Any]]:
        thread.start()
        return found

    yield start
    over.set()
    thread.join()


def time_runs_out() -> None:
    """Whoever still waits for people has waited long enough; the scheduler finds that out."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.taskinstance import TaskInstance
    from airflow.sdk import timezone
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        session.execute(
            update(TaskInstance)
            .where(TaskInstance.task_id == "correct", TaskInstance.state == "awaiting_input")
            .values(trigger_timeout=timezone.utcnow() - timedelta(seconds=1))
        )
    SchedulerJobRunner(job=Job()).check_awaiting_input_timeouts()


@pytest.fixture
def run_what_assets_triggered(run_dag: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Lets the scheduler make the runs that assets call for, and runs that of a DAG to its end, with other
    values for its params than their defaults. Their id, which has no moment in it here, stands in the names
    of the adapters and so decides their chance."""

    def run(dag: Any, **params: Any) -> Any:
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.sqlalchemy import prohibit_commit
        from sqlalchemy import select

        monkeypatch.setattr(
            DagRun,
            "generate_run_id",
            staticmethod(lambda *, run_type, **_: f"{run_type.value}__of_this_test"),
        )
        with create_session() as session, prohibit_commit(session) as guard:
            SchedulerJobRunner(job=Job())._create_dagruns_for_dags(guard, session)
        with create_session() as session:
            of_dag = select(DagRun.id).where(DagRun.dag_id == dag.dag_id, DagRun.state == "queued")
            [number] = session.scalars(of_dag).all()

        def triggered(*, dag: Any, session: Any, **_: Any) -> DagRun:
            found = session.get(DagRun, number)
            found.dag, found.state, found.conf = dag, "running", params
            session.commit()
            return found

        monkeypatch.setattr("airflow.models.dagrun.get_or_create_dagrun", triggered)
        finished = run_dag(dag)
        assert finished._dag_run.id == number
        return finished

    return run


@WAITS_FOR_PEOPLE
def test_what_people_write_is_checked_trained_on_and_promoted_and_what_nobody_answers_stays_open(
    gradient_default: Any,
    known_example_dags: Any,
    run_dag: Any,
    run_what_assets_triggered: Any,
    client: Any,
    api: Any,
    answering: Any,
    registry_folder: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    from airflow_provider_gradient.hooks.gradient import GradientHook

    assert api.patch(f"/api/v2/dags/{RETRAINING}", json={"is_paused": False}).status_code == 200
    base = client.find_base_model("tiny").id
    registry = GradientHook().get_registry()
    registry.promote("support-bot", base)
    write_rows(tmp_path / "asked.jsonl", ({"question": each, "answer": "?"} for each in QUESTIONS))
    labels = tmp_path / "labels"

    forms = answering()
    run = run_dag(
        known_example_dags.dags[CORRECTIONS],
        conf={
            "questions": str(tmp_path / "asked.jsonl"),
            "labels_dir": str(labels),
            "output_dir": str(tmp_path / "corrections"),
        },
    )
    assert run.state == "success"
    assert {form["subject"] for form in forms} == set(QUESTIONS)
    assert all("The model said" in form["body"] for form in forms)
    written = {row["question"]: row for row in read_rows(labels)}
    assert set(written) == {LEARNT, SECRET}
    assert written[LEARNT]["answer"] == "blue"
    assert written[LEARNT]["by"]
    [left] = read_rows(tmp_path / "corrections" / "open.jsonl")
    assert {each["question"] for each in left["questions"]} == {
        "Where is the Zyx lamp made?",
        "When was the Zyx lamp made?",
    }

    retrained = run_what_assets_triggered(
        known_example_dags.dags[RETRAINING],
        labels_dir=str(labels),
        data_dir=str(data_dir),
        output_dir=str(tmp_path / "retraining"),
    )
    assert retrained.state == "success"
    assert retrained.run_id.startswith("asset_triggered__")
    events = api.get(f"/api/v2/dags/{RETRAINING}/dagRuns/{quote(retrained.run_id)}/upstreamAssetEvents")
    [event] = events.json()["asset_events"]
    assert event["extra"]["rows"] == 2
    assert event["source_task_id"] == "collect"
    tuning = retrained.xcom("improve.round_1.fine_tune")
    assert tuning["rows"]["left_out"] == {"leakage": 10, "overlong": 1}
    outcome = retrained.xcom("improve.round_1.settle")
    assert outcome["promoted"], outcome["report"]
    champion = registry.resolve("alias:support-bot")
    assert champion == outcome["challenger"] != base
    said = client.complete(champion, f"Question: {LEARNT}\n\nAnswer:", temperature=0, auto_template=False)
    assert said.generated_output.strip() == "blue"
    client.delete_model(champion)


def test_open_questions_come_first_then_wrong_ones_then_those_of_the_least_agreement(
    example_dags: Any, tmp_path: Path
) -> None:
    choose = example_dags.dags[CORRECTIONS].get_task("choose").python_callable
    answers = {
        "sure": (["a", "a", "a", "a", "a"], None),
        "right": (["a", "a", "a", "a", "a"], "a"),
        "unsure": (["a", "b", "c", "a", "b"], None),
        "less sure": (["a", "a", "a", "b", "b"], None),
        "wrong": (["a", "a", "a", "a", "a"], "b"),
        "failed": ([None, None, None, None, None], "b"),
    }
    write_rows(
        tmp_path / "answers.jsonl",
        (
            {"output": output, "row": {"question": question} | ({"answer": known} if known else {})}
            for question, (outputs, known) in answers.items()
            for output in outputs
        ),
    )
    manifest = {"output_path": str(tmp_path / "answers.jsonl")}
    params: dict[str, Any] = {"output_dir": str(tmp_path), "forms": 5}
    chosen = choose(manifest, params)
    assert [each["question"] for each in chosen] == ["wrong", "failed", "unsure", "less sure"]
    assert chosen[2] == {"question": "unsure", "said": "a", "times": 2}

    old = {"question": "unsure", "said": "of yesterday", "times": 1}
    write_rows(tmp_path / "open.jsonl", [{"questions": [old]}])
    assert choose(manifest, params | {"forms": 2}) == [old, chosen[0]]


def test_a_night_without_an_answer_tells_nobody_and_keeps_every_question(
    example_dags: Any, tmp_path: Path
) -> None:
    from airflow.providers.common.compat.sdk import AirflowSkipException

    collect = example_dags.dags[CORRECTIONS].get_task("collect").python_callable
    doubts = [{"question": question, "said": "a", "times": 5} for question in QUESTIONS]
    params = {"output_dir": str(tmp_path), "labels_dir": str(tmp_path / "labels")}
    forms_failed = SimpleNamespace(xcom_pull=lambda **_: None)
    with pytest.raises(AirflowSkipException, match="5 questions are open"):
        collect(doubts, params, "run", forms_failed, {})
    assert list(read_rows(tmp_path / "open.jsonl")) == [{"questions": doubts}]
    assert not (tmp_path / "labels").exists()
