"""JSON lines and CSV, plain and compressed, and what a damaged file says."""

from __future__ import annotations

import gzip
import logging
import os
import string
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_files import WRITERS, csv_text, jsonl, zstd
from upath import UPath

from airflow_provider_gradient.datasets import DatasetError, describe_row, fingerprint, read_rows, write_rows
from airflow_provider_gradient.datasets.sources import StoredRows, open_stored

TEXTS = [
    {"question": "Wer gewann?", "answer": "誰が勝った? 🏈"},
    {"question": 'a "quoted", piece', "answer": "two\nlines"},
    {"question": "a column\u2028separator", "answer": None},
]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_same_rows_are_read_from_every_format_with_the_same_fingerprint(
    tmp_path: Path, ending: str, place: str
) -> None:
    folder = UPath(tmp_path) if place == "local" else UPath(f"memory://{tmp_path.name}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows{ending.upper() if ending == '.csv' else ending}"
    path.write_bytes(WRITERS[ending](TEXTS))
    assert list(read_rows(path)) == TEXTS
    assert fingerprint(str(path)) == fingerprint(TEXTS)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                # what a single column holds may look like an empty line; null and "" are one in CSV
                "a": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
                'the "b"': st.none() | st.text(string.printable, min_size=1),
            }
        ),
        min_size=1,
    ),
    ending=st.sampled_from(sorted(WRITERS)),
)
def test_any_text_survives_any_format(rows: list[dict[str, Any]], ending: str, tmp_path: Path) -> None:
    (tmp_path / f"rows{ending}").write_bytes(WRITERS[ending](rows))
    assert list(read_rows(tmp_path / f"rows{ending}")) == rows


def test_csv_fields_are_strings_as_they_stand_and_null_where_they_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfn,text,none\r\n 007 ,"NA",\r\n1e3,NULL,""\r\n\r\n')
    assert list(read_rows(path)) == [
        {"n": " 007 ", "text": "NA", "none": None},
        {"n": "1e3", "text": "NULL", "none": None},
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ": the dataset has no rows"),
        ("a,b\n", ": the dataset has no rows"),
        ("a,b\n1,2\n1,2,3\n", ", line 3 has 3 fields, but the header has 2"),
        ('a,b\n"two\nlines",2\n1\n', ", line 4 has 1 fields, but the header has 2"),
        ('a,b\n1,2\n"not closed,2\n3,4\n', ", line 3 is no CSV: unexpected end of data"),
        ('a,b\n"1"x,2\n', ", line 2 is no CSV: ',' expected after '\"'"),
        ("a,b,a\n1,2,3\n", ", line 1: the header has 'a' more than once"),
        ("a,b\n1,2\n\n3,4\n", ", line 3 is empty; remove it, each line is one row"),
        ("a,b\n1,\udcff\n", ", line 2 is not UTF-8 (byte 3)"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_told_with_its_line(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError) as raised:
        list(read_rows(path))
    assert str(raised.value) == f"{path}{reason}"


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".csv.zst"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_compressed_file_that_was_cut_is_an_error_and_never_a_shorter_dataset(
    tmp_path: Path, ending: str, kept: float
) -> None:
    path = tmp_path / f"rows{ending}"
    content = WRITERS[ending]([{"n": str(n), "noise": os.urandom(8).hex()} for n in range(5000)])
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DatasetError, match=rf"can't read {path}.*(ended|never empty)"):
        list(read_rows(path))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["overwritten", "no such compression", "something behind"])
def test_a_damaged_compressed_file_is_an_error_that_names_it(
    tmp_path: Path, ending: str, damage: str
) -> None:
    path = tmp_path / f"rows{ending}"
    content = WRITERS[ending]([{"n": n, "noise": os.urandom(8).hex()} for n in range(500)])
    middle = len(content) // 2
    path.write_bytes(
        {
            "overwritten": content[:middle] + b"\xff" * 64 + content[middle + 64 :],
            "no such compression": jsonl(TEXTS),
            "something behind": content + b"garbage",
        }[damage]
    )
    with pytest.raises(DatasetError, match=rf"rows{ending}"):
        list(read_rows(path))


def test_frames_that_zstd_readers_skip_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (2000).to_bytes(4, "little") + b"?" * 2000
    (tmp_path / "rows.jsonl.zst").write_bytes(skipped + zstd(jsonl(TEXTS)) + skipped)
    assert list(read_rows(tmp_path / "rows.jsonl.zst")) == TEXTS


@pytest.mark.parametrize("ending", WRITERS)
def test_a_text_of_five_megabytes_is_one_row_in_every_format(tmp_path: Path, ending: str) -> None:
    rows = [{"text": "x" * 5_000_000, "n": "1"}, {"text": "y", "n": "2"}]
    (tmp_path / f"long{ending}").write_bytes(WRITERS[ending](rows))
    assert list(read_rows(tmp_path / f"long{ending}")) == rows


def lines(count: int, *, csv: bool) -> Iterator[bytes]:
    if csv:
        yield b"n,text\n"
    for n in range(count):
        yield (f"{n},{n:01000}\n" if csv else f'{{"n": {n}, "text": "{n:01000}"}}\n').encode()


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".jsonl.gz", ".csv.gz", ".jsonl.zst", ".csv.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    opened: Any = {".gz": gzip.open, "zst": zstandard.open}.get(ending[-3:], open)
    with opened(path, "wb") as file:
        for line in lines(20_000, csv="csv" in ending):
            file.write(line)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000  # of 20
    finally:
        tracemalloc.stop()


def put(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)


def test_the_rows_of_a_folder_or_glob_run_on_from_file_to_file_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    rows = [{"n": n} for n in range(6)]
    put(tmp_path, b_jsonl=jsonl(rows[3:4]), a_jsonl_zst=zstd(jsonl(rows[:3])), c_jsonl_gz=gzip.compress(b""))
    put(tmp_path, d_ndjson=jsonl(rows[4:]))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden.csv").touch()
    for given_ in (
        tmp_path,
        f"{tmp_path}/",
        f"file://{tmp_path}",
        f"{tmp_path}/[a-d].*",
        f"{tmp_path}/*.*js*",
    ):
        assert list(read_rows(given_)) == rows
        assert fingerprint(given_) == fingerprint(rows)
    opened = open_stored(tmp_path)
    assert [describe_row(opened, index) for index, _ in enumerate(opened)] == [
        f"{tmp_path}/{place}"
        for place in (
            *(f"a.jsonl.zst, row {n} (line {n + 1})" for n in range(3)),
            "b.jsonl, row 3 (line 1)",
            "d.ndjson, row 4 (line 1)",
            "d.ndjson, row 5 (line 2)",
        )
    ]


def test_a_glob_reaches_into_folders_and_a_bucket_is_a_folder_too(tmp_path: Path) -> None:
    bucket = UPath(f"memory://{tmp_path.name}")
    for name in ("2026/01/x.csv", "2026/02/x.csv"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(csv_text([{"name": name}]))
    assert [row["name"] for row in read_rows(f"{bucket}/2026/**/*.csv")] == ["2026/01/x.csv", "2026/02/x.csv"]
    assert [row["name"] for row in read_rows(f"{bucket}/*/02/*")] == ["2026/02/x.csv"]
    assert [row["name"] for row in read_rows(bucket / "2026" / "01")] == ["2026/01/x.csv"]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_hidden_names_are_passed_over_at_every_level_and_counted_unless_the_pattern_asks_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    folder = UPath(tmp_path if place == "local" else f"memory://{tmp_path.name}")
    for name in (
        *("a.jsonl", "day/b.jsonl", "_temporary/0/c.jsonl", ".ipynb_checkpoints/d.jsonl"),
        *("day/_e.jsonl", "day/_tmp/f.jsonl"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jsonl([{"name": name}]))

    def names(pattern: str) -> list[str]:
        return [row["name"] for row in read_rows(folder / pattern)]

    with caplog.at_level(logging.INFO):
        assert names("**/*.jsonl") == ["a.jsonl", "day/b.jsonl"]
        assert names("*/*.jsonl") == ["day/b.jsonl"]
        assert names("day") == ["day/b.jsonl"]
    passed_over = [record.args[1] for record in caplog.records if "passed over" in record.msg]
    assert passed_over == [4, 2, 2]
    assert names("_temporary/**/*.jsonl") == names("_temporary/0/c.jsonl") == ["_temporary/0/c.jsonl"]
    assert names("*/_*.jsonl") == ["day/_e.jsonl"]
    assert names("*/_tmp/*") == ["day/_tmp/f.jsonl"]
    with pytest.raises(DatasetError, match="no file matches but 1 whose names or folders' names begin with"):
        names("*/d.json?")


def test_a_damaged_page_is_an_error_that_names_the_file_and_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"n": list(range(300)), "text": ["some text"] * 300})
    pyarrow.parquet.write_table(
        *(table, path), row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    place = content.rindex((150).to_bytes(8, "little"))
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"can't read .*rows\.parquet, row group 1 after row 99: .*"):
        list(read_rows(path))


def test_a_relative_folder_and_one_reached_by_a_link_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    put(tmp_path / "data", a_jsonl=jsonl(TEXTS))
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    for given_ in ("data", "link", "link/*.jsonl", "*/a.jsonl"):
        assert list(read_rows(given_))[:3] == TEXTS


def test_a_name_with_the_letters_of_a_glob_is_a_file_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "rows[1].jsonl").write_bytes(jsonl(TEXTS))
    assert list(read_rows(tmp_path / "rows[1].jsonl")) == TEXTS


def test_a_bad_line_is_told_with_its_file_and_its_line_in_that_file(tmp_path: Path) -> None:
    put(tmp_path, a_jsonl=jsonl(TEXTS), b_jsonl=b"{}\n[]\n")
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/b.jsonl, line 2 is no JSON object but a list$"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize(
    ("files", "glob", "reason"),
    [
        ({"a_jsonl": b"{}\n", "b_csv": b"a\n1\n"}, "", "several formats, such as a.jsonl and b.csv"),
        ({"a_jsonl": b"{}\n", "b_csv": b"a\n1\n"}, "/*", "several formats, such as a.jsonl and b.csv"),
        ({"a_jsonl": b"{}\n", "x_manifest_json": b"{}"}, "", "no known format in it, x.manifest.json"),
        ({}, "", "there are no files in this folder"),
        ({"a_jsonl": b""}, "/*.csv", "no file matches"),
        ({"a_jsonl": b""}, "", "the dataset has no rows"),
        ({"a_parquet_gz": b"?"}, "", "Parquet is compressed within"),
    ],
)
def test_a_folder_that_is_no_dataset_of_one_format_is_refused(
    tmp_path: Path, files: dict[str, bytes], glob: str, reason: str
) -> None:
    put(tmp_path, **files)
    with pytest.raises(DatasetError, match=reason):
        list(read_rows(f"{tmp_path}{glob}"))


def test_a_folder_within_a_folder_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    put(tmp_path, a_jsonl=jsonl(TEXTS))
    (tmp_path / "more").mkdir()
    with pytest.raises(DatasetError, match="has a folder in it, more"):
        list(read_rows(tmp_path))


class Finished:
    """What is known of a run that another package finished."""

    def __init__(self, output_path: str) -> None:
        self.output_path = output_path


@pytest.mark.parametrize("kind", [Finished, lambda path: {"output_path": path, "rows": 3}])
def test_a_manifest_stands_for_its_output(tmp_path: Path, kind: Any) -> None:
    write_rows(tmp_path / "out.jsonl", TEXTS)
    manifest = kind(str(tmp_path / "out.jsonl"))
    assert list(read_rows(manifest)) == TEXTS
    assert fingerprint(manifest) == fingerprint(TEXTS)
    assert describe_row(manifest, 1) == f"{tmp_path}/out.jsonl, row 1 (line 2)"


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl.gz", "rows.zst"])
def test_rows_are_not_written_under_a_name_by_which_they_could_not_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"let its name end in .jsonl"):
        write_rows(tmp_path / name, TEXTS)


@pytest.mark.parametrize(
    ("dataset", "output", "fed"),
    [
        ("", "out.jsonl", True),
        ("", "sub/out.jsonl", False),
        ("*.jsonl", "out.jsonl", True),
        ("*.jsonl", "sub/out.jsonl", False),
        ("*.jsonl", "out.parquet", False),
        ("a.jsonl", "a.jsonl", True),
        ("a.jsonl", "b.jsonl", False),
    ],
)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_would_become_part_of_a_dataset_is_known(
    tmp_path: Path, place: str, dataset: str, output: str, fed: bool
) -> None:
    folder = UPath(tmp_path) if place == "local" else UPath(f"memory://{tmp_path.name}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS))
    opened: StoredRows = open_stored(f"{folder}/{dataset}")
    assert opened.is_fed_by(folder / output) == fed
