"""The journal of a run: every batch that was answered, written before its place is used again.

It stands beside the output as ``<output>.journal.jsonl``. Its first line names the run; each further one
is a batch of rows that follow one another: their vectors, 32-bit floats in base64 (5.3 bytes a number), or
the error that befell them all. A row that failed for a reason that may pass is missing again for the run that
resumes.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_gradient.api import InvalidResponseError
from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION
from airflow_provider_gradient.completions.run_journal import JournalHeader, RunJournal
from airflow_provider_gradient.datasets import StoredPath, dump_row
from airflow_provider_gradient.embeddings.manifest import EmbeddingCounts

log = logging.getLogger(__name__)

FLOAT_BYTES = 4
_VECTORS = b',"vectors":"'
_NONE = -1


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A line of the journal, and the vectors in it."""

    first: int
    error: dict[str, Any] | None
    dimensions: int
    vectors: bytes

    def vector(self, index: int) -> bytes:
        size = self.dimensions * FLOAT_BYTES
        return self.vectors[(index - self.first) * size : (index - self.first + 1) * size]


@dataclass(frozen=True, kw_only=True)
class EmbeddedRow:
    """What became of a row.

    :ivar vector: 32-bit floats in the machine's order; ``None`` where there is an error.
    :ivar error: its type and message, and whether the reason may pass.
    """

    vector: bytes | None
    error: dict[str, Any] | None

    @property
    def status(self) -> Literal["success", "error"]:
        """Whether there is a vector."""
        return "success" if self.error is None else "error"


class Journal(RunJournal):
    """Batches that are done, by row.

    :ivar requests: over all runs.
    :ivar left_over: rows done with an error that may pass.
    :ivar dimensions: numbers a vector; ``None`` before the first.
    """

    kind = "embeddings"
    schema_version = SCHEMA_VERSION
    determined_by = "dataset, model or text"

    def __init__(
        self, output: StoredPath, header: JournalHeader, *, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.requests = self.left_over = self._errors = 0
        self.dimensions: int | None = None
        self._read: tuple[int, _Batch] | None = None
        super().__init__(output, header, is_stopped=is_stopped)

    @property
    def counts(self) -> EmbeddingCounts:
        """Rows done, by status."""
        return EmbeddingCounts(success=self.done - self._errors, error=self._errors)

    def add_vectors(self, first: int, vectors: Sequence[Sequence[float]], *, requests: int) -> None:
        """Write the vectors of the rows from ``first`` on.

        :param requests: that it took.
        :raises InvalidResponseError: they are longer or shorter than those before.
        :raises DatasetError: they could not be written, say since the disk is full.
        """
        dimensions = len(vectors[0])
        if self.dimensions not in (None, dimensions):
            raise InvalidResponseError(
                f"the model's vectors had {self.dimensions} dimensions and have {dimensions} now: it was "
                "changed meanwhile. Delete the journal to embed all rows with the new one"
            )
        numbers = b"".join(array("f", vector).tobytes() for vector in vectors)
        head = {"first": first, "rows": len(vectors), "requests": requests, "dimensions": dimensions}
        line = dump_row(head)[:-2] + _VECTORS + base64.b64encode(numbers) + b'"}\n'
        self._enter(head, self._log.append(line))

    def add_error(self, first: int, rows: int, error: dict[str, Any], *, requests: int) -> None:
        """Write that the rows from ``first`` on failed.

        :raises DatasetError: it could not be written.
        """
        head = {"first": first, "rows": rows, "requests": requests, "error": error}
        self._enter(head, self._log.append(dump_row(head)))

    def row(self, index: int) -> EmbeddedRow:
        """What became of a row that is done.

        :raises JournalError: its line is damaged.
        """
        offset = self._offsets[index]
        if self._read is None or self._read[0] != offset:
            self._read = offset, self._batch(self._log.read(offset))
        batch = self._read[1]
        return EmbeddedRow(vector=None if batch.error else batch.vector(index), error=batch.error)

    def _enter(self, head: Mapping[str, Any], offset: int) -> None:
        first, rows = head["first"], head["rows"]
        self._offsets[first : first + rows] = array("q", [offset]) * rows
        self.done += rows
        self.requests += head["requests"]
        if error := head.get("error"):
            self._errors += rows
            self.left_over += rows if error["transient"] else 0
        else:
            self.dimensions = head["dimensions"]

    def _enter_line(self, head: Mapping[str, Any], number: int, offset: int) -> None:
        first, rows, requests = (head.get(name) for name in ("first", "rows", "requests"))
        if not (isinstance(first, int) and isinstance(rows, int) and isinstance(requests, int)):
            raise self._broken(number, "is no batch")
        has_vectors = "dimensions" in head
        if not 0 <= first < first + rows <= self._header.rows or has_vectors != head["has_vectors"]:
            raise self._broken(number, "is no batch of the dataset's rows")
        if any(index in self for index in range(first, first + rows)):
            raise self._broken(number, "has rows that were done before")
        if (head.get("error") or {}).get("transient"):
            self.requests += requests
        else:
            self._enter(head, offset)

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        """A batch's fields, of its vectors whether there are any: they are read when they are wanted."""
        head, found, _ = line.partition(_VECTORS)
        fields = _parsed(head + b"}" if found else line)
        return None if fields is None else fields | {"has_vectors": bool(found)}

    def _batch(self, line: bytes) -> _Batch:
        fields = _parsed(line) or {}
        try:
            vectors = base64.b64decode(fields.get("vectors", ""), validate=True)
            dimensions = 0 if fields.get("error") else fields["dimensions"]
            if len(vectors) != fields["rows"] * dimensions * FLOAT_BYTES:
                raise ValueError
            return _Batch(
                first=fields["first"], error=fields.get("error"), dimensions=dimensions, vectors=vectors
            )
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise self._broken(None, "has a batch whose vectors can't be read") from None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
