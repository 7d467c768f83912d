"""Lines that outlive the process that wrote them: what the journals of this package are made of.

A line is in the file as soon as :meth:`AppendLog.append` returns, so that a killed process loses none, and
safe against a power cut after :meth:`AppendLog.commit`. The log is a local file. Elsewhere, where nothing can
be appended, it is a folder of that name with :mod:`parts <.log_parts>`, one put whole at each commit; a local
copy of them is what is read, and a lost machine loses what came after the last commit.

On opening, a last line without its end, which is a write that was cut, is dropped.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from airflow_provider_gradient.datasets.errors import path_error
from airflow_provider_gradient.datasets.log_parts import LogParts
from airflow_provider_gradient.datasets.paths import (
    PathLike,
    StoredPath,
    as_path,
    local_path,
    remove,
    replacing,
    sync_folder,
)

log = logging.getLogger(__name__)

_BUFFER = 1 << 18
_LINE = 1 << 12
"""Bytes read at once where one line is wanted; few are longer."""


class AppendLog:
    """An append-only file of lines; a context manager that commits when it ends.

    :param path: made if it is not there, with its folders.
    :raises DatasetError: it can't be opened, read or written.
    """

    def __init__(self, path: PathLike) -> None:
        self._path = as_path(path)
        self._parts = None if local_path(self._path) else LogParts(self._path)
        self._committing = threading.Lock()
        self._closed = False
        try:
            self._file = _open_local(self._path) if self._parts is None else self._parts.fetch()
        except OSError as error:
            raise path_error(path, "open", error) from error
        self.size = self._committed = self._cut_torn_end()

    def __str__(self) -> str:
        return str(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.commit()
        finally:
            with self._committing:
                self._closed = True
                os.close(self._file)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with its offset."""
        offset = 0
        with open(self._file, "rb", _BUFFER, closefd=False) as file:
            file.seek(0)
            while offset < self.size and (line := file.readline()):
                yield offset, line
                offset += len(line)

    def append(self, line: bytes) -> int:
        """Write a line, which ends in a line feed; its offset.

        :raises DatasetError: it could not be written whole, say since the disk is full.
        """
        try:
            if os.write(self._file, line) != len(line):
                os.ftruncate(self._file, self.size)
                raise OSError("the disk took only a part of a line; is it full?")
        except OSError as error:
            raise path_error(self._path, "write", error) from error
        offset, self.size = self.size, self.size + len(line)
        return offset

    def read(self, offset: int) -> bytes:
        """The line at ``offset``."""
        size = _LINE  # at a place of its own: what is appended moves the descriptor's
        while b"\n" not in (part := os.pread(self._file, size, offset)) and len(part) == size:
            size *= 8
        return part[: part.find(b"\n") + 1]

    def commit(self) -> None:
        """Make safe what was written so far; may be called from another thread than :meth:`append`.

        :raises DatasetError: it can't be written.
        """
        with self._committing:
            size = self.size
            if self._closed or size == self._committed:
                return
            try:
                if self._parts is None:
                    os.fsync(self._file)
                else:
                    self._parts.put(self._file, self._committed, size)
            except OSError as error:
                raise path_error(self._path, "write", error) from error
            self._committed = size

    def clear(self) -> None:
        """Drop all lines."""
        os.ftruncate(self._file, 0)
        self.size = self._committed = 0
        if self._parts is not None:
            self._parts.remove()

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Let ``lines``, which may be made from those that are there, be the log from now on. It has the old
        lines or the new ones, whenever the process is killed.

        :raises DatasetError: they can't be written.
        """
        with self._committing:
            try:
                if self._parts is None:
                    with replacing(self._path) as file:
                        file.writelines(lines)
                    rewritten = _open_local(self._path)
                else:
                    rewritten = self._parts.rewrite(lines)
            except OSError as error:
                raise path_error(self._path, "write", error) from error
            os.close(self._file)
            self._file = rewritten
            self.size = self._committed = os.fstat(rewritten).st_size

    def remove(self) -> None:
        """Delete the log."""
        self.clear()
        if self._parts is None:
            remove(self._path)

    def _cut_torn_end(self) -> int:
        """The bytes that hold whole lines; what is behind them is cut off."""
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - _BUFFER)
            feed = os.pread(self._file, end - start, start).rfind(b"\n")
            if feed >= 0:
                end = start + feed + 1
                break
            end = start
        if end < size:
            log.warning("%s: its last line was cut while it was written; dropped", self._path)
            os.ftruncate(self._file, end)
        return end


def _open_local(path: StoredPath) -> int:
    local = local_path(path)
    assert local is not None  # noqa: S101 - as the caller found
    local.parent.mkdir(parents=True, exist_ok=True)
    is_new = not local.exists()
    file = os.open(local, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    if is_new:
        sync_folder(local.parent)
    return file
