"""The requests of a run: as many in flight as the server bears, and every answer in the journal as it comes.

Rows are read as they are needed, so memory holds those in flight, those that wait to be tried again, of which
there are no more than may be in flight, and a few more. A row that waits takes nobody's place. A row's
failure is its own; an error that every row would meet stops the run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_provider_gradient.api import (
    ApiError,
    AuthenticationError,
    Completion,
    GradientConnectionError,
    GradientError,
    GradientTimeoutError,
    GuidanceNotSupportedError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    QueryOrPathParsingError,
)
from airflow_provider_gradient.client import AsyncGradientClient, CallRecord, Done, Wait
from airflow_provider_gradient.completions.job import CompletionJob, Prompts, row_id
from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.manifest import ConcurrencySummary, Progress
from airflow_provider_gradient.completions.pacing import Pacing, SendingLimits
from airflow_provider_gradient.completions.stopping import StopRule, stopped
from airflow_provider_gradient.datasets import DatasetError, describe_row, read_rows

_OF_EVERY_ROW = (
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
    QueryOrPathParsingError,
    GuidanceNotSupportedError,
    DatasetError,
)
"""Errors that say nothing about a row: the next would fail with the same, or the dataset has changed."""
_OVERLOAD = (429, 503, 504)

_SLICE_ROWS = 256
_SLICE_SECONDS = 0.02
"""Rows read in one go, in a thread, so that neither a slow disk nor long lines hold up the answers."""

T = TypeVar("T")


@dataclass(kw_only=True)
class _Row:
    """A row on its way.

    :ivar attempt: makes the next attempt; ``None`` before the first.
    :ivar sent: when the last attempt began.
    :ivar set_aside: tokens reserved for it.
    """

    index: int
    columns: Mapping[str, Any]
    call: CallRecord = field(default_factory=CallRecord)
    attempt: Callable[[], Awaitable[Done[Completion] | Wait]] | None = None
    sent: float = 0.0
    set_aside: float = 0.0


@dataclass(kw_only=True)
class Sender:
    """Sends the rows of ``job`` that ``journal`` lacks.

    :ivar longest_pause: seconds; a server that asks for a longer one ends the run.
    :ivar commit_seconds: between two moments at which the journal is made safe.
    :ivar progress_seconds: between two calls of ``on_progress``.
    """

    client: AsyncGradientClient
    job: CompletionJob
    prompts: Prompts
    journal: Journal
    rows: int
    limits: SendingLimits
    commit_seconds: float
    longest_pause: float
    on_progress: Callable[[Progress], None] | None = None
    progress_seconds: float = 10.0

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._pacing = Pacing(self.limits, now=self._started)
        self._stop_rule = StopRule(self.limits.max_error_rate, rows=self.rows - self.journal.done)
        self._failures: Counter[str] = Counter()
        self._fresh: deque[_Row] = deque()
        self._waiting: list[tuple[float, int, _Row]] = []
        self._ties = itertools.count()
        self._all_read = False
        self._wake = asyncio.Event()
        self._hungry = asyncio.Event()

    async def send(self) -> ConcurrencySummary | None:
        """Return when the journal has every row, with what became of the concurrency.

        :raises ApiError: one that concerns every row.
        :raises RunStoppedError: too many rows fail, or the server asks for too long a pause.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep())
                async with asyncio.TaskGroup() as senders:
                    senders.create_task(self._feed())
                    await self._dispatch(senders)
                keeper.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        self._report()
        return self._pacing.summary(time.monotonic())

    async def _feed(self) -> None:
        """Keep rows at hand, as many as may be in flight and a slice more."""
        rows_ = itertools.islice(read_rows(self.job.dataset), self.rows)
        missing = ((index, row) for index, row in enumerate(rows_) if index not in self.journal)
        async for rows in in_slices(missing):
            self._fresh.extend(_Row(index=index, columns=row) for index, row in rows)
            self._wake.set()
            while len(self._fresh) > self.limits.concurrency:
                self._hungry.clear()
                await self._hungry.wait()
        self._all_read = True
        self._wake.set()

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        """Start a worker whenever a request may go; a worker goes on for as long as one more may."""
        while not self._all_read or self._fresh or self._waiting or self._pacing.in_flight:
            while (row := self._take()) is not None:
                group.create_task(self._work(row))
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._delay(time.monotonic())):
                    await self._wake.wait()

    async def _work(self, row: _Row | None) -> None:
        while row is not None:
            await self._try(row)
            row = self._take()
            if row is None or self._delay(row.sent) == 0.0:
                self._wake.set()

    def _take(self) -> _Row | None:
        """The row whose turn it is, if one may be sent at this moment: one that has waited before a new
        one."""
        now = time.monotonic()
        if self._delay(now) != 0.0:
            return None
        if self._waiting and self._waiting[0][0] <= now:
            row = heapq.heappop(self._waiting)[-1]
        else:
            row = self._fresh.popleft()
            if len(self._fresh) <= self.limits.concurrency:
                self._hungry.set()
        row.sent, row.set_aside = now, self._pacing.start(now)
        return row

    def _delay(self, now: float) -> float | None:
        """Seconds until a request may go; ``None``: not before something happens."""
        if self._fresh and len(self._waiting) < self.limits.concurrency:
            due = 0.0
        elif self._waiting:
            due = max(0.0, self._waiting[0][0] - now)
        else:
            return None
        paced = self._pacing.delay(now)
        return None if paced is None else max(due, paced)

    async def _try(self, row: _Row) -> None:
        """One attempt. What it raises about the row alone becomes the row's error."""
        try:
            if row.attempt is None:
                row.attempt = self._begin(row)
            step = await row.attempt()
        except _OF_EVERY_ROW:
            raise
        except GradientError as error:
            self._on_failure(row, error)
            self._finish(row, status="error", error=describe_error(error))
        else:
            if isinstance(step, Wait):
                self._on_failure(row, step.error)
                heapq.heappush(self._waiting, (time.monotonic() + step.seconds, next(self._ties), row))
                self._wake.set()
            else:
                self._on_answer(row, step.value)

    def _begin(self, row: _Row) -> Callable[[], Awaitable[Done[Completion] | Wait]]:
        prompt = self.prompts.render(row.columns, describe_row(self.job.dataset, row.index))
        return self.client.begin_completion(self.job.model_id, prompt, record=row.call, **self.job.parameters)

    def _on_answer(self, row: _Row, completion: Completion) -> None:
        usage = completion.usage
        tokens = None if usage is None else usage.prompt_tokens + usage.completion_tokens
        self._pacing.on_success(now=time.monotonic(), sent=row.sent, set_aside=row.set_aside, tokens=tokens)
        status, error = self._judge(completion.generated_output)
        self._finish(row, status=status, error=error, completion=completion)
        if tokens is None and self.limits.tokens_per_minute is not None:
            raise InvalidRequestError(
                "tokens_per_minute: this server reports no tokens, so they can't be limited; leave it out, "
                "or limit requests_per_minute"
            )

    def _on_failure(self, row: _Row, error: GradientError) -> None:
        described = describe_error(error)
        self._failures[described["type"]] += 1
        retry_after = error.retry_after if isinstance(error, ApiError) else None
        if retry_after is not None and retry_after > self.longest_pause:
            raise stopped(
                f"the server asks for a pause of {retry_after:.0f} s, and more than the client's total time, "
                f"{self.longest_pause:.0f} s, is not waited: {error}"
            )
        self._pacing.on_failure(
            now=time.monotonic(),
            sent=row.sent,
            set_aside=row.set_aside,
            transient=described["transient"],
            overloaded=_is_overload(error),
            retry_after=retry_after,
        )

    def _finish(
        self,
        row: _Row,
        *,
        status: str,
        error: Mapping[str, Any] | None,
        completion: Completion | None = None,
    ) -> None:
        where, column = describe_row(self.job.dataset, row.index), self.job.id_column
        record = {
            "index": row.index,
            "id": row_id(row.columns, column, where) if column is not None else None,
            "status": status,
            "output": completion and completion.generated_output,
            "error": error,
            "finish_reason": completion and completion.finish_reason,
            "model_id": self.job.model_id,
            "attempts": row.call.attempts + self.journal.spent(row.index),
            "latency_ms": round((time.monotonic() - row.sent) * 1000, 1),
            "usage": completion and completion.usage and completion.usage.model_dump(),
        }
        self.journal.append(record)
        if status == "error" and error is not None:
            self._stop_rule.on_failure(error["type"], error["message"])
        else:
            self._stop_rule.on_answer()

    def _judge(self, output: str) -> tuple[str, dict[str, Any] | None]:
        choices = self.job.parameters.get("guidance")
        if choices is None or output.strip() in choices:
            return "success", None
        message = f"none of the choices {choices}"
        return "invalid_output", {"type": "invalidOutput", "message": message, "transient": False}

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
                    in_flight=self._pacing.in_flight,
                    failures=dict(self._failures),
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


def describe_error(error: GradientError) -> dict[str, Any]:
    """Type and message for a row's record, and whether the reason may pass: a resumed run sends such a row
    again. The type is the API's where it gave one, else the exception's."""
    name = error.type if isinstance(error, ApiError) and error.type else type(error).__name__
    transient = isinstance(error, GradientConnectionError) or (
        isinstance(error, ApiError) and (error.status == 429 or error.status >= 500)
    )
    return {"type": name, "message": str(error), "transient": transient}


def _is_overload(error: GradientError) -> bool:
    """Whether the server could not cope with the request in time."""
    if isinstance(error, ApiError):
        return error.status in _OVERLOAD
    return isinstance(error, GradientTimeoutError)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of the errors that ended a task group, itself no group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
