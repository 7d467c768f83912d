"""The journal of a run: every finished row, written before the next is fetched.

It stands beside the output as ``<output>.journal.jsonl`` and belongs to one run, which its first line
names. What can't be read, or was changed since it was written, is an error: a journal that is there is never
taken for none, since its rows were paid for. A row that failed for a reason that may pass (no answer, 429,
5xx) is not taken for done by the run that resumes: it is sent again, and its attempts count on.
"""

from __future__ import annotations

import contextlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from airflow_provider_gradient.completions.manifest import Counts
from airflow_provider_gradient.completions.row_keys import NO_ROW
from airflow_provider_gradient.completions.run_journal import RunJournal, parse_line
from airflow_provider_gradient.datasets import dump_row, sealed

_STATUSES = ("success", "error", "invalid_output")
_ID = rb'"id":(null|-?\d+|"[^"\\]*+(?:\\.[^"\\]*+)*+"),'
_PLACE = re.compile(rb'\{"index":(\d+),' + _ID)
_SUCCESS = re.compile(_PLACE.pattern + rb'"status":"success",')
_SUMS = re.compile(
    rb',"attempts":(\d+),"latency_ms":[^,"]+,'
    rb'"usage":(?:null|\{"prompt_tokens":(\d+),"completion_tokens":(\d+)\})\}\n'
)
"""How the line of a success begins and ends, as nearly all are: where its checksum fits, the numbers that
count are found without reading the rest."""


def _dumped(record: Mapping[str, Any]) -> bytes:
    """The line of a row: as :func:`dump_row` writes it, and for a row of text, number and null, as nearly all
    are, in a twentieth of its time."""
    if record["parsed"] is None and record["error"] is None:
        with contextlib.suppress(orjson.JSONEncodeError):  # half of a surrogate pair, an id of over 64 bits
            return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    return dump_row(record)


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
    determined_by = "model, output schema, runnable or parameters"

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one finished row.

        :raises DatasetError: it could not be written, say since the disk is full.
        """
        self._enter(record, self._log.append(sealed(_dumped(record))))

    @property
    def given_up(self) -> int:
        """Rows that an earlier run gave up for a reason that may pass: they are missing again."""
        return len(self._spent)

    def spent(self, index: int) -> int:
        """Attempts that earlier runs spent on a row of those."""
        attempts, _ = self._spent.get(index, (0, 0))
        return attempts

    def line(self, index: int) -> bytes:
        """The line of a finished row, without its checksum.

        :raises JournalError: it is not as it was written.
        """
        line = self._stored(self._offsets[index])
        if not line.startswith(b'{"index":%d,' % index):
            raise self._broken(None, f"has another row's line where that of row {index} was")
        return line

    def _forget(self) -> None:
        self.totals = Totals()
        self._spent: dict[int, tuple[int, int]] = {}

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
        error = record.get("error")
        if error and error["transient"]:
            self._spent[index] = record["attempts"], offset
        else:
            self._enter(record, offset)
            self._spent.pop(index, None)

    def _parse(self, line: bytes) -> dict[str, Any]:
        if self._has_checksums and (head := _SUCCESS.match(line)):
            sums = _SUMS.fullmatch(line, line.rfind(b',"attempts":'))
            if sums:
                attempts, prompt, completion = sums.groups()
                usage = prompt and {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}
                return {
                    "index": int(head[1]),
                    "status": "success",
                    "attempts": int(attempts),
                    "usage": usage,
                }
        return _checked(parse_line(line))

    def _candidates(self) -> Iterator[int]:
        yield from (index for index in range(len(self._offsets)) if index in self)
        yield from self._spent

    def _moved(self, sources: array[int], ids: Iterable[int | str | None]) -> Iterator[bytes]:
        for index, (source, id_) in enumerate(zip(sources, ids, strict=False)):
            if source == NO_ROW:
                continue
            line = self._stored(self._offsets[source] if source in self else self._spent[source][1])
            place = _PLACE.match(line)
            if place is None or (not self._has_checksums and json.loads(place[2]) != id_):
                raise self._broken(None, f"has a line for row {index} that is not of its id, {id_!r}")
            yield b'{"index":%d,"id":%b,' % (index, dump_row(id_)[:-1]) + line[place.end() :]


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """``record``, if it is that of a finished row.

    :raises ValueError: it is not; names the field.
    """
    for name, is_right in _FIELDS.items():
        if name not in record:
            raise ValueError(f"is no finished row: it has no {name!r}")
        if not is_right(record[name]):
            raise ValueError(f"is no finished row: {record[name]!r} is no {name!r}")
    return record


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_error(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("type"), str)
        and isinstance(value.get("message"), str)
        and isinstance(value.get("transient"), bool)
    )


def _is_usage(value: Any) -> bool:
    names = ("prompt_tokens", "completion_tokens")
    return value is None or (isinstance(value, dict) and all(_is_count(value.get(name)) for name in names))


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "index": _is_count,
    "id": lambda value: value is None or (isinstance(value, int | str) and not isinstance(value, bool)),
    "status": lambda value: isinstance(value, str) and value in _STATUSES,
    "output": _is_text,
    "parsed": lambda _: True,
    "error": _is_error,
    "finish_reason": _is_text,
    "model_id": _is_text,
    "attempts": _is_count,
    "latency_ms": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "usage": _is_usage,
}
"""What a record must have, and what is right there."""
