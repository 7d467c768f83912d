"""The finished output: JSON lines, or Parquet where its name says so.

Each row has ``index, id, status, embedding, error`` and under ``row`` the columns it carries. In Parquet the
``embedding`` is a list of 32-bit floats, ``id`` is text and ``row`` is JSON text that this package reads as
the object it is: one schema whatever the dataset and the model. As with completions, a stale manifest goes
first, and a manifest that is there speaks of the output beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from airflow_provider_gradient.completions.job import row_id
from airflow_provider_gradient.completions.output import errors_path, manifest_path
from airflow_provider_gradient.completions.output_file import Digest, DigestedFile
from airflow_provider_gradient.datasets import (
    JSON_FIELD,
    PARQUET,
    DatasetError,
    StoredPath,
    describe_row,
    describe_source,
    dump_row,
    format_of,
    import_parquet,
    read_rows,
    remove,
    replacing,
    row_bytes,
)
from airflow_provider_gradient.embeddings.job import EmbeddingJob
from airflow_provider_gradient.embeddings.journal import FLOAT_BYTES, EmbeddedRow, Journal

_ROW_GROUP_BYTES = 1 << 24
"""Of vectors and carried columns, before they are compressed."""


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """A row of the output.

    :ivar carried: columns of the dataset that go into the output.
    :ivar columns: all of them, for the errors.
    """

    index: int
    id: int | str | None
    embedded: EmbeddedRow
    carried: Mapping[str, Any]
    columns: Mapping[str, Any]

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """As JSON has it, with ``row`` as its columns."""
        return {
            "index": self.index,
            "id": self.id,
            "status": self.embedded.status,
            "embedding": None if self.embedded.vector is None else numbers(self.embedded.vector),
            "error": self.embedded.error,
            "row": row,
        }


def numbers(vector: bytes) -> list[float]:
    """The numbers of a vector, none with more digits than it takes to know its 32 bits."""
    return [float(f"{number:.9g}") for number in array("f", vector)]


def finished_rows(job: EmbeddingJob, journal: Journal, *, fingerprint: str) -> Iterator[FinishedRow]:
    """Every row of the dataset.

    :param fingerprint: of the dataset when it was checked.
    :raises DatasetError: it has changed since.
    """
    digest = hashlib.sha256()
    for index, row in enumerate(read_rows(job.dataset)):
        if index not in journal:
            raise _changed(job)
        where = describe_row(job.dataset, index)
        digest.update(row_bytes(row, where))
        id_ = job.id_column and row_id(row, job.id_column, where)
        yield FinishedRow(
            index=index, id=id_, embedded=journal.row(index), carried=job.carried(row), columns=row
        )
    if digest.hexdigest() != fingerprint:
        raise _changed(job)


def _changed(job: EmbeddingJob) -> DatasetError:
    return DatasetError(
        f"{describe_source(job.dataset)} changed while it was embedded. Run it again: rows that are as they "
        "were keep their vectors, and the others are sent"
    )


def write_finished(
    output: StoredPath, rows: Iterator[FinishedRow], *, failed: bool, digest: Digest
) -> Generator[None]:
    """Write output and errors, a row a step; both are there once the last step is taken.

    :param failed: whether any of the rows has no vector.
    :param digest: takes the output's bytes.
    :raises DatasetError: a path can't be written, or what ``rows`` raises.
    """
    remove(manifest_path(output))
    with contextlib.ExitStack() as files:  # left in reverse: the output appears before the errors
        errors = files.enter_context(replacing(errors_path(output))) if failed else None
        file = cast(BinaryIO, DigestedFile(files.enter_context(replacing(output)), digest))
        columns = files.enter_context(_Columns(file)) if format_of(output.name) is PARQUET else None
        for row in rows:
            if columns:
                columns.write(row)
            else:
                file.write(dump_row(row.fields(row.carried)))
            if errors and row.embedded.error:
                errors.write(dump_row(row.fields(row.columns)))
            yield
    if not failed:
        remove(errors_path(output))


class _Columns:
    """Rows as Parquet's columns, which go to the file a row group at a time; the vectors are never made
    Python numbers."""

    def __init__(self, file: BinaryIO) -> None:
        self._arrow, parquet = import_parquet()
        self._schema = _schema(self._arrow)
        # Vectors hardly repeat: a dictionary of their numbers would be larger than they are.
        self._writer = parquet.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=["status"], write_page_checksum=True
        )
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list[Any]] = {name: [] for name in ("index", "id", "status", "error", "row")}
        self._floats = bytearray()
        self._offsets: list[int | None] = []
        self._bytes = 0

    def write(self, row: FinishedRow) -> None:
        text, vector = dump_row(row.carried)[:-1].decode(), row.embedded.vector
        self._values["index"].append(row.index)
        self._values["id"].append(None if row.id is None else _encodable(str(row.id)))
        self._values["status"].append(row.embedded.status)
        self._values["error"].append(row.embedded.error)
        self._values["row"].append(text)
        self._offsets.append(None if vector is None else len(self._floats) // FLOAT_BYTES)
        self._floats += vector or b""
        self._bytes += len(text)
        if self._bytes + len(self._floats) >= _ROW_GROUP_BYTES:
            self._end_row_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._end_row_group()
        finally:
            self._writer.close()

    def _end_row_group(self) -> None:
        columns = [
            self._lists()
            if field.name == "embedding"
            else self._arrow.array(self._values[field.name], type=field.type)
            for field in self._schema
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self._clear()

    def _lists(self) -> Any:
        pa, end = self._arrow, len(self._floats) // FLOAT_BYTES
        floats = pa.Array.from_buffers(pa.float32(), end, [None, pa.py_buffer(self._floats)])
        return pa.ListArray.from_arrays(pa.array([*self._offsets, end], pa.int32()), floats)


def _schema(pa: Any) -> Any:
    text = pa.string()
    return pa.schema(
        [
            ("index", pa.int64()),
            ("id", text),
            ("status", text),
            ("embedding", pa.list_(pa.float32())),
            ("error", pa.struct([("type", text), ("message", text), ("transient", pa.bool_())])),
            pa.field("row", text, metadata=JSON_FIELD),
        ]
    )


def _encodable(text: str) -> str:
    """``text`` with U+FFFD for each half of a surrogate pair, which Parquet's UTF-8 can't hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
