"""Parquet, read row group by row group in small batches: a row group may be larger than memory.

Values become what JSON has. Numbers, booleans, strings, nulls, lists and structs are that already; a number
of 32 bits is the shortest that rounds to it, so that 0.1 is 0.1 in 64 bits too. Dates, times, timestamps,
decimals and UUIDs become strings; a timestamp with a zone is told in UTC. For the rest (bytes, durations,
NaN) there is no form that all readers would agree on: they are errors. So is a page that does not fit its
checksum, where its writer gave it one.

pyarrow is an extra and takes a while to load: it is imported where it is needed and never before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.datasets.errors import DatasetError, path_error
from airflow_provider_gradient.datasets.jsonl import parse_row
from airflow_provider_gradient.datasets.paths import StoredPath

JSON_FIELD = {b"airflow_provider_gradient": b"json"}
"""Metadata of a string field whose values are JSON objects and are read as such."""

_BUFFER = 1 << 18
_BATCH_ROWS = 256
_BATCH_BYTES = 1 << 21
"""Of a batch, by the row group's average."""

Plain = Callable[[Any], Any]


def import_parquet() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    :raises DatasetError: pyarrow isn't installed; names the extra that has it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(
            "Parquet needs pyarrow: pip install 'airflow-provider-gradient[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def row_groups(path: StoredPath) -> list[tuple[int, int]]:
    """Rows and bytes of each row group of a Parquet file, of which nothing but the footer is read.

    :raises DatasetError: it can't be read.
    """
    pa, pq = import_parquet()
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as parquet:
            about = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in about]
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise path_error(path, "read", error) from error


def read_parquet(path: StoredPath, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file.

    :param start: the first row group that is read.
    :param stop: behind the last one; ``None`` for all.
    :raises DatasetError: it can't be read, or a column (named, with the row) has what JSON can't hold.
    """
    pa, pq = import_parquet()
    first, group = 0, None
    try:
        with (
            path.open("rb") as file,
            pq.ParquetFile(file, buffer_size=_BUFFER, page_checksum_verification=True) as parquet,
        ):
            columns = _columns(path, parquet.schema_arrow)
            groups = range(parquet.num_row_groups)
            first = sum(parquet.metadata.row_group(group).num_rows for group in groups[:start])
            for group in groups[start:stop]:
                for batch in _batches(parquet, group):
                    values = [column.values(batch.column(n), first) for n, column in enumerate(columns)]
                    names = [column.name for column in columns]
                    for row in zip(*values, strict=True):
                        yield dict(zip(names, row, strict=True))
                    first += batch.num_rows
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        where = str(path) if group is None else f"{path}, row group {group}"
        raise path_error(f"{where} after row {first - 1}" if first else where, "read", error) from error


def _batches(parquet: Any, group: int) -> Iterator[Any]:
    about = parquet.metadata.row_group(group)
    fitting = _BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)
    size = max(1, min(_BATCH_ROWS, fitting))
    yield from parquet.iter_batches(batch_size=size, row_groups=[group], use_threads=False)


@dataclass(frozen=True, kw_only=True)
class _Column:
    """How a column's values become those of JSON: casts within Arrow, then ``plain`` on each value."""

    path: StoredPath
    name: str
    casts: Sequence[Any]
    plain: Plain | None

    def values(self, array: Any, first: int) -> list[Any]:
        """The values of ``array``, whose first is that of row ``first``."""
        for target in self.casts:
            array = array.cast(target)
        values: list[Any] = array.to_pylist()
        if self.plain is None:
            return values
        index = first
        try:
            for index, value in enumerate(values, first):
                values[index - first] = self.plain(value)
        except ValueError as error:
            raise DatasetError(f"{self.path}, row {index}: column {self.name!r} {error}") from None
        return values


def _columns(path: StoredPath, schema: Any) -> list[_Column]:
    if twice := {name for name in schema.names if schema.names.count(name) > 1}:
        raise DatasetError(f"{path}: there are two columns {min(twice)!r}")
    columns = []
    for field in schema:
        try:
            targets = [_retyped(field.type, leaf) for leaf in (_first_leaf, _digits_leaf, _json_leaf)]
            plain = _plain(targets[-1])
        except TypeError as error:
            raise DatasetError(f"{path}, row 0: column {field.name!r} {error}") from None
        metadata = field.metadata or {}
        if JSON_FIELD.items() <= metadata.items():
            plain = _parsed
        before = [field.type, *targets]
        casts = [target for target, last in zip(targets, before, strict=False) if target != last]
        columns.append(_Column(path=path, name=field.name, casts=casts, plain=plain))
    return columns


def _retyped(type_: Any, leaf: Callable[[Any, Any], Any]) -> Any:
    """``type_`` with ``leaf(pyarrow, type)`` for each type in it that holds no others."""
    pa, _ = import_parquet()
    types = pa.types
    if types.is_dictionary(type_):
        return _retyped(type_.value_type, leaf)
    if types.is_struct(type_):
        return pa.struct([field.with_type(_retyped(field.type, leaf)) for field in type_])
    if types.is_map(type_):
        return pa.map_(_retyped(type_.key_type, leaf), _retyped(type_.item_type, leaf))
    if types.is_fixed_size_list(type_):
        return pa.list_(_retyped(type_.value_type, leaf), type_.list_size)
    if types.is_large_list(type_):
        return pa.large_list(_retyped(type_.value_type, leaf))
    if types.is_list(type_):
        return pa.list_(_retyped(type_.value_type, leaf))
    if isinstance(type_, pa.BaseExtensionType) and type_.extension_name != "arrow.uuid":
        return _retyped(type_.storage_type, leaf)
    return leaf(pa, type_)


def _first_leaf(pa: Any, type_: Any) -> Any:
    """Timestamps in UTC, and numbers in a type whose digits Arrow writes."""
    if pa.types.is_float16(type_):
        return pa.float32()
    return pa.timestamp(type_.unit, "UTC") if pa.types.is_timestamp(type_) and type_.tz else type_


def _digits_leaf(pa: Any, type_: Any) -> Any:
    """Numbers of 32 bits as their shortest digits."""
    is_short = pa.types.is_float32(type_) or pa.types.is_float16(type_)
    return pa.string() if is_short else _first_leaf(pa, type_)


def _json_leaf(pa: Any, type_: Any) -> Any:
    types = pa.types
    if types.is_float16(type_) or types.is_float32(type_):
        return pa.float64()
    for is_text in (types.is_timestamp, types.is_date, types.is_time, types.is_decimal):
        if is_text(type_):
            return pa.string()
    for is_json in (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_string):
        if is_json(type_):
            return type_
    if types.is_large_string(type_) or str(type_) == "string_view" or _is_uuid(type_):
        return type_
    raise TypeError(f"is of type {type_}, which JSON has no form for; cast it to a string or leave it out")


def _is_uuid(type_: Any) -> bool:
    return getattr(type_, "extension_name", "") == "arrow.uuid"


def _plain(type_: Any) -> Plain | None:
    """What makes a value of ``type_`` one of JSON, or ``None`` where it is one."""
    pa, _ = import_parquet()
    types = pa.types
    if types.is_floating(type_):
        return _finite
    if _is_uuid(type_):
        return _unless_null(str)
    if types.is_map(type_):
        if not (types.is_string(type_.key_type) or types.is_large_string(type_.key_type)):
            raise TypeError(f"is of type {type_}; JSON has objects with strings as keys alone")
        item = _plain(type_.item_type) or _same
        return _unless_null(lambda pairs: {key: item(value) for key, value in pairs})
    if types.is_struct(type_):
        parts = {field.name: plain for field in type_ if (plain := _plain(field.type))}
        return _unless_null(lambda value: _each_part(parts, value)) if parts else None
    if hasattr(type_, "value_type") and (item_plain := _plain(type_.value_type)):
        return _unless_null(lambda items: [item_plain(item) for item in items])
    return None


def _each_part(parts: dict[str, Plain], value: dict[str, Any]) -> dict[str, Any]:
    return {name: parts.get(name, _same)(part) for name, part in value.items()}


def _same(value: Any) -> Any:
    return value


def _unless_null(plain: Plain) -> Plain:
    return lambda value: None if value is None else plain(value)


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"is {value}, which JSON can't hold")
    return value


def _parsed(value: str | None) -> dict[str, Any] | None:
    return None if value is None else parse_row(value.encode())
