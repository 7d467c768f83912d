"""Runs over every format and into Parquet."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from echo_server import Complete, EchoServer, questions, read, refused
from upath import UPath

from airflow_provider_gradient.completions.output_file import output_file
from airflow_provider_gradient.datasets import DatasetError, dump_row, read_rows, write_rows
from airflow_provider_gradient.evaluation import evaluate

COLUMNS = {
    "index": "int64",
    "id": "string",
    "status": "string",
    "output": "string",
    "parsed": "string",
    "error": "struct<type: string, message: string, transient: bool>",
    "finish_reason": "string",
    "model_id": "string",
    "attempts": "int64",
    "latency_ms": "double",
    "usage": "struct<prompt_tokens: int64, completion_tokens: int64>",
    "row": "string",
}


async def test_parquet_out_has_the_rows_of_jsonl_under_one_schema(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    rows = [{"key": n, "q": f"question {n}", "nested": {"誰": [n, None]}} for n in range(5)]
    server.answer = lambda query: refused(query) if query == "question 3" else None
    lines = await complete(rows, id_column="key")
    columns = await complete(rows, id_column="key", output_path=tmp_path / "new" / "out.parquet")
    schema = pq.read_schema(tmp_path / "new" / "out.parquet")
    assert {field.name: str(field.type) for field in schema} == COLUMNS

    expected = read(tmp_path / "out.jsonl")
    actual = list(read_rows(tmp_path / "new" / "out.parquet"))
    for line, row in zip(expected, actual, strict=True):
        assert list(line) == list(row)
        assert row | {"latency_ms": line["latency_ms"], "id": line["id"]} == line
        assert row["id"] == str(line["id"])
    assert columns.output_bytes == (tmp_path / "new" / "out.parquet").stat().st_size
    assert columns.errors_path == str(tmp_path / "new" / "out.parquet.errors.jsonl")
    assert [row["row"] for row in read(tmp_path / "new" / "out.parquet.errors.jsonl")] == [rows[3]]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        *("_SUCCESS.out.parquet", "out.parquet", "out.parquet.errors.jsonl", "out.parquet.manifest.json")
    ]
    assert lines.counts == columns.counts


async def test_a_finished_parquet_output_is_not_sent_again_and_a_run_with_other_rows_has_its_schema(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    path = tmp_path / "out.parquet"
    await complete(questions(3), output_path=path)
    assert (await complete(questions(3), output_path=path)).resumed_rows == 3
    assert server.queries.total() == 3
    first = pq.read_schema(path)
    server.answer = refused
    await complete([{"q": "?", "other": 1.5}], output_path=path)
    assert pq.read_schema(path) == first


async def test_parquet_goes_to_a_bucket_as_one_object(complete: Complete, tmp_path: Path) -> None:
    bucket = UPath(f"memory://{tmp_path.name}")
    await complete(questions(3), output_path=bucket / "out.parquet")
    assert [row["output"] for row in read_rows(bucket / "out.parquet")] == [
        f"echo question {number}" for number in range(3)
    ]
    assert sorted(path.name for path in bucket.iterdir()) == [
        *("_SUCCESS.out.parquet", "out.parquet", "out.parquet.manifest.json")
    ]


async def test_half_a_surrogate_pair_in_a_row_does_not_cost_the_output(
    complete: Complete, tmp_path: Path
) -> None:
    rows = [{**row, "key": key} for row, key in zip(questions(3), ("a", "b\ud83d", "c"), strict=True)]
    await complete(rows, id_column="key", output_path=tmp_path / "out.parquet")
    actual = list(read_rows(tmp_path / "out.parquet"))
    assert [row["id"] for row in actual] == ["a", "b\ufffd", "c"]
    assert [row["row"] for row in actual] == rows


async def test_a_manifest_of_a_parquet_run_is_evaluated_and_completed_further(
    complete: Complete, tmp_path: Path
) -> None:
    rows = [{"q": f"question {n}", "answer": f"echo question {n % 2}"} for n in range(4)]
    manifest = await complete(rows, output_path=tmp_path / "first.parquet")
    report = evaluate(manifest, reference_column="answer")
    assert report.metrics["exact_match"].value == 0.5
    again = await complete(manifest.to_dict(), prompt_template="{output}", output_path=tmp_path / "2.jsonl")
    assert again.source == str(tmp_path / "first.parquet")
    assert read(tmp_path / "2.jsonl")[1]["output"] == "echo echo question 1"
    assert read(tmp_path / "2.jsonl")[1]["row"]["row"] == rows[1]


async def test_a_folder_is_completed_as_one_dataset(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    for number in range(3):
        rows = [{"q": f"{number} {n}"} for n in range(40)]
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"part-{number}.parquet")
    manifest = await complete(tmp_path / "in")
    assert (manifest.source, manifest.rows) == (str(tmp_path / "in"), 120)
    assert [row["row"]["q"] for row in read(tmp_path / "out.jsonl")] == [
        f"{number} {n}" for number in range(3) for n in range(40)
    ]
    same = await complete([{"q": f"{number} {n}"} for number in range(3) for n in range(40)])
    assert same.fingerprint == manifest.fingerprint
    assert same.resumed_rows == 120


async def test_a_bad_row_in_a_later_file_is_named_by_file_and_line_before_the_first_request(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in" / "a.jsonl", questions(3))
    write_rows(tmp_path / "in" / "b.jsonl", [*questions(1), {"topic": "none"}])
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/in/b.jsonl, row 4 \(line 2\) has no column 'q'"):
        await complete(f"{tmp_path}/in/*.jsonl")
    assert server.requests == []


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("out.csv", "let its name end in .jsonl or .parquet"),
        ("out.jsonl.gz", "let its name end in .jsonl or .parquet"),
        ("in/out.jsonl", "is the dataset or in it"),
    ],
)
async def test_an_output_that_could_not_be_told_from_something_else_is_refused_before_the_first_request(
    complete: Complete, server: EchoServer, tmp_path: Path, output: str, reason: str
) -> None:
    write_rows(tmp_path / "in" / "a.jsonl", questions(3))
    with pytest.raises(DatasetError, match=reason):
        await complete(tmp_path / "in", output_path=tmp_path / output)
    assert server.requests == []


MEASURE = """
import hashlib, resource, sys
from airflow_provider_gradient.completions.output_file import output_file
from airflow_provider_gradient.datasets import as_path, dump_row
line = open(sys.argv[2], "rb").read()
with output_file(as_path(sys.argv[1]), hashlib.sha256()) as output:
    for number in range(int(sys.argv[3])):
        output.write(line, dump_row({"number": number, "text": f"{number:02000}"}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted in other units elsewhere")
def test_memory_does_not_grow_with_the_output(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "index": 0,
        "id": None,
        "status": "success",
        "output": "x" * 2000,
        "parsed": None,
        "error": None,
        "finish_reason": "stop",
        "model_id": "m",
        "attempts": 1,
        "latency_ms": 1.5,
        "usage": None,
    }
    (tmp_path / "line").write_bytes(dump_row(record))
    peaks = []
    for rows in (20_000, 80_000):  # some 80 and 320 MB; a row group has 33
        arguments = [str(tmp_path / "out.parquet"), str(tmp_path / "line"), str(rows)]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 60_000_000
    parquet = pq.ParquetFile(tmp_path / "out.parquet")
    assert parquet.metadata.num_rows == 80_000
    assert parquet.num_row_groups < 20


def test_a_parquet_output_that_fails_half_way_leaves_what_stood_there(tmp_path: Path) -> None:
    path = UPath(tmp_path / "out.parquet")
    path.write_bytes(b"what stood there")

    def fail() -> None:
        with output_file(path, hashlib.sha256()) as output:
            output.write(b'{"id":null,"index":0,"parsed":null}\n', b"{}\n")
            raise KeyError("the source broke")

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"what stood there"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.parquet"]
