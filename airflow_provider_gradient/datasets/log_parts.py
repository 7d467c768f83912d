"""A log where nothing can be appended: a folder of objects, each put whole, that together are its file.

A part is added at each commit; 64 parts in a row become one, and 64 of those again, so that the log of a day
is some hundred objects and not tens of thousands, each of its bytes put three times at most. A merged part is
named after the first and the last that it holds, and is put before they are deleted, the first of them first:
where all of them are still there, the merged one may be half a file, and they count; where one is missing, it
is whole, and what is left of them is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from airflow_provider_gradient.datasets.paths import StoredPath, remove, replacing

_MERGED = 64
_STEP = 1 << 20
"""Bytes copied at once."""
_NAME = re.compile(r"(\d{8})(?:-(\d{8}))?\.jsonl")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One object: the commits it holds, and where its lines stand in the local copy of the log."""

    first: int
    last: int
    start: int = 0
    end: int = 0

    @property
    def name(self) -> str:
        """Of the object."""
        return (
            f"{self.first:08}.jsonl" if self.first == self.last else f"{self.first:08}-{self.last:08}.jsonl"
        )

    @property
    def commits(self) -> int:
        """How many it holds."""
        return self.last - self.first + 1


class LogParts:
    """The objects of one log.

    :param folder: whose name is the log's.
    """

    def __init__(self, folder: StoredPath) -> None:
        self._folder = folder
        self._parts: list[_Part] = []

    def fetch(self) -> int:
        """The descriptor of a nameless local file with the lines of all parts.

        :raises OSError: they can't be read.
        """
        with tempfile.TemporaryFile(buffering=0) as file:
            whole, leftover = _sorted_out(self._stored())
            for part in whole:
                start = file.tell()
                with (self._folder / part.name).open("rb") as source:
                    _copy_lines(source, file)
                self._parts.append(_Part(first=part.first, last=part.last, start=start, end=file.tell()))
            for part in leftover:
                remove(self._folder / part.name)
            descriptor = os.dup(file.fileno())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        return descriptor

    def rewrite(self, lines: Iterable[bytes]) -> int:
        """Put ``lines`` in the place of all parts, as if they were these merged; the descriptor of a local
        file with them.

        :raises OSError: they can't be put.
        """
        with tempfile.TemporaryFile() as file:
            file.writelines(lines)
            file.flush()
            descriptor, end = os.dup(file.fileno()), file.tell()
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        # With an empty part besides, the merged one has a name of its own also where there was a single part.
        number = self._parts[-1].last + 1
        parts = [*self._parts, _Part(first=number, last=number)]
        merged = _Part(first=parts[0].first, last=number, end=end)
        try:
            self._write(descriptor, parts[-1])
            self._write(descriptor, merged)
            for part in parts:
                remove(self._folder / part.name)
        except BaseException:
            os.close(descriptor)
            raise
        self._parts = [merged]
        return descriptor

    def put(self, descriptor: int, start: int, end: int) -> None:
        """Add what the local copy holds from ``start`` to ``end``.

        :raises OSError: it can't be put.
        """
        number = self._parts[-1].last + 1 if self._parts else 0
        part = _Part(first=number, last=number, start=start, end=end)
        self._write(descriptor, part)
        self._parts.append(part)
        while len(self._parts) >= _MERGED and self._parts[-_MERGED].commits == self._parts[-1].commits:
            self._merge(descriptor)

    def remove(self) -> None:
        """Delete all parts, the first last, so that what a kill leaves half-way is still a log with its
        head."""
        for part in sorted(self._stored(), key=lambda part: (part.first, -part.last), reverse=True):
            remove(self._folder / part.name)
        self._parts = []
        with contextlib.suppress(OSError, NotImplementedError):  # where folders are things of their own
            self._folder.fs.rmdir(self._folder.path)

    def _merge(self, descriptor: int) -> None:
        """Make one of the last parts, all of which hold equally many commits."""
        parts = self._parts[-_MERGED:]
        merged = _Part(first=parts[0].first, last=parts[-1].last, start=parts[0].start, end=parts[-1].end)
        self._write(descriptor, merged)
        for part in parts:
            remove(self._folder / part.name)
        self._parts[-_MERGED:] = [merged]

    def _write(self, descriptor: int, part: _Part) -> None:
        with replacing(self._folder / part.name) as file:
            for offset in range(part.start, part.end, _STEP):
                file.write(os.pread(descriptor, min(_STEP, part.end - offset), offset))

    def _stored(self) -> list[_Part]:
        fs: Any = self._folder.fs
        fs.invalidate_cache()
        try:
            paths = fs.ls(self._folder.path, detail=False)
        except FileNotFoundError:
            return []
        names = {path.rstrip("/").rpartition("/")[2] for path in paths}
        found = [match for name in names if (match := _NAME.fullmatch(name))]
        return [_Part(first=int(match[1]), last=int(match[2] or match[1])) for match in found]


def _sorted_out(parts: list[_Part]) -> tuple[list[_Part], list[_Part]]:
    """The parts that together are the log, in their order, and those that an interrupted merge left over."""
    whole: list[_Part] = []
    leftover: list[_Part] = []
    for part in sorted(parts, key=lambda part: (part.last, -part.first)):  # a merged one after what it holds
        held: list[_Part] = []
        while whole and whole[-1].first >= part.first:
            held.append(whole.pop())
        if held and sum(each.commits for each in held) == part.commits:
            whole += reversed(held)
            leftover.append(part)
        else:
            whole.append(part)
            leftover += held
    return whole, leftover


def _copy_lines(source: BinaryIO, target: Any) -> None:
    """Copy the whole lines: a part is nothing else, unless its put was cut."""
    position = end = target.tell()
    while step := source.read(_STEP):
        target.write(step)
        if b"\n" in step:
            end = position + step.rindex(b"\n") + 1
        position += len(step)
    target.truncate(end)
    target.seek(end)
