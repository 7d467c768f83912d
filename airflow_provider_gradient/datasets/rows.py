"""Rows in and rows out.

Reading is a stream: one row is in memory at a time, however long the dataset. A dataset's fingerprint is
taken over its rows and not over its bytes, so that the same rows have the same one inline and in a file of
whatever format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from airflow_provider_gradient.datasets.errors import DatasetError
from airflow_provider_gradient.datasets.jsonl import describe_type, dump_row
from airflow_provider_gradient.datasets.paths import PathLike, as_path, replacing
from airflow_provider_gradient.datasets.shards import Shard, ShardRows, is_shard
from airflow_provider_gradient.datasets.sources import (
    JSONL,
    StoredRows,
    check_output,
    describe_place,
    open_stored,
)


@runtime_checkable
class Manifest(Protocol):
    """What a finished run over a dataset says of itself, as far as it matters here."""

    @property
    def output_path(self) -> str:
        """The run's output."""


Dataset = Sequence[Mapping[str, Any]] | PathLike | Manifest | Shard | Mapping[str, Any] | StoredRows
"""Rows; or the path of a file that holds them, of a folder of such files or a glob for them; or the manifest
of an earlier run (also as a dict), whose output is meant; or a shard of any of these but rows (also as a
dict).

The format goes by the file's name: ``.csv``, ``.parquet``, and JSONL, one JSON object a line, for any other.
CSV and JSONL may be compressed: ``.gz``, ``.zst``.
"""

OpenDataset = Sequence[Mapping[str, Any]] | StoredRows
"""A dataset whose files are found."""


def open_dataset(dataset: Dataset) -> OpenDataset:
    """``dataset`` with what its path or manifest stands for found, once for all passes over it.

    :raises DatasetError: no such folder or file, or none of one known format; a file changed since its shards
        were planned; or this is no dataset at all.
    """
    if isinstance(dataset, StoredRows):
        return dataset
    if is_inline(dataset):
        return cast(Sequence[Mapping[str, Any]], dataset)
    if is_shard(dataset):
        return ShardRows(cast(Shard, dataset))
    return open_stored(_path_of(dataset))


def is_inline(dataset: Dataset) -> bool:
    """Whether ``dataset`` is rows and not a path."""
    return isinstance(dataset, Sequence) and not isinstance(dataset, str)


def describe_source(dataset: Dataset) -> str:
    """Where a dataset comes from: its path, or ``inline``."""
    if is_inline(dataset):
        return "inline"
    return str(dataset if isinstance(dataset, StoredRows) else _path_of(dataset))


def describe_row(dataset: Dataset, index: int) -> str:
    """The words by which messages name a row: its index, and its place where it stands in a file.

    :param dataset: of several files, opened and read as far as this row.
    """
    if isinstance(dataset, StoredRows):
        return dataset.describe_row(index)
    if is_inline(dataset):
        return f"row {index} of the inline dataset"
    return describe_place(_path_of(dataset), index)


def read_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of ``dataset``, one after another, in their order.

    Values are as JSON has them. In CSV they are strings as they stand, and ``None`` for an empty field. In
    JSONL and CSV, empty lines may end a file but not stand between rows: there they would shift the indices
    by which rows are known. In Parquet, what JSON lacks is told by a string where there is a common form
    (dates and times, in UTC if they have a zone; decimals digit by digit; UUIDs), and is an error elsewhere.

    :raises DatasetError: a file is missing or can't be read, is cut or damaged, a line is no row (its number
        is named, counted from 1), a row given inline is none, or there is no row at all.
    """
    opened = open_dataset(dataset)
    count = 0
    for row in opened if isinstance(opened, StoredRows) else _inline_rows(opened):
        count += 1
        yield row
    if not count:
        raise DatasetError(
            "the inline dataset has no rows" if is_inline(opened) else f"{opened}: the dataset has no rows"
        )


def _path_of(dataset: Any) -> PathLike:
    if isinstance(dataset, Mapping) and "output_path" in dataset:
        return cast(PathLike, dataset["output_path"])
    return dataset.output_path if isinstance(dataset, Manifest) else cast(PathLike, dataset)


def _inline_rows(rows: Any) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DatasetError(f"{describe_row(rows, index)} is no object but {describe_type(row)}")
        for column in row:
            if not isinstance(column, str):
                raise DatasetError(f"{describe_row(rows, index)}: column name {column!r} is no string")
        yield dict(row)


def write_rows(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write ``rows`` to ``path``, one JSON object a line, whole or not at all; how many there were.

    :raises DatasetError: a row has a value that JSON can't hold, the path can't be written, or its ending is
        that of another format.
    """
    check_output(as_path(path), JSONL)
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(row_bytes(row, f"row {count}"))
            count += 1
    return count


def row_bytes(row: Mapping[str, Any], where: str) -> bytes:
    """``row`` as its line.

    :param where: the words for the row in the message.
    :raises DatasetError: names the column whose value JSON can't hold.
    """
    try:
        return dump_row(row)
    except (TypeError, ValueError, RecursionError):
        for column, value in row.items():
            try:
                dump_row(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise DatasetError(f"{where}: column {column!r} can't be written as JSON: {error}") from None
        raise DatasetError(f"{where} can't be written as JSON") from None


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over the rows of ``dataset``, in hexadecimal: that of its lines as this package writes them.

    :raises DatasetError: as :func:`read_rows`.
    """
    digest = hashlib.sha256()
    opened = open_dataset(dataset)
    for index, row in enumerate(read_rows(opened)):
        digest.update(row_bytes(row, describe_row(opened, index)))
    return digest.hexdigest()
