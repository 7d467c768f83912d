"""How a run sends: on a server that refuses, fails, asks for pauses, and on what a user allows."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, QUICK, Complete, EchoServer, questions, read, refused
from faults import MODEL_ID, cut, error, reply

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient, Timeouts
from airflow_provider_gradient.completions import (
    Progress,
    RunStoppedError,
    RunUnfinishedError,
    complete_dataset,
)


async def test_a_server_that_bears_few_is_found_out_and_every_row_is_answered(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    lock, busy, most = threading.Lock(), 0, 0

    def answer(query: str) -> Any:
        nonlocal busy, most
        with lock:
            if busy == 8:
                return error(429, "too many at once")
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return None

    server.answer = answer
    manifest = await complete(questions(600), concurrency=64)
    assert manifest.counts.success == 600
    assert most == 8
    assert manifest.concurrency is not None
    assert manifest.concurrency.cuts > 0
    assert manifest.concurrency.mean < 32
    assert manifest.attempts == server.queries.total()
    assert manifest.retries == manifest.attempts - 600
    assert manifest.attempts == sum(line["attempts"] for line in read(tmp_path / "out.jsonl"))


async def test_faults_at_any_load_neither_lose_a_row_nor_bring_the_concurrency_down(
    complete: Complete, server: EchoServer
) -> None:
    sent = itertools.count()
    faults = itertools.cycle([error(429, "slow down"), error(503, "busy"), cut()])
    server.answer = lambda _: next(faults) if next(sent) % 5 == 4 else None
    server.wait = 0.01
    manifest = await complete(questions(1500), concurrency=24)
    assert manifest.counts.success == 1500
    assert manifest.concurrency is not None
    assert manifest.concurrency.mean > 12


async def test_refusals_do_not_use_up_a_rows_attempts(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    trouble = iter([error(429, "slow down"), error(503, "busy")] * 3)
    server.answer = lambda query: next(trouble, None) if query == "question 1" else None
    manifest = await complete(questions(3))
    assert manifest.counts.success == 3
    assert [line["attempts"] for line in read(tmp_path / "out.jsonl")] == [1, 7, 1]


async def test_a_row_that_waits_to_be_sent_again_takes_nobodys_place(
    complete: Complete, server: EchoServer
) -> None:
    order: list[str] = []

    def answer(query: str) -> Any:
        order.append(query)
        first = query == "question 0" and order.count(query) == 1
        return reply(503, headers={"Retry-After": "0"}) if first else None

    server.answer = answer
    await complete(questions(50), concurrency=1)
    assert order.count("question 0") == 2
    assert len(order) == 51


async def test_the_whole_run_pauses_for_as_long_as_the_server_asks(
    complete: Complete, server: EchoServer
) -> None:
    came: list[float] = []
    refused_at: list[float] = []

    def answer(query: str) -> Any:
        came.append(time.monotonic())
        if query == "question 20" and not refused_at:
            refused_at.append(came[-1])
            return error(429, "come again", headers={"Retry-After": "2"})
        return None

    server.answer = answer
    server.wait = 0.01
    manifest = await complete(questions(100), concurrency=4)
    assert manifest.counts.success == 100
    later = [moment - refused_at[0] for moment in came if moment - refused_at[0] > 1.0]
    assert min(later) >= 1.99
    assert manifest.concurrency is not None
    assert (manifest.concurrency.pauses, manifest.concurrency.paused_seconds) == (1, 2.0)


async def test_a_pause_longer_than_the_total_time_ends_the_run_and_keeps_what_is_done(
    server: EchoServer, tmp_path: Path
) -> None:
    sent = itertools.count()
    server.answer = lambda _: (
        error(503, "maintenance", headers={"Retry-After": "3600"}) if next(sent) >= 30 else None
    )

    async def run() -> Any:
        async with AsyncGradientClient(
            **server.credentials, retries=QUICK, timeouts=Timeouts(total=60)
        ) as client:
            return await complete_dataset(
                client,
                model_id=MODEL_ID,
                dataset=questions(100),
                output_path=tmp_path / "out.jsonl",
                prompt_column="q",
                concurrency=2,
            )

    with pytest.raises(RunStoppedError, match=r"asks for a pause of 3600 s.*maintenance"):
        await run()
    server.answer = lambda _: None
    manifest = await run()
    assert 28 <= manifest.resumed_rows <= 30
    assert manifest.counts.success == 100


async def test_requests_a_minute_are_held_repeated_ones_included(
    complete: Complete, server: EchoServer
) -> None:
    trouble = iter([error(429, "slow down")] * 5)
    server.answer = lambda _: next(trouble, None)
    manifest = await complete(questions(20), requests_per_minute=1200)
    assert manifest.attempts == 25
    assert manifest.seconds >= 5 / 20


def with_tokens(tokens: int) -> Any:
    usage = {"promptTokens": tokens // 2, "completionTokens": tokens - tokens // 2}
    return reply(body={"generatedOutput": "yes", "finishReason": "stop", "usage": usage})


async def test_tokens_a_minute_are_held(complete: Complete, server: EchoServer) -> None:
    server.answer = lambda _: with_tokens(100)
    manifest = await complete(questions(15), tokens_per_minute=60_000)
    assert (manifest.prompt_tokens, manifest.completion_tokens) == (750, 750)
    assert manifest.seconds >= 0.3, "what is kept for a burst is a second's worth, 1000"


async def test_tokens_a_minute_are_refused_where_the_server_reports_none(
    complete: Complete, server: EchoServer
) -> None:
    with pytest.raises(InvalidRequestError, match="tokens_per_minute: this server reports no tokens"):
        await complete(questions(15), tokens_per_minute=1000)
    assert server.queries.total() == 1
    assert (await complete(questions(15))).resumed_rows == 1


async def test_a_run_in_which_the_first_hundred_rows_fail_ends_there(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = refused
    with pytest.raises(RunStoppedError, match=r"100 of the last 100 rows failed.*unprocessableContent"):
        await complete(questions(1000), concurrency=4)
    assert server.queries.total() <= 104
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.journal.jsonl"]


async def test_an_error_rate_above_the_one_allowed_ends_the_run_and_a_retry_goes_on(
    complete: Complete, server: EchoServer
) -> None:
    sent = itertools.count()
    server.answer = lambda _: cut() if next(sent) >= 200 else None
    with pytest.raises(RunStoppedError, match=r"11 of the last 100.*max_error_rate is 0.1"):
        await complete(questions(1000), max_error_rate=0.1, concurrency=4)
    before = server.queries.total()
    server.answer = lambda _: None
    manifest = await complete(questions(1000), max_error_rate=0.1)
    assert manifest.resumed_rows == 200, "the 11 that had failed are sent again"
    assert manifest.counts.success == 1000
    assert before + 800 <= server.queries.total() <= before + 800 + 4, "4 were in flight when it ended"


async def test_rows_that_failed_for_a_reason_that_may_pass_are_sent_again_by_the_run_that_resumes(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    failures = {"question 1": cut(), "question 2": refused("question 2"), "question 3": error(502, "oops")}
    failures["question 6"] = HANG
    server.answer = failures.get
    for _ in range(2):
        asked = server.queries["question 6"]
        task = asyncio.create_task(complete(questions(10), concurrency=1))  # type: ignore[arg-type]
        while server.queries["question 6"] == asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    server.answer = lambda _: None
    manifest = await complete(questions(10))
    lines = read(tmp_path / "out.jsonl")
    assert [line["status"] for line in lines].count("error") == 1
    assert lines[2]["error"]["transient"] is False
    assert [line["attempts"] for line in lines] == [1, 11, 1, 11, 1, 1, 1, 1, 1, 1]
    assert manifest.attempts == 30
    assert server.queries["question 2"] == 1
    assert manifest.resumed_rows == 4


async def test_a_row_that_keeps_failing_is_marked_as_one_that_may_pass(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: error(502, "oops", type="odd") if query == "question 1" else None
    with pytest.raises(RunUnfinishedError):
        await complete(questions(3))
    assert read(tmp_path / "out.jsonl.errors.jsonl")[0]["error"] == {
        "type": "odd",
        "message": "oops (HTTP 502, odd)",
        "transient": True,
    }


async def test_progress_tells_what_is_in_flight_and_which_requests_failed(
    complete: Complete, server: EchoServer
) -> None:
    trouble = iter([error(429, "slow down"), error(503, "busy"), cut(), error(429, "slow down")])
    server.answer = lambda query: next(trouble, None) if query == "question 1" else None
    seen: list[Progress] = []
    await complete(questions(20), on_progress=seen.append)
    assert seen[-1].failures == {"RateLimitError": 2, "ServerError": 1, "GradientConnectionError": 1}
    assert (seen[-1].done, seen[-1].in_flight, seen[-1].seconds_left) == (20, 0, 0.0)


async def test_a_manifest_written_before_there_was_a_concurrency_summary_is_read(
    complete: Complete, server: EchoServer
) -> None:
    manifest = await complete(questions(3))
    fields = manifest.to_dict()
    assert fields.pop("concurrency") == {
        "min": 16,
        "mean": 16.0,
        "max": 16,
        "cuts": 0,
        "pauses": 0,
        "paused_seconds": 0.0,
    }
    assert type(manifest).from_dict(fields).concurrency is None
