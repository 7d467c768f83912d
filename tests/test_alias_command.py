"""``gradient alias``, as a user runs it: with the registry's files and a server, without Airflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from airflow_provider_gradient.cli import app
from airflow_provider_gradient.registry import AliasRegistry

Gradient = Callable[..., str]


@pytest.fixture(params=["local", "bucket"])
def registry(
    request: pytest.FixtureRequest, gradient_environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AliasRegistry:
    """The registry that the command uses."""
    path = str(tmp_path / "registry") if request.param == "local" else f"memory://registry-{uuid4()}"
    monkeypatch.setenv("GRADIENT_REGISTRY", path)
    return AliasRegistry(path, workspace_id=gradient_environment.workspace_id)


@pytest.fixture
def adapters(client: Any) -> Iterator[list[str]]:
    base = client.find_base_model("tiny").id
    made = [client.create_model_adapter(base_model_id=base, name=f"alias {number}") for number in range(2)]
    yield made
    for model_id in made:
        client.delete_model(model_id)


def gradient(*arguments: str) -> str:
    """``gradient ...``; its standard output."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failing(*arguments: str) -> tuple[int, str]:
    """``gradient ...``, failing; its exit status and its one line."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.exit_code, result.stderr


def test_an_alias_is_promoted_shown_asked_and_rolled_back(
    registry: AliasRegistry, adapters: list[str], tmp_path: Path
) -> None:
    first, second = adapters
    report = {
        "model_id": second,
        "metrics": {"exact_match": {"value": 0.9}},
        "gate": {"verdict": "pass", "reasons": []},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))

    assert gradient("alias", "list").split() == ["ALIAS", "VERSION", "MODEL", "SINCE", "BY"]
    gradient("alias", "promote", "bot", first, "--replaces", "")
    told = gradient(
        *("alias", "promote", "bot", second, "--replaces", first, "--reason", "better"),
        *("--evaluation", str(tmp_path / "report.json")),
    )
    assert told.startswith(f"alias:bot is {second} now (version 2)")
    assert registry.resolve("alias:bot") == second
    latest, earliest = gradient("alias", "show", "bot").splitlines()[1:]
    assert latest.split()[:2] == ["2", second]
    assert latest.endswith("exact_match 0.900  better")
    assert earliest.split()[:2] == ["1", first]

    asked = [gradient("complete", model, "Hello", "--temperature", "0") for model in ("alias:bot", second)]
    assert asked[0] == asked[1]
    back = json.loads(gradient("alias", "rollback", "bot", "--json"))
    assert (back["model_id"], back["rollback_to"]) == (first, 1)
    gradient("alias", "rollback", "bot", "--to-version", "2")
    gradient("alias", "rollback", "bot")  # the same command as before, and a step of its own
    assert [each["model_id"] for each in json.loads(gradient("alias", "show", "bot", "--json"))] == [
        first,
        second,
        first,
        second,
        first,
    ]
    assert "5 (back to 3)" in gradient("alias", "list")


def test_what_can_not_be_promoted_leaves_the_alias_as_it_is(
    registry: AliasRegistry, adapters: list[str], tmp_path: Path
) -> None:
    first, second = adapters
    failed = {"model_id": second, "metrics": {}, "gate": {"verdict": "fail", "reasons": ["worse"]}}
    (tmp_path / "failed.json").write_text(json.dumps(failed))
    (tmp_path / "scores.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    gradient("alias", "promote", "bot", first)

    promote = ("alias", "promote", "bot", second)
    for arguments, status, words in [
        ((*promote, "--replaces", ""), 1, "to stand for nothing yet, but stands for"),
        ((*promote, "--evaluation", str(tmp_path / "failed.json")), 1, "verdict is 'fail'"),
        ((*promote, "--evaluation", str(tmp_path / "scores.jsonl")), 2, "no JSON"),
        ((*promote, "--evaluation", str(tmp_path / "none.json")), 2, "none.json"),
        (("alias", "promote", "bot", "m" * 50), 2, "no model mmm"),
        (("alias", "promote", "Bot!", second), 1, "a-z, 0-9"),
        (("alias", "show", "boot"), 1, "its aliases: bot"),
        (("alias", "rollback", "boot"), 1, "its aliases: bot"),
        (("alias", "rollback", "bot"), 1, "no earlier adapter"),
        (("complete", "alias:boot", "Hello"), 1, "its aliases: bot"),
    ]:
        found, line = failing(*arguments)
        assert found == status, line
        assert words in line
    assert [each.model_id for each in registry.history("bot")] == [first]


def test_aliases_are_listed_without_a_server_or_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    AliasRegistry(tmp_path / "gradient" / "registry", workspace_id="w").promote("bot", "a")
    assert gradient("--workspace-id", "w", "alias", "list").splitlines()[1].split()[:3] == ["bot", "1", "a"]
    assert failing("alias", "list")[0] == 2
    status, line = failing("--registry", "s3://aws_default@bucket/x", "--workspace-id", "w", "alias", "list")
    assert (status, "aws_default@ names an Airflow connection" in line) == (2, True)
