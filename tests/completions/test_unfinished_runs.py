"""Green means done: a run that lacks rows says so, keeps its journal, and the same call sends just these."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from echo_server import QUICK, Complete, EchoServer, questions, read, refused
from faults import MODEL_ID, cut, error, free_port, reply

from airflow_provider_gradient.api import GradientConnectionError
from airflow_provider_gradient.client import AsyncGradientClient, Timeouts
from airflow_provider_gradient.completions import (
    CompletionManifest,
    RunStoppedError,
    RunUnfinishedError,
    complete_dataset,
    merge_completions,
    plan_runs,
)
from airflow_provider_gradient.datasets import JournalError, write_rows

UNFINISHED = {"out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.manifest.json", "out.jsonl.journal.jsonl"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_run_that_lacks_rows_is_not_finished_and_the_same_call_sends_just_these(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: (
        cut() if query in ("question 1", "question 7") else refused(query) if query == "question 3" else None
    )
    with pytest.raises(RunUnfinishedError) as raised:
        await complete(questions(20))
    message = str(raised.value)
    assert "2 of 20 rows failed for a reason that may pass (2 GradientConnectionError)" in message
    assert "just these 2 rows are sent" in message
    manifest = raised.value.manifest
    assert manifest.left_over == 2
    assert not manifest.is_complete
    assert (manifest.counts.success, manifest.counts.error) == (17, 3)
    assert names(tmp_path) == UNFINISHED
    assert [line["status"] for line in read(tmp_path / "out.jsonl")].count("success") == 17

    server.answer = lambda _: None
    server.requests.clear()
    mended = await complete(questions(20))
    assert set(server.queries) == {"question 1", "question 7"}
    assert (mended.counts.success, mended.counts.error, mended.left_over) == (19, 1, 0)
    assert mended.resumed_rows == 18
    assert names(tmp_path) == UNFINISHED - {"out.jsonl.journal.jsonl"} | {"_SUCCESS.out.jsonl"}


async def test_a_run_that_may_lose_any_share_of_its_rows_is_not_finished_without_them_either(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda _: error(502, "bad gateway")
    with pytest.raises(RunUnfinishedError, match=r"110 of 110 rows.*110 ServerError.*bad gateway"):
        await complete(questions(110), max_error_rate=1)
    server.answer = lambda _: None
    assert (await complete(questions(110))).counts.success == 110


async def test_the_error_of_an_unfinished_run_keeps_its_manifest_where_it_is_sent_to_another_process(
    complete: Complete, server: EchoServer
) -> None:
    server.answer = lambda query: cut() if query == "question 1" else None
    with pytest.raises(RunUnfinishedError) as raised:
        await complete(questions(3))
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own
    assert (str(again), again.manifest) == (str(raised.value), raised.value.manifest)


async def test_the_rows_that_an_unfinished_run_lacks_can_be_run_as_those_that_failed(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: cut() if query == "question 1" else None
    with pytest.raises(RunUnfinishedError):
        await complete(questions(5))
    server.answer = lambda _: None
    server.requests.clear()
    earlier = tmp_path / "out.jsonl.manifest.json"
    manifest = await complete(None, only_failed_of=earlier, output_path=tmp_path / "all.jsonl")
    assert (manifest.counts.success, manifest.left_over) == (5, 0)
    assert set(server.queries) == {"question 1"}


async def test_a_budgets_end_leaves_rows_over_and_is_no_failure(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: error(429, "later") if query == "question 0" else None
    manifest = await complete(questions(2), max_seconds=0.5)
    assert (manifest.left_over, manifest.counts.not_run) == (1, 0)
    assert manifest.ended == "max_seconds, 0.5, is over"
    assert not manifest.is_complete
    assert names(tmp_path) == UNFINISHED
    server.answer = lambda _: None
    assert (await complete(questions(2))).resumed_rows == 1


async def test_a_hundred_rows_that_fail_one_after_another_end_a_run_at_any_time(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    sent = itertools.count()
    server.answer = lambda _: error(502, "gone") if next(sent) >= 300 else None
    with pytest.raises(
        RunStoppedError, match=r"100 of the last 100 rows failed \(100 ServerError\)"
    ) as raised:
        await complete(questions(1000), concurrency=4)
    assert not isinstance(raised.value, RunUnfinishedError)
    assert names(tmp_path) == {"out.jsonl.journal.jsonl"}
    server.answer = lambda _: None
    manifest = await complete(questions(1000))
    assert (manifest.resumed_rows, manifest.counts.success) == (300, 1000)


async def test_a_row_that_the_server_always_fails_on_while_it_answers_others_has_an_error_of_its_own(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.wait = 0.02
    body = {"message": "oops", "type": "odd"}
    server.answer = lambda query: reply(500, body, wait=0.1) if query == "question 1" else None
    manifest = await complete(questions(60), concurrency=2)
    assert (manifest.counts.success, manifest.counts.error, manifest.left_over) == (59, 1, 0)
    assert server.queries["question 1"] == QUICK.attempts
    assert (tmp_path / "_SUCCESS.out.jsonl").exists()
    [failed] = read(tmp_path / "out.jsonl.errors.jsonl")
    assert failed["error"] == {
        "type": "odd",
        "message": "oops (HTTP 500, odd); 5 times, while other requests were answered",
        "transient": False,
    }


async def test_a_server_that_fails_on_every_row_from_some_moment_on_is_no_rows_own_error(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    sent = itertools.count()
    server.answer = lambda _: error(500, "on fire") if next(sent) >= 20 else None
    with pytest.raises(RunUnfinishedError, match=r"30 of 50 rows .*\(30 ServerError\).*on fire"):
        await complete(questions(50), concurrency=4)
    server.answer = lambda _: None
    assert (await complete(questions(50))).resumed_rows == 20


async def test_a_500_is_sent_again_within_the_run(complete: Complete, server: EchoServer) -> None:
    trouble = iter([error(500, "oops")] * 4)
    server.answer = lambda query: next(trouble, None) if query == "question 1" else None
    assert (await complete(questions(3))).counts.success == 3


async def test_a_chain_is_run_again_after_a_500(complete: Complete, server: EchoServer) -> None:
    trouble = iter([error(500, "oops")] * 4)
    server.answer = lambda query: next(trouble, None) if query == "question 1!" else None
    manifest = await complete(questions(3), runnable="example_chains:asked", prompt_template=None)
    assert manifest.counts.success == 3


PROCESS = """
import sys, threading
sys.path[:0] = sys.argv[2:]
from echo_server import EchoServer
server = EchoServer(port=int(sys.argv[1]))
server.wait = 0.02
threading.Event().wait()
"""
"""An echo server that can be killed."""


@pytest.fixture
def killable() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """An echo server in a process of its own, and its port."""
    port, tests = free_port(), Path(__file__).parent
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(port), str(tests), str(tests.parent)])
    yield port, process
    process.kill()
    process.wait()


async def test_a_server_that_dies_for_good_ends_the_run_after_a_total_time_out_and_loses_nothing(
    killable: tuple[int, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    port, process = killable
    journal = tmp_path / "out.jsonl.journal.jsonl"

    async def run() -> CompletionManifest:
        credentials = {"access_token": "t", "workspace_id": "w", "base_url": f"http://127.0.0.1:{port}"}
        async with AsyncGradientClient(**credentials, timeouts=Timeouts(total=1.5)) as client:
            while not await is_there(client):
                await asyncio.sleep(0.05)
            return await complete_dataset(
                client,
                model_id=MODEL_ID,
                dataset=questions(300),
                output_path=tmp_path / "out.jsonl",
                prompt_column="q",
                concurrency=4,
            )

    async def kill() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 100:
            await asyncio.sleep(0.01)
        process.kill()

    killing = asyncio.create_task(kill())
    with pytest.raises(RunStoppedError, match=r"answered no request for 1.5 s.*no connection") as raised:
        await run()
    await killing
    assert not isinstance(raised.value, RunUnfinishedError)
    assert names(tmp_path) == {"out.jsonl.journal.jsonl"}
    done = {line["index"] for line in read(journal)[1:] if line.get("status") == "success"}
    assert 90 <= len(done) < 300

    with EchoServer(port=port) as server:
        manifest = await run()
    assert (manifest.counts.success, manifest.resumed_rows) == (300, len(done))
    assert server.queries == {f"question {index}": 1 for index in range(300) if index not in done}


async def is_there(client: AsyncGradientClient) -> bool:
    try:
        await client.get_model_adapter(MODEL_ID)
    except GradientConnectionError:
        return False
    return True


async def test_a_shard_that_is_not_finished_is_not_merged(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(20))
    runs = plan_runs(tmp_path / "in.jsonl", output_path=tmp_path / "out.jsonl", shards=2)
    server.answer = lambda query: cut() if query == "question 3" else None
    with pytest.raises(RunUnfinishedError) as raised:
        await complete(**runs[0])
    other = await complete(**runs[1])
    with pytest.raises(JournalError, match=r"shard 0 of 2 .* is not finished: 1 of its rows failed"):
        merge_completions([raised.value.manifest, other], output_path=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    server.answer = lambda _: None
    merged = merge_completions([await complete(**runs[0]), other], output_path=tmp_path / "out.jsonl")
    assert (merged.counts.success, merged.left_over) == (20, 0)


async def test_shards_that_ended_at_a_budget_are_merged_with_what_they_left_over_and_without_success(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(20))
    runs = plan_runs(tmp_path / "in.jsonl", output_path=tmp_path / "out.jsonl", shards=2)
    server.answer = lambda query: error(429, "later") if query == "question 3" else None
    manifests = [await complete(**run, max_seconds=1) for run in runs]
    merged = merge_completions(manifests, output_path=tmp_path / "out.jsonl")
    assert (merged.left_over, merged.is_complete) == (1, False)
    assert not (tmp_path / "_SUCCESS.out.jsonl").exists()


def test_the_command_of_a_run_that_is_not_finished_shows_what_there_is_and_fails(
    server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(3))
    server.answer = lambda query: error(501, "not now") if query == "question 1" else None
    command = [str(Path(sys.executable).with_name("gradient")), "complete-dataset", "--prompt-column", "q"]
    command += ["--json", MODEL_ID, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    environment = os.environ | {
        "GRADIENT_ACCESS_TOKEN": server.credentials["access_token"],
        "GRADIENT_WORKSPACE_ID": server.credentials["workspace_id"],
        "GRADIENT_API_URL": server.url,
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert json.loads(ended.stdout)["left_over"] == 1
    assert "Error: The run is not finished: 1 of 3 rows failed" in ended.stderr
