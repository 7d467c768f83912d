"""Shards completed one by one and merged: what one run over the whole would have written."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from echo_server import QUICK, Complete, EchoServer, questions, read, refused
from faults import MODEL_ID, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import (
    CompletionManifest,
    JournalError,
    complete_dataset,
    merge_completions,
    plan_runs,
)
from airflow_provider_gradient.completions.pacing import SendingLimits
from airflow_provider_gradient.completions.sharding import most_parallel, share
from airflow_provider_gradient.datasets import DatasetError, dump_row, read_rows, write_rows

ROWS = [
    {
        "q": f"question {number}",
        "key": f"ключ {number}" if number % 3 else number,
        "deep": {"n": [number, 1.5]},
    }
    for number in range(60)
]
ROWS[7]["key"] = 'with "quotes", a comma and a \\'
ROWS[8]["deep"] = "half a pair \ud800"
ROWS[9]["key"] = "half \udfff"
MEASURED = {
    *("seconds", "rows_per_second", "concurrency", "merged", "fingerprint", "output_path", "errors_path"),
    "output_bytes",
    "output_sha256",
}


async def shards_completed(
    server: EchoServer, dataset: Any, output: Any, *, shards: int = 4, **arguments: Any
) -> list[dict[str, Any]]:
    """The manifests of all shards, as XCom would bring them."""
    asked = {"model_id": MODEL_ID, "prompt_template": "{q}"} | arguments
    runs = plan_runs(dataset, output_path=output, shards=shards, concurrency=64)
    async with AsyncGradientClient(**server.credentials, retries=QUICK) as client:
        manifests = [await complete_dataset(client, **asked, **run) for run in runs]
    return json.loads(json.dumps([manifest.to_dict() for manifest in manifests]))  # type: ignore[no-any-return]


def comparable(path: Any) -> list[bytes]:
    """The lines of an output without their latencies; everything else byte for byte."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        fields = json.loads(line)
        head, _, rest = line.partition(b'"latency_ms":')
        lines.append(head + rest.removeprefix(str(fields["latency_ms"]).encode()))
    return lines


@pytest.mark.parametrize("shards", [1, 4, 60])
@pytest.mark.parametrize("failing", [(), (3, 20, 21, 59)])
async def test_sharded_equals_unsharded_byte_for_byte(
    complete: Complete, server: EchoServer, tmp_path: Path, shards: int, failing: tuple[int, ...]
) -> None:
    write_rows(tmp_path / "in.jsonl", ROWS)
    server.answer = lambda q: refused(q) if int(q.split()[1]) in failing else None
    options: dict[str, Any] = {"id_column": "key", "carry_columns": ["deep", "key"]}
    whole = await complete(tmp_path / "in.jsonl", **options)
    parts = await shards_completed(
        server, tmp_path / "in.jsonl", tmp_path / "merged.jsonl", shards=shards, **options
    )
    merged = merge_completions(parts, output_path=tmp_path / "merged.jsonl")

    assert comparable(tmp_path / "merged.jsonl") == comparable(tmp_path / "out.jsonl")
    for path in ("out.jsonl.errors.jsonl", "merged.jsonl.errors.jsonl"):
        assert (tmp_path / path).exists() == bool(failing)
    if failing:
        assert comparable(tmp_path / "merged.jsonl.errors.jsonl") == comparable(
            tmp_path / "out.jsonl.errors.jsonl"
        )
    assert merged.to_dict().keys() == whole.to_dict().keys()
    assert {name: value for name, value in merged.to_dict().items() if name not in MEASURED} == {
        name: value for name, value in whole.to_dict().items() if name not in MEASURED
    }
    assert merged.merged is not None
    assert merged.merged.shards == len(parts)
    assert server.queries.total() == 2 * len(ROWS)


async def test_a_merged_parquet_file_is_that_of_the_whole_and_its_manifest_the_next_dataset(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    write_rows(tmp_path / "in.jsonl", ROWS)
    await complete(tmp_path / "in.jsonl", id_column="key", output_path=tmp_path / "out.parquet")
    parts = await shards_completed(
        server, tmp_path / "in.jsonl", tmp_path / "merged.parquet", id_column="key"
    )
    merged = merge_completions(parts, output_path=tmp_path / "merged.parquet")
    tables = [pq.read_table(tmp_path / name) for name in ("out.parquet", "merged.parquet")]
    assert tables[0].schema.equals(tables[1].schema, check_metadata=True)
    assert tables[0].drop(["latency_ms"]).equals(tables[1].drop(["latency_ms"]))
    assert [row["row"] for row in read_rows(merged)] == list(read_rows(tmp_path / "in.jsonl"))


async def test_every_format_and_a_bucket_can_be_sharded(server: EchoServer, tmp_path: Path) -> None:
    folder = UPath(f"memory://{tmp_path.name}")
    (folder / "in" / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(map(dump_row, questions(20)[10:]))))
    (folder / "in" / "a.jsonl").write_bytes(b"".join(map(dump_row, questions(10))))
    parts = await shards_completed(server, folder / "in", folder / "out.jsonl")
    assert len(parts) > 1
    merged = merge_completions(parts, output_path=folder / "out.jsonl", keep_shards=False)
    assert [line["output"] for line in read(folder / "out.jsonl")] == [
        f"echo question {number}" for number in range(20)
    ]
    assert [line["index"] for line in read(folder / "out.jsonl")] == list(range(20))
    assert merged.source == str(folder / "in")
    assert sorted(path.name for path in folder.iterdir()) == [
        "_SUCCESS.out.jsonl",
        "in",
        "out.jsonl",
        "out.jsonl.manifest.json",
    ]


PROCESS = """
import asyncio, json, sys
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
async def main(credentials, arguments):
    async with AsyncGradientClient(**credentials) as client:
        await complete_dataset(client, **arguments)
asyncio.run(main(*map(json.loads, sys.argv[1:])))
"""


async def test_a_killed_shard_is_resumed_by_itself_alone(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(200))
    server.wait = 0.01
    runs = plan_runs(tmp_path / "in.jsonl", output_path=tmp_path / "out.jsonl", shards=4, concurrency=16)
    asked = {"model_id": MODEL_ID, "prompt_template": "{q}"}
    others = [await complete(**asked, **run) for run in runs if run["dataset"].number != 1]
    before = server.queries.total()

    arguments = (
        asked
        | runs[1]
        | {"dataset": runs[1]["dataset"].to_dict(), "output_path": str(runs[1]["output_path"])}
    )
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(server.credentials), json.dumps(arguments)]
    )
    wait_until(lambda: server.queries.total() >= before + 25, seconds=60)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(JournalError, match=r"of 4 shards these are missing, run them: 1"):
        merge_completions(others, output_path=tmp_path / "out.jsonl")

    second = await complete(**asked, **runs[1])
    assert second.resumed_rows >= 25 - 2 * runs[1]["concurrency"]
    assert server.queries.total() - 200 <= runs[1]["concurrency"]
    again = [await complete(**asked, **run) for run in runs]
    assert server.queries.total() - 200 <= runs[1]["concurrency"]
    merge_completions(again, output_path=tmp_path / "out.jsonl")
    assert [line["output"] for line in read(tmp_path / "out.jsonl")] == [
        f"echo {row['q']}" for row in questions(200)
    ]


async def test_a_merge_run_again_changes_nothing_and_one_after_a_shard_was_completed_anew_does(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(8))
    output = tmp_path / "out.jsonl"
    server.answer = lambda q: refused(q) if q in ("question 6", "question 7") else None
    parts = await shards_completed(server, tmp_path / "in.jsonl", output)
    first = merge_completions(parts, output_path=output, identity="work")
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = merge_completions(parts, output_path=output, identity="work")
    assert second == first.model_copy(update={"resumed_rows": 8})
    assert files == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert first.counts.error == 2

    server.answer = lambda _: None
    anew = await shards_completed(server, tmp_path / "in.jsonl", output)  # shard 3, of which all rows failed
    assert server.queries.total() == 10
    third = merge_completions(anew, output_path=output, identity="work")
    assert (third.counts.success, third.errors_path) == (8, None)
    assert [line["status"] for line in read(output)] == ["success"] * 8
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


async def test_shards_are_kept_unless_told_otherwise_and_then_go_only_after_the_manifest(
    server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(8))
    output = tmp_path / "out.jsonl"
    parts = await shards_completed(server, tmp_path / "in.jsonl", output)
    merge_completions(parts, output_path=output)
    assert (tmp_path / "out.jsonl.shards" / "00003.jsonl").exists()
    merged = merge_completions(parts, output_path=output, keep_shards=False)
    assert not (tmp_path / "out.jsonl.shards").exists()
    assert merge_completions(parts, output_path=output, keep_shards=False) == merged
    output.write_text("")
    with pytest.raises(JournalError, match=r"00000\.jsonl, of shard 0 of 4, is not as its run left it"):
        merge_completions(parts, output_path=output)


async def test_a_merge_that_fails_leaves_nothing_of_its_own_and_no_stale_manifest(
    server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(8))
    parts = await shards_completed(server, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    last = Path(parts[-1]["output_path"])
    content = last.read_bytes()
    last.write_bytes(content.replace(b'"index":1', b'"index":7'))
    with pytest.raises(JournalError, match=r"00003\.jsonl, of shard 3 of 4, is not as its run left it"):
        merge_completions(parts, output_path=tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.shards"]
    last.write_bytes(content)
    assert merge_completions(parts, output_path=tmp_path / "out.jsonl").rows == 8


MERGE = """
import json, sys
from airflow_provider_gradient.completions import merge_completions
merge_completions(json.loads(sys.argv[1]), output_path=sys.argv[2])
"""


async def test_a_merge_killed_in_the_middle_is_made_again_and_sends_nothing(
    server: EchoServer, tmp_path: Path
) -> None:
    """A pipe takes the place of the last shard's output, so that the merge waits half-way."""
    write_rows(tmp_path / "in.jsonl", questions(40))
    output = tmp_path / "out.jsonl"
    parts = await shards_completed(server, tmp_path / "in.jsonl", output)
    last = Path(parts[-1]["output_path"])
    last.rename(tmp_path / "kept")
    os.mkfifo(last)
    halfway = [*parts[:-1], changed(parts[-1], output_bytes=0)]
    process = subprocess.Popen([sys.executable, "-c", MERGE, json.dumps(halfway), str(output)])
    wait_until(lambda: list(tmp_path.glob(".out.jsonl.*.tmp")), seconds=60)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    assert not (tmp_path / "out.jsonl.manifest.json").exists()

    (tmp_path / "kept").replace(last)
    assert merge_completions(parts, output_path=output).rows == 40
    assert [line["index"] for line in read(output)] == list(range(40))
    assert server.queries.total() == 40


async def test_an_id_in_two_shards_is_an_error_that_names_both_rows_and_keeps_the_outputs(
    server: EchoServer, tmp_path: Path
) -> None:
    rows = [row | {"key": number % 6} for number, row in enumerate(questions(8))]
    write_rows(tmp_path / "in.jsonl", rows)
    parts = await shards_completed(server, tmp_path / "in.jsonl", tmp_path / "out.jsonl", id_column="key")
    with pytest.raises(DatasetError) as raised:
        merge_completions(parts, output_path=tmp_path / "out.jsonl")
    message = str(raised.value)
    assert "00003.jsonl, row 0 (row 6 of the whole) has the id 0 of " in message
    assert "00000.jsonl, row 0 (row 0 of the whole) again" in message
    assert not (tmp_path / "out.jsonl").exists()
    assert all(Path(part["output_path"]).exists() for part in parts)


def changed(manifest: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {**manifest, **fields}


async def test_shards_that_do_not_belong_together_are_refused_by_name(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(8))
    output = tmp_path / "out.jsonl"
    parts = await shards_completed(server, tmp_path / "in.jsonl", output)
    three = await shards_completed(server, tmp_path / "in.jsonl", tmp_path / "other.jsonl", shards=3)
    columns = await shards_completed(
        server, tmp_path / "in.jsonl", tmp_path / "columns.jsonl", carry_columns=["q"]
    )
    whole = await complete(tmp_path / "in.jsonl", output_path=tmp_path / "whole.jsonl")
    for shards, reason in [
        ([], "no shards to merge"),
        (parts[:2], "of 4 shards these are missing, run them: 2, 3"),
        ([*parts, parts[1]], "shard 1 of 4 is there twice"),
        ([*parts[:3], three[2]], "is of another plan than shard 0 of 4"),
        ([*parts[:3], changed(parts[3], model_id="m")], "shard 3 of 4 .* with model_id 'm', but shard 0"),
        ([*parts[:3], changed(parts[3], parameters={"temperature": 1})], "with parameters"),
        ([*parts[:3], columns[3]], "with other columns or settings than shard 0"),
        ([*parts, whole], "is no shard's output"),
        ([*parts[:3], changed(parts[3], output_path="x.parquet")], "only JSONL can be merged"),
    ]:
        with pytest.raises(JournalError, match=reason):
            merge_completions(shards, output_path=output)
    assert not output.exists()
    assert merge_completions(parts[::-1], output_path=output).rows == 8


def test_an_output_that_would_become_a_part_of_the_dataset_is_refused_before_anything_is_planned(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "a" / "in.jsonl", questions(4))
    with pytest.raises(DatasetError, match="is the dataset or in it"):
        plan_runs(tmp_path / "a", output_path=tmp_path / "a" / "out.jsonl", shards=2)
    with pytest.raises(DatasetError, match=r"out\.jsonl\.shards/00000\.jsonl, which a shard would write"):
        plan_runs(tmp_path / "*" / "*.jsonl", output_path=tmp_path / "out.jsonl", shards=2)
    with pytest.raises(DatasetError, match="let its name end in"):
        plan_runs(tmp_path / "a", output_path=tmp_path / "out.csv", shards=2)


@settings(max_examples=300)
@given(
    concurrency=st.integers(1, 300),
    floor=st.integers(1, 300),
    rate=st.one_of(st.none(), st.floats(1, 1e6)),
    shards=st.integers(1, 60),
    wanted=st.integers(1, 60),
)
def test_the_shares_of_the_shards_that_run_at_once_add_up_to_the_whole(
    concurrency: int, floor: int, rate: float | None, shards: int, wanted: int
) -> None:
    limits = SendingLimits(
        concurrency=concurrency, min_concurrency=min(floor, concurrency), requests_per_minute=rate
    )
    parallel = min(shards, wanted, most_parallel(limits))
    shares = [share(limits, number=number, parallel=parallel) for number in range(shards)]
    for one in shares:
        SendingLimits(**one)
    most = sorted((one["concurrency"] for one in shares), reverse=True)[:parallel]
    assert sum(most) == concurrency
    assert sum(one["concurrency"] for one in shares[:parallel]) == concurrency
    if rate is not None:
        assert sum(one["requests_per_minute"] for one in shares[:parallel]) == pytest.approx(rate)


def test_more_shards_at_once_than_there_are_places_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", questions(40))
    with pytest.raises(InvalidRequestError, match="max_parallel_shards: at most 3"):
        plan_runs(
            tmp_path / "in.jsonl", output_path=tmp_path / "out.jsonl", shards=8, requests_per_minute=3.5
        )
    runs = plan_runs(
        tmp_path / "in.jsonl",
        output_path=tmp_path / "out.jsonl",
        shards=8,
        max_parallel_shards=3,
        requests_per_minute=3.5,
    )
    assert [run["concurrency"] for run in runs] == [6, 5, 5, 5, 5, 5, 5, 5]


async def test_merging_a_cancelled_plan_is_impossible_but_what_was_done_is_not_sent_again(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    """Planned anew over the same files, the shards are the same and find what the first plan's runs left."""
    write_rows(tmp_path / "in.jsonl", questions(12))
    output = tmp_path / "out.jsonl"
    first = plan_runs(tmp_path / "in.jsonl", output_path=output, shards=3)
    manifests: list[CompletionManifest] = await asyncio.gather(*(complete(**run) for run in first[:2]))
    with pytest.raises(JournalError, match="these are missing, run them: 2"):
        merge_completions(manifests, output_path=output)
    await shards_completed(server, tmp_path / "in.jsonl", output, shards=3)
    assert server.queries.total() == 12
