"""Rows in and rows out, on local files, in memory, and with everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_gradient.datasets import (
    DatasetError,
    beside,
    dump_row,
    fingerprint,
    read_rows,
    write_rows,
)
from airflow_provider_gradient.datasets.jsonl import parse_row

ROWS = [
    {"question": "Wer gewann?", "year": 1994, "nested": {"a": [1, None, 2.5]}, "null": None},
    {"question": "誰が勝った? 🏈", "year": 10**30, "text": 'line\nfeed\u2028 and "quotes"'},
]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A folder that isn't there yet, on each kind of file system."""
    return {
        "local": UPath(tmp_path / "with a space" / "new"),
        "file": UPath(f"file://{tmp_path}/new"),
        "memory": UPath(f"memory://{tmp_path.name}/new"),
    }[request.param]


def test_what_is_written_is_read_again_on_any_file_system(folder: UPath) -> None:
    assert write_rows(folder / "rows.jsonl", ROWS) == 2
    assert list(read_rows(folder / "rows.jsonl")) == ROWS
    assert list(read_rows(str(folder / "rows.jsonl"))) == ROWS
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]


@given(st.dictionaries(st.text(st.characters()), VALUES))
def test_a_row_of_any_json_survives_its_line_half_surrogates_too(row: dict[str, Any]) -> None:
    line = dump_row(row)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse_row(line) == row


def test_a_dataset_has_the_same_fingerprint_inline_and_in_a_file_and_another_when_a_value_changes(
    folder: UPath,
) -> None:
    write_rows(folder / "rows.jsonl", ROWS)
    spaced = "\n".join(json.dumps(row, indent=None, separators=(" , ", " : ")) for row in ROWS)
    (folder / "spaced.jsonl").write_text(spaced, encoding="utf-8")
    assert fingerprint(ROWS) == fingerprint(folder / "rows.jsonl") == fingerprint(folder / "spaced.jsonl")
    assert fingerprint(ROWS) != fingerprint([*ROWS[:1], {**ROWS[1], "year": 1}])
    assert fingerprint(ROWS) != fingerprint(ROWS[::-1])


def test_byte_order_marks_carriage_returns_and_empty_lines_at_the_end_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\r\n{"a":2}\r\n\r\n \n')
    assert list(read_rows(path)) == [{"a": 1}, {"a": 2}]


def test_a_line_of_five_megabytes_is_one_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "long.jsonl", [{"text": "x" * 5_000_000}])
    assert [len(row["text"]) for row in read_rows(tmp_path / "long.jsonl")] == [5_000_000]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "is no JSON: Expecting value, at character 1"),
        (b'{"a": 1', "is no JSON"),
        (b"[1, 2]", "is no JSON object but a list"),
        (b'"text"', "is no JSON object but a string"),
        (b"null", "is no JSON object but null"),
        (b"true", "is no JSON object but a boolean"),
        (b'{"a": NaN}', "is no JSON: NaN is no JSON value"),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 8)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"", "is empty"),
    ],
)
def test_a_bad_line_is_an_error_with_path_and_line_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    rows = read_rows(path)
    assert next(rows) == {"a": 0}
    with pytest.raises(DatasetError) as raised:
        next(rows)
    assert str(raised.value).startswith(f"{path}, line 2 ")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ([], "the inline dataset has no rows"),
        ([{"a": 1}, "b"], "row 1 of the inline dataset is no object but a string"),
        ([{1: "a"}], "row 0 of the inline dataset: column name 1 is no string"),
        ("", "a path is needed, not ''"),
        (None, "a path is needed, not None"),
        ({"a": 1}, "a path is needed"),
        ("nosuchprotocol://x/y.jsonl", "Unsupported filesystem"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset: Any, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason.replace("(", r"\(")):
        list(read_rows(dataset))


def test_an_empty_file_and_a_missing_file_are_errors_that_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name, reason in {
        "empty.jsonl": "has no rows",
        "nope.jsonl": "no such file",
        "empty.jsonl/x": "a file, not a folder",
    }.items():
        with pytest.raises(DatasetError, match=reason) as raised:
            list(read_rows(tmp_path / name))
        assert str(tmp_path / name) in str(raised.value)
    with pytest.raises(DatasetError, match="no such file"):
        list(read_rows("memory://nowhere/at-all.jsonl"))


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """Without root's rights, to whom every path is open; a folder that is closed to us."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "rows.jsonl").write_text('{"a": 1}\n')
    closed.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield closed
    os.seteuid(user)
    closed.chmod(0o700)


def test_a_path_without_permission_is_an_error_that_says_so(nobody: Path) -> None:
    with pytest.raises(DatasetError, match=r"can't read .*closed/rows.jsonl: permission denied"):
        list(read_rows(nobody / "rows.jsonl"))
    with pytest.raises(DatasetError, match=r"can't write .*closed/new.jsonl: permission denied"):
        write_rows(nobody / "new.jsonl", ROWS)


def test_a_write_that_fails_half_way_leaves_what_stood_there(folder: UPath) -> None:
    path = folder / "rows.jsonl"
    write_rows(path, ROWS)

    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise KeyError("the source broke")

    with pytest.raises(KeyError):
        write_rows(path, rows())
    assert list(read_rows(path)) == ROWS
    assert [entry.name for entry in folder.iterdir()] == ["rows.jsonl"]


def test_a_value_that_json_cannot_hold_is_an_error_that_names_row_and_column(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"row 1: column 'bad' can't be written as JSON"):
        write_rows(tmp_path / "rows.jsonl", [{"good": 1}, {"bad": float("nan")}])
    with pytest.raises(DatasetError, match=r"row 0 of the inline dataset: column 'bad'"):
        fingerprint([{"bad": {1, 2}}])
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_stays_one_when_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "store" / "rows.jsonl")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert (tmp_path / "rows.jsonl").is_symlink()
    assert list(read_rows(tmp_path / "store" / "rows.jsonl")) == ROWS


def test_reading_and_writing_keep_one_row_in_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write_rows(tmp_path / "rows.jsonl", ({"n": n, "text": "x" * 2_000} for n in range(10_000)))
        assert fingerprint(tmp_path / "rows.jsonl")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_name_beside_another_replaces_its_last_suffix_alone() -> None:
    assert (
        str(beside(UPath("memory://b/out.v2.jsonl"), ".errors.jsonl"))
        == "memory://b/out.v2.jsonl.errors.jsonl"
    )
    assert beside(UPath("/data/out"), ".errors.jsonl").name == "out.errors.jsonl"
    assert beside(UPath("/data/.hidden"), ".errors.jsonl").name == ".hidden.errors.jsonl"


def test_airflows_object_storage_paths_are_used_as_they_are(tmp_path: Path) -> None:
    code = """
import sys
from airflow.sdk import ObjectStoragePath
from airflow_provider_gradient.datasets import as_path, read_rows, write_rows
path = ObjectStoragePath(f"file://{sys.argv[1]}/new/rows.jsonl")
assert as_path(path) is path
write_rows(path, [{"a": 1}])
assert list(read_rows(path)) == [{"a": 1}]
"""
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path / "airflow")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.jsonl"]
