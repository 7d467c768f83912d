"""The Gradient page: what it shows, and to whom."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "<script>alert(1)</script>"
PAGES = ("completions", "evaluations", "tunings", "adapters")

Browse = Callable[..., Any]


@pytest.fixture(scope="module")
def browse(airflow_database: Path) -> Iterator[Browse]:
    """GETs a path of the page as a user: ``browse("completions", user="viewer")``."""
    from airflow.api_fastapi import app as airflow_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "page_rights.RightsByName")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "False")
        airflow_app.purge_cached_app()
        with TestClient(airflow_app.create_app(), follow_redirects=False) as http:

            def get(path: str, *, user: str | None = "viewer", role: str = "viewer", **params: Any) -> Any:
                http.headers.pop("Authorization", None)
                if user is not None:
                    person = SimpleAuthManagerUser(username=user, role=role)
                    token = airflow_app.get_auth_manager().generate_jwt(person)
                    http.headers["Authorization"] = f"Bearer {token}"
                return http.get(f"/gradient/{path}", params=params)

            yield get
    airflow_app.purge_cached_app()


@pytest.fixture(scope="module")
def runs(run_dag_once: Any, gradient_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two DAGs that ran, ``open_page`` and ``secret_page``, each with every kind of work; by id."""
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    folder = tmp_path_factory.mktemp("page")
    connection = {
        "conn_type": "gradient",
        "host": gradient_server.url,
        "password": gradient_server.access_token,
        "extra": {"workspace_id": gradient_server.workspace_id},
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_GRADIENT_DEFAULT", json.dumps(connection))
        patch.setenv("AIRFLOW__GRADIENT__REGISTRY", str(folder / "registry"))
        for dag_id in ("open_page", "secret_page"):
            with DAG(dag_id) as dag:
                adapter = op.GradientCreateModelAdapterOperator(
                    task_id="adapter", base_model="tiny", name=f"{dag_id} {HOSTILE}"
                )
                tuning = op.GradientFineTuneOperator(
                    task_id="tune",
                    model_id=adapter.output,
                    samples=[{"inputs": "One two three"}],
                    epochs=2,
                    journal_path=str(folder / f"{dag_id}.tuning.jsonl"),
                )
                answers = op.GradientCompleteDatasetOperator(
                    task_id="answers",
                    model_id=adapter.output,
                    dataset=[{"q": "Hello", "a": HOSTILE}],
                    prompt_column="q",
                    output_path=str(folder / f"{dag_id}.jsonl"),
                    max_generated_token_count=2,
                )
                report = op.GradientEvaluateOperator(
                    task_id="report", completions=answers.output, reference_column="a"
                )
                promotion = op.GradientPromoteModelAdapterOperator(
                    task_id="promote", alias=dag_id, model_id=adapter.output, reason=HOSTILE
                )
                tuning >> answers
                report >> promotion
            found[dag_id] = run_dag_once(dag)
            assert found[dag_id].state == "success"
        yield found


class _Resources(HTMLParser):
    """Tags by their name, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [
            value or "" for name, value in attrs if name == "src" or (tag, name) == ("link", "href")
        ]


def test_a_page_shows_the_work_of_every_dag_its_reader_may_see(browse: Browse, runs: Any) -> None:
    for page in ("completions", "evaluations", "tunings"):
        answer = browse(page)
        assert answer.status_code == 200
        assert "open_page" in answer.text
        assert "secret_page" in answer.text
        assert runs["open_page"].xcom("adapter") in answer.text
    adapters = browse("adapters").text
    assert adapters.count("open_page (v1)") == 1
    assert runs["secret_page"].xcom("adapter") in adapters


def test_what_models_and_users_wrote_is_escaped_and_nothing_is_loaded(browse: Browse, runs: Any) -> None:
    run = runs["open_page"]
    texts = [browse(page).text for page in PAGES]
    for task in ("answers", "report", "tune", "promote"):
        answer = browse("task", dag_id="open_page", run_id=run.run_id, task_id=task)
        assert answer.status_code == 200
        texts.append(answer.text)
    assert any("&lt;script&gt;alert(1)&lt;/script&gt;" in text for text in texts)
    for text in texts:
        parsed = _Resources()
        parsed.feed(text)
        assert (parsed.tags.count("script"), parsed.loaded) == (1, [])
        assert not re.search(r"""(href|src)="https?:""", text)


def test_pages_forbid_what_they_do_not_need(browse: Browse, runs: Any) -> None:
    policy = browse("completions").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["", *PAGES, "task"])
def test_no_route_answers_without_a_login_or_without_the_right(browse: Browse, runs: Any, path: str) -> None:
    task = {"dag_id": "open_page", "run_id": runs["open_page"].run_id, "task_id": "answers"}
    params = task if path == "task" else {}
    assert browse(path, user=None, **params).status_code == 401
    assert browse(path, user="outsider", **params).status_code == 403
    if path:
        assert browse(path, user="blind", **params).status_code == 403
    assert browse(path, **params).status_code in (200, 307)


def test_a_dag_that_its_reader_may_not_see_is_not_there(browse: Browse, runs: Any) -> None:
    for page in ("completions", "evaluations", "tunings"):
        text = browse(page, user="stranger").text
        assert "open_page" in text
        assert "secret_page" not in text
        assert browse(page, user="stranger", dag_id="secret_page").status_code == 403
    run = runs["secret_page"]
    answer = browse("task", user="stranger", dag_id="secret_page", run_id=run.run_id, task_id="answers")
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["docs", "redoc", "openapi.json", "static/x", "templates/page.html"])
def test_there_are_no_other_routes(browse: Browse, path: str) -> None:
    for user in (None, "viewer"):
        assert browse(path, user=user).status_code == 404


def test_another_connection_takes_the_right_to_read_it(browse: Browse, runs: Any) -> None:
    assert browse("adapters", conn_id="elsewhere").status_code == 403
    answer = browse("adapters", user="admin", role="admin", conn_id="elsewhere")
    assert answer.status_code == 200
    assert "no Airflow connection" in answer.text


def test_a_connection_of_another_type_is_not_used(
    browse: Browse, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DATABASE", "postgres://user:hunter2@127.0.0.1:1/db")
    answer = browse("adapters", user="admin", role="admin", conn_id="database")
    assert "not of type gradient" in answer.text
    assert "hunter2" not in answer.text


def test_a_task_of_another_operator_is_not_found(browse: Browse, runs: Any) -> None:
    run = runs["open_page"]
    answer = browse("task", dag_id="open_page", run_id=run.run_id, task_id="adapter")
    assert answer.status_code == 404


def test_a_server_that_does_not_answer_is_told_on_the_page(
    browse: Browse, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_GRADIENT_DEFAULT",
        '{"conn_type": "gradient", "host": "http://127.0.0.1:9", "password": "hunter2", '
        '"extra": {"workspace_id": "w"}}',
    )
    answer = browse("adapters")
    assert answer.status_code == 200
    assert "127.0.0.1:9" in answer.text
    assert "hunter2" not in answer.text


def test_bad_page_numbers_are_refused(browse: Browse) -> None:
    assert browse("completions", page=0).status_code == 422
    assert browse("completions", page=99).status_code == 200
