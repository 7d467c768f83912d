"""Tasks watched in a browser: their link, their progress, and their page, live while they run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, completion, reply, trained

from scripts.airflow_deployment import Deployment

pytestmark = pytest.mark.ui

ADAPTER = {
    "type": "modelAdapter",
    "id": MODEL_ID,
    "name": "watched",
    "baseModelId": "b",
    "latestUpdateTime": "2026-01-01T00:00:00Z",
}
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
TUNED, ANSWERED = 1, 3
"""Calls and rows that are answered before the server holds the others."""


class Held:
    """A server that answers so many calls of a kind, and the others when it is told."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self._counts = {"fine-tune": TUNED, "complete": ANSWERED}
        self._lock = threading.Lock()

    def __call__(self, request: Received) -> Act:
        kind = request.path.partition("?")[0].rpartition("/")[2]
        if kind not in self._counts:
            return reply(body=ADAPTER if "/models/" in request.path else {"models": []})
        with self._lock:
            self._counts[kind] -= 1
            holds = self._counts[kind] < 0
        if holds:
            self.released.wait(300)
        answer = trained() if kind == "fine-tune" else completion(HOSTILE)
        return answer if isinstance(answer, Act) else answer(request)


@pytest.fixture(scope="module")
def watched(airflow: Deployment) -> Iterator[Held]:
    """The server of the connection ``held``."""
    held = Held()
    with FaultyServer(held) as server, airflow.client() as api:
        connection = {
            "connection_id": "held",
            "conn_type": "gradient",
            "host": server.url,
            "password": server.credentials["access_token"],
            "extra": json.dumps({"workspace_id": server.credentials["workspace_id"]}),
        }
        api.post("/api/v2/connections", json=connection).raise_for_status()
        yield held
        held.released.set()


def test_a_task_is_followed_from_its_link_to_its_end(
    airflow: Deployment,
    watched: Held,
    log_in: Callable[..., Any],
    trigger: Callable[..., str],
    finished: Callable[..., str],
    tmp_path: Path,
) -> None:
    run_id = trigger("ui_watched", folder=str(tmp_path))
    own = log_in(f"/dags/ui_watched/runs/{run_id}/tasks/tune/details")
    own.get_by_role("link", name="Gradient", exact=True).click()
    own.wait_for_url(f"{airflow.url}/gradient/task?**")
    own.get_by_text(f"{TUNED} of 3").wait_for()
    assert own.get_by_text("running").is_visible()
    assert own.locator("progress").get_attribute("value") == str(TUNED)

    page = own.context.new_page()
    page.goto(f"{airflow.url}/dags/ui_watched/runs/{run_id}/tasks/tune/task-state-store")
    page.get_by_role("cell", name="progress", exact=True).wait_for()

    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Gradient").click()
    frame = page.frame_locator("iframe")
    frame.get_by_text(f"{ANSWERED} of 6").wait_for()
    watched.released.set()
    assert finished("ui_watched", run_id) == "success"
    # nobody reloads what is open: each page does so by itself
    frame.get_by_role("cell", name="6", exact=True).wait_for()
    own.get_by_text("What it returned").wait_for()
    assert own.locator("svg polyline").count() == 1
    assert own.locator("meta[http-equiv=refresh]").count() == 0, "it goes on loading itself anew"

    frame.get_by_role("link", name=re.compile("answers")).click()
    frame.get_by_text("What it returned").wait_for()
    frame.get_by_role("link", name="success").click()
    page.wait_for_url(re.compile("/dags/ui_watched/runs/.*/tasks/answers/mapped/0"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_and_follows_the_colours(
    airflow: Deployment, log_in: Callable[..., Any], scheme: str, width: int
) -> None:
    page = log_in("/", user="viewer", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith(airflow.url) or wrong.append(request.url))
    for name in ("completions", "evaluations", "tunings", "adapters"):
        page.goto(f"{airflow.url}/gradient/{name}")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(
            "[...document.querySelectorAll('.scroll')].every(one => one.scrollWidth <= one.clientWidth)"
        )
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 128 * 3) == (scheme == "dark")
    assert wrong == []
