"""A row never has another row's answer, and an answer that is too large is its own row's error alone."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, Script, reply

from airflow_provider_gradient.client import AsyncGradientClient, ResponseLimits, RetryPolicy
from airflow_provider_gradient.completions import CompletionManifest, complete_dataset
from airflow_provider_gradient.embeddings import embed_dataset

QUICK = RetryPolicy(attempts=5, base=0.01)
ROWS = [{"q": f"row {index}"} for index in range(60)]


async def complete(server: FaultyServer, folder: Path, **settings: Any) -> CompletionManifest:
    async with AsyncGradientClient(**server.credentials, retries=QUICK, **settings) as client:
        return await complete_dataset(
            client,
            model_id=MODEL_ID,
            dataset=ROWS,
            prompt_column="q",
            output_path=folder / "out.jsonl",
            concurrency=4,
        )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


ADAPTER = reply(
    body={
        "type": "modelAdapter",
        "id": MODEL_ID,
        "name": "mine",
        "baseModelId": "base",
        "latestUpdateTime": "2026-01-01T00:00:00Z",
    }
)
"""The answer to the first request, which asks for the model."""


def echo(request: Received) -> Act:
    return reply(
        body={"finishReason": "stop", "generatedOutput": request.json()["query"]},
        headers={"X-Request-Id": request.headers["x-request-id"]},
    )


def twice(after: float) -> Script:
    """Every seventh row is answered twice."""

    def act(request: Received) -> Act:
        answer = echo(request).send
        again = answer if int(request.json()["query"].split()[1]) % 7 == 0 else b""
        return Act(send=answer, then=again, then_after=after)

    return act


@pytest.mark.parametrize("after", [0.0, 0.003])
async def test_every_row_has_its_own_answer_from_a_server_that_answers_some_of_them_twice(
    tmp_path: Path, after: float
) -> None:
    with FaultyServer(ADAPTER, twice(after)) as server:
        manifest = await complete(server, tmp_path)
    assert manifest.counts.success == len(ROWS)
    assert [row["output"] for row in rows_of(tmp_path)] == [row["q"] for row in ROWS]


def too_large(request: Received) -> Act:
    if b"row 8" not in request.body:
        return echo(request)
    return Act(send=b"HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\n", endless=bytes(1 << 16))


async def test_an_answer_that_is_too_large_is_its_rows_error_for_good(tmp_path: Path) -> None:
    with FaultyServer(ADAPTER, too_large) as server:
        manifest = await complete(server, tmp_path, limits=ResponseLimits(body_bytes=1 << 20))
    assert manifest.counts.model_dump(exclude_defaults=True) == {"success": 59, "error": 1}
    assert len(server.requests) == 1 + len(ROWS)
    (failed,) = (row for row in rows_of(tmp_path) if row["status"] == "error")
    assert failed["index"] == 8
    assert failed["error"]["type"] == "ResponseTooLargeError"
    assert "the answer is larger than 1048576 bytes; raise" in failed["error"]["message"]
    assert not failed["error"]["transient"]


async def test_an_answer_takes_little_more_memory_than_it_may(tmp_path: Path) -> None:
    with FaultyServer(ADAPTER, too_large) as server:
        tracemalloc.start()
        try:
            await complete(server, tmp_path, limits=ResponseLimits(body_bytes=16 << 20))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 24 << 20


async def test_vectors_that_are_too_large_are_their_rows_errors_for_good(tmp_path: Path) -> None:
    act = Act(send=b"HTTP/1.1 500 Error\r\nContent-Length: 3000000000\r\n\r\n", endless=bytes(1 << 16))
    limits = ResponseLimits(body_bytes=1 << 20)
    with FaultyServer(act) as server:
        async with AsyncGradientClient(**server.credentials, retries=QUICK, limits=limits) as client:
            manifest = await embed_dataset(
                client,
                model="bge-large",
                dataset=ROWS[:2],
                text_column="q",
                output_path=tmp_path / "vectors.parquet",
            )
    assert manifest.counts.error == 2
    assert len(server.requests) <= 3  # a batch that fails is tried row by row
