"""A shard: a contiguous piece of a dataset, small enough for an XCom, read as a dataset of its own.

It names files, and of a file that is split the bytes or row groups; :func:`~.planning.plan_shards` makes it.
The shards of a plan, one after another, have each row of the dataset once and in its order. That holds only
while the files are those that were planned, so each is pinned by its size and by what its file system tells
of its state, and a shard of a file that changed since is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.datasets.errors import DatasetError, path_error
from airflow_provider_gradient.datasets.paths import PathLike, StoredPath, as_path
from airflow_provider_gradient.datasets.sources import StoredRows, format_of, same_place

_STATES = ("ETag", "etag", "mtime")
"""What file systems call that by which one state of a file is told from the next."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file, or a part of one.

    :ivar size: of the whole file, in bytes, when it was planned.
    :ivar state: its ETag or time of change then; ``None`` where its file system tells neither.
    :ivar start: the first byte (JSONL) or row group (Parquet); of JSONL the lines count that begin from here
        on.
    :ivar stop: behind the last one; ``None`` for the file's end.
    :ivar rows_before: rows of the file before ``start``; of JSONL they are not counted, and it is 0.
    """

    path: PathLike
    size: int
    state: str | None
    start: int = 0
    stop: int | None = None
    rows_before: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is the file as a whole."""
        return self.start == 0 and self.stop is None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A contiguous piece of a dataset; has at least one row.

    :ivar number: counted from 0.
    :ivar of: how many the plan has.
    :ivar source: the path of the dataset.
    :ivar plan: tells plans apart: SHA-256 over all cuts and the sizes of all files.
    """

    number: int
    of: int
    source: str
    plan: str
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of} of {self.source}"

    def to_dict(self) -> dict[str, Any]:
        """The shard as JSON has it."""
        return {**vars(self), "pieces": [{**vars(piece), "path": str(piece.path)} for piece in self.pieces]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Shard:
        """The shard that :meth:`to_dict` gave; paths may be path objects, with their connections.

        :raises DatasetError: this is no shard.
        """
        try:
            pieces = tuple(Piece(**piece) for piece in fields["pieces"])
            return cls(**{**fields, "pieces": pieces})
        except (KeyError, TypeError) as error:
            raise DatasetError(f"this is no shard of a dataset: {error}") from None


def is_shard(dataset: object) -> bool:
    """Whether ``dataset`` is a shard, be it as a dict."""
    return isinstance(dataset, Shard) or (isinstance(dataset, Mapping) and "pieces" in dataset)


class ShardRows(StoredRows):
    """The rows of a shard; their indices count from 0 in each.

    :raises DatasetError: a file is missing, or has changed since the shard was planned.
    """

    def __init__(self, shard: Shard | Mapping[str, Any]) -> None:
        self.shard = shard if isinstance(shard, Shard) else Shard.from_dict(shard)
        files = [as_path(piece.path) for piece in self.shard.pieces]
        super().__init__(files[0], files)
        files[0].fs.invalidate_cache()
        for path, piece in zip(files, self.shard.pieces, strict=True):
            _refuse_change(path, piece)

    def __str__(self) -> str:
        return str(self.shard)

    def _read_file(self, number: int) -> Iterator[dict[str, Any]]:
        return read_piece(self.files[number], self.shard.pieces[number])

    def describe_row(self, index: int) -> str:
        """The words for a row that was read: its file, its index in the shard, and its place in the file; of
        a file that was cut by bytes, the byte from which the lines are counted."""
        number, index_in_piece = self._place(index)
        piece = self.shard.pieces[number]
        what, first = format_of(self.files[number].name).part
        within = index_in_piece + piece.rows_before + first
        where = f"{self.files[number]}, row {index} of shard {self.shard.number} ({what} {within}"
        return f"{where} from byte {piece.start} on)" if what == "line" and piece.start else f"{where})"

    def is_fed_by(self, path: StoredPath) -> bool:
        """Whether ``path`` is one of the files."""
        return any(same_place(path, file) for file in self.files)


def read_piece(path: StoredPath, piece: Piece) -> Iterator[dict[str, Any]]:
    """The rows of ``piece``, which is of the file at ``path``."""
    kind = format_of(path.name)
    if piece.is_whole:
        return kind.read(path)
    if kind.read_part is None:
        raise DatasetError(f"{path}: a {kind.name} file is no shard but as a whole")
    return kind.read_part(path, piece.start, piece.stop)


def whole_file(path: StoredPath) -> Piece:
    """The file at ``path``, as it is now.

    :raises DatasetError: it is not there, or its file system doesn't tell its size.
    """
    try:
        about = path.fs.info(path.path)
    except (OSError, ValueError, ImportError) as error:
        raise path_error(path, "read", error) from error
    if about.get("size") is None:
        raise DatasetError(f"{path}: its size is unknown, so it can't be split; read it as a whole")
    states = [str(about[name]).strip('"') for name in _STATES if about.get(name) is not None]
    return Piece(path=path, size=int(about["size"]), state=states[0] if states else None)


def _refuse_change(path: StoredPath, planned: Piece) -> None:
    now = whole_file(path)
    if now.size != planned.size:
        changed = f"it had {planned.size} bytes and has {now.size}"
    elif now.state != planned.state:
        changed = f"its state was {planned.state} and is {now.state}"
    else:
        return
    raise DatasetError(f"{path} changed since its shards were planned ({changed}); plan them again")
