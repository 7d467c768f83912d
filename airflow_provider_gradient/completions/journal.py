"""The journal of a run: every finished row, written before the next is fetched.

It stands beside the output as ``<output stem>.journal.jsonl`` and belongs to one run, which its first line
names. What can't be read is an error: a journal that is there is never taken for none, since its rows were
paid for. A row that failed for a reason that may pass (no answer, 429, 5xx) is not taken for done by the run
that resumes: it is sent again, and its attempts count on.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION, Counts
from airflow_provider_gradient.datasets import AppendLog, JournalError, StoredPath, beside, dump_row

log = logging.getLogger(__name__)

_STATUSES = ("success", "error", "invalid_output")


@dataclass(frozen=True, kw_only=True)
class JournalHeader:
    """The first line: which run the rows belong to."""

    identity: str | None
    fingerprint: str
    rows: int

    def to_line(self) -> bytes:
        """As it stands in the file."""
        return dump_row({"journal": "completions", "schema_version": SCHEMA_VERSION} | asdict(self))


class Totals:
    """Sums over the rows that are finished."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.attempts = 0
        self.retries = 0
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one finished row."""
        self.statuses[record["status"]] += 1
        self.attempts += record["attempts"]
        self.retries += max(0, record["attempts"] - 1)
        if usage := record["usage"]:
            self.prompt_tokens = (self.prompt_tokens or 0) + usage["prompt_tokens"]
            self.completion_tokens = (self.completion_tokens or 0) + usage["completion_tokens"]

    @property
    def failed(self) -> bool:
        """Whether any row is no success."""
        return self.statuses.total() > self.statuses["success"]

    @property
    def counts(self) -> Counts:
        """Rows by status."""
        return Counts(**self.statuses)


def remove_leftover(output: StoredPath, header: JournalHeader) -> None:
    """Delete the journal of a run that finished and was killed before it could do so itself."""
    path = beside(output, ".journal.jsonl")
    if path.exists():
        with AppendLog(path) as journal:
            if next((line for _, line in journal.lines()), b"") == header.to_line():
                journal.remove()


class Journal:
    """Finished rows by their index, of which eight bytes a row are in memory; a context manager that makes
    all rows safe when it ends.

    :param output: path of the output that the journal stands beside.
    :param header: the run; rows of another are dropped, and that is logged.
    :raises JournalError: it can't be read as a journal.
    :raises DatasetError: it can't be opened.
    """

    def __init__(self, output: StoredPath, header: JournalHeader) -> None:
        self.totals = Totals()
        self.done = 0
        self._offsets = array("q", [-1]) * header.rows
        self._spent: dict[int, int] = {}
        self._header = header
        self._log = AppendLog(beside(output, ".journal.jsonl"))
        try:
            if not self._load():
                self._log.clear()
                self._log.append(header.to_line())
                self._log.commit()
        except BaseException as error:
            self._log.__exit__(type(error), error, error.__traceback__)
            raise
        self.resumed = self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.__exit__(kind, error, trace)

    def __contains__(self, index: int) -> bool:
        return index < len(self._offsets) and self._offsets[index] >= 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one finished row.

        :raises DatasetError: it could not be written, say since the disk is full.
        """
        self._enter(record, self._log.append(dump_row(record)))

    @property
    def given_up(self) -> int:
        """Rows that an earlier run gave up for a reason that may pass: they are missing again."""
        return len(self._spent)

    def spent(self, index: int) -> int:
        """Attempts that earlier runs spent on a row of those."""
        return self._spent.get(index, 0)

    def commit(self) -> None:
        """Make safe what was written so far; may be called from another thread than :meth:`append`."""
        self._log.commit()

    def line(self, index: int) -> bytes:
        """The line of a finished row."""
        return self._log.read(self._offsets[index])

    def remove(self) -> None:
        """Delete the journal: its rows stand in the finished output."""
        self._log.remove()

    def _enter(self, record: Mapping[str, Any], offset: int) -> None:
        self.totals.add(record)
        self._offsets[record["index"]] = offset
        self.done += 1

    def _load(self) -> bool:
        """Enter the rows that are there; whether there is a journal of this run at all."""
        for number, (offset, line) in enumerate(self._log.lines(), 1):
            fields = self._parse(line, number)
            if number > 1:
                self._enter_line(fields, number, offset)
            elif not self._is_ours(fields):
                return False
        return self._log.size > 0

    def _is_ours(self, fields: Mapping[str, Any]) -> bool:
        if fields.get("journal") != "completions" or fields.get("schema_version") != SCHEMA_VERSION:
            raise self._broken(1, f"is not the head of a journal of schema version {SCHEMA_VERSION}")
        if fields.get("identity") != self._header.identity:
            changed = "is another piece of work's"
        elif fields.get("fingerprint") != self._header.fingerprint:
            changed = "was written for another dataset, template, model or parameters"
        else:
            return True
        log.warning("%s %s: its rows are dropped, the run starts anew", self._log, changed)
        return False

    def _enter_line(self, record: Mapping[str, Any], number: int, offset: int) -> None:
        index = record.get("index")
        if not isinstance(index, int) or not 0 <= index < self._header.rows:
            raise self._broken(number, "has no index of a row of the dataset")
        if index in self:
            return
        try:
            if record["status"] not in _STATUSES:
                raise ValueError
            if (record.get("error") or {}).get("transient"):
                self._spent[index] = int(record["attempts"])
            else:
                self._enter(record, offset)
                self._spent.pop(index, None)
        except (KeyError, TypeError, ValueError):
            raise self._broken(number, "is no finished row") from None

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise self._broken(number, "is no JSON object")
        return fields

    def _broken(self, number: int, what: str) -> JournalError:
        return JournalError(
            f"{self._log}, line {number} {what}: the journal was damaged or is another's. Restore it, or "
            "delete it to start anew; the rows it holds are then sent and paid for again"
        )
