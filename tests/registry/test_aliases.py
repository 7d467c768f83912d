"""Aliases: what they stand for, on any file system, with several promoters at once."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from airflow_provider_gradient.api import ModelAdapterInfo
from airflow_provider_gradient.registry import (
    AliasRegistry,
    RegistryConflictError,
    RegistryError,
    UnknownAliasError,
    unneeded_adapters,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(params=["local", "bucket"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AliasRegistry:
    path = tmp_path / "registry" if request.param == "local" else f"memory://registry-{uuid4()}"
    return AliasRegistry(path, workspace_id="w")


def test_an_alias_stands_for_the_adapter_promoted_last(registry: AliasRegistry) -> None:
    registry.promote("bot", "a")
    registry.promote("bot", "b", reason="better")
    registry.promote("other", "c")
    assert registry.resolve("alias:bot") == "b"
    assert registry.resolve("plain-id") == "plain-id"
    assert registry.aliases() == ["bot", "other"]
    assert [(each.version, each.model_id) for each in registry.history("bot")] == [(1, "a"), (2, "b")]
    assert registry.current("bot").reason == "better"


def test_an_unknown_alias_names_those_there_are(registry: AliasRegistry) -> None:
    registry.promote("bot", "a")
    with pytest.raises(UnknownAliasError, match=r"'boot'.*its aliases: bot"):
        registry.resolve("alias:boot")


@pytest.mark.parametrize("name", ["", "Bot", "../bot", "a/b", ".bot", "x" * 64, "bot\n"])
def test_a_name_that_could_leave_its_folder_is_refused(registry: AliasRegistry, name: str) -> None:
    with pytest.raises(RegistryError, match=r"a-z, 0-9"):
        registry.promote(name, "a")
    with pytest.raises(RegistryError, match=r"a-z, 0-9"):
        registry.resolve(f"alias:{name}")


def test_workspaces_share_a_registry_and_not_their_aliases(tmp_path: Path) -> None:
    AliasRegistry(tmp_path, workspace_id="one").promote("bot", "a")
    with pytest.raises(UnknownAliasError):
        AliasRegistry(tmp_path, workspace_id="two").resolve("alias:bot")


def test_the_repetition_of_a_promotion_writes_nothing(registry: AliasRegistry) -> None:
    first = registry.promote("bot", "a", promoted_by="dag/run/task/-1")
    assert registry.promote("bot", "a", promoted_by="dag/run/task/-1") == first
    assert len(registry.history("bot")) == 1


def test_a_champion_that_changed_since_it_was_compared_with_is_not_replaced(registry: AliasRegistry) -> None:
    registry.promote("bot", "a")
    registry.promote("bot", "b", replaces="a")
    with pytest.raises(RegistryConflictError, match=r"taken over from a, but stands for b \(version 2\)"):
        registry.promote("bot", "c", replaces="a")
    assert registry.resolve("alias:bot") == "b"


def test_a_report_of_another_model_speaks_for_nothing(registry: AliasRegistry) -> None:
    with pytest.raises(RegistryError, match=r"evaluation: the report is of the model b, not of a"):
        registry.promote("bot", "a", evaluation={"model_id": "b", "metrics": {}})


def test_what_led_to_a_promotion_stays_with_it(registry: AliasRegistry) -> None:
    registry.promote(
        "bot",
        "a",
        evaluation={"model_id": "a", "metrics": {"exact_match": {"value": 0.9}}, "slices": {"x": {}}},
        tuning={"model_id": "a", "fingerprint": "f", "call_results": [1, 2]},
    )
    promotion = registry.current("bot")
    assert promotion.evaluation == {"model_id": "a", "metrics": {"exact_match": {"value": 0.9}}}
    assert promotion.tuning == {"model_id": "a", "fingerprint": "f"}


def test_rollback_brings_back_the_adapter_before(registry: AliasRegistry) -> None:
    for model_id in ("a", "b", "c"):
        registry.promote("bot", model_id)
    back = registry.roll_back("bot", existing={"a", "b", "c"}, reason="regression")
    assert (back.model_id, back.version, back.rollback_to) == ("b", 4, 2)
    assert registry.roll_back("bot", existing={"a", "b", "c"}, to_version=1).model_id == "a"
    assert registry.resolve("alias:bot") == "a"


def test_rollback_passes_over_adapters_that_were_deleted(registry: AliasRegistry) -> None:
    for model_id in ("a", "b", "c"):
        registry.promote("bot", model_id)
    assert registry.roll_back("bot", existing={"a", "c"}).model_id == "a"
    with pytest.raises(RegistryError, match=r"version 2 to go back to; b \(version 2\) was deleted"):
        registry.roll_back("bot", existing={"a", "c"}, to_version=2)


def test_the_repetition_of_a_rollback_goes_back_once(registry: AliasRegistry) -> None:
    for model_id in ("a", "b", "c"):
        registry.promote("bot", model_id)
    for _ in range(2):
        back = registry.roll_back("bot", existing={"a", "b", "c"}, promoted_by="dag/run/task/-1")
    assert (back.model_id, len(registry.history("bot"))) == ("b", 4)


def test_rollback_without_a_past_is_refused(registry: AliasRegistry) -> None:
    registry.promote("bot", "a")
    with pytest.raises(RegistryError, match="no earlier adapter"):
        registry.roll_back("bot", existing={"a"})


def test_a_damaged_promotion_is_an_error_and_not_an_older_adapter(tmp_path: Path) -> None:
    registry = AliasRegistry(tmp_path, workspace_id="w")
    registry.promote("bot", "a")
    registry.promote("bot", "b")
    (tmp_path / "w/bot/00000002.json").write_text('{"schema_version": 1}')
    with pytest.raises(RegistryError, match=r"00000002\.json.*Restore it"):
        registry.resolve("alias:bot")


def test_promoters_at_once_lose_no_promotion_and_share_no_version(tmp_path: Path) -> None:
    code = (
        "import sys; from airflow_provider_gradient.registry import AliasRegistry\n"
        "r = AliasRegistry(sys.argv[1], workspace_id='w'); input()\n"
        "for n in range(10): r.promote('bot', f'{sys.argv[2]}-{n}')"
    )
    promoters = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE)
        for name in ("one", "two", "three")
    ]
    for promoter in promoters:
        assert promoter.stdin is not None
        promoter.stdin.write(b"\n")
        promoter.stdin.flush()
    assert [promoter.wait(60) for promoter in promoters] == [0, 0, 0]
    history = AliasRegistry(tmp_path, workspace_id="w").history("bot")
    assert [each.version for each in history] == list(range(1, 31))
    assert {each.model_id for each in history} == {
        f"{name}-{n}" for name in ("one", "two", "three") for n in range(10)
    }
    assert not list(tmp_path.glob("**/*.tmp"))


def test_of_two_who_replace_the_same_champion_one_wins(tmp_path: Path) -> None:
    AliasRegistry(tmp_path, workspace_id="w").promote("bot", "champion")
    code = (
        "import sys; from airflow_provider_gradient.registry import *\n"
        "r = AliasRegistry(sys.argv[1], workspace_id='w'); input()\n"
        "try: r.promote('bot', sys.argv[2], replaces='champion')\n"
        "except RegistryConflictError: sys.exit(3)"
    )
    for _ in range(3):
        rivals = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE)
            for name in ("one", "two")
        ]
        for rival in rivals:
            assert rival.stdin is not None
            rival.stdin.write(b"\n")
            rival.stdin.flush()
        assert sorted(rival.wait(60) for rival in rivals) == [0, 3]
        AliasRegistry(tmp_path, workspace_id="w").promote("bot", "champion")


def test_of_two_who_promote_first_one_wins_unless_they_replace_whatever_it_is(tmp_path: Path) -> None:
    code = (
        "import sys; from airflow_provider_gradient.registry import *\n"
        "r = AliasRegistry(sys.argv[1], workspace_id='w'); print(flush=True); input()\n"
        "replaces = None if sys.argv[4] == 'whatever' else ''\n"
        "try: r.promote(sys.argv[3], sys.argv[2], replaces=replaces)\n"
        "except RegistryConflictError: sys.exit(3)"
    )
    for alias, statuses in {"first": [0, 3], "again": [0, 3], "whatever": [0, 0]}.items():
        rivals = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), name, alias, alias],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for name in ("one", "two")
        ]
        for rival in rivals:
            assert rival.stdout is not None
            rival.stdout.readline()
        for rival in rivals:
            assert rival.stdin is not None
            rival.stdin.write(b"\n")
            rival.stdin.flush()
        assert sorted(rival.wait(60) for rival in rivals) == statuses
        assert len(AliasRegistry(tmp_path, workspace_id="w").history(alias)) == statuses.count(0)


def test_who_found_an_alias_without_a_champion_does_not_replace_one(registry: AliasRegistry) -> None:
    first = registry.promote("bot", "a", promoted_by="run one", replaces="")
    assert registry.promote("bot", "a", promoted_by="run one", replaces="") == first
    with pytest.raises(RegistryConflictError, match=r"stand for nothing yet, but stands for a \(version 1\)"):
        registry.promote("bot", "b", promoted_by="run two", replaces="")
    with pytest.raises(RegistryConflictError, match=r"taken over from x, but stands for nothing yet"):
        registry.promote("new", "b", replaces="x")


def adapter(name: str, *, age: timedelta) -> ModelAdapterInfo:
    fields = {
        "id": name,
        "name": name,
        "baseModelId": "base",
        "latestUpdateTime": (NOW - age).isoformat(),
        "type": "modelAdapter",
    }
    return ModelAdapterInfo.model_validate_json(json.dumps(fields))


def test_only_adapters_that_no_alias_needs_are_unneeded(registry: AliasRegistry) -> None:
    for model_id in ("v1", "v2", "v3", "v2"):
        registry.promote("bot", model_id)
    old, young = timedelta(days=8), timedelta(days=6)
    adapters = [adapter(name, age=old) for name in ("v1", "v2", "v3", "loser")]
    found = unneeded_adapters(
        [*adapters, adapter("new", age=young)],
        registry,
        now=NOW,
        unused_for=timedelta(days=7),
        keep_versions=2,
    )
    assert [each.id for each in found] == ["v1", "loser"]
    found = unneeded_adapters(
        adapters, registry, now=NOW, unused_for=timedelta(0), keep_versions=1, name_prefix="v"
    )
    assert [each.id for each in found] == ["v1", "v3"]
