"""Rows in and rows out.

Reading is a stream: one row is in memory at a time, however long the dataset. A dataset's fingerprint is
taken over its rows and not over its bytes, so that the same rows have the same one inline and in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_gradient.datasets.errors import DatasetError, path_error
from airflow_provider_gradient.datasets.jsonl import describe_type, dump_row, parse_row
from airflow_provider_gradient.datasets.paths import PathLike, as_path, replacing

Dataset = Sequence[Mapping[str, Any]] | PathLike
"""Rows, or the path of a JSONL file that holds them, one JSON object a line."""

_BOM = b"\xef\xbb\xbf"


def is_inline(dataset: Dataset) -> bool:
    """Whether ``dataset`` is rows and not a path."""
    return isinstance(dataset, Sequence) and not isinstance(dataset, str)


def describe_source(dataset: Dataset) -> str:
    """Where a dataset comes from: its path, or ``inline``."""
    return "inline" if is_inline(dataset) else str(dataset)


def describe_row(dataset: Dataset, index: int) -> str:
    """The words by which messages name a row: its index, and its line where it stands in a file."""
    if is_inline(dataset):
        return f"row {index} of the inline dataset"
    return f"{dataset}, row {index} (line {index + 1})"


def read_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of ``dataset``, one after another, in their order.

    Values are as JSON has them. Empty lines may end a file but not stand between rows: there they would shift
    the indices by which rows are known.

    :raises DatasetError: the file is missing or can't be read, a line is no JSON object (its number is named,
        counted from 1), a row given inline is none, or there is no row at all.
    """
    count = 0
    for row in _inline_rows(dataset) if is_inline(dataset) else _file_rows(dataset):
        count += 1
        yield row
    if not count:
        raise DatasetError(
            "the inline dataset has no rows" if is_inline(dataset) else f"{dataset}: the dataset has no rows"
        )


def _inline_rows(rows: Any) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DatasetError(f"{describe_row(rows, index)} is no object but {describe_type(row)}")
        for column in row:
            if not isinstance(column, str):
                raise DatasetError(f"{describe_row(rows, index)}: column name {column!r} is no string")
        yield dict(row)


def _file_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    blank = 0
    path = as_path(dataset)
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise DatasetError(f"{path}, line {blank} is empty; remove it, each line is one row")
        try:
            row = parse_row(line.removeprefix(_BOM) if number == 1 else line)
        except ValueError as error:
            raise DatasetError(f"{path}, line {number} {error}") from None
        yield row


def _lines(path: Any) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except (OSError, ValueError, ImportError) as error:
        raise path_error(path, "read", error) from error


def write_rows(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write ``rows`` to ``path``, one JSON object a line, whole or not at all; how many there were.

    :raises DatasetError: a row has a value that JSON can't hold, or the path can't be written.
    """
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
    for index, row in enumerate(read_rows(dataset)):
        digest.update(row_bytes(row, describe_row(dataset, index)))
    return digest.hexdigest()
