"""The formats that are read by the line: JSON lines and CSV.

A line is known by its number, counted from 1, as an editor shows it.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator
from typing import Any

from airflow_provider_gradient.datasets.compression import open_plain
from airflow_provider_gradient.datasets.errors import DatasetError, path_error
from airflow_provider_gradient.datasets.jsonl import parse_row
from airflow_provider_gradient.datasets.paths import StoredPath

BOM = b"\xef\xbb\xbf"
"""May begin a file, and is no part of its first line."""
_LONGEST_FIELD = 1 << 26
"""Characters of a CSV field. A quote that is never closed makes one field of all that follows it."""


def read_jsonl(path: StoredPath, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each line.

    :param start: a byte at which a line begins; lines are counted from here on.
    :param stop: the byte at which the first line begins that is not read; ``None`` for all.
    :raises DatasetError: a line is no JSON object, or is empty and stands between rows.
    """
    where = f"{path} from byte {start} on" if start else path
    blank = 0
    for number, line in enumerate(_lines(path, start, stop), 1):
        if not line.strip():
            blank = blank or number
            continue
        _refuse_blank(where, blank)
        try:
            row = parse_row(line)
        except ValueError as error:
            raise DatasetError(f"{where}, line {number} {error}") from None
        yield row


def read_csv(path: StoredPath) -> Iterator[dict[str, Any]]:
    """A row for each record under the header: strings as they stand, and ``None`` for an empty field.

    :raises DatasetError: a record has more or fewer fields than the header, a quote is not closed, a column's
        name is there twice, or an empty line stands between records.
    """
    csv.field_size_limit(
        max(csv.field_size_limit(), _LONGEST_FIELD)
    )  # one limit for the process; only raised
    records = csv.reader(_text(path), strict=True)
    header: list[str] = []
    blank = 0
    while True:
        number = records.line_num + 1
        try:
            fields = next(records, None)
        except csv.Error as error:
            raise DatasetError(f"{path}, line {number} is no CSV: {error}") from None
        if fields is None:
            return
        if not fields:
            blank = blank or number
            continue
        _refuse_blank(path, blank)
        if not header:
            header = fields
            if twice := {column for column in header if header.count(column) > 1}:
                raise DatasetError(f"{path}, line {number}: the header has {min(twice)!r} more than once")
        elif len(fields) != len(header):
            raise DatasetError(
                f"{path}, line {number} has {len(fields)} fields, but the header has {len(header)}"
            )
        else:
            yield {column: field or None for column, field in zip(header, fields, strict=True)}


def _refuse_blank(path: object, number: int) -> None:
    """Empty lines may end a file. Between rows they would shift the indices by which rows are known."""
    if number:
        raise DatasetError(f"{path}, line {number} is empty; remove it, each line is one row")


def _text(path: StoredPath) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path}, line {number} is not UTF-8 (byte {error.start + 1})") from None


def _lines(path: StoredPath, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The lines that begin from byte ``start`` to before ``stop``; where these end in empty ones, also those
    that follow, so that it shows whether the empty ones stand between rows."""
    number, position, line = 0, start, b"-"
    try:
        with open_plain(path) as file:
            if start:
                file.seek(start)
            for following in file:
                if stop is not None and position >= stop and line.strip():
                    return
                line = following
                position += len(line)
                number += 1
                yield line.removeprefix(BOM) if position == len(line) else line
    except (OSError, EOFError, ValueError, ImportError, zlib.error) as error:
        raise path_error(f"{path} after line {number}" if number else path, "read", error) from error
