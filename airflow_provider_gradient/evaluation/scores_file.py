"""The scores of each row as a file: JSON lines, or Parquet where its name says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from airflow_provider_gradient.datasets import (
    JSON_FIELD,
    PARQUET,
    PathLike,
    as_path,
    dump_row,
    format_of,
    import_parquet,
    replacing,
)
from airflow_provider_gradient.evaluation.metrics import Metric
from airflow_provider_gradient.evaluation.reading import Answered

_BATCH_ROWS = 4096


@contextlib.contextmanager
def scores_file(path: PathLike, metrics: Sequence[Metric]) -> Iterator[Lines | Columns]:
    """A file of scores that stands at ``path`` once the block ends, and not at all if the block fails."""
    names = [metric.name for metric in metrics]
    with replacing(path) as file:
        if format_of(as_path(path).name) is not PARQUET:
            yield Lines(file)
        else:
            columns = Columns(file, names)
            try:
                yield columns
                columns.flush()
            finally:
                columns.close()


class Lines:
    """A line a row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, answered: Answered, scores: Mapping[str, float]) -> None:
        """Add a row."""
        self._file.write(dump_row(_record(answered, scores)))


class Columns:
    """A row group of some thousand rows at a time. What may be of any type is JSON text there: ``reference``,
    and ``row``, which is marked and read back as the object it is; ``id`` is text."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._pa, parquet = import_parquet()
        text = self._pa.string()
        self._schema = self._pa.schema(
            [
                ("index", self._pa.int64()),
                *((name, text) for name in ("id", "status", "output", "reference")),
                *((name, self._pa.float64()) for name in names),
                self._pa.field("row", text, metadata=JSON_FIELD),
            ]
        )
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd", write_page_checksum=True)
        self._records: list[dict[str, Any]] = []

    def write(self, answered: Answered, scores: Mapping[str, float]) -> None:
        """Add a row."""
        record = _record(answered, scores)
        if record["id"] is not None:
            record["id"] = str(record["id"])
        if record["output"] is not None:
            record["output"] = record["output"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        record["reference"] = json.dumps(record["reference"])
        record["row"] = json.dumps(record["row"])
        self._records.append(record)
        if len(self._records) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._records:
            self._writer.write_table(self._pa.Table.from_pylist(self._records, schema=self._schema))
            self._records = []

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def _record(answered: Answered, scores: Mapping[str, float]) -> dict[str, Any]:
    return {
        "index": answered.index,
        "id": answered.id,
        "status": answered.status,
        "output": answered.output,
        "reference": answered.example.reference,
        **scores,
        "row": answered.example.row,
    }
