"""The journal, whatever comes between: it holds what was acknowledged up to the cut, and no more."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from upath import UPath

from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.datasets import JournalError, dump_row, sealed

ROWS = 6
HEADER = JournalHeader(identity="work", fingerprint="f" * 64, rows=ROWS)

TEXTS = st.text(st.characters(), max_size=20)  # half surrogate pairs too
USAGES = st.none() | st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 999), "completion_tokens": st.integers(0, 999)}
)


def record_of(
    index: int, kind: str, text: str, attempts: int, usage: dict[str, int] | None
) -> dict[str, Any]:
    """A finished row as the sender writes it."""
    error = {"type": text, "message": text, "transient": kind == "transient"}
    return {
        "index": index,
        "id": text if attempts % 3 else attempts * 10**20,
        "status": "error" if kind == "transient" else kind,
        "output": None if kind in ("error", "transient") else text,
        "parsed": {"number": attempts} if attempts % 2 else None,
        "error": None if kind == "success" else error,
        "finish_reason": "stop",
        "model_id": text,
        "attempts": attempts,
        "latency_ms": attempts * 1.5,
        "usage": usage,
    }


RECORDS = st.builds(
    record_of,
    st.integers(0, ROWS - 1),
    st.sampled_from(["success", "success", "error", "invalid_output", "transient"]),
    TEXTS,
    st.integers(1, 9),
    USAGES,
)


class JournalMachine(RuleBasedStateMachine):
    """A journal and the records whose write has returned, over closings, kills and cuts."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.acknowledged: list[dict[str, Any]] = []
        self._start(b"")

    def _start(self, content: bytes) -> None:
        output = UPath(tempfile.mkdtemp(dir=self.folder.name), "out.jsonl")
        self.file = Path(output.with_name("out.jsonl.journal.jsonl"))
        self.file.write_bytes(content)
        self.journal = Journal(output, HEADER)

    def _go_on(self, content: bytes) -> None:
        """As another process that finds ``content``: missing is what never came, or failed for a reason that
        may pass."""
        with self.journal:
            self._start(content)
        kept, spent = self._resumed()
        assert self.journal.resumed == self.journal.done == len(kept)
        assert self.journal.given_up == len(spent)
        assert {index: self.journal.spent(index) for index in spent} == spent

    def _resumed(self) -> tuple[dict[int, dict[str, Any]], dict[int, int]]:
        kept: dict[int, dict[str, Any]] = {}
        spent: dict[int, int] = {}
        for record in self.acknowledged:
            if (record["error"] or {}).get("transient"):
                spent[record["index"]] = record["attempts"]
            else:
                kept[record["index"]] = record
                spent.pop(record["index"], None)
        return kept, spent

    @rule(record=RECORDS)
    def finish_a_row(self, record: dict[str, Any]) -> None:
        if record["index"] not in self.journal:
            self.journal.append(record)
            self.acknowledged.append(record)

    @rule()
    def commit(self) -> None:
        self.journal.commit()

    @rule()
    def close_and_open_again(self) -> None:
        with self.journal:
            pass
        self._start(self.file.read_bytes())

    @rule()
    def kill_and_open_again(self) -> None:
        self._go_on(self.file.read_bytes())

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data())
    def cut_at_any_byte_and_open_again(self, data: st.DataObject) -> None:
        content = self.file.read_bytes()
        content = content[: data.draw(st.integers(0, len(content)))]
        self.acknowledged = self.acknowledged[: max(0, content.count(b"\n") - 1)]
        self._go_on(content)

    @invariant()
    def what_is_done_is_what_was_acknowledged(self) -> None:
        if not hasattr(self, "journal"):
            return
        done = {index for index in range(ROWS) if index in self.journal}
        lines = {index: self.journal.line(index) for index in done}
        for record in self.acknowledged:
            if lines.get(record["index"]) == dump_row(record):
                done.discard(record["index"])
        assert not done, "a row is done that nobody acknowledged"
        kept, _ = self._resumed()
        assert set(kept) <= set(lines)
        records = [json.loads(line) for line in lines.values()]
        assert self.journal.totals.attempts == sum(record["attempts"] for record in records)
        used = [record["usage"] for record in records if record["usage"]]
        assert (self.journal.totals.prompt_tokens or 0) == sum(usage["prompt_tokens"] for usage in used)
        assert self.journal.totals.counts.model_dump() == {
            status: sum(record["status"] == status for record in records)
            for status in ("success", "error", "invalid_output", "not_run")
        }

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


async def test_a_run_that_is_stopped_while_it_reads_a_long_journal_does_not_read_it_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 50_000
    output, header = UPath(tmp_path / "out.jsonl"), JournalHeader(identity=None, fingerprint="f", rows=rows)
    with Journal(output, header) as journal:
        for index in range(rows):
            journal.append(record_of(index, "success", "text", 1, None))
    read: list[int] = []
    parse = Journal._parse
    monkeypatch.setattr(Journal, "_parse", lambda self, line: read.append(1) or parse(self, line))
    task = asyncio.create_task(Journal.opened(output, header))
    while not read:
        assert not task.done()
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(read) < rows


@given(
    record=st.builds(
        record_of, st.just(3), st.sampled_from(["success", "error"]), TEXTS, st.integers(1, 9), USAGES
    ),
    place=st.integers(0, 600),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_is_noticed_wherever_it_is_when_the_journal_is_read_and_when_a_line_is_used(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any], place: int, bit: int
) -> None:
    output = UPath(tmp_path_factory.mktemp("journals") / "out.jsonl")
    file = Path(output.with_name("out.jsonl.journal.jsonl"))
    with Journal(output, HEADER) as journal:
        journal.append(record)
    content = bytearray(file.read_bytes())
    place %= len(content) - 1  # without its last line feed, a line counts as cut
    content[place] ^= 1 << bit
    with Journal(output, HEADER) as journal:
        assert journal.line(3) == dump_row(record)
        file.write_bytes(content)
        if place >= content.index(b"\n") and not content.endswith(b"\n\n"):
            with pytest.raises(JournalError, match="damaged"):
                journal.line(3)
    with pytest.raises(JournalError, match="damaged"):
        Journal(output, HEADER)


def changed_in(**fields: Any) -> bytes:
    """A row's line with a checksum that fits, though not of this package."""
    return sealed(dump_row({**record_of(3, "error", "text", 1, None), **fields}))


def without(field: str) -> bytes:
    """A row's line without a field, with a checksum that fits."""
    record = record_of(3, "error", "text", 1, None)
    del record[field]
    return sealed(dump_row(record))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (changed_in(error=[1]), "line 2 is no finished row: [1] is no 'error'"),
        (without("output"), "line 2 is no finished row: it has no 'output'"),
        (without("usage"), "line 2 is no finished row: it has no 'usage'"),
        (changed_in(attempts="1"), "line 2 is no finished row: '1' is no 'attempts'"),
        (changed_in(status="done"), "line 2 is no finished row: 'done' is no 'status'"),
        (changed_in(index=6), "line 2 has no index of a row of the dataset"),
        (changed_in()[:-1] + b"\r\n", "line 2 ends in a carriage return"),
        (dump_row(record_of(3, "error", "text", 1, None)), "line 2 was changed since it was written"),
        (b"[]\n", "line 2 was changed since it was written"),
    ],
)
def test_a_line_that_is_no_finished_row_is_refused_in_words(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    file = tmp_path / "out.jsonl.journal.jsonl"
    file.write_bytes(Journal.first_line(HEADER) + line)
    with pytest.raises(JournalError, match=re.escape(problem)) as raised:
        Journal(UPath(tmp_path / "out.jsonl"), HEADER)
    assert "Restore it, or delete it to start anew" in str(raised.value)
    assert file.read_bytes().endswith(line)
