"""The finished output: JSON lines, or Parquet where its name says so.

Parquet has one schema whatever the dataset, so that the outputs of two runs can be read as one table. The
carried columns are therefore JSON text there; the field is marked, and this package reads it as the object it
is; so is ``parsed``. The field ``id`` is text. Half a surrogate pair, which Parquet's UTF-8 can't hold,
becomes U+FFFD in the other columns.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, cast

from airflow_provider_gradient.datasets import (
    JSON_FIELD,
    PARQUET,
    StoredPath,
    dump_row,
    format_of,
    import_parquet,
    replacing,
)

_BATCH_BYTES = 1 << 21
"""JSON of the rows that are turned into columns at once."""
_ROW_GROUP_BYTES = 1 << 25
"""Columns that make a row group, before they are compressed."""


class Digest(Protocol):
    """One of :mod:`hashlib`'s."""

    def update(self, content: Any, /) -> None:
        """Take more bytes."""


class OutputFile(Protocol):
    """Takes the rows of the output, in their order."""

    def write(self, line: bytes, row: bytes, /) -> None:
        """Add a record, a line of the journal, with the columns it carries, a line of JSON too."""


class DigestedFile(io.BufferedIOBase):
    """Hands what is written on to ``file``, and takes it into ``digest``."""

    def __init__(self, file: BinaryIO, digest: Digest) -> None:
        self._file = file
        self._digest = digest

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, content: Any, /) -> int:
        """Write all of ``content``."""
        self._digest.update(content)
        return self._file.write(content)


@contextlib.contextmanager
def output_file(path: StoredPath, digest: Digest) -> Iterator[OutputFile]:
    """The output that stands at ``path`` once the block ends, and not at all if the block fails.

    :param digest: takes its bytes.
    """
    with replacing(path) as plain:
        file = cast(BinaryIO, DigestedFile(plain, digest))
        if format_of(path.name) is not PARQUET:
            yield _Lines(file)
        else:
            with _Columns(file) as columns:
                yield columns


def with_row(line: bytes, row: bytes) -> bytes:
    """A record's line with the line of the row's columns added, neither being read."""
    return line[:-2] + b',"row":' + row[:-1] + b"}\n"


class _Lines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: bytes, row: bytes, /) -> None:
        self._file.write(with_row(line, row))


class _Columns:
    """Rows wait as JSON values, then as columns, and go to the file a row group at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._arrow, parquet = import_parquet()
        self._schema = _schema(self._arrow)
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd", write_page_checksum=True)
        self._records: list[dict[str, Any]] = []
        self._record_bytes = 0
        self._batches: list[Any] = []

    def write(self, line: bytes, row: bytes, /) -> None:
        record = json.loads(line)
        text = row[:-1].decode()
        if record["id"] is not None:
            record["id"] = str(record["id"])
        if record["parsed"] is not None:
            record["parsed"] = dump_row(record["parsed"])[:-1].decode()
        self._records.append({**record, "row": text})
        self._record_bytes += len(line) + len(text)
        if self._record_bytes >= _BATCH_BYTES:
            self._to_columns()
            if sum(batch.nbytes for batch in self._batches) >= _ROW_GROUP_BYTES:
                self._end_row_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._to_columns()
                self._end_row_group()
        finally:
            self._writer.close()

    def _to_columns(self) -> None:
        make = self._arrow.RecordBatch.from_pylist
        try:
            batch = make(self._records, schema=self._schema)
        except UnicodeEncodeError:
            batch = make([_encodable(record) for record in self._records], schema=self._schema)
        self._batches.append(batch)
        self._records, self._record_bytes = [], 0

    def _end_row_group(self) -> None:
        self._writer.write_table(self._arrow.Table.from_batches(self._batches))
        self._batches = []


def _schema(pa: Any) -> Any:
    text, number = pa.string(), pa.int64()
    return pa.schema(
        [
            ("index", number),
            ("id", text),
            ("status", text),
            ("output", text),
            pa.field("parsed", text, metadata=JSON_FIELD),
            ("error", pa.struct([("type", text), ("message", text), ("transient", pa.bool_())])),
            ("finish_reason", text),
            ("model_id", text),
            ("attempts", number),
            ("latency_ms", pa.float64()),
            ("usage", pa.struct([("prompt_tokens", number), ("completion_tokens", number)])),
            pa.field("row", text, metadata=JSON_FIELD),
        ]
    )


def _encodable(value: Any) -> Any:
    """``value`` with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {name: _encodable(part) for name, part in value.items()}
    return value
