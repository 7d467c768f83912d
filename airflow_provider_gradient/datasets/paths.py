"""Paths of any file system, and files that appear whole or not at all.

Local files are written aside and renamed; elsewhere, where renaming is copying, a file is finished on local
disk and then put as one object. Nothing here appends or renames on a remote file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from upath import UPath

from airflow_provider_gradient.datasets.errors import DatasetError, path_error

_BUFFER = 1 << 18
"""Bytes of a file that is being written that wait in memory."""


class StoredPath(Protocol):
    """What a path must offer: universal_pathlib's ``UPath`` and Airflow's ``ObjectStoragePath`` do."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def path(self) -> str:
        """The path without its protocol, as its file system wants it."""

    @property
    def protocol(self) -> str:
        """``s3`` and the like; empty or ``file`` for a local path."""

    @property
    def parent(self) -> Any:
        """The folder."""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""

    def with_name(self, name: str, /) -> Any:
        """The path of another name in the same folder."""

    def open(self, mode: str = "r", /) -> Any:
        """The file, opened."""

    def exists(self) -> bool:
        """Whether there is such a file."""

    def unlink(self) -> None:
        """Delete the file."""

    def stat(self) -> Any:
        """The file's size (``st_size``) and what else its file system knows."""

    def __truediv__(self, name: str, /) -> Any:
        """The path of ``name`` in this folder."""


PathLike = str | os.PathLike[str] | StoredPath
"""A local path, the URL of any file system that fsspec knows, or a path object that is used as it is."""


def as_path(path: PathLike) -> StoredPath:
    """``path`` as an object; one that already is a :class:`StoredPath` comes back as it is, with its
    connection.

    :raises DatasetError: no file system for its protocol, or no path at all.
    """
    if hasattr(path, "open") and hasattr(path, "protocol"):
        return cast(StoredPath, path)
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise DatasetError(f"a path is needed, not {path!r}")
    try:
        return cast(StoredPath, UPath(path))
    except (ValueError, ImportError) as error:
        raise path_error(path, "open", error) from error


def local_path(path: StoredPath) -> Path | None:
    """The path on the local disk, symbolic links followed, or ``None`` where ``path`` is elsewhere."""
    if path.protocol not in ("", "file", "local"):
        return None
    return Path(path.path).resolve()


def same_path(one: StoredPath, other: StoredPath) -> bool:
    """Whether both lead to the same file, as far as their names tell."""
    local = local_path(one)
    if local is None:
        return str(one) == str(other)
    return local == local_path(other)


def beside(path: StoredPath, suffix: str) -> StoredPath:
    """The path next to ``path`` whose name is its whole name and ``suffix``, so that ``a.jsonl`` and
    ``a.parquet`` share none: ``a.jsonl`` and ``.errors.jsonl`` give ``a.jsonl.errors.jsonl``."""
    return cast(StoredPath, path.with_name(path.name + suffix))


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A file to write that stands at ``path`` once the block ends, and not at all if the block fails.

    Folders that are missing are made. What stood there before is replaced in one step.

    :raises DatasetError: it can't be written.
    """
    target = as_path(path)
    local = local_path(target)
    try:
        with _local_file(local) if local is not None else _remote_object(target) as file:
            yield file
    except OSError as error:
        raise path_error(path, "write", error) from error


@contextlib.contextmanager
def _local_file(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb", _BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _remote_object(path: StoredPath) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile("wb", _BUFFER) as file:
        yield cast(BinaryIO, file)
        file.flush()
        try:
            path.fs.put_file(file.name, path.path)
        except FileNotFoundError:  # a file system with real folders; a bucket's is not asked to make any
            path.parent.mkdir(parents=True, exist_ok=True)
            path.fs.put_file(file.name, path.path)


_CONDITIONAL = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl")
"""Protocols of the stores that create an object only where there is none, in one step."""


def has_conditional_writes(path: StoredPath) -> bool:
    """Whether of several who :func:`create` a file at once only one can, across machines."""
    return local_path(path) is not None or path.protocol in _CONDITIONAL


def create(path: StoredPath, content: bytes) -> bool:
    """Whether ``content`` now stands at ``path``; ``False`` where something was there already.

    A local file is made whole by a hard link; an object store is asked to create and not to overwrite. A file
    system that can do neither is asked whether the file is there first.

    :raises DatasetError: it can't be written.
    """
    local = local_path(path)
    try:
        if local is not None:
            return _linked(local, content)
        try:
            path.fs.pipe_file(path.path, content, mode="create")
        except FileNotFoundError:  # as in _remote_object
            path.parent.mkdir(parents=True, exist_ok=True)
            path.fs.pipe_file(path.path, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise path_error(path, "write", error) from error
        return _written_if_absent(path, content)  # an S3 of another maker, without conditional writes
    return True


def _written_if_absent(path: StoredPath, content: bytes) -> bool:
    if path.exists():
        return False
    with replacing(path) as file:
        file.write(content)
    return True


def _linked(path: Path, content: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
            return True
    finally:
        aside.unlink(missing_ok=True)
    return False


def remove(path: StoredPath) -> None:
    """Delete ``path`` if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
