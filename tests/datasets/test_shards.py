"""Shards: each row once and in its order, whatever the files and wherever they are cut."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from row_files import WRITERS, csv_text, jsonl, parquet
from upath import UPath

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import (
    DatasetError,
    Shard,
    describe_row,
    describe_source,
    open_dataset,
    plan_shards,
    read_rows,
)

ROWS = [{"n": number, "text": "x" * (number % 7)} for number in range(100)]


def split(dataset: Any, shards: int) -> list[list[dict[str, Any]]]:
    """The rows of each shard, each gone through an XCom."""
    plan = [json.loads(json.dumps(shard.to_dict())) for shard in plan_shards(dataset, shards=shards)]
    return [list(read_rows(shard)) for shard in plan]


def joined(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for part in parts for row in part]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LINES = st.lists(
    st.one_of(TEXT, st.integers(0, 400).map(lambda size: "ü\u2028\\n" * size)), min_size=1, max_size=25
)


@given(
    files=st.lists(LINES, min_size=1, max_size=3),
    shards=st.integers(1, 40),
    end=st.sampled_from([b"\n", b"", b"\n\n \n", b"\r\n"]),
    bom=st.booleans(),
    escaped=st.booleans(),
)
@example(files=[["a"]], shards=40, end=b"\n" * 300, bom=True, escaped=False)
@example(files=[["", ""], ["b"]], shards=2, end=b"", bom=True, escaped=True)
def test_the_shards_of_jsonl_files_have_each_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[str]],
    shards: int,
    end: bytes,
    bom: bool,
    escaped: bool,
) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    for number, texts in enumerate(files):
        lines = [json.dumps({"text": text}, ensure_ascii=escaped).encode() for text in texts]
        content = b"\n".join(lines) + end
        (folder / f"{number}.jsonl").write_bytes((b"\xef\xbb\xbf" if bom else b"") + content)
    parts = split(folder, shards)
    assert joined(parts) == [{"text": text} for texts in files for text in texts]
    assert all(parts)
    assert len(parts) <= shards


def test_lines_of_the_same_length_are_cut_evenly_down_to_a_row_a_shard(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(b'{"n":%04d}\n' % (1000 + number) for number in range(64)))
    for shards in (1, 2, 16, 64):
        assert [len(part) for part in split(tmp_path / "in.jsonl", shards)] == [64 // shards] * shards
    assert len(split(tmp_path / "in.jsonl", 1000)) == 64


def test_a_line_larger_than_several_shards_is_one_shards_and_read_once(tmp_path: Path) -> None:
    rows = [{"text": "short"}, {"text": "ü" * 2_000_000}, *ROWS]
    (tmp_path / "in.jsonl").write_bytes(jsonl(rows))
    parts = split(tmp_path / "in.jsonl", 8)
    assert joined(parts) == rows
    assert len(parts) > 1


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 200])
def test_a_parquet_file_is_cut_between_row_groups(tmp_path: Path, shards: int) -> None:
    (tmp_path / "in.parquet").write_bytes(parquet(ROWS, row_group_size=10))
    parts = split(tmp_path / "in.parquet", shards)
    assert joined(parts) == ROWS
    assert len(parts) == min(shards, 10)
    assert all(len(part) % 10 == 0 for part in parts)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("shards", [1, 3, 4, 50])
def test_a_folder_of_any_format_is_cut_in_the_order_of_its_files(
    tmp_path: Path, suffix: str, shards: int
) -> None:
    rows = [{"n": str(number)} for number in range(90)]
    for number in range(4):
        part = rows[number * 20 : number * 20 + 20] if number < 3 else rows[60:]
        (tmp_path / f"part-{number}{suffix}").write_bytes(WRITERS[suffix](part))
    parts = split(tmp_path, shards)
    assert joined(parts) == rows
    assert len(parts) == {1: 1, 3: 3, 4: 4}.get(shards, 50 if suffix in (".jsonl", ".ndjson") else 4)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("in.csv", csv_text(ROWS), "it is CSV"),
        ("in.jsonl.gz", gzip.compress(jsonl(ROWS)), "it is compressed"),
        ("in.parquet", parquet(ROWS), "row groups larger than a shard"),
    ],
)
def test_a_single_file_that_cannot_be_split_is_one_shard_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.INFO):
        [shard] = plan_shards(tmp_path / name, shards=4)
    assert len(list(read_rows(shard))) == 100
    assert f"{tmp_path / name}" in caplog.text
    assert reason in caplog.text


def test_files_without_a_row_make_no_shard(tmp_path: Path) -> None:
    for number, content in enumerate([b"", b"\n\n", b"\xef\xbb\xbf", jsonl(ROWS[:4]), b"\n" * 5000]):
        (tmp_path / f"{number}.jsonl").write_bytes(content)
    parts = split(tmp_path, 9)
    assert joined(parts) == ROWS[:4]
    assert all(parts)
    (tmp_path / "only.csv").write_bytes(b"a,b\n")
    with pytest.raises(DatasetError, match=r"only\.csv: the dataset has no rows"):
        plan_shards(tmp_path / "only.csv", shards=2)


def test_a_bucket_is_split_by_range_reads_and_a_manifest_by_its_output(tmp_path: Path) -> None:
    folder = UPath(f"memory://{tmp_path.name}")
    (folder / "out.jsonl").write_bytes(jsonl(ROWS))
    assert joined(split(folder / "out.jsonl", 5)) == ROWS
    assert len(split({"output_path": str(folder / "out.jsonl")}, 5)) == 5
    assert joined(split(folder / "*.jsonl", 5)) == ROWS


def test_planning_reads_a_few_kilobytes_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = UPath(f"memory://{tmp_path.name}")
    (folder / "in.jsonl").write_bytes(jsonl([{"text": "x" * 1000} for _ in range(20_000)]))
    read = 0
    ranged = type(folder.fs).cat_file

    def counted(*arguments: Any, **options: Any) -> bytes:
        nonlocal read
        content = ranged(*arguments, **options)
        read += len(content)
        return content  # type: ignore[no-any-return]

    monkeypatch.setattr(type(folder.fs), "cat_file", counted)
    assert len(plan_shards(folder / "in.jsonl", shards=10)) == 10
    assert read < 2_000_000


def test_messages_name_the_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(ROWS))
    second = plan_shards(path, shards=2)[1]
    [piece] = second.pieces
    opened = open_dataset(second)
    rows = list(read_rows(opened))
    assert describe_source(opened) == f"shard 1 of 2 of {path}"
    assert describe_row(opened, 3) == f"{path}, row 3 of shard 1 (line 4 from byte {piece.start} on)"
    assert json.loads(path.read_bytes()[piece.start :].splitlines()[3]) == rows[3]

    (tmp_path / "in.parquet").write_bytes(parquet(ROWS, row_group_size=10))
    opened = open_dataset(plan_shards(tmp_path / "in.parquet", shards=2)[1])
    first = next(read_rows(opened))
    assert describe_row(opened, 0).endswith(f"row 0 of shard 1 (row of the file {first['n']})")


def test_a_line_that_is_no_row_is_named_from_the_byte_where_its_shard_begins(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(ROWS) + b"nonsense\n")
    shard = plan_shards(path, shards=2)[1]
    start = shard.pieces[0].start
    number = path.read_bytes()[start:].count(b"\n")
    with pytest.raises(DatasetError, match=rf"in\.jsonl from byte {start} on, line {number} is no JSON"):
        list(read_rows(shard))


@pytest.mark.parametrize("blank", range(0, 60, 3))
def test_empty_lines_between_rows_are_refused_wherever_the_cut_falls(tmp_path: Path, blank: int) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(ROWS[:5]) + b"\n" * (blank + 1) + jsonl(ROWS[:5]))
    with pytest.raises(DatasetError, match="is empty; remove it"):
        split(path, 3)


def test_a_relative_path_is_read_from_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    assert joined(split("in.jsonl", 3)) == ROWS


@pytest.mark.parametrize("change", ["longer", "touched", "gone"])
def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(ROWS))
    plan = plan_shards(path, shards=2)
    if change == "longer":
        path.write_bytes(jsonl([*ROWS, {"n": 0}]))
    elif change == "touched":
        os.utime(path, (1, 1))
    else:
        path.unlink()
    reason = "there is no such file" if change == "gone" else "changed since its shards were planned"
    with pytest.raises(DatasetError, match=reason):
        open_dataset(plan[1])


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(ROWS))
    with pytest.raises(DatasetError, match="inline can't be split"):
        plan_shards(ROWS, shards=2)
    with pytest.raises(InvalidRequestError, match="shards: at least 1"):
        plan_shards(path, shards=0)
    [shard] = plan_shards(path, shards=1)
    with pytest.raises(DatasetError, match="can't be split again"):
        plan_shards(shard, shards=2)
    with pytest.raises(DatasetError, match="no shard of a dataset"):
        open_dataset({"pieces": [{"path": str(path)}]})


def test_the_same_files_give_the_same_plan_and_other_cuts_another(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(ROWS))
    assert plan_shards(path, shards=3) == plan_shards(path, shards=3)
    two, three = plan_shards(path, shards=2)[0], plan_shards(path, shards=3)[0]
    assert isinstance(two, Shard)
    assert two.plan != three.plan
