"""How far a run is, as a file beside its output, as a bar and as lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, questions, refused
from faults import ACCESS_TOKEN, cut, error, html, reply
from rich.console import Console
from upath import UPath

from airflow_provider_gradient.completions import Counts, Progress, ProgressBar, progress
from airflow_provider_gradient.completions.progress import ProgressFile


def at(done: int, *, seconds: float = 10.0, **fields: Any) -> Progress:
    return Progress(
        rows=200,
        done=done,
        counts=Counts(success=done - 1, error=1),
        resumed_rows=50,
        seconds=seconds,
        in_flight=16,
        failures={"RateLimitError": 3, "ServerError": 1},
        prompt_tokens=1200,
        completion_tokens=340,
        **fields,
    )


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written whenever the journal is committed."""
    monkeypatch.setattr(progress, "_LOCAL_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_REMOTE_SECONDS", 0.0)


async def test_while_a_run_lasts_its_progress_stands_beside_the_output_and_then_goes(
    often: None, complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    def answer(query: str) -> Any:
        if query == "question 2":
            return error(429, "slow down") if server.queries[query] == 1 else HANG
        usage = {"promptTokens": 3, "completionTokens": 2, "totalTokens": 5}
        return reply(body={"finishReason": "stop", "generatedOutput": query, "usage": usage})

    server.answer = answer
    task = asyncio.create_task(complete(questions(5), identity="dag/run/task/-1"))  # type: ignore[arg-type]
    file = tmp_path / "out.jsonl.progress.json"
    while not file.exists() or (told := json.loads(file.read_text()))["done"] < 4 or not told["in_flight"]:
        await asyncio.sleep(0.05)
    updated = datetime.fromisoformat(told.pop("updated_at"))
    assert abs((datetime.now(UTC) - updated).total_seconds()) < 60
    assert told.pop("rows_per_second") == pytest.approx(4 / told["seconds"])
    assert told.pop("seconds_left") == pytest.approx(told.pop("seconds") / 4)
    assert told == {
        "schema_version": 1,
        "identity": "dag/run/task/-1",
        "output_path": str(tmp_path / "out.jsonl"),
        "rows": 5,
        "done": 4,
        "counts": {"success": 4, "error": 0, "invalid_output": 0, "not_run": 0},
        "resumed_rows": 0,
        "in_flight": 1,
        "failures": {"RateLimitError": 1},
        "prompt_tokens": 12,
        "completion_tokens": 8,
    }
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.journal.jsonl"]


def test_progress_that_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    path = UPath(tmp_path / "out.jsonl")
    with ProgressFile(path) as file:
        file.write(at(150, identity="a/b/c/0", output_path=str(path)))
        stored = (tmp_path / "out.jsonl.progress.json").read_text()
    assert Progress.model_validate_json(stored).model_dump_json(indent=2) + "\n" == stored
    assert not (tmp_path / "out.jsonl.progress.json").exists()


async def test_what_a_killed_run_left_goes_with_the_next_and_where_it_cannot_be_written_nothing_stops(
    often: None, complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    left = tmp_path / "out.jsonl.progress.json"
    left.write_text("{}")
    await complete(questions(3))
    assert not left.exists()
    left.write_text("{}")
    assert (await complete(questions(3))).resumed_rows == 3
    assert not left.exists()
    left.mkdir()
    assert (await complete(questions(3))).resumed_rows == 3
    server.wait = 0.7
    assert (await complete(questions(4))).counts.success == 4


def test_a_terminal_shows_a_bar_and_no_lines() -> None:
    shown = io.StringIO()
    with ProgressBar(Console(file=shown, force_terminal=True, width=120)) as bar:
        bar(at(100))
        bar(at(150, seconds=20.0))
    text = shown.getvalue()
    assert "150/200" in text
    assert "5.0 rows/s" in text
    assert "16 in flight" in text
    assert "1540 tokens" in text
    assert "of 200 rows" not in text


def test_elsewhere_there_is_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    shown = io.StringIO()
    with ProgressBar(Console(file=shown, width=40)) as bar:
        for seconds in range(1, 25):
            bar(at(60 + seconds, seconds=float(seconds)))
        bar(at(200, seconds=25.0))
    assert shown.getvalue().splitlines() == [
        "70 of 200 rows, 1 errors, 2.0 rows/s, 16 in flight, 1200 + 340 tokens, 0:01:05 left; "
        "failed requests: RateLimitError 3, ServerError 1",
        "80 of 200 rows, 1 errors, 1.5 rows/s, 16 in flight, 1200 + 340 tokens, 0:01:20 left; "
        "failed requests: RateLimitError 3, ServerError 1",
        "200 of 200 rows, 1 errors, 6.0 rows/s, 16 in flight, 1200 + 340 tokens, 0:00:00 left; "
        "failed requests: RateLimitError 3, ServerError 1",
    ]


async def test_the_token_is_in_nothing_that_a_run_writes(
    often: None,
    complete: Complete,
    server: EchoServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def answer(query: str) -> Any:
        number = int(query.split()[1])
        again = server.queries[query] > 1
        trouble = {1: refused(query), 2: error(500, "oops"), 3: error(429, "slow down"), 4: cut(), 5: html()}
        return HANG if number == 6 and not again else trouble.get(number) if not again else None

    def written() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}

    server.answer = answer
    caplog.set_level(logging.DEBUG)
    with ProgressBar() as bar:
        arguments = {"on_progress": bar, "progress_seconds": 0.0}
        task = asyncio.create_task(complete(questions(8), **arguments))  # type: ignore[arg-type]
        while b'"done": 7' not in (during := written()).get("out.jsonl.progress.json", b""):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await complete(questions(8), **arguments)
    after = written()
    assert set(during) == {"out.jsonl.journal.jsonl", "out.jsonl.progress.json"}
    assert set(after) == {"out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.manifest.json"}
    shown = "".join(capfd.readouterr())
    assert "of 8 rows" in shown
    assert "out.jsonl: 7 of 8 rows are done already" in caplog.text
    for content in (*during.values(), *after.values(), shown.encode(), caplog.text.encode()):
        assert ACCESS_TOKEN.encode() not in content
