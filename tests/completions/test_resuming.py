"""What interrupts a run, and what the next one does."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, journaled, questions, read, refused
from faults import wait_until
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.datasets import DatasetError, JournalError, sealed, write_rows

ROWS = 300
CONCURRENCY = 8

PROCESS = """
import asyncio, json, sys
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
async def main(credentials, arguments):
    async with AsyncGradientClient(**credentials) as client:
        await complete_dataset(client, **arguments)
asyncio.run(main(*map(json.loads, sys.argv[1:])))
"""


def start_process(server: EchoServer, folder: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own, over ``in.jsonl`` of ``folder``."""
    arguments = {
        "model_id": "0" * 36 + "_model_adapter",
        "dataset": str(folder / "in.jsonl"),
        "output_path": str(folder / "out.jsonl"),
        "prompt_template": "{q}",
        "concurrency": CONCURRENCY,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(server.credentials), json.dumps(arguments)]
    )


async def test_a_run_killed_again_and_again_loses_no_row_and_sends_only_what_was_in_flight_again(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(ROWS))
    server.wait = 0.01
    kills = 3
    for kill in range(1, kills + 1):
        process = start_process(server, tmp_path)
        wait_until(lambda wanted=kill * 70: server.queries.total() >= wanted, seconds=60)  # type: ignore[misc]
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out.jsonl").exists()
    manifest = await complete(tmp_path / "in.jsonl", concurrency=CONCURRENCY)
    assert manifest.resumed_rows >= 70 * kills - kills * CONCURRENCY * 2
    assert [line["output"] for line in read(tmp_path / "out.jsonl")] == [
        f"echo {row['q']}" for row in questions(ROWS)
    ]
    repeated = server.queries.total() - ROWS
    assert set(server.queries) == {row["q"] for row in questions(ROWS)}
    assert 0 <= repeated <= kills * CONCURRENCY


async def test_a_finished_run_is_not_sent_again_and_keeps_its_files(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    first = await complete(questions(20))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = await complete(questions(20))
    assert server.queries.total() == 20
    assert second == first.model_copy(update={"resumed_rows": 20})
    assert files == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


async def test_an_output_that_was_changed_since_is_made_anew(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    await complete(questions(3))
    (tmp_path / "out.jsonl").write_text("")
    assert (await complete(questions(3))).resumed_rows == 0
    assert len(read(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_template": "Q: {q}"},
        {"temperature": 0.5},
        {"model_id": "1" * 36 + "_model_adapter"},
        {"identity": "dag/task/another run"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_what_was_done_for_another_template_model_parameter_or_piece_of_work_is_not_reused(
    complete: Complete,
    server: EchoServer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    change: dict[str, Any],
) -> None:
    async def stopped() -> None:
        server.answer = lambda q: None if q == "question 0" else HANG
        task = asyncio.create_task(complete(questions(5), concurrency=1))  # type: ignore[arg-type]
        while server.queries.total() < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.answer = lambda _: None

    await stopped()
    sent = server.queries.total()
    with caplog.at_level(logging.WARNING):
        manifest = await complete(**({"dataset": questions(5)} | change))
    assert manifest.resumed_rows == 0
    assert server.queries.total() == sent + 5
    assert "the run starts anew" in caplog.text


async def test_an_adapter_that_was_tuned_since_answers_anew(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    first = await complete(questions(3))
    server.tuned = "2026-01-02T00:00:00Z"
    second = await complete(questions(3))
    assert first.model_version != second.model_version
    assert second.resumed_rows == 0
    assert server.queries.total() == 6


async def test_a_cancelled_run_keeps_every_answer_that_came(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: HANG if query == "question 30" else None
    task = asyncio.create_task(complete(questions(100), concurrency=1))  # type: ignore[arg-type]
    while server.queries.total() < 31:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journaled(tmp_path / "out.jsonl") == 30
    server.answer = lambda _: None
    assert (await complete(questions(100))).resumed_rows == 30
    assert not (tmp_path / "out.jsonl.journal.jsonl").exists()
    assert server.queries.total() == 101


async def test_a_failed_row_is_not_sent_again_by_the_run_that_resumes(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    def answer(query: str) -> Any:
        number = int(query.split()[1])
        return refused(query) if number == 1 else HANG if number == 5 else None

    server.answer = answer
    task = asyncio.create_task(complete(questions(10), concurrency=1))  # type: ignore[arg-type]
    while server.queries.total() < 6:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.answer = lambda _: None
    manifest = await complete(questions(10))
    assert manifest.counts.model_dump() == {"success": 9, "error": 1, "invalid_output": 0, "not_run": 0}
    assert server.queries["question 1"] == 1


async def test_where_nothing_can_be_appended_a_run_resumes_all_the_same(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    folder = UPath(f"memory://{tmp_path.name}")
    write_rows(folder / "in.jsonl", questions(50))
    server.answer = lambda query: HANG if query == "question 30" else None
    arguments = {"output_path": folder / "out.jsonl", "concurrency": 1}
    task = asyncio.create_task(complete(folder / "in.jsonl", **arguments))  # type: ignore[arg-type]
    while server.queries.total() < 31:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl.journal.jsonl"]
    server.answer = lambda query: refused(query) if query == "question 40" else None
    manifest = await complete(folder / "in.jsonl", **arguments)
    assert manifest.resumed_rows == 30
    assert sorted(path.name for path in folder.iterdir()) == [
        *("_SUCCESS.out.jsonl", "in.jsonl", "out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.manifest.json")
    ]
    outputs = [line["output"] for line in read(folder / "out.jsonl")]
    assert outputs == [f"echo question {number}" if number != 40 else None for number in range(50)]
    assert (await complete(folder / "in.jsonl", **arguments)).resumed_rows == 50
    assert server.queries.total() == 51


async def test_a_run_that_ended_between_output_and_manifest_finishes_without_a_request(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: refused(query) if query == "question 3" else None
    (tmp_path / "out.jsonl.errors.jsonl").mkdir()
    with pytest.raises(DatasetError, match=r"can't write .*out\.jsonl\.errors\.jsonl: this is a folder"):
        await complete(questions(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.journal.jsonl")
    ]
    (tmp_path / "out.jsonl.errors.jsonl").rmdir()
    manifest = await complete(questions(10))
    assert manifest.resumed_rows == 10
    assert manifest.counts.model_dump() == {"success": 9, "error": 1, "invalid_output": 0, "not_run": 0}
    assert server.queries.total() == 10


HEADER = JournalHeader(identity="work", fingerprint="f" * 64, rows=8)


def record(index: int, status: str = "success") -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": 2} if index % 2 else None
    error = None if status == "success" else {"type": "odd", "message": "", "transient": False}
    return {
        "index": index,
        "id": None,
        "status": status,
        "output": "ä\u2028",
        "parsed": None,
        "error": error,
        "finish_reason": None,
        "model_id": "m",
        "attempts": 1,
        "latency_ms": 1.0,
        "usage": usage,
    }


@given(
    order=st.permutations(range(8)),
    statuses=st.lists(st.sampled_from(["success", "error", "invalid_output"]), min_size=8, max_size=8),
    count=st.integers(0, 8),
    cut=st.integers(0, 2200),
)
def test_a_journal_cut_at_any_byte_has_the_rows_before_the_cut_and_takes_the_rest(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], statuses: list[str], count: int, cut: int
) -> None:
    output = UPath(tmp_path_factory.mktemp("journals") / "out.jsonl")
    with Journal(output, HEADER) as journal:
        for index in order[:count]:
            journal.append(record(index, statuses[index]))
    file = Path(output.with_name("out.jsonl.journal.jsonl"))
    content = file.read_bytes()[:cut]
    file.write_bytes(content)
    kept = order[: max(0, content.count(b"\n") - 1)]
    with Journal(output, HEADER) as journal:
        assert [index for index in range(8) if index in journal] == sorted(kept)
        assert journal.resumed == len(kept)
        for index in set(order) - set(kept):
            journal.append(record(index, statuses[index]))
    with Journal(output, HEADER) as journal:
        assert journal.resumed == 8
        assert [json.loads(journal.line(index))["index"] for index in range(8)] == list(range(8))
        assert sum(journal.totals.counts.model_dump().values()) == 8
        assert journal.totals.counts.error == statuses.count("error")
        assert (journal.totals.prompt_tokens, journal.totals.completion_tokens) == (4, 8)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"garbage\n", "line 2 was changed since it was written"),
        (sealed(b'{"index":99}\n'), "line 2 is no finished row"),
    ],
)
def test_a_journal_with_a_bad_line_in_its_middle_is_an_error_that_says_what_to_do(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    output = UPath(tmp_path / "out.jsonl")
    with Journal(output, HEADER) as journal:
        journal.append(record(0))
    file = tmp_path / "out.jsonl.journal.jsonl"
    head, first = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(head + line + first)
    with pytest.raises(JournalError) as raised:
        Journal(output, HEADER)
    assert f"{file}, {reason}" in str(raised.value)
    assert "delete it to start anew" in str(raised.value)
    assert file.read_bytes() == head + line + first


@pytest.mark.parametrize("head", [b'{"a":1}\n', b"text\n", b'{"journal":"completions","schema_version":9}\n'])
async def test_a_file_of_the_journals_name_that_is_none_is_an_error_and_stays(
    complete: Complete, server: EchoServer, tmp_path: Path, head: bytes
) -> None:
    (tmp_path / "out.jsonl.journal.jsonl").write_bytes(head)
    with pytest.raises(JournalError, match=r"out\.jsonl\.journal\.jsonl, line 1"):
        await complete(questions(2))
    assert (tmp_path / "out.jsonl.journal.jsonl").read_bytes() == head
    assert server.queries.total() == 0


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"schema_version": 1}'])
async def test_a_manifest_that_cannot_be_read_is_an_error_and_stays(
    complete: Complete, server: EchoServer, tmp_path: Path, content: str
) -> None:
    (tmp_path / "out.jsonl.manifest.json").write_text(content)
    with pytest.raises(JournalError, match=r"out\.jsonl\.manifest\.json.*Delete it"):
        await complete(questions(2))
    assert (tmp_path / "out.jsonl.manifest.json").read_text() == content
    assert server.queries.total() == 0


async def test_a_run_in_which_every_row_failed_is_not_finished_and_sends_all_again(
    complete: Complete, server: EchoServer
) -> None:
    server.answer = refused
    assert (await complete(questions(3))).all_failed
    server.answer = lambda _: None
    manifest = await complete(questions(3))
    assert (manifest.counts.success, manifest.resumed_rows) == (3, 0)


async def test_a_journal_that_a_finished_run_could_not_delete_goes_with_the_next(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    manifest = await complete(questions(3))
    header = JournalHeader(identity=None, fingerprint=manifest.fingerprint, rows=3)
    with Journal(UPath(tmp_path / "out.jsonl"), header) as journal:
        journal.append(record(0))
    assert (await complete(questions(3))).resumed_rows == 3
    assert not (tmp_path / "out.jsonl.journal.jsonl").exists()


async def test_a_run_cancelled_while_it_writes_its_output_leaves_no_half_of_it(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    rows = [row | {"context": "x" * 50_000} for row in questions(600)]
    task = asyncio.create_task(complete(rows))  # type: ignore[arg-type]
    while not list(tmp_path.glob(".out.jsonl.*.tmp")):
        await asyncio.sleep(0)
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.journal.jsonl"]
    assert (await complete(rows)).resumed_rows == 600
    assert server.queries.total() == 600
