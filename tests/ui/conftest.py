"""A whole Airflow and a headless Chromium that is logged in to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.airflow_deployment import PASSWORDS, Deployment, deployed

PATIENCE = 120_000
"""Milliseconds that a page may take to show what is waited for."""


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The Airflow; deployments allow connection tests where they say so, and this one does."""
    with deployed(
        tmp_path_factory.mktemp("ui") / "airflow",
        dags=Path(__file__).parent / "dags",
        options={"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"},
    ) as airflow:
        yield airflow


@pytest.fixture
def log_in(airflow: Deployment, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a path of Airflow's UI as a person would, by way of the login form."""
    contexts = []

    def opened(path: str, *, user: str = "admin", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1200, "height": 1000}, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.goto(f"{airflow.url}{path}")
        page.locator("input[name=username]").fill(user)
        page.locator("input[name=password]").fill(PASSWORDS[user])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{airflow.url}{path}**")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def trigger(airflow: Deployment) -> Callable[..., str]:
    """Starts a run of a DAG, ``trigger("ui_told", conn_id="x")``; its id."""

    def triggered(dag_id: str, **conf: Any) -> str:
        with airflow.client() as api:
            airflow.wait_until(
                f"the DAG {dag_id}", lambda: api.get(f"/api/v2/dags/{dag_id}").raise_for_status()
            )
            body = {"logical_date": None, "conf": conf}
            run = api.post(f"/api/v2/dags/{dag_id}/dagRuns", json=body).raise_for_status().json()
        return str(run["dag_run_id"])

    return triggered


@pytest.fixture
def finished(airflow: Deployment) -> Callable[[str, str], str]:
    """Waits until a run has ended; its state."""

    def state(dag_id: str, run_id: str) -> str:
        with airflow.client() as api:

            def ended() -> str | None:
                run = api.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}").raise_for_status().json()
                return run["state"] if run["state"] in ("success", "failed") else None

            return str(airflow.wait_until(f"the run of {dag_id} to end", ended))

    return state
