"""The provider as Airflow sees it: its metadata, and the connection form that comes of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow_version import OLD_AIRFLOW

from airflow_provider_gradient.provider_info import get_provider_info


@pytest.fixture(scope="module")
def api(airflow_database: Path) -> Iterator[Any]:
    """Airflow's API server in this process, logged in as its administrator."""
    from airflow.api_fastapi.app import create_app
    from fastapi.testclient import TestClient

    with TestClient(create_app()) as client:
        token = client.get("/auth/token").json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


@pytest.fixture(scope="module")
def form(api: Any) -> dict[str, Any]:
    """What the UI draws the connection form from."""
    answer = api.get("/ui/connections/hook_meta")
    assert answer.status_code == 200
    return next(meta for meta in answer.json() if meta["connection_type"] == "gradient")


def test_the_metadata_follows_airflows_schema() -> None:
    import airflow
    import jsonschema

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
    assert set(get_provider_info()) <= {*schema["properties"], "versions"}


def test_airflow_finds_the_metadata_by_the_entry_point() -> None:
    [entry] = [
        entry
        for entry in entry_points(group="apache_airflow_provider")
        if entry.value.startswith("airflow_provider_gradient")
    ]
    assert entry.load()() == get_provider_info()


def test_everything_the_metadata_names_exists() -> None:
    info = get_provider_info()
    for group in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[group]:
            assert all(importlib.import_module(module) for module in entry["python-modules"])
    [connection] = info["connection-types"]
    module, _, name = connection["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert (hook.conn_type, hook.hook_name) == (connection["connection-type"], connection["hook-name"])


def test_links_decorators_and_notifiers_that_the_metadata_names_exist() -> None:
    info = get_provider_info()
    decorators = [decorator["class-name"] for decorator in info["task-decorators"]]
    for path in [*info["extra-links"], *info["notifications"], *decorators]:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_every_operator_is_in_a_module_that_the_metadata_names() -> None:
    operators = importlib.import_module("airflow_provider_gradient.operators")
    [listed] = get_provider_info()["operators"]
    assert {getattr(operators, name).__module__ for name in operators.__all__} == set(
        listed["python-modules"]
    )


def test_the_form_asks_for_url_and_token_in_the_words_of_gradient(form: dict[str, Any]) -> None:
    fields = form["standard_fields"]
    assert form["hook_name"] == "Gradient"
    assert fields["host"] == {
        "hidden": False,
        "title": "Server URL",
        "placeholder": "https://gradient.example.com/api",
    }
    assert fields["password"]["title"] == "Access token"
    assert "test button" in fields["port"]["placeholder"]


def test_the_form_hides_the_fields_that_mean_nothing_to_gradient(form: dict[str, Any]) -> None:
    hidden = {name for name, field in form["standard_fields"].items() if field and field["hidden"]}
    assert hidden == {"login", "url_schema"}


def test_the_forms_own_fields_have_labels_types_and_descriptions(form: dict[str, Any]) -> None:
    fields = form["extra_fields"]
    types = {name: field["schema"]["type"] for name, field in fields.items()}
    number = "string" if OLD_AIRFLOW else "number"
    assert types == {
        "workspace_id": ["string", "null"] if OLD_AIRFLOW else "string",
        "connect_timeout": [number, "null"],
        "read_timeout": [number, "null"],
        "total_timeout": [number, "null"],
        "ca_bundle": ["string", "null"],
    }
    assert all(field["schema"]["title"] and field["description"] for field in fields.values())


def test_a_connection_saved_by_the_form_comes_back_with_its_token_masked(api: Any) -> None:
    connection = {
        "connection_id": "saved_by_the_form",
        "conn_type": "gradient",
        "host": "https://gradient.example.com/api",
        "password": "a-token-nobody-may-see",
        "extra": json.dumps({"workspace_id": "team_workspace", "read_timeout": 30}),
    }
    assert api.post("/api/v2/connections", json=connection).status_code == 201
    saved = api.get("/api/v2/connections/saved_by_the_form")
    assert "a-token-nobody-may-see" not in saved.text
    assert json.loads(saved.json()["extra"]) == {"workspace_id": "team_workspace", "read_timeout": 30}


def test_the_forms_test_button_reaches_the_server(api: Any, gradient_server: Any) -> None:
    connection = {
        "connection_id": "tested_by_the_form",
        "conn_type": "gradient",
        "host": gradient_server.url,
        "password": gradient_server.access_token,
        "extra": json.dumps({"workspace_id": gradient_server.workspace_id, "connect_timeout": 5}),
    }
    answer = api.post("/api/v2/connections/test", json=connection).json()
    assert answer["status"] is True, answer
    assert answer["message"].startswith(f"Connected to {gradient_server.url}")


def test_a_stored_connection_is_tested_with_its_own_token(api: Any, gradient_server: Any) -> None:
    """The UI knows the token as ``***`` only. Airflow 3.3.1 and 3.3.2 then ask for a port as well."""
    connection = {
        "connection_id": "stored_and_tested",
        "conn_type": "gradient",
        "host": gradient_server.url,
        "port": urlsplit(gradient_server.url).port,
        "password": gradient_server.access_token,
        "extra": json.dumps({"workspace_id": gradient_server.workspace_id, "read_timeout": None}),
    }
    assert api.post("/api/v2/connections", json=connection).status_code == 201
    answer = api.post("/api/v2/connections/test", json=connection | {"password": "***"}).json()
    assert answer["status"] is True, answer


def test_the_forms_test_button_says_that_the_token_is_wrong(api: Any, gradient_server: Any) -> None:
    connection = {
        "connection_id": "tested_by_the_form",
        "conn_type": "gradient",
        "host": gradient_server.url,
        "password": "not-the-token",
        "extra": json.dumps({"workspace_id": gradient_server.workspace_id}),
    }
    answer = api.post("/api/v2/connections/test", json=connection).json()
    assert answer["status"] is False
    assert "refused the access token (401)" in answer["message"]
    assert "not-the-token" not in answer["message"]
