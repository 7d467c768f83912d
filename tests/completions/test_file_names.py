"""The names of the files beside an output."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from echo_server import Complete, EchoServer, questions, read, refused
from upath import UPath

from airflow_provider_gradient.completions import merge_completions, plan_runs

WITHOUT = {"out.jsonl.manifest.json": "out.manifest.json", "out.jsonl.errors.jsonl": "out.errors.jsonl"}
MARKER = {"_SUCCESS.out.jsonl": "_SUCCESS.out"}


async def test_outputs_that_differ_in_their_ending_alone_share_no_file(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: refused(query) if query == "question 1" else None
    lines = await complete(questions(3), output_path=tmp_path / "a.jsonl")
    columns = await complete(questions(2), output_path=tmp_path / "a.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{before}a.{ending}{behind}"
        for ending in ("jsonl", "parquet")
        for before, behind in (("", ""), ("_SUCCESS.", ""), ("", ".errors.jsonl"), ("", ".manifest.json"))
    }
    server.requests.clear()
    again = await complete(questions(3), output_path=tmp_path / "a.jsonl")
    assert again.counts == lines.counts
    assert (await complete(questions(2), output_path=tmp_path / "a.parquet")).counts == columns.counts
    assert not server.queries


@pytest.mark.parametrize("place", ["local", "memory"])
async def test_a_run_that_an_earlier_version_finished_is_still_finished(
    complete: Complete, server: EchoServer, tmp_path: Path, place: str
) -> None:
    folder = UPath(tmp_path if place == "local" else f"memory://{tmp_path.name}")
    server.answer = lambda query: refused(query) if query == "question 1" else None
    finished = await complete(questions(3), output_path=folder / "out.jsonl", identity="work")
    names = sorted(path.name for path in folder.iterdir())
    for name, former in (WITHOUT | MARKER).items():
        (folder / name).fs.mv((folder / name).path, (folder / former).path)
    server.requests.clear()
    again = await complete(questions(3), output_path=folder / "out.jsonl", identity="work")
    assert not server.queries
    assert again.to_dict() == finished.to_dict() | {"resumed_rows": 3}
    assert sorted(path.name for path in folder.iterdir()) == names


async def test_files_of_another_output_with_the_same_stem_are_left_alone(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    await complete(questions(3), output_path=tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl.manifest.json").rename(tmp_path / "out.manifest.json")
    manifest = await complete(questions(3), output_path=tmp_path / "out.parquet")
    assert manifest.resumed_rows == 0
    assert json.loads((tmp_path / "out.manifest.json").read_text())["output_path"].endswith("out.jsonl")


async def test_shards_that_an_earlier_version_completed_are_found_by_a_plan_made_anew(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    def planned() -> list[dict[str, Any]]:
        return plan_runs(tmp_path / "in.jsonl", output_path=tmp_path / "out.jsonl", shards=2)

    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(6)))
    for run in planned():
        await complete(run.pop("dataset"), **run)
    (tmp_path / "out.jsonl.shards").rename(tmp_path / "out.shards")
    server.requests.clear()
    manifests = [await complete(run.pop("dataset"), **run) for run in planned()]
    assert not server.queries
    assert merge_completions(manifests, output_path=tmp_path / "out.jsonl").counts.success == 6
    assert len(read(tmp_path / "out.jsonl")) == 6


async def test_an_output_without_an_ending_has_files_of_its_own_name(
    complete: Complete, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await complete(questions(1), output_path=tmp_path / "out")
        await complete(questions(1), output_path=tmp_path / "out")
    assert "renamed" not in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.manifest.json", "_SUCCESS.out"}
