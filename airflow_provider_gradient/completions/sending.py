"""The requests of a run: as many in flight as asked for, and every answer in the journal as it comes.

Rows are read as they are needed, so memory holds those in flight and a few more. A row's failure is its own;
an error that every row would meet stops the run at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_provider_gradient.api import (
    ApiError,
    AuthenticationError,
    GradientError,
    GuidanceNotSupportedError,
    NotFoundError,
    PermissionDeniedError,
    QueryOrPathParsingError,
)
from airflow_provider_gradient.client import AsyncGradientClient, CallRecord
from airflow_provider_gradient.completions.job import CompletionJob, Prompts, row_id
from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.manifest import Progress
from airflow_provider_gradient.datasets import describe_row, read_rows

_OF_EVERY_ROW = (
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
    QueryOrPathParsingError,
    GuidanceNotSupportedError,
)
"""Errors that say nothing about a row: the next would fail with the same."""

_SLICE_ROWS = 256
_SLICE_SECONDS = 0.02
"""Rows read in one go, in a thread, so that neither a slow disk nor long lines hold up the answers."""

T = TypeVar("T")
IndexedRow = tuple[int, Mapping[str, Any]]


@dataclass(kw_only=True)
class Sender:
    """Sends the rows of ``job`` that ``journal`` lacks.

    :ivar commit_seconds: between two moments at which the journal is made safe.
    :ivar progress_seconds: between two calls of ``on_progress``.
    """

    client: AsyncGradientClient
    job: CompletionJob
    prompts: Prompts
    journal: Journal
    rows: int
    commit_seconds: float
    on_progress: Callable[[Progress], None] | None = None
    progress_seconds: float = 10.0
    _started: float = field(default_factory=time.monotonic)

    async def send(self, concurrency: int) -> None:
        """Return when the journal has every row.

        :raises ApiError: one that concerns every row.
        """
        queue: asyncio.Queue[IndexedRow | None] = asyncio.Queue(concurrency)
        workers = min(concurrency, self.rows - self.journal.done)
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep())
                async with asyncio.TaskGroup() as senders:
                    senders.create_task(self._feed(queue, workers))
                    for _ in range(workers):
                        senders.create_task(self._work(queue))
                keeper.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        self._report()

    async def _feed(self, queue: asyncio.Queue[IndexedRow | None], workers: int) -> None:
        missing = (
            (index, row) for index, row in enumerate(read_rows(self.job.dataset)) if index not in self.journal
        )
        async for rows in in_slices(missing):
            for row in rows:
                await queue.put(row)
        for _ in range(workers):
            await queue.put(None)

    async def _work(self, queue: asyncio.Queue[IndexedRow | None]) -> None:
        while (row := await queue.get()) is not None:
            self.journal.append(await self._complete(*row))

    async def _complete(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's record. What ``client.complete`` raises about the row alone becomes its error."""
        where = describe_row(self.job.dataset, index)
        column = self.job.id_column
        record: dict[str, Any] = {
            "index": index,
            "id": row_id(row, column, where) if column is not None else None,
            "status": "error",
            "output": None,
            "error": None,
            "finish_reason": None,
            "model_id": self.job.model_id,
            "attempts": 0,
            "latency_ms": 0.0,
            "usage": None,
        }
        prompt = self.prompts.render(row, where)
        call = CallRecord()
        started = time.perf_counter()
        try:
            completion = await self.client.complete(
                self.job.model_id, prompt, record=call, **self.job.parameters
            )
        except _OF_EVERY_ROW:
            raise
        except GradientError as error:
            record["error"] = describe_error(error)
        else:
            record["output"] = completion.generated_output
            record["finish_reason"] = completion.finish_reason
            record["usage"] = completion.usage and completion.usage.model_dump()
            record["status"], record["error"] = self._judge(completion.generated_output)
        record["attempts"] = call.attempts
        record["latency_ms"] = round((time.perf_counter() - started) * 1000, 1)
        return record

    def _judge(self, output: str) -> tuple[str, dict[str, str] | None]:
        choices = self.job.parameters.get("guidance")
        if choices is None or output.strip() in choices:
            return "success", None
        return "invalid_output", {"type": "invalidOutput", "message": f"none of the choices {choices}"}

    async def _keep(self) -> None:
        reported = time.monotonic()
        while True:
            await asyncio.sleep(self.commit_seconds)
            await in_thread(self.journal.commit)
            if time.monotonic() - reported >= self.progress_seconds:
                reported = time.monotonic()
                self._report()

    def _report(self) -> None:
        if self.on_progress:
            self.on_progress(
                Progress(
                    rows=self.rows,
                    done=self.journal.done,
                    counts=self.journal.totals.counts,
                    resumed_rows=self.journal.resumed,
                    seconds=time.monotonic() - self._started,
                )
            )


async def in_slices(items: Generator[T]) -> AsyncIterator[list[T]]:
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


async def in_thread(function: Callable[[], T]) -> T:
    """What ``function`` gives, called in a thread; it has ended when this ends, by a cancellation too, so
    that it never works on what is closed by then."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def describe_error(error: GradientError) -> dict[str, str]:
    """Type and message for a row's record; the type is the API's where it gave one, else the exception's."""
    name = error.type if isinstance(error, ApiError) and error.type else type(error).__name__
    return {"type": name, "message": str(error)}


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of the errors that ended a task group, itself no group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
