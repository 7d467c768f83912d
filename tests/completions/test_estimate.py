"""What a run would send, told without sending it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, QUICK, Complete, EchoServer, questions, read
from faults import MODEL_ID
from upath import UPath

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import CompletionEstimate, estimate_completions
from airflow_provider_gradient.datasets import DatasetError

TOKENIZER = Path(__file__).parents[2] / "airflow_provider_gradient" / "server" / "tiny_model"

Estimate = Callable[..., Awaitable[CompletionEstimate]]


@pytest.fixture
def estimate(server: EchoServer, tmp_path: Path) -> Estimate:
    """``estimate_completions`` on the echo server, of what the fixture ``complete`` would do."""

    async def run(dataset: Any, **arguments: Any) -> CompletionEstimate:
        given = {
            "model_id": MODEL_ID,
            "output_path": tmp_path / "out.jsonl",
            "prompt_template": "{q}",
        } | arguments
        async with AsyncGradientClient(**server.credentials, retries=QUICK) as client:
            return await estimate_completions(client, dataset=dataset, **given)

    return run


async def test_an_estimate_counts_and_sends_nothing(
    estimate: Estimate, server: EchoServer, tmp_path: Path
) -> None:
    rows = [*questions(12), {"q": "question 3"}]
    found = await estimate(rows, prompt_template="Ask: {q}", max_generated_token_count=20)
    prompts = [f"Ask: {row['q']}" for row in rows]
    assert found.to_dict() == {
        "source": "inline",
        "model_id": MODEL_ID,
        "rows": 13,
        "done_rows": 0,
        "distinct_rows": 12,
        "characters": sum(map(len, prompts)),
        "longest_prompt": max(map(len, prompts)),
        "prompt_tokens": None,
        "max_completion_tokens": 260,
    }
    assert not server.queries
    assert list(tmp_path.iterdir()) == []


async def test_with_deduplicate_only_distinct_prompts_may_be_answered(estimate: Estimate) -> None:
    arguments = {"max_generated_token_count": 20, "temperature": 0, "deduplicate": True}
    assert (await estimate([{"q": "a"}, {"q": "a"}], **arguments)).max_completion_tokens == 20
    with pytest.raises(InvalidRequestError, match="deduplicate"):
        await estimate([{"q": "a"}], deduplicate=True)


@pytest.mark.parametrize("path", [TOKENIZER, TOKENIZER / "tokenizer.json"], ids=["folder", "file"])
async def test_tokens_are_counted_by_the_models_own_tokenizer(estimate: Estimate, path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    found = await estimate(questions(20), tokenizer=path)
    assert found.prompt_tokens == sum(len(tokenizer.encode(row["q"]).ids) for row in questions(20))


@pytest.mark.parametrize("name", ["nowhere", "text.json"])
async def test_a_tokenizer_that_cannot_be_read_is_an_error_that_says_so(
    estimate: Estimate, tmp_path: Path, name: str
) -> None:
    (tmp_path / "text.json").write_text("no tokenizer")
    with pytest.raises(InvalidRequestError, match=f"tokenizer: .*{name}"):
        await estimate(questions(2), tokenizer=tmp_path / name)


@pytest.mark.parametrize("kind", ["local", "memory"])
async def test_what_an_earlier_run_has_done_is_told_and_its_journal_is_left_as_it_is(
    complete: Complete, estimate: Estimate, server: EchoServer, tmp_path: Path, kind: str
) -> None:
    folder: Any = tmp_path if kind == "local" else UPath(f"memory://{tmp_path.name}")
    arguments: dict[str, Any] = {"output_path": folder / "out.jsonl", "identity": "work"}
    server.answer = lambda query: HANG if query == "question 30" else None
    task = asyncio.create_task(complete(questions(50), concurrency=1, **arguments))  # type: ignore[arg-type]
    while server.queries.total() < 31:
        await asyncio.sleep(0.01)
    if kind == "local":
        assert (await estimate(questions(50), **arguments)).done_rows == 30, "while it runs"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await estimate(questions(50), **arguments)).done_rows == 30
    assert (await estimate(questions(50), **arguments | {"identity": "another"})).done_rows == 0
    assert (await estimate(questions(50), **arguments, temperature=1)).done_rows == 0
    server.answer = lambda _: None
    assert (await complete(questions(50), **arguments)).resumed_rows == 30
    assert (await estimate(questions(50), **arguments)).done_rows == 50


async def test_a_row_that_is_wrong_is_an_error_as_it_would_be_in_the_run(estimate: Estimate) -> None:
    with pytest.raises(DatasetError, match="row 1 of the inline dataset: the prompt is empty"):
        await estimate([{"q": "a"}, {"q": " "}])
    with pytest.raises(InvalidRequestError, match=r"max_?generated_?token_?count"):
        await estimate([{"q": "a"}], max_generated_token_count=0)


async def test_what_a_budget_left_is_what_is_left(
    complete: Complete, estimate: Estimate, tmp_path: Path
) -> None:
    manifest = await complete(questions(10), max_rows=4)
    assert (await estimate(questions(10))).done_rows == 4
    left = await estimate(None, only_failed_of=manifest, output_path=tmp_path / "all.jsonl")
    assert (left.rows, left.done_rows) == (6, 0)
    assert len(read(tmp_path / "out.jsonl.errors.jsonl")) == 6
