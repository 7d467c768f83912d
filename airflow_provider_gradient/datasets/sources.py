"""Where rows stand: a file, the files of a folder or of a glob, or the output of an earlier run.

What a path stands for is settled once, when a dataset is opened: every pass over it reads the same files in
the same order. That order is the one of their names, character by character, so ``part-10`` comes before
``part-2``; row indices run on from one file to the next.
"""

from __future__ import annotations

import bisect
import contextlib
import fnmatch
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from airflow_provider_gradient.datasets.compression import compression_of
from airflow_provider_gradient.datasets.errors import DatasetError, path_error
from airflow_provider_gradient.datasets.lines import read_csv, read_jsonl
from airflow_provider_gradient.datasets.parquet import read_parquet
from airflow_provider_gradient.datasets.paths import PathLike, StoredPath, as_path, local_path

log = logging.getLogger(__name__)

_MAGIC = "*?["
_HIDDEN = (".", "_")
"""How names begin that readers of folders pass over."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file.

    :ivar suffixes: the endings that names of such files have, compression aside.
    :ivar read: the rows of a file.
    :ivar read_part: the rows of a part of one, from a byte or row group to before another or the end;
        ``None`` where a file can't be split.
    :ivar part: what a row is in the file, for messages, and the number that the first one has.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[StoredPath], Iterator[dict[str, Any]]]
    part: tuple[str, int]
    read_part: Callable[[StoredPath, int, int | None], Iterator[dict[str, Any]]] | None = None


def _json_rows(path: StoredPath, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; of the errors file of a run those that it ran, so that what runs the dataset
    runs these as well."""
    plain = path.name.lower().removesuffix(compression_of(path.name))
    is_errors = plain.endswith(".errors.jsonl")
    for row in read_jsonl(path, start, stop):
        yield row["row"] if is_errors and _is_failed(row) else row


def _is_failed(row: Mapping[str, Any]) -> bool:
    named = {"index", "status", "error"} <= row.keys() and not {"attempts", "embedding"}.isdisjoint(row)
    return isinstance(row.get("row"), dict) and named


JSONL = Format(
    name="JSONL", suffixes=(".jsonl", ".ndjson"), read=_json_rows, part=("line", 1), read_part=_json_rows
)
CSV = Format(name="CSV", suffixes=(".csv",), read=read_csv, part=("record", 1))
PARQUET = Format(
    name="Parquet",
    suffixes=(".parquet",),
    read=read_parquet,
    part=("row of the file", 0),
    read_part=read_parquet,
)


@functools.lru_cache(maxsize=64)  # asked for every row
def known_format(name: str) -> Format | None:
    """The format that the ending of a file's name tells, or ``None``."""
    plain = name.lower().removesuffix(compression_of(name))
    return next((kind for kind in (JSONL, CSV, PARQUET) if plain.endswith(kind.suffixes)), None)


def format_of(name: str) -> Format:
    """The format of the file of this name: JSONL unless its ending says something else."""
    return known_format(name) or JSONL


def check_output(path: StoredPath, *formats: Format) -> None:
    """Refuse to write to a name by which the file would be read as something that it is not.

    :param formats: that can be written.
    :raises DatasetError: names the endings to choose from; or a folder is there.
    """
    if compression_of(path.name) or format_of(path.name) not in formats:
        endings = " or ".join(kind.suffixes[0] for kind in formats)
        raise DatasetError(f"can't write {path}: let its name end in {endings}")
    local = local_path(path)
    with contextlib.suppress(PermissionError):  # writing tells of that
        if local is not None and local.is_dir():
            raise DatasetError(f"can't write {path}: a folder is there; choose another name")


class StoredRows:
    """Rows in files, as :func:`open_stored` found them.

    :ivar path: what the user gave.
    :ivar files: in the order in which they are read.
    """

    def __init__(self, path: StoredPath, files: Sequence[StoredPath]) -> None:
        self.path = path
        self.files = tuple(files)
        self._starts = [0]

    def __str__(self) -> str:
        return str(self.path)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows, from the first.

        :raises DatasetError: a file can't be read, or holds something else than rows.
        """
        index = 0
        for number in range(len(self.files)):
            self._starts[number:] = [index]
            for row in self._read_file(number):
                yield row
                index += 1

    def _read_file(self, number: int) -> Iterator[dict[str, Any]]:
        path = self.files[number]
        return format_of(path.name).read(path)

    def _place(self, index: int) -> tuple[int, int]:
        """The number of the file that a row was read from, and the row's index among those of this file."""
        file = bisect.bisect_right(self._starts, index) - 1
        return file, index - self._starts[file]

    def describe_row(self, index: int) -> str:
        """The words for a row that was read: its file, its index, and its place within the file."""
        file, within = self._place(index)
        return describe_place(self.files[file], index, index - within)

    def is_fed_by(self, path: StoredPath) -> bool:
        """Whether ``path`` is one of the files, or would be if it were there."""
        names = (_absolute(path), *(_absolute(file) for file in self.files))
        pattern = _absolute(self.path)
        if names[0] in names[1:]:
            return True
        if _has_magic(pattern):
            return PurePosixPath(names[0]).match(pattern)
        return _absolute(path.parent) == pattern


def describe_place(path: PathLike, index: int, start: int = 0) -> str:
    """The words for row ``index`` of a dataset of whose rows ``path`` holds those from ``start`` on."""
    what, first = format_of(str(path)).part
    if (what, start) == ("row of the file", 0):
        return f"{path}, row {index}"
    return f"{path}, row {index} ({what} {index - start + first})"


def open_stored(path: PathLike) -> StoredRows:
    """The files that ``path`` stands for: itself, those in it if it is a folder, those that match it if it is
    a glob.

    In a folder, and in a glob from its first wildcard on, names that begin with ``.`` or ``_`` are passed
    over, those of folders too, as Spark and Arrow do: they are checkpoints, markers and files that are not
    committed. A part of a glob that begins so itself asks for them.

    :raises DatasetError: there is none, they are of several formats, or a folder has folders or files of no
        known format in it.
    """
    stored = as_path(path)
    try:
        files = _files(stored)
    except (OSError, ValueError, ImportError) as error:
        raise path_error(path, "read", error) from error
    for file in files:
        if format_of(file.name) is not format_of(files[0].name):
            raise DatasetError(
                f"{path} has files of several formats, such as {files[0].name} and {file.name}; a dataset "
                "is of one"
            )
        if format_of(file.name) is PARQUET and compression_of(file.name):
            raise DatasetError(
                f"{file}: Parquet is compressed within; a compressed Parquet file can't be read"
            )
    return StoredRows(stored, files)


def _files(path: StoredPath) -> list[StoredPath]:
    kind = _kind(path)
    if kind == "directory":
        return _in_folder(path)
    if kind is None and _has_magic(path.path):
        return _matching(path)
    return [path]


def _kind(path: StoredPath) -> str | None:
    """``file``, ``directory``, or ``None`` for what isn't there, or won't say."""
    path.fs.invalidate_cache()
    with contextlib.suppress(OSError):
        return str(path.fs.info(path.path)["type"])
    return None


def _in_folder(folder: StoredPath) -> list[StoredPath]:
    files, hidden = [], 0
    own = _listed(folder)
    for entry in sorted(folder.fs.ls(folder.path, detail=True), key=lambda entry: str(entry["name"])):
        location = entry["name"].rstrip("/")
        name = location.rpartition("/")[2]
        if location == own:
            continue
        if name.startswith(_HIDDEN):
            hidden += 1
            continue
        if entry["type"] == "directory":
            raise DatasetError(
                f"{folder} has a folder in it, {name}; a glob such as **/*.jsonl behind its name reads those"
            )
        if known_format(name) is None:
            raise DatasetError(
                f"{folder} has a file of no known format in it, {name}; a glob can leave it out"
            )
        files.append(folder / name)
    if hidden:
        log.info("%s: %d names that begin with . or _ were passed over", folder, hidden)
    if not files:
        raise DatasetError(f"{folder}: there are no files in this folder")
    return files


def _matching(pattern: StoredPath) -> list[StoredPath]:
    anchor: Any = pattern
    while _has_magic(anchor.path):
        anchor = anchor.parent
    base = _listed(anchor) + "/"
    files, hidden = [], 0
    levels = pattern.path[len(anchor.path) :].strip("/").split("/")
    for path, about in sorted(pattern.fs.glob(pattern.path, detail=True).items()):
        if about["type"] == "directory":
            continue
        within = path.removeprefix(base)
        if _is_hidden(within.split("/"), levels):
            hidden += 1
        else:
            files.append(anchor / within)
    if hidden:
        log.info(
            "%s: %d files were passed over, as their names or their folders' names begin with . or _; a part "
            "of the pattern that begins so reads them",
            *(pattern, hidden),
        )
    if not files:
        but = f" but {hidden} whose names or folders' names begin with . or _" if hidden else ""
        raise DatasetError(f"{pattern}: no file matches{but}")
    return files


def _is_hidden(names: list[str], levels: list[str]) -> bool:
    """Whether a file below a pattern's fixed part is passed over: one of its names is hidden, and no part of
    the pattern asks for it.

    :param names: of the folders below the fixed part, and the file's own.
    :param levels: the pattern's parts below its fixed one.
    """
    asked = [level for level in levels if level.startswith(_HIDDEN)]
    hidden = (name for name in names if name.startswith(_HIDDEN))
    return any(not any(fnmatch.fnmatchcase(name, level) for level in asked) for name in hidden)


def _has_magic(path: str) -> bool:
    return any(character in path for character in _MAGIC)


def same_place(one: StoredPath, other: StoredPath) -> bool:
    """Whether both are the same place of one file system, as their names tell."""
    return _absolute(one) == _absolute(other)


def _absolute(path: Any) -> str:
    """By which two paths of one file system are compared."""
    local = local_path(path)
    return f"{path.protocol}://{_listed(path)}" if local is None else str(local)


def _listed(path: Any) -> str:
    """The path as its file system lists it."""
    return str(path.fs._strip_protocol(path.path)).rstrip("/")
