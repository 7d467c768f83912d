"""The form of a Gradient connection in a browser: made, tested, edited, and what Airflow then has stored.

The steps build on each other: a connection is made, found wrong, mended, and used by a task.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyServer, reply

from scripts.airflow_deployment import Deployment

pytestmark = pytest.mark.ui

CONN_ID = "made_in_the_ui"
WRONG_TOKEN = "a-token-typed-wrong"
STANDARD, OWN = "Standard Fields", "Extra Fields"


def show(page: Any, section: str) -> None:
    """Open a section of the form."""
    button = page.get_by_role("button", name=section, exact=True)
    button.click()
    page.locator("button[aria-expanded=true]", has_text=section).wait_for()


def fill(page: Any, **fields: str) -> None:
    """Type into fields of the section that is open, and leave each."""
    for name, value in fields.items():
        field = page.locator(f"[name={name}]")
        field.fill(value)
        field.blur()


def save(page: Any) -> None:
    page.get_by_role("button", name="Save").click()
    page.get_by_role("dialog").wait_for(state="hidden")


def open_form(page: Any, conn_id: str) -> None:
    row(page, conn_id).get_by_role("button", name="Edit Connection").click()
    page.locator("[name=host]").wait_for()
    page.wait_for_load_state("networkidle")


def row(page: Any, conn_id: str) -> Any:
    return page.get_by_role("row").filter(has_text=conn_id)


def outcome_of_test(page: Any, conn_id: str) -> str:
    """What Airflow's UI tells after a click on the test button."""
    with page.expect_response(re.compile("/connections/test$")):
        row(page, conn_id).get_by_role("button", name="Test Connection").click()
    told = page.get_by_text(re.compile("Test Connection (Successful|Failed)"))
    told.first.wait_for()
    message = told.first.locator("xpath=..").inner_text()
    page.reload()
    return str(message)


def stored(airflow: Deployment, conn_id: str) -> dict[str, Any]:
    """The connection as ``airflow connections export`` writes it, secrets included."""
    path = airflow.home.with_name("exported.json")
    airflow.airflow("connections", "export", str(path), "--file-format", "json")
    connection = json.loads(path.read_text())[conn_id]
    return dict(connection) | {"extra": json.loads(connection["extra"])}


def test_a_connection_is_made_tested_edited_and_used(
    airflow: Deployment,
    log_in: Callable[..., Any],
    gradient_server: Any,
    trigger: Callable[..., str],
    finished: Callable[..., str],
) -> None:
    page = log_in("/connections")
    page.get_by_role("button", name="Add Connection").click()
    page.get_by_role("combobox").click()
    page.keyboard.type("Gradient")
    page.keyboard.press("Enter")
    page.locator("[name=host]").wait_for()
    labels = page.get_by_role("dialog").inner_text()
    assert "Server URL" in labels
    assert "Access token" in labels
    assert not re.search(r"\b(Login|Schema)\b", labels)
    assert page.locator("[name=password]").get_attribute("type") == "password"

    port = gradient_server.url.split(":")[2].split("/")[0]
    fill(page, connection_id=CONN_ID, host=gradient_server.url, password=WRONG_TOKEN, port=port)
    assert page.get_by_role("button", name="Save").is_disabled(), "there is no workspace id yet"
    show(page, OWN)
    fill(page, element_workspace_id=gradient_server.workspace_id, element_read_timeout="30.5")
    save(page)
    made = stored(airflow, CONN_ID)
    standard = {name: made[name] for name in ("conn_type", "host", "port", "password", "login", "schema")}
    assert standard == {
        "conn_type": "gradient",
        "host": gradient_server.url,
        "port": int(port),
        "password": WRONG_TOKEN,
        "login": None,
        "schema": None,
    }
    assert set_fields(made) == {"workspace_id": gradient_server.workspace_id, "read_timeout": 30.5}

    message = outcome_of_test(page, CONN_ID)
    assert "Test Connection Failed" in message
    assert "refused the access token (401)" in message

    open_form(page, CONN_ID)
    assert page.locator("[name=password]").input_value() == "***"
    fill(page, password=gradient_server.access_token)
    save(page)
    page.reload()
    message = outcome_of_test(page, CONN_ID)
    assert "Test Connection Successful" in message
    assert f"Connected to {gradient_server.url}" in message

    open_form(page, CONN_ID)
    assert gradient_server.access_token not in page.content()
    show(page, OWN)
    assert page.locator("[name=element_read_timeout]").input_value() == "30.5"
    fill(page, element_read_timeout="", element_connect_timeout="5", element_total_timeout="300")
    save(page)
    edited = stored(airflow, CONN_ID)
    assert edited["password"] == gradient_server.access_token, "the token was left as it is"
    assert set_fields(edited) == {
        "workspace_id": gradient_server.workspace_id,
        "connect_timeout": 5,
        "total_timeout": 300,
    }

    run_id = trigger("ui_told", conn_id=CONN_ID)
    assert finished("ui_told", run_id) == "success", log_of(airflow, run_id)
    assert files_with(airflow.home, gradient_server.access_token, WRONG_TOKEN) == []
    run_id = trigger("ui_told", conn_id=CONN_ID, careless=True)
    assert finished("ui_told", run_id) == "success", log_of(airflow, run_id)
    with airflow.client() as api:
        assert api.get(f"/api/v2/connections/{CONN_ID}").json()["password"] == "***"
    log = log_of(airflow, run_id)
    assert "the token is ***" in log
    assert gradient_server.access_token not in log
    page.goto(f"{airflow.url}/dags/ui_told/runs/{run_id}/tasks/asks")
    page.get_by_text("the token is ***").wait_for()


def test_a_ca_bundle_named_in_the_form_is_trusted(
    airflow: Deployment, log_in: Callable[..., Any], private_certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(private_certificate)
    with FaultyServer(reply(body={"models": []}), tls=context) as server, airflow.client() as api:
        connection = {
            "connection_id": "private",
            "conn_type": "gradient",
            "host": server.url,
            "port": server.port,
            "password": server.credentials["access_token"],
            # the form shows a stored connection's own fields where its extra has them
            "extra": json.dumps({"workspace_id": server.credentials["workspace_id"], "ca_bundle": None}),
        }
        api.post("/api/v2/connections", json=connection).raise_for_status()
        page = log_in("/connections")
        assert "No secure connection" in outcome_of_test(page, "private")
        open_form(page, "private")
        show(page, OWN)
        fill(page, element_ca_bundle=str(private_certificate))
        save(page)
        page.reload()
        assert "Connected to" in outcome_of_test(page, "private")
    assert set_fields(stored(airflow, "private"))["ca_bundle"] == str(private_certificate)


def test_a_connection_is_tested_on_a_worker_and_by_command(airflow: Deployment, gradient_server: Any) -> None:
    connection = {
        "connection_id": "tested_elsewhere",
        "conn_type": "gradient",
        "host": gradient_server.url,
        "password": gradient_server.access_token,
        "extra": json.dumps({"workspace_id": gradient_server.workspace_id}),
    }
    with airflow.client() as api:
        api.post("/api/v2/connections", json=connection).raise_for_status()
        path = "/api/v2/connections/enqueue-test"
        queued = api.post(path, json=connection).raise_for_status().json()
        header = {"Airflow-Connection-Test-Token": queued["token"]}

        def outcome() -> Any:
            found = api.get(path, headers=header).raise_for_status().json()
            return found if found["state"] in ("success", "failed") else None

        found = airflow.wait_until("the test on a worker", outcome)
    assert found["state"] == "success", found
    assert found["result_message"].startswith(f"Connected to {gradient_server.url}")
    assert "Connection success!" in airflow.airflow("connections", "test", "tested_elsewhere")


def test_a_viewer_sees_no_connections(log_in: Callable[..., Any], airflow: Deployment) -> None:
    page = log_in("/connections", user="viewer")
    page.get_by_text(re.compile("Forbidden|403")).first.wait_for()
    with airflow.client("viewer") as api:
        assert api.get(f"/api/v2/connections/{CONN_ID}").status_code == 403


def log_of(airflow: Deployment, run_id: str) -> str:
    """The log of the task of ``ui_told``, as the UI gets it."""
    with airflow.client() as api:
        return api.get(f"/api/v2/dags/ui_told/dagRuns/{run_id}/taskInstances/asks/logs/1").text


def files_with(folder: Path, *secrets: str) -> list[Path]:
    """The files below a folder that hold one of the secrets: logs, the database, all."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


def set_fields(connection: dict[str, Any]) -> dict[str, Any]:
    """The form's own fields that are not empty; it stores the others as null."""
    return {name: value for name, value in connection["extra"].items() if value not in (None, "")}
