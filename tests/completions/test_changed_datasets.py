"""A run that goes on after its dataset was changed: what did not change is not sent again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, journaled, questions, read
from faults import MODEL_ID, completion, wait_until
from hypothesis import given
from hypothesis import strategies as st
from killed_run import start_run
from test_journal import HEADER, record_of
from upath import UPath

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.row_keys import NO_ROW, RowKeys
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.datasets import AppendLog, JournalError, dump_row, unsealed, write_rows


def lines_of(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(map(dump_row, rows))


async def test_a_killed_run_whose_dataset_was_edited_and_appended_to_sends_just_the_rows_that_are_new(
    server: EchoServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row | {"key": f"k{number}", "note": "old"} for number, row in enumerate(questions(60))]
    write_rows(tmp_path / "in.jsonl", rows)
    server.answer = lambda query: HANG if int(query.split()[1]) >= 40 else None
    arguments: dict[str, Any] = {
        "model_id": MODEL_ID,
        "dataset": str(tmp_path / "in.jsonl"),
        "output_path": str(tmp_path / "out.jsonl"),
        "prompt_template": "{q}",
        "id_column": "key",
        "identity": "dag/run/task/-1",
        "concurrency": 8,
    }
    process = start_run(server.credentials, **arguments)
    wait_until(lambda: journaled(tmp_path / "out.jsonl") == 40 or process.exitcode is not None, seconds=60)
    process.kill()
    process.join()

    new = {"q": "question 99", "topic": "new", "key": "first", "note": "new"}
    edited = [row | {"note": "read again", "key": f"{row['key']}!"} for row in rows]
    edited[7] = edited[7] | {"q": "question 7, corrected"}
    changed = [new, *edited[:20], *edited[22:], new | {"q": "question 100", "key": "last"}]
    write_rows(tmp_path / "in.jsonl", changed)
    server.answer = lambda _: None
    server.requests.clear()
    async with AsyncGradientClient(**server.credentials) as client:
        with caplog.at_level(logging.WARNING):
            manifest = await complete_dataset(client, **arguments)

    unanswered = [f"question {number}" for number in range(40, 60)]
    assert sorted(server.queries) == sorted(
        [*unanswered, "question 99", "question 100", "question 7, corrected"]
    )
    assert server.queries.total() == 23
    assert (manifest.rows, manifest.resumed_rows, manifest.counts.success) == (60, 37, 60)
    output = read(tmp_path / "out.jsonl")
    assert [row["row"] for row in output] == changed
    assert [row["output"] for row in output] == [f"echo {row['q']}" for row in changed]
    assert [(row["index"], row["id"]) for row in output] == list(enumerate(row["key"] for row in changed))
    assert (
        "of 60 rows, 37 have their answers from it and 23 are sent; 3 answers of rows that are" in caplog.text
    )


async def stopped_after(
    complete: Complete, server: EchoServer, dataset: Any, count: int, **arguments: Any
) -> None:
    """A run that is cancelled once ``count`` rows are answered."""
    answered = iter(range(count))
    answers = server.answer
    server.answer = lambda query: HANG if next(answered, None) is None else answers(query)
    task = asyncio.create_task(complete(dataset, concurrency=1, **arguments))  # type: ignore[arg-type]
    while server.queries.total() <= count:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.answer = answers
    server.requests.clear()


async def test_where_nothing_can_be_appended_the_answers_of_unchanged_rows_are_kept_too(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    output = UPath(f"memory://{tmp_path.name}") / "out.jsonl"
    await stopped_after(complete, server, questions(20), 12, output_path=output)
    changed = list(reversed(questions(30)))
    await stopped_after(complete, server, changed, 5, output_path=output)
    manifest = await complete(changed, output_path=output)
    assert manifest.resumed_rows == 12 + 5
    assert server.queries.total() == 13
    assert [row["output"] for row in read(output)] == [f"echo {row['q']}" for row in changed]


async def test_rows_with_equal_prompts_take_as_many_answers_as_there_are_in_their_order(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    numbers = iter(range(100))
    server.answer = lambda _: completion(f"answer {next(numbers)}")
    rows = [{"q": "same", "n": n} for n in range(4)]
    await stopped_after(complete, server, rows, 2)
    changed = [{"q": "other", "n": 9}, *rows, {"q": "same", "n": 4}]
    manifest = await complete(changed, concurrency=1)
    assert manifest.resumed_rows == 2
    assert server.queries == {"other": 1, "same": 3}
    assert [row["output"] for row in read(tmp_path / "out.jsonl")][1:3] == ["answer 0", "answer 1"]


async def test_a_runnables_answers_belong_to_rows_with_the_same_columns(
    complete: Complete, server: EchoServer
) -> None:
    rows = [{"q": f"question {number}", "n": number} for number in range(6)]
    arguments = {"runnable": "example_chains:asked", "prompt_template": None}
    await stopped_after(complete, server, rows, 4, **arguments)
    manifest = await complete([{**rows[0], "n": 7}, *rows[1:]], **arguments)
    assert manifest.resumed_rows == 3


def test_attempts_that_failed_count_on_for_a_row_that_moved(tmp_path: Path) -> None:
    output = UPath(tmp_path / "out.jsonl")

    def opened(fingerprint: str, prompts: str) -> Journal:
        keys = RowKeys()
        for prompt in prompts:
            keys.add(prompt)
        header = JournalHeader(identity=None, fingerprint=fingerprint, rows=len(prompts), request="r")
        return Journal(output, header, keys=keys, ids=lambda: prompts)

    with opened("one", "ab") as journal:
        journal.append(record_of(0, "transient", "a", 3, None))
        journal.append(record_of(1, "success", "b", 2, None))
    with opened("two", "bca") as journal:
        assert (journal.done, journal.spent(2), journal.given_up, journal.totals.attempts) == (1, 3, 1, 2)
        assert json.loads(journal.line(0)) == record_of(0, "success", "b", 2, None)
    with opened("two", "bca") as journal:
        assert (journal.done, journal.spent(2)) == (1, 3)


@given(
    earlier=st.lists(st.sampled_from("abc")),
    now=st.lists(st.sampled_from("abcd")),
    data=st.data(),
)
def test_each_row_takes_an_answer_to_its_own_prompt_and_no_answer_is_taken_twice_or_left_while_one_is_needed(
    earlier: list[str], now: list[str], data: st.DataObject
) -> None:
    answered = sorted(data.draw(st.sets(st.sampled_from(range(len(earlier)))))) if earlier else []
    before, after = RowKeys(), RowKeys()
    for prompt in earlier:
        before.add(prompt)
    for prompt in now:
        after.add(prompt)
    left = {prompt: [index for index in answered if earlier[index] == prompt] for prompt in "abcd"}
    expected = [left[prompt].pop(0) if left[prompt] else NO_ROW for prompt in now]
    assert list(after.matched(before, answered)) == expected


def as_version_1(journal: Path) -> None:
    """The journal as the first version wrote it: no keys, no checksums."""
    with AppendLog(journal) as log:
        head, _, *lines = [unsealed(line) for _, line in log.lines()]
    fields = json.loads(head) | {"schema_version": 1}
    del fields["request"]
    journal.write_bytes(dump_row(fields) + b"".join(lines))


async def test_a_journal_of_the_first_version_under_its_former_name_goes_on_without_a_request_more(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    rows = [row | {"key": number} for number, row in enumerate(questions(20))]
    await stopped_after(complete, server, rows, 12, id_column="key")
    journal = tmp_path / "out.jsonl.journal.jsonl"
    as_version_1(journal)
    journal.rename(tmp_path / "out.journal.jsonl")
    manifest = await complete(rows, id_column="key")
    assert (manifest.resumed_rows, server.queries.total()) == (12, 8)
    assert [row["output"] for row in read(tmp_path / "out.jsonl")] == [f"echo {row['q']}" for row in rows]


async def test_a_journal_of_the_first_version_with_a_line_of_another_rows_is_refused(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    rows = [row | {"key": number} for number, row in enumerate(questions(20))]
    await stopped_after(complete, server, rows, 12, id_column="key")
    journal = tmp_path / "out.jsonl.journal.jsonl"
    as_version_1(journal)
    content = journal.read_bytes().replace(b'{"index":11,', b'{"index":13,')
    journal.write_bytes(content)
    with pytest.raises(JournalError, match="has a line for row 13 that is not of its id, 13"):
        await complete(rows, id_column="key")
    assert journal.read_bytes() == content
    assert not server.queries


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_log_that_is_written_anew_has_the_old_lines_or_the_new_ones_wherever_it_is_killed(
    tmp_path: Path, place: str
) -> None:
    path = UPath(tmp_path if place == "local" else f"memory://{tmp_path.name}") / "log"

    def content() -> list[bytes]:
        with AppendLog(path) as log:
            return [line for _, line in log.lines()]

    def failing() -> Iterable[bytes]:
        yield b"new\n"
        raise ZeroDivisionError

    with AppendLog(path) as log:
        for number in range(3):
            log.append(b"%d\n" % number)
            log.commit()
        with pytest.raises(ZeroDivisionError):
            log.rewrite(failing())
    old = content()
    assert old == [b"0\n", b"1\n", b"2\n"]
    stored = [] if place == "local" else list(path.iterdir())
    parts = {part.name: part.read_bytes() for part in stored}
    with AppendLog(path) as log:
        log.rewrite(b"new " + log.read(offset) for offset, _ in list(log.lines()))
        new = [b"new 0\n", b"new 1\n", b"new 2\n"]
        assert [log.read(offset) for offset, _ in log.lines()] == new
        log.append(b"more\n")
    assert content() == [*new, b"more\n"]
    for deleted in range(len(parts) + 1) if parts else ():  # how far a kill let it come on an object store
        for part in list(path.iterdir()):
            part.unlink()
        for name in sorted(parts)[deleted:]:
            (path / name).write_bytes(parts[name])
        (path / "00000003.jsonl").write_bytes(b"")
        (path / "00000000-00000003.jsonl").write_bytes(b"".join(new))
        assert content() == (old if deleted == 0 else new)


async def test_a_finished_output_with_a_flipped_bit_is_not_taken_for_finished_and_that_is_said(
    complete: Complete, server: EchoServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await complete(questions(3))
    output = tmp_path / "out.jsonl"
    content = output.read_bytes()
    server.requests.clear()
    for change, reason in [
        (content.replace(b"echo question 1", b"echo question 3"), "its bytes have another SHA-256"),
        (content + b"\n", "it has 7"),
        (None, "it is gone"),
    ]:
        output.unlink() if change is None else output.write_bytes(change)
        caplog.clear()
        assert (await complete(questions(3))).resumed_rows == 0
        assert "is not as the run that finished it left it: " + reason in caplog.text
        assert "its rows are sent and paid for again" in caplog.text
    assert server.queries == Counter({f"question {number}": 3 for number in range(3)})
    assert output.read_bytes()[:40] == content[:40]


def test_the_line_of_another_row_is_never_used_for_a_row(tmp_path: Path) -> None:
    with Journal(UPath(tmp_path / "out.jsonl"), HEADER) as journal:
        for index in (1, 2):
            journal.append(record_of(index, "success", "text", 1, None))
        file = tmp_path / "out.jsonl.journal.jsonl"
        head, first, second = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(head + second + first)
        with pytest.raises(JournalError, match="has another row's line where that of row 1 was"):
            journal.line(1)
