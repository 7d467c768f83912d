"""The journal of a run: every batch that was answered, written before its place is used again.

It stands beside the output as ``<output>.journal.jsonl``. Its first line names the run; each further one
is a batch of rows that follow one another: their vectors, 32-bit floats in base64 (5.3 bytes a number), or
the error that befell them all. A row that failed for a reason that may pass is missing again for the run that
resumes.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_gradient.api import InvalidResponseError
from airflow_provider_gradient.completions.row_keys import NO_ROW
from airflow_provider_gradient.completions.run_journal import RunJournal, parse_line
from airflow_provider_gradient.datasets import dump_row, sealed
from airflow_provider_gradient.embeddings.manifest import EmbeddingCounts

FLOAT_BYTES = 4
_VECTORS = b',"vectors":"'


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A line of the journal, and the vectors in it."""

    first: int
    rows: int
    requests: int
    error: dict[str, Any] | None
    dimensions: int
    vectors: bytes

    def vector(self, index: int) -> bytes:
        return self._vectors(index, index)

    def _vectors(self, first: int, last: int) -> bytes:
        size = self.dimensions * FLOAT_BYTES
        return self.vectors[(first - self.first) * size : (last - self.first + 1) * size]

    def moved(self, first: int, last: int, *, to: int, requests: int) -> bytes:
        """The line that says of the rows from ``to`` on what this one says of those from ``first`` to
        ``last``."""
        head = {"first": to, "rows": last - first + 1, "requests": requests}
        if self.error is not None:
            return dump_row(head | {"error": self.error})
        return _line(head | {"dimensions": self.dimensions}, self._vectors(first, last))


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
    :ivar dimensions: numbers a vector; ``None`` before the first.
    """

    kind = "embeddings"
    determined_by = "model"

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
        self._enter(head, self._log.append(sealed(_line(head, numbers))))

    def add_error(self, first: int, rows: int, error: dict[str, Any], *, requests: int) -> None:
        """Write that the rows from ``first`` on failed.

        :raises DatasetError: it could not be written.
        """
        head = {"first": first, "rows": rows, "requests": requests, "error": error}
        self._enter(head, self._log.append(sealed(dump_row(head))))

    def row(self, index: int) -> EmbeddedRow:
        """What became of a row that is done.

        :raises JournalError: its line is damaged.
        """
        offset = self._offsets[index]
        batch = self._batch(offset)
        if not batch.first <= index < batch.first + batch.rows:
            raise self._broken(None, f"has other rows' batch where that of row {index} was")
        return EmbeddedRow(vector=None if batch.error else batch.vector(index), error=batch.error)

    def _forget(self) -> None:
        self.requests = self._errors = 0
        self.dimensions: int | None = None
        self._read: tuple[int, _Batch] | None = None

    def _enter(self, head: Mapping[str, Any], offset: int) -> None:
        first, rows = head["first"], head["rows"]
        self._offsets[first : first + rows] = array("q", [offset]) * rows
        self.done += rows
        self.requests += head["requests"]
        if head.get("error"):
            self._errors += rows
        else:
            self.dimensions = head["dimensions"]

    def _enter_line(self, head: Mapping[str, Any], number: int, offset: int) -> None:
        first, rows, requests = (head.get(name) for name in ("first", "rows", "requests"))
        if not (isinstance(first, int) and isinstance(rows, int) and isinstance(requests, int)):
            raise self._broken(number, "is no batch")
        has_vectors = isinstance(head.get("dimensions"), int)
        if not 0 <= first < first + rows <= self._header.rows or has_vectors != head["has_vectors"]:
            raise self._broken(number, "is no batch of the dataset's rows")
        error = head.get("error")
        if not has_vectors and not (isinstance(error, dict) and isinstance(error.get("transient"), bool)):
            raise self._broken(number, "has neither vectors nor the error that there was")
        if any(index in self for index in range(first, first + rows)):
            raise self._broken(number, "has rows that were done before")
        if error and error["transient"]:
            self.requests += requests
        else:
            self._enter(head, offset)

    def _parse(self, line: bytes) -> dict[str, Any]:
        """A batch's fields, of its vectors whether there are any: they are read when they are wanted."""
        head, found, _ = line.partition(_VECTORS)
        return parse_line(head + b"}" if found else line) | {"has_vectors": bool(found)}

    def _candidates(self) -> Iterator[int]:
        return (index for index in range(len(self._offsets)) if index in self)

    def _moved(self, sources: array[int], ids: Iterable[object]) -> Iterator[bytes]:  # noqa: ARG002
        targets = array("q", [NO_ROW]) * len(self._offsets)
        for index, source in enumerate(sources):
            if source != NO_ROW:
                targets[source] = index
        for offset, rows in itertools.groupby(self._candidates(), key=self._offsets.__getitem__):
            batch = self._batch(offset)
            requests = batch.requests
            for first, last in _runs(targets, [row for row in rows if targets[row] != NO_ROW]):
                yield batch.moved(first, last, to=targets[first], requests=requests)
                requests = 0

    def _batch(self, offset: int) -> _Batch:
        if self._read is not None and self._read[0] == offset:
            return self._read[1]
        try:
            fields = parse_line(self._stored(offset))
            vectors = base64.b64decode(fields.get("vectors", ""), validate=True)
            dimensions = 0 if fields.get("error") else fields["dimensions"]
            if len(vectors) != fields["rows"] * dimensions * FLOAT_BYTES:
                raise ValueError
            batch = _Batch(
                first=fields["first"],
                rows=fields["rows"],
                requests=fields["requests"],
                error=fields.get("error"),
                dimensions=dimensions,
                vectors=vectors,
            )
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise self._broken(None, "has a batch whose vectors can't be read") from None
        self._read = offset, batch
        return batch


def _line(head: Mapping[str, Any], vectors: bytes) -> bytes:
    return dump_row(head)[:-2] + _VECTORS + base64.b64encode(vectors) + b'"}\n'


def _runs(targets: array[int], rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of rows that follow one another and still do where they are moved."""
    first = 0
    for number in range(1, len(rows) + 1):
        last = rows[number - 1]
        if number == len(rows) or rows[number] != last + 1 or targets[rows[number]] != targets[last] + 1:
            yield rows[first], last
            first = number
