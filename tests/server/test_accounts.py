"""Workspaces and tokens by command, while the server runs; and two workspaces trying each other's ids."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from airflow_provider_gradient.cli import app

SAMPLES = {"samples": [{"inputs": "the red hen"}]}


def gradient(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.stderr


@dataclass
class Stranger:
    """A workspace and a token of its own on a running server."""

    http: httpx.Client
    token: str
    workspace: str


def newcomer(server: Any, name: str) -> Stranger:
    data_dir = ("--data-dir", str(server.data_dir))
    workspace = gradient("workspace", "create", name, *data_dir).strip()
    made = json.loads(gradient("token", "create", "--workspace", name, "--name", "t", "--json", *data_dir))
    assert made["workspaceId"] == workspace
    headers = {"Authorization": f"Bearer {made['accessToken']}", "x-gradient-workspace-id": workspace}
    http = httpx.Client(base_url=server.url, headers=headers, timeout=60)
    wait_for(lambda: http.get("/models").status_code == 200)
    return Stranger(http, made["accessToken"], workspace)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def two(random_server: Any) -> Iterator[tuple[Stranger, Stranger]]:
    pair = (newcomer(random_server, "first"), newcomer(random_server, "second"))
    yield pair
    for stranger in pair:
        stranger.http.close()


def test_two_workspaces_never_see_each_others_adapters(two: tuple[Stranger, Stranger]) -> None:
    models = two[0].http.get("/models", params={"onlyBase": "true"}).json()["models"]
    base = next(model["id"] for model in models if model["slug"] == "llama")
    own = {}
    for stranger in two:
        body = {"model": {"baseModelId": base, "name": "mine"}}
        key = {"Idempotency-Key": "the same key"}
        own[stranger.workspace] = stranger.http.post("/models", json=body, headers=key).json()["id"]
    assert len(set(own.values())) == 2, "keys of different workspaces have nothing to do with each other"
    for stranger, other in (two, two[::-1]):
        theirs = own[other.workspace]
        listed = {model["id"] for model in stranger.http.get("/models").json()["models"]}
        assert own[stranger.workspace] in listed
        assert theirs not in listed
        never = f"{'0' * 36}_model_adapter"
        for method, path, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/complete", {"query": "the red hen"}),
            ("POST", "/fine-tune", SAMPLES),
        ):
            answer = stranger.http.request(method, f"/models/{theirs}{path}", json=body)
            unknown = stranger.http.request(method, f"/models/{never}{path}", json=body)
            assert (answer.status_code, answer.json()["type"]) == (404, "unknownModelAdapter")
            assert answer.text == unknown.text.replace(never, theirs), (
                "it says what it says of no adapter at all"
            )
        opened = stranger.http.get("/models", headers={"x-gradient-workspace-id": other.workspace})
        assert opened.status_code == 403
    for stranger in two:
        mine = stranger.http.get(f"/models/{own[stranger.workspace]}")
        assert (mine.status_code, mine.json()["name"]) == (200, "mine"), "nothing of it was deleted"
        complete = stranger.http.post(f"/models/{own[stranger.workspace]}/complete", json={"query": "q"})
        assert complete.json()["modelVersion"] == 0, "nothing of it was trained"


def test_a_revoked_token_opens_nothing_and_others_still_do(
    random_server: Any, two: tuple[Stranger, Stranger]
) -> None:
    data_dir = ("--data-dir", str(random_server.data_dir))
    leaver = newcomer(random_server, "leaver")
    listed = json.loads(gradient("token", "list", "--json", *data_dir))
    assert len([token for token in listed if token["origin"] == "start"]) == 1
    token_id = next(token["id"] for token in listed if token["workspace_id"] == leaver.workspace)
    assert leaver.token not in gradient("token", "list", *data_dir)
    gradient("token", "revoke", token_id, *data_dir)
    wait_for(lambda: leaver.http.get("/models").status_code == 401)
    assert two[0].http.get("/models").status_code == 200
    assert "no valid token" in refused("token", "revoke", token_id, *data_dir)
    for path in random_server.data_dir.glob("gradient.db*"):
        assert leaver.token.encode() not in path.read_bytes()


def test_what_makes_no_sense_is_said(random_server: Any, two: Any, tmp_path: Any) -> None:
    data_dir = ("--data-dir", str(random_server.data_dir))
    assert "already" in refused("workspace", "create", "first", *data_dir)
    assert "blank" in refused("workspace", "create", " ", *data_dir)
    assert "there are: " in refused("token", "create", *data_dir)
    assert "'nobody'" in refused("token", "create", "--workspace", "nobody", *data_dir)
    file = tmp_path / "file"
    file.write_text("")
    assert f"--data-dir {file}" in refused("token", "list", "--data-dir", str(file))


def test_workspaces_are_listed_with_what_they_have(
    random_server: Any, two: tuple[Stranger, Stranger]
) -> None:
    listed = json.loads(gradient("workspace", "list", "--json", "--data-dir", str(random_server.data_dir)))
    found = {each["name"]: each for each in listed}
    assert found["first"]["id"] == two[0].workspace
    assert found["first"]["tokens"] == 1
    table = gradient("workspace", "list", "--data-dir", str(random_server.data_dir))
    assert two[1].workspace in table


def test_a_server_beyond_loopback_wants_a_token_made_first(
    start_server: Callable[..., Any], tmp_path: Any
) -> None:
    data_dir = tmp_path / "open"
    result = CliRunner().invoke(
        app, ["serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(data_dir)]
    )
    assert result.exit_code == 1
    assert "gradient token create" in result.stderr
    lines = gradient("token", "create", "--data-dir", str(data_dir)).splitlines()
    made = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    server = start_server("--host", "0.0.0.0", data_dir=data_dir)
    assert not (data_dir / "credentials.env").exists(), "the command's token is the only one"
    server.access_token, server.workspace_id = made["GRADIENT_ACCESS_TOKEN"], made["GRADIENT_WORKSPACE_ID"]
    assert httpx.get(f"{server.url}/models", headers=server.headers).status_code == 200
    root = server.url.removesuffix("/api")
    assert [httpx.get(root + path).status_code for path in ("/docs", "/openapi.json")] == [404, 404]


def test_a_start_with_a_revoked_token_is_refused(tmp_path: Any) -> None:
    data_dir = ("--data-dir", str(tmp_path))
    token = json.loads(gradient("token", "create", "--json", *data_dir))
    token_id = json.loads(gradient("token", "list", "--json", *data_dir))[0]["id"]
    gradient("token", "revoke", token_id, *data_dir)
    given = ("--access-token", token["accessToken"], "--workspace-id", token["workspaceId"])
    result = CliRunner().invoke(app, ["serve", "--port", "0", *given, *data_dir])
    assert result.exit_code == 1
    assert "was revoked" in result.stderr
