"""A log whose file is a folder of objects: what is there after any number of commits and any interruption."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_gradient.datasets import AppendLog, log_parts

_FOLDERS = itertools.count()


class StoppedError(Exception):
    """The process is gone."""


@contextlib.contextmanager
def stopped_after(requests: int, *, in_halves: bool) -> Iterator[None]:
    """A bucket whose client is stopped after so many puts and deletions; a put may then leave half an object,
    as no bucket but many a server does."""
    left = itertools.count(requests, -1)
    put, delete = MemoryFileSystem.put_file, MemoryFileSystem.rm

    def put_or_stop(fs: Any, source: str, path: str, **options: Any) -> None:
        stop = next(left) <= 0
        if not stop or in_halves:
            put(fs, source, path, **options)
        if stop:
            if in_halves:
                fs.pipe_file(path, fs.cat_file(path)[: fs.size(path) // 2])
            raise StoppedError

    def delete_or_stop(fs: Any, path: str, **options: Any) -> None:
        if next(left) <= 0:
            raise StoppedError
        delete(fs, path, **options)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(StoppedError):
        patch.setattr(MemoryFileSystem, "put_file", put_or_stop)
        patch.setattr(MemoryFileSystem, "rm", delete_or_stop)
        yield


def lines_of(log: AppendLog) -> list[bytes]:
    return [line for _, line in log.lines()]


@given(
    stops=st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=3),
    commits=st.integers(0, 40),
    merged=st.integers(2, 5),
)
def test_wherever_it_is_stopped_a_log_of_parts_has_every_line_that_was_committed_once(
    stops: list[tuple[int, bool]], commits: int, merged: int
) -> None:
    path = UPath(f"memory://parts{next(_FOLDERS)}/log")
    numbers = itertools.count()
    expected: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_parts, "_MERGED", merged)
        for requests, in_halves in [*stops, (10_000, False)]:
            with stopped_after(requests, in_halves=in_halves):
                log = AppendLog(path)
                found = lines_of(log)
                assert found in (expected, expected[:-1])  # the last may have been put or not
                expected = found
                for _ in range(commits):
                    expected.append(b"line %d, of some length\n" % next(numbers))
                    log.append(expected[-1])
                    log.commit()
        with AppendLog(path) as log:
            assert lines_of(log) == expected


def test_thousands_of_commits_are_a_hundred_objects() -> None:
    path = UPath("memory://many/log")
    with AppendLog(path) as log:
        for number in range(2000):
            log.append(b"%d\n" % number)
            log.commit()
    names = sorted(part.name for part in path.iterdir())
    assert len(names) == 2000 // 64 + 2000 % 64
    assert names[:2] == ["00000000-00000063.jsonl", "00000064-00000127.jsonl"]
    with AppendLog(path) as log:
        assert lines_of(log) == [b"%d\n" % number for number in range(2000)]
        log.remove()
    assert not path.exists()
