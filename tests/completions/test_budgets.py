"""Runs that end at a budget, and go on from there; rows that end at their deadline."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, questions, read, refused
from faults import MODEL_ID, Act, error, reply, wait_until

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient, RetryPolicy, Timeouts
from airflow_provider_gradient.completions import CompletionManifest, RunUnfinishedError, complete_dataset
from airflow_provider_gradient.completions.budgets import Budget, Budgets
from airflow_provider_gradient.datasets import read_rows, write_rows
from airflow_provider_gradient.evaluation import EvaluationError, evaluate


def with_usage(query: str, *, tokens: int) -> Act:
    usage = {"promptTokens": tokens - 1, "completionTokens": 1}
    return reply(body={"finishReason": "stop", "generatedOutput": f"echo {query}", "usage": usage})


def statuses(path: Path) -> list[str]:
    return [row["status"] for row in read(path)]


async def test_max_rows_ends_a_run_with_a_row_of_output_for_every_row_and_the_next_goes_on(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    first = await complete(questions(25), max_rows=10)
    assert server.queries.total() == 10
    assert first.counts.model_dump() == {"success": 10, "error": 0, "invalid_output": 0, "not_run": 15}
    assert "max_rows, 10," in (first.ended or "")
    assert statuses(tmp_path / "out.jsonl") == ["success"] * 10 + ["not_run"] * 15
    assert [row["row"] for row in read(tmp_path / "out.jsonl.errors.jsonl")] == questions(25)[10:]
    assert (tmp_path / "out.jsonl.journal.jsonl").exists()
    assert not (tmp_path / "_SUCCESS.out.jsonl").exists()

    second = await complete(questions(25), max_rows=10)
    assert (second.counts.success, second.counts.not_run, second.resumed_rows) == (20, 5, 10)
    third = await complete(questions(25), max_rows=10)
    assert (third.counts.success, third.counts.not_run, third.ended) == (25, 0, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("_SUCCESS.out.jsonl", "out.jsonl", "out.jsonl.manifest.json")
    ]
    assert server.queries.total() == len(server.queries) == 25


async def test_a_budget_is_no_part_of_the_work_so_a_run_without_one_goes_on_too(
    complete: Complete, server: EchoServer
) -> None:
    await complete(questions(12), max_rows=5)
    assert (await complete(questions(12))).resumed_rows == 5
    assert server.queries.total() == 12


async def test_max_seconds_ends_a_run_but_awaits_what_is_in_flight(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.wait = 0.5
    manifest = await complete(questions(500), max_seconds=0.6, concurrency=4)
    assert "max_seconds, 0.6, is over" in (manifest.ended or "")
    assert 0 < manifest.counts.success == server.queries.total() <= 12
    assert manifest.counts.success + manifest.counts.not_run == 500
    server.wait = 0.0
    assert (await complete(questions(500))).counts.success == 500
    assert server.queries.total() == 500


async def test_a_row_that_waits_to_be_sent_again_when_the_time_is_over_failed_for_a_reason_that_may_pass(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: error(429, "later") if query == "question 0" else None
    manifest = await complete(questions(2), max_seconds=1)
    assert manifest.counts.model_dump() == {"success": 1, "error": 1, "invalid_output": 0, "not_run": 0}
    record = read(tmp_path / "out.jsonl")[0]
    assert record["error"]["transient"]
    assert record["attempts"] == server.queries["question 0"] > 1


async def test_a_row_that_is_refused_after_the_time_was_over_failed_for_a_reason_that_may_pass(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda _: reply(429, {"message": "later"}, wait=0.6)
    manifest = await complete(questions(3), max_seconds=0.2, concurrency=1)
    assert manifest.counts.model_dump() == {"success": 0, "error": 1, "invalid_output": 0, "not_run": 2}
    assert read(tmp_path / "out.jsonl")[0]["error"]["transient"]
    server.answer = lambda _: None
    assert (await complete(questions(3))).counts.success == 3


async def test_max_tokens_ends_a_run_before_it_takes_more(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: with_usage(query, tokens=10)
    first = await complete(questions(30), max_tokens=105, concurrency=8)
    assert (first.counts.success, first.counts.not_run) == (10, 20)
    assert (first.prompt_tokens, first.completion_tokens) == (90, 10)
    second = await complete(questions(30), max_tokens=105)
    assert (second.counts.success, second.prompt_tokens) == (20, 180)


async def test_max_tokens_on_a_server_that_reports_none_is_an_error_after_the_first_row(
    complete: Complete, server: EchoServer
) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens: this server reports no tokens"):
        await complete(questions(30), max_tokens=100, concurrency=8)
    assert server.queries.total() == 1


async def test_a_run_of_a_budget_that_is_killed_goes_on_after_what_it_did(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(40))
    await complete(tmp_path / "in.jsonl", max_rows=10)
    server.answer = lambda query: HANG if query == "question 15" else None
    program = """
import asyncio, json, sys
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
async def main(credentials, arguments):
    async with AsyncGradientClient(**credentials) as client:
        await complete_dataset(client, **arguments)
asyncio.run(main(*map(json.loads, sys.argv[1:])))
"""
    arguments = {
        "model_id": "0" * 36 + "_model_adapter",
        "dataset": str(tmp_path / "in.jsonl"),
        "output_path": str(tmp_path / "out.jsonl"),
        "prompt_template": "{q}",
        "concurrency": 1,
        "max_rows": 20,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(server.credentials), json.dumps(arguments)]
    )
    wait_until(lambda: server.queries["question 15"] == 1, seconds=60)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    server.answer = lambda _: None
    manifest = await complete(tmp_path / "in.jsonl", max_rows=20)
    assert (manifest.resumed_rows, manifest.counts.success, manifest.counts.not_run) == (15, 35, 5)
    assert server.queries["question 15"] == 2


async def test_rows_that_all_failed_before_the_budget_ended_are_told_as_such(
    complete: Complete, server: EchoServer
) -> None:
    server.answer = refused
    manifest = await complete(questions(10), max_rows=3)
    assert manifest.counts.model_dump() == {"success": 0, "error": 3, "invalid_output": 0, "not_run": 7}
    assert manifest.all_failed


@pytest.mark.parametrize(
    "budget", [{"max_rows": 0}, {"max_tokens": 0}, {"max_seconds": 0}, {"max_seconds": float("inf")}]
)
async def test_a_budget_out_of_range_is_refused_before_anything_is_sent(
    complete: Complete, server: EchoServer, budget: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(budget))):
        await complete(questions(2), **budget)
    assert not server.requests


def test_a_token_budget_waits_for_answers_before_it_says_that_it_is_spent() -> None:
    budget = Budget(Budgets(max_tokens=100), now=0.0)
    assert budget.allows(0.0, in_flight=0)
    assert not budget.allows(0.0, in_flight=1)
    budget.on_answer(40)
    assert budget.allows(0.0, in_flight=0)
    assert not budget.allows(0.0, in_flight=1)
    assert budget.ended is None
    budget.on_answer(40)
    assert not budget.allows(0.0, in_flight=0)
    assert budget.ended == "max_tokens, 100, is reached: 80 are spent"


async def test_rows_that_were_not_run_are_in_no_metric(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    rows = [{"q": f"{number}", "answer": f"echo {number}"} for number in range(10)]
    manifest = await complete(rows, max_rows=4)
    report = evaluate(manifest, reference_column="answer", output_path=tmp_path / "scores.jsonl")
    assert (report.rows, report.metrics["exact_match"].value, report.metrics["exact_match"].n) == (4, 1.0, 4)
    assert report.counts == {"success": 4, "not_run": 6}
    assert len(list(read_rows(tmp_path / "scores.jsonl"))) == 4
    not_run = [row for row in read_rows(manifest) if row["status"] == "not_run"]
    with pytest.raises(EvaluationError, match="not one of its rows was run"):
        evaluate(not_run, reference_column="answer")


async def test_a_row_has_failed_at_its_deadline_for_a_reason_that_may_pass(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: {"question 1": HANG, "question 2": error(503, "busy")}.get(query)
    with pytest.raises(RunUnfinishedError) as raised:
        await complete(questions(4), row_deadline=0.5)
    manifest = raised.value.manifest
    assert isinstance(manifest, CompletionManifest)
    assert (manifest.counts.success, manifest.counts.error) == (2, 2)
    hung, refused_ = (read(tmp_path / "out.jsonl")[index] for index in (1, 2))
    assert hung["error"]["type"] == "GradientTimeoutError"
    assert hung["attempts"] == 1
    assert refused_["attempts"] == server.queries["question 2"] > 1
    assert hung["error"]["transient"]
    assert refused_["error"]["transient"]
    assert manifest.seconds < 30


async def test_a_deadline_beyond_the_clients_total_time_gives_the_row_that_time(
    server: EchoServer, tmp_path: Path
) -> None:
    began = time.monotonic()
    server.answer = lambda _: error(429, "later") if time.monotonic() < began + 1.5 else None
    retries = RetryPolicy(attempts=100, base=0.1, longest=0.1)
    async with AsyncGradientClient(
        **server.credentials, retries=retries, timeouts=Timeouts(total=0.4)
    ) as client:
        manifest = await complete_dataset(
            client,
            model_id=MODEL_ID,
            dataset=questions(1),
            output_path=tmp_path / "out.jsonl",
            prompt_template="{q}",
            row_deadline=60,
        )
    assert manifest.counts.success == 1


@pytest.mark.parametrize("asked", [{"prompt_template": "{q}!"}, {"runnable": "example_chains:asked"}])
async def test_a_row_is_sent_once_more_before_its_deadline_though_a_longer_wait_was_drawn(
    server: EchoServer, tmp_path: Path, asked: dict[str, str]
) -> None:
    trouble = iter([error(429, "later")])
    server.answer = lambda _: next(trouble, None)
    retries = RetryPolicy(base=600, longest=600)
    async with AsyncGradientClient(**server.credentials, retries=retries) as client:
        manifest = await complete_dataset(
            client,
            model_id=MODEL_ID,
            dataset=questions(1),
            output_path=tmp_path / "out.jsonl",
            row_deadline=2,
            **asked,  # type: ignore[arg-type]
        )
    assert (manifest.counts.success, server.queries) == (1, {"question 0!": 2})


async def test_a_deadline_that_is_no_time_is_refused(complete: Complete) -> None:
    with pytest.raises(InvalidRequestError, match="row_deadline"):
        await complete(questions(1), row_deadline=0)
