"""The journal of a run: every finished row, written before the next is fetched.

It stands beside the output as ``<output>.journal.jsonl`` and belongs to one run, which its first line
names. What can't be read is an error: a journal that is there is never taken for none, since its rows were
paid for. A row that failed for a reason that may pass (no answer, 429, 5xx) is not taken for done by the run
that resumes: it is sent again, and its attempts count on.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION, Counts
from airflow_provider_gradient.completions.run_journal import JournalHeader, RunJournal
from airflow_provider_gradient.datasets import StoredPath, dump_row

log = logging.getLogger(__name__)

_STATUSES = ("success", "error", "invalid_output")

_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = r"-?(?:0|[1-9]\d*)(?:\.\d+)?"
_COLUMNS = rf'(?:,"(?!attempts|usage)\w+":(?:null|true|false|{_NUMBER}|{_STRING}))*+'
_USAGE = r'(?:null|\{"prompt_tokens":(\d+),"completion_tokens":(\d+)\})'
_SUCCESS = re.compile(
    rf'\{{"index":(\d+),"id":(?:null|{_NUMBER}|{_STRING}),"status":"success"{_COLUMNS},'
    rf'"attempts":(\d+){_COLUMNS},"usage":{_USAGE}{_COLUMNS}\}}\n',
    re.ASCII,
)
"""The line of a success, as nearly all are, no less strict than JSON: to find the numbers that count in it
takes a third of the time that it takes to read all of it. What does not match is read as JSON."""


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


class Journal(RunJournal):
    """Finished rows by their index.

    :ivar totals: over them.
    """

    kind = "completions"
    schema_version = SCHEMA_VERSION
    determined_by = "dataset, template, model or parameters"

    def __init__(
        self, output: StoredPath, header: JournalHeader, *, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.totals = Totals()
        self._spent: dict[int, int] = {}
        super().__init__(output, header, is_stopped=is_stopped)

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

    def line(self, index: int) -> bytes:
        """The line of a finished row."""
        return self._log.read(self._offsets[index])

    def _enter(self, record: Mapping[str, Any], offset: int) -> None:
        self.totals.add(record)
        self._offsets[record["index"]] = offset
        self.done += 1

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

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            text = line.decode()
            if found := _SUCCESS.fullmatch(text):
                index, attempts, prompt, completion = found.groups()
                usage = prompt and {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}
                return {
                    "index": int(index),
                    "status": "success",
                    "attempts": int(attempts),
                    "usage": usage,
                }
            fields = json.loads(text)
        except ValueError:
            return None
        return fields if isinstance(fields, dict) else None
