"""Two runs that write to the same output: told apart or refused, and never held up by a dead one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, questions, read
from faults import wait_until
from upath import UPath

from airflow_provider_gradient.completions import CompletionManifest, OutputLockedError, output_lock

PROCESS = """
import asyncio, json, sys
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
async def main(credentials, arguments):
    async with AsyncGradientClient(**credentials) as client:
        await complete_dataset(client, **arguments)
asyncio.run(main(*map(json.loads, sys.argv[1:])))
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases and patience in tenths of a second."""
    monkeypatch.setattr(output_lock, "RENEWAL", 0.1)
    monkeypatch.setattr(output_lock, "MISSED_RENEWALS", 15)
    monkeypatch.setattr(output_lock, "PATIENCE", 0.3)


@pytest.fixture
def bucket(tmp_path: Path) -> UPath:
    return UPath(f"memory://{tmp_path.name}")


def start_process(server: EchoServer, output: Path, identity: str | None) -> subprocess.Popen[bytes]:
    arguments = {
        "model_id": "0" * 36 + "_model_adapter",
        "dataset": questions(20),
        "output_path": str(output),
        "prompt_template": "{q}",
        "identity": identity,
        "concurrency": 1,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(server.credentials), json.dumps(arguments)]
    )


@contextlib.asynccontextmanager
async def under_way(
    complete: Complete, server: EchoServer, **arguments: Any
) -> AsyncIterator[asyncio.Task[Any]]:
    """A run that hangs at question 3, cancelled at the end of the block if it has not ended by then."""
    server.answer = lambda query: HANG if query == "question 3" else None
    task = asyncio.create_task(complete(questions(20), concurrency=1, **arguments))  # type: ignore[arg-type]
    while not server.queries["question 3"]:
        await asyncio.sleep(0.01)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OutputLockedError):
            await task


@pytest.mark.parametrize("identity", ["another dag's", "the same dag's", None])
@pytest.mark.usefixtures("quick")
async def test_an_output_that_another_process_writes_is_refused_and_the_owner_named(
    complete: Complete, server: EchoServer, tmp_path: Path, identity: str | None
) -> None:
    server.answer = lambda query: HANG if query == "question 3" else None
    process = start_process(server, tmp_path / "out.jsonl", "the same dag's")
    try:
        wait_until(lambda: server.queries["question 3"] == 1, seconds=60)
        with pytest.raises(OutputLockedError) as raised:
            await complete(questions(20), identity=identity)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    message = str(raised.value)
    assert f'{tmp_path / "out.jsonl"} is being written by another run: "the same dag\'s"' in message
    assert f"on {socket.gethostname()}, process {process.pid}, since 20" in message
    assert "Give each its own output_path" in message
    assert server.queries.total() == 4


@pytest.mark.usefixtures("quick")
async def test_the_lock_ends_with_its_process_and_its_retry_goes_on_at_once(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: HANG if query == "question 3" else None
    process = start_process(server, tmp_path / "out.jsonl", "dag/task")
    wait_until(lambda: server.queries["question 3"] == 1, seconds=60)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / ".out.jsonl.lock").exists()
    server.answer = lambda _: None
    assert (await complete(questions(20), identity="dag/task")).resumed_rows == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("_SUCCESS.out.jsonl", "out.jsonl", "out.jsonl.manifest.json")
    ]


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.usefixtures("quick")
async def test_tomorrows_run_drops_the_journal_of_todays_that_died_but_not_of_one_that_lives(
    complete: Complete,
    server: EchoServer,
    tmp_path: Path,
    bucket: UPath,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    output: Any = (tmp_path if kind == "local" else bucket) / "out.jsonl"
    async with under_way(complete, server, output_path=output, identity="today"):
        with pytest.raises(OutputLockedError, match="'today' on "):
            await complete(questions(20), output_path=output, identity="tomorrow")
        assert server.queries.total() == 4
    server.answer = lambda _: None
    with caplog.at_level(logging.WARNING):
        manifest = await complete(questions(20), output_path=output, identity="tomorrow")
    assert manifest.resumed_rows == 0
    assert "is another piece of work's: its rows are dropped" in caplog.text


@pytest.mark.usefixtures("quick")
async def test_two_runs_of_no_identity_are_not_each_others_retry(
    complete: Complete, server: EchoServer, bucket: UPath
) -> None:
    async with under_way(complete, server, output_path=bucket / "out.jsonl"):
        with pytest.raises(OutputLockedError, match="a run without an identity"):
            await complete(questions(20), output_path=bucket / "out.jsonl")


@pytest.mark.usefixtures("quick")
async def test_a_dead_owners_lease_is_watched_and_then_taken_over(
    complete: Complete, server: EchoServer, bucket: UPath, caplog: pytest.LogCaptureFixture
) -> None:
    lease = bucket / ".out.jsonl.lock"
    lease.write_text(
        json.dumps({"owner": "x", "identity": "yesterday", "host": "gone", "pid": 1, "since": "2099-01-01"})
    )
    with caplog.at_level(logging.WARNING):
        manifest = await complete(questions(3), output_path=bucket / "out.jsonl", identity="today")
    assert manifest.counts.success == 3
    assert "its owner is dead" in caplog.text
    assert not lease.exists()


@pytest.mark.usefixtures("quick")
async def test_of_two_that_take_a_dead_owners_lease_over_at_once_one_is_refused(
    complete: Complete, server: EchoServer, bucket: UPath
) -> None:
    (bucket / ".out.jsonl.lock").write_text(json.dumps({"owner": "x", "identity": "yesterday"}))
    runs = [
        complete(questions(20), output_path=bucket / "out.jsonl", identity=identity)
        for identity in ("one", "two")
    ]
    first, second = await asyncio.gather(*runs, return_exceptions=True)
    assert {type(first), type(second)} == {CompletionManifest, OutputLockedError}
    assert server.queries.total() == 20
    assert not list(bucket.glob(".out.jsonl.lock*"))


@pytest.mark.usefixtures("quick")
async def test_a_lease_is_taken_over_though_who_tried_it_before_died_meanwhile(
    complete: Complete, bucket: UPath
) -> None:
    (bucket / ".out.jsonl.lock").write_text(json.dumps({"owner": "x", "identity": "yesterday"}))
    (bucket / ".out.jsonl.lock.x").write_text(json.dumps({"owner": "y", "identity": "today"}))
    manifest = await complete(questions(3), output_path=bucket / "out.jsonl", identity="today")
    assert manifest.counts.success == 3
    assert not list(bucket.glob(".out.jsonl.lock*"))


async def test_a_store_that_cannot_promise_it_says_so_once(
    complete: Complete, bucket: UPath, caplog: pytest.LogCaptureFixture
) -> None:
    output_lock._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await complete(questions(1), output_path=bucket / "out.jsonl")
    assert caplog.text.count("both may begin") == 1


async def test_a_retry_elsewhere_takes_its_own_lease_over_without_waiting(
    complete: Complete, server: EchoServer, bucket: UPath, caplog: pytest.LogCaptureFixture
) -> None:
    (bucket / ".out.jsonl.lock").write_text(
        json.dumps({"owner": "x", "identity": "dag/task", "host": "gone"})
    )
    with caplog.at_level(logging.INFO):
        await complete(questions(3), output_path=bucket / "out.jsonl", identity="dag/task")
    assert "watching" not in caplog.text


@pytest.mark.usefixtures("quick")
async def test_an_attempt_that_was_thought_dead_ends_when_its_retry_has_taken_over(
    complete: Complete, server: EchoServer, bucket: UPath
) -> None:
    arguments = {"output_path": bucket / "out.jsonl", "identity": "dag/task"}
    async with under_way(complete, server, **arguments) as first:
        second = asyncio.create_task(complete(questions(20), concurrency=1, **arguments))  # type: ignore[arg-type]
        with pytest.raises(OutputLockedError, match="was taken over by another run: 'dag/task' on"):
            await first
        server.answer = lambda _: None
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
    assert not (bucket / ".out.jsonl.lock").exists()
    assert (await complete(questions(20), **arguments)).counts.success == 20


@pytest.mark.usefixtures("quick")
async def test_a_lease_is_renewed_while_its_run_lasts_and_gone_when_it_ends(
    complete: Complete, server: EchoServer, bucket: UPath
) -> None:
    async with under_way(complete, server, output_path=bucket / "out.jsonl", identity="work"):
        lease = bucket / ".out.jsonl.lock"
        wanted = json.loads(lease.read_text())
        assert (wanted["identity"], wanted["pid"]) == ("work", os.getpid())
        while json.loads(lease.read_text())["renewed"] < 2:
            await asyncio.sleep(0.01)
    assert not lease.exists()


async def test_two_outputs_in_one_folder_do_not_lock_each_other(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    async with under_way(complete, server):
        server.answer = lambda _: None
        assert (await complete(questions(3), output_path=tmp_path / "b.jsonl")).counts.success == 3


async def test_who_waits_for_success_does_not_see_an_earlier_runs(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    await complete(questions(20), identity="today")
    marker = tmp_path / "_SUCCESS.out.jsonl"
    assert marker.read_bytes() == b""
    server.requests.clear()
    async with under_way(complete, server, identity="tomorrow"):
        assert not marker.exists()
        assert len(read(tmp_path / "out.jsonl")) == 20, "the earlier output stands until there is a new one"
    marker.unlink(missing_ok=True)
    server.answer = lambda _: None
    await complete(questions(20), identity="tomorrow")
    marker.unlink()
    sent = server.queries.total()
    await complete(questions(20), identity="tomorrow")
    assert marker.exists(), "a run that was killed before it could say so"
    assert server.queries.total() == sent


@pytest.mark.parametrize("name", ["outputs", "outputs/*", "output*/**"])
async def test_a_folder_of_outputs_is_read_without_its_markers(
    complete: Complete, server: EchoServer, tmp_path: Path, name: str
) -> None:
    await complete(questions(2), output_path=tmp_path / "outputs" / "a.jsonl")
    (tmp_path / "outputs" / "a.jsonl.manifest.json").unlink()
    manifest = await complete(
        tmp_path / name, prompt_template="{output}", output_path=tmp_path / "again.jsonl"
    )
    assert manifest.counts.success == 2
