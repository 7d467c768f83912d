"""Work in threads from within asyncio: reading and writing that must not hold up the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TypeVar

_SLICE_ROWS = 256
_SLICE_SECONDS = 0.02
"""Rows read in one go, in a thread, so that neither a slow disk nor long lines hold up the answers."""

T = TypeVar("T")


async def in_slices(items: Generator[T]) -> AsyncGenerator[list[T]]:
    """``items`` in lists, each made in a thread; a cancellation takes hold between two and closes
    ``items``."""

    def take() -> list[T]:
        end = time.monotonic() + _SLICE_SECONDS
        part: list[T] = []
        for item in items:
            part.append(item)
            if len(part) == _SLICE_ROWS or time.monotonic() > end:
                break
        return part

    try:
        while part := await in_thread(take):
            yield part
    finally:
        items.close()


async def in_thread(function: Callable[[], T], *, stop: Callable[[], None] | None = None) -> T:
    """What ``function`` gives, called in a thread; it has ended when this ends, by a cancellation too, so
    that it never works on what is closed by then.

    :param stop: called on a cancellation, to make it end soon.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await asyncio.wait([task])
        task.cancelled() or task.exception()  # is of no interest any more
        raise


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of the errors that ended a task group, itself no group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
