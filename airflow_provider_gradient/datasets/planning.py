"""How a dataset is cut into shards: by bytes, without reading more of it than what stands at the cuts.

The cuts are aimed at equal shares of the files' bytes and moved to where a file can be cut: in JSONL to the
next line feed, in Parquet to the nearest row group, which its footer tells, and of a file of CSV (a quoted
field may hold line feeds) or a compressed one to its nearer end. Cuts that meet become one: a plan may have
fewer shards than asked for, never an empty one.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets.compression import compression_of
from airflow_provider_gradient.datasets.errors import DatasetError, path_error
from airflow_provider_gradient.datasets.jsonl import dump_row
from airflow_provider_gradient.datasets.lines import BOM
from airflow_provider_gradient.datasets.parquet import row_groups
from airflow_provider_gradient.datasets.paths import StoredPath, as_path
from airflow_provider_gradient.datasets.rows import Dataset, open_dataset
from airflow_provider_gradient.datasets.shards import Piece, Shard, ShardRows, read_piece, whole_file
from airflow_provider_gradient.datasets.sources import JSONL, PARQUET, StoredRows, format_of

log = logging.getLogger(__name__)

_WINDOW, _LARGEST_WINDOW = 1 << 16, 1 << 22
"""Bytes read at once where a line feed is looked for, at first and at most."""


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Where a shard begins: ``start`` in file ``file``, as :class:`Piece` has it."""

    file: int
    start: int = 0
    rows_before: int = 0


def plan_shards(dataset: Dataset, *, shards: int) -> list[Shard]:
    """Cut ``dataset`` into at most ``shards`` shards of about as many bytes each, in the dataset's order.

    What is read: the sizes of all files, a few kilobytes at each cut and at each shard's beginning, and the
    footers of Parquet files. The same files give the same shards.

    :param dataset: a path or a manifest; a file that is CSV or compressed becomes part of one shard as a
        whole, and that is logged where it is larger than a shard should be.
    :param shards: 1 or more.
    :raises DatasetError: the dataset's rows are given inline, or it is a shard already; a file is missing,
        can't be read, or its first row is none; there is no row at all.
    :raises InvalidRequestError: ``shards`` is below 1.
    """
    if shards < 1:
        raise InvalidRequestError(f"shards: at least 1 is needed (got {shards})")
    rows = open_dataset(dataset)
    if not isinstance(rows, StoredRows):
        raise DatasetError("rows given inline can't be split: write them to a file, or complete them as one")
    if isinstance(rows, ShardRows):
        raise DatasetError(f"{rows}: a shard can't be split again; plan more shards of the whole")
    files = [whole_file(path) for path in rows.files]
    plan = [pieces for pieces in _between(_cuts(files, shards), files) if any(map(_has_row, pieces))]
    if not plan:
        raise DatasetError(f"{rows}: the dataset has no rows")
    return [
        Shard(number=number, of=len(plan), source=str(rows), plan=_digest(plan), pieces=pieces)
        for number, pieces in enumerate(plan)
    ]


def _cuts(files: Sequence[Piece], shards: int) -> list[_Cut]:
    """The beginnings of the shards."""
    ends = list(itertools.accumulate(piece.size for piece in files))
    cuts = {(0, 0): _Cut(file=0)}
    for number in range(1, shards):
        target = ends[-1] * number // shards
        file = bisect_right(ends, target)
        if file < len(files):
            offset = target - ends[file] + files[file].size
            cut = _cut_near(files, file, offset, share=ends[-1] // shards)
            cuts[cut.file, cut.start] = cut
    return [cuts[place] for place in sorted(cuts)]


def _cut_near(files: Sequence[Piece], number: int, offset: int, *, share: int) -> _Cut:
    """The cut for byte ``offset`` of a file.

    :param share: bytes that a shard should have.
    """
    path = as_path(files[number].path)
    size = files[number].size
    if format_of(path.name) is PARQUET:
        return _cut_between_row_groups(path, size, number, offset, share=share)
    if format_of(path.name) is JSONL and not compression_of(path.name):
        start = _next_line(path, offset, size)
        return _Cut(file=number, start=start) if start < size else _Cut(file=number + 1)
    if size > share:
        kind = "it is compressed" if compression_of(path.name) else "it is CSV"
        log.info("%s is one shard's as a whole: %s, and such a file can't be split", path, kind)
    return _Cut(file=number if offset <= size - offset else number + 1)


def _cut_between_row_groups(path: StoredPath, size: int, number: int, offset: int, *, share: int) -> _Cut:
    groups = row_groups(path)
    total = sum(group_bytes for _, group_bytes in groups)
    ends = [0, *itertools.accumulate(group_bytes for _, group_bytes in groups)]
    if max((group_bytes for _, group_bytes in groups), default=0) * size > share * total:
        log.info("%s has row groups larger than a shard should be; they can't be split", path)
    start = min(range(len(ends)), key=lambda group: abs(ends[group] * size - offset * total))
    if start == len(groups):
        return _Cut(file=number + 1)
    return _Cut(file=number, start=start, rows_before=sum(rows for rows, _ in groups[:start]))


def _next_line(path: StoredPath, offset: int, size: int) -> int:
    """Where the first line begins that begins at byte ``offset`` or later; ``size`` if none does."""
    if offset == 0:
        return 0
    position = offset - 1
    for window in _windows(path, position, size):
        feed = window.find(b"\n")
        if feed >= 0:
            return position + feed + 1
        position += len(window)
    return size


def _windows(path: StoredPath, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from ``start`` to ``stop``, in portions that grow."""
    size = _WINDOW
    try:
        while start < stop:
            window = path.fs.cat_file(path.path, start=start, end=min(stop, start + size))
            if not window:
                raise OSError("it became shorter meanwhile")
            yield window
            start, size = start + len(window), min(2 * size, _LARGEST_WINDOW)
    except (OSError, ValueError) as error:
        raise path_error(path, "read", error) from error


def _between(cuts: Sequence[_Cut], files: Sequence[Piece]) -> Iterator[tuple[Piece, ...]]:
    """The pieces from each cut to the next."""
    for cut, next_ in itertools.pairwise([*cuts, _Cut(file=len(files))]):
        pieces = list(files[cut.file : next_.file])
        if next_.start:
            pieces.append(replace(files[next_.file], stop=next_.start))
        if pieces:
            pieces[0] = replace(pieces[0], start=cut.start, rows_before=cut.rows_before)
            yield tuple(pieces)


def _has_row(piece: Piece) -> bool:
    """Whether reading ``piece`` gives a row, or the error that empty lines stand before one."""
    path = as_path(piece.path)
    kind = format_of(path.name)
    if kind is PARQUET:
        return any(rows for rows, _ in row_groups(path)[piece.start : piece.stop])
    if kind is JSONL and not compression_of(path.name):
        return any(window.removeprefix(BOM).strip() for window in _windows(path, piece.start, piece.size))
    return next(read_piece(path, piece), None) is not None


def _digest(plan: Sequence[Sequence[Piece]]) -> str:
    cuts = [[[str(piece.path), piece.size, piece.start, piece.stop] for piece in pieces] for pieces in plan]
    return hashlib.sha256(dump_row(cuts)).hexdigest()
