"""Equal prompts that are sent once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, read, refused
from faults import Act, error, reply
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.completions.row_keys import RowKeys

ROWS = [{"q": f"question {number % 7}", "key": number} for number in range(50)]
GREEDY: dict[str, Any] = {"deduplicate": True, "temperature": 0, "id_column": "key"}


def with_usage(query: str) -> Act:
    usage = {"promptTokens": 9, "completionTokens": 1}
    return reply(body={"finishReason": "stop", "generatedOutput": f"echo {query}", "usage": usage})


async def test_equal_prompts_are_sent_once_and_every_row_has_a_record_of_its_own(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = with_usage
    manifest = await complete(ROWS, **GREEDY)
    assert dict(server.queries) == {f"question {number}": 1 for number in range(7)}
    records = read(tmp_path / "out.jsonl")
    assert [(row["index"], row["id"], row["output"]) for row in records] == [
        (number, number, f"echo question {number % 7}") for number in range(50)
    ]
    assert [row["attempts"] for row in records] == [1] * 7 + [0] * 43
    assert [row["row"] for row in records] == ROWS
    assert (manifest.counts.success, manifest.attempts, manifest.retries) == (50, 7, 0)
    assert (manifest.prompt_tokens, manifest.completion_tokens) == (63, 7)
    assert all(row["usage"] is None for row in records[7:])


async def test_what_is_sent_anew_is_said_only_where_the_answer_cannot_be_another(
    complete: Complete, server: EchoServer
) -> None:
    for parameters in ({}, {"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.5}):
        with pytest.raises(InvalidRequestError, match=r"deduplicate: .*give temperature=0"):
            await complete(ROWS, deduplicate=True, **parameters)
    assert not server.requests
    assert (await complete(ROWS, deduplicate=True, top_k=1)).attempts == 7
    assert (await complete(ROWS, deduplicate=True, guidance=["yes", "no"])).counts.invalid_output == 50


async def test_a_run_that_was_stopped_goes_on_without_sending_a_prompt_twice(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: HANG if query == "question 4" else None
    task = asyncio.create_task(complete(ROWS, concurrency=1, **GREEDY))  # type: ignore[arg-type]
    while not server.queries["question 4"]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.answer = lambda _: None
    manifest = await complete(ROWS, **GREEDY)
    assert manifest.counts.success == 50
    assert manifest.resumed_rows > 4
    assert server.queries == {f"question {number}": 1 + (number == 4) for number in range(7)}


async def test_the_copies_of_a_row_that_failed_have_failed_with_it_and_are_mended_with_it(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: {"question 1": refused(query), "question 2": error(502, "broken")}.get(
        query
    )
    manifest = await complete(ROWS, max_rows=6, **GREEDY)
    assert manifest.counts.model_dump() == {"success": 29, "error": 14, "invalid_output": 0, "not_run": 7}
    server.answer = lambda _: None
    manifest = await complete(ROWS, **GREEDY)
    assert manifest.counts.error == sum(number % 7 == 1 for number in range(50))
    assert server.queries["question 1"] == 1
    assert server.queries["question 2"] == 6
    assert [row["attempts"] for row in read(tmp_path / "out.jsonl")][:7] == [1, 1, 6, 1, 1, 1, 1]


async def test_copies_do_not_count_against_max_rows(complete: Complete, server: EchoServer) -> None:
    rows = [{"q": "same", "key": number} for number in range(1000)]
    manifest = await complete(rows, max_rows=1, **GREEDY)
    assert (manifest.counts.success, manifest.ended) == (1000, None)
    assert server.queries == {"same": 1}


@given(prompts=st.lists(st.sampled_from(["a", "b", "c", "\ud800", ""]) | st.text(max_size=3)))
def test_each_prompt_is_led_by_the_first_that_is_the_same(prompts: list[str]) -> None:
    keys = RowKeys()
    for prompt in prompts:
        keys.add(prompt)
    assert list(keys.leaders()) == [prompts.index(prompt) for prompt in prompts]
