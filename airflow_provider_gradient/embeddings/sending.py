"""The requests of a run: as many batches in flight as the server bears, each in the journal as it comes.

As many workers as there may be requests take batches of the rows that the journal lacks, so memory holds that
many batches and those that were read with them. A batch that the server refuses is sent again in halves, so
that one text it can't take costs no other its vector; so is one that it answers in a way that can't be read,
or with 500 each time while others are answered. An error that every row would meet stops the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_gradient.api import (
    ApiError,
    GradientError,
    InvalidRequestError,
    InvalidResponseError,
)
from airflow_provider_gradient.client import AsyncGradientClient, CallRecord, Wait
from airflow_provider_gradient.completions.failures import (
    OF_EVERY_ROW,
    InternalErrors,
    LeftOver,
    describe_error,
    is_overload,
)
from airflow_provider_gradient.completions.keeping import Keeper
from airflow_provider_gradient.completions.manifest import ConcurrencySummary, Counts
from airflow_provider_gradient.completions.pacing import Pacing, SendingLimits
from airflow_provider_gradient.completions.progress import Progress
from airflow_provider_gradient.completions.stopping import (
    RunStoppedError,
    StopRule,
    end_after_silence,
    stopped,
)
from airflow_provider_gradient.completions.threads import first_error, in_slices
from airflow_provider_gradient.datasets import describe_row, read_rows
from airflow_provider_gradient.embeddings.job import EmbeddingJob, Texts
from airflow_provider_gradient.embeddings.journal import Journal

_OF_THE_RUN = (*OF_EVERY_ROW, InvalidRequestError, RunStoppedError)
"""Errors that are no batch's own."""
_WEIGHT = 10
"""Failed rows for which a batch counts at most when it is judged whether to go on: it is one request."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows that follow one another, on their way."""

    first: int
    texts: Sequence[str]

    def halves(self) -> tuple[_Batch, _Batch]:
        middle = len(self.texts) // 2
        return (
            _Batch(first=self.first, texts=self.texts[:middle]),
            _Batch(first=self.first + middle, texts=self.texts[middle:]),
        )


@dataclass(kw_only=True)
class Sender:
    """Sends the rows of ``job`` that ``journal`` lacks.

    :ivar concurrency: requests in flight at most.
    :ivar keeper: keeps the journal safe meanwhile.
    :ivar told: fields of the progress that don't change.
    :ivar left_over: rows that failed for a reason that may pass.
    """

    client: AsyncGradientClient
    job: EmbeddingJob
    texts: Texts
    journal: Journal
    rows: int
    concurrency: int
    keeper: Keeper
    told: Mapping[str, Any]
    _failures: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._pacing = Pacing(SendingLimits(concurrency=self.concurrency), now=self._started)
        self._stop_rule = StopRule(None, rows=self.rows - self.journal.done)
        self._turn = asyncio.Condition()
        self._last_error = ""
        self.left_over = LeftOver()

    async def send(self) -> ConcurrencySummary | None:
        """Return when the journal has every row, with what became of the concurrency.

        :raises ApiError: one that concerns every row.
        :raises RunStoppedError: nothing but failures, the server answers nothing for the client's total time,
            or asks for a longer pause.
        """
        try:
            async with asyncio.TaskGroup() as group:
                total = self.client.timeouts.total
                watch = end_after_silence(self._pacing, seconds=total, last_error=lambda: self._last_error)
                beside = [group.create_task(one) for one in (self.keeper.keep(self._progress), watch)]
                async with contextlib.aclosing(self._batches()) as batches, asyncio.TaskGroup() as workers:
                    reading = asyncio.Lock()
                    for _ in range(self.concurrency):
                        workers.create_task(self._work(batches, reading))
                for task in beside:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        self.keeper.report(self._progress())
        return self._pacing.summary(time.monotonic())

    async def _batches(self) -> AsyncGenerator[_Batch]:
        async with contextlib.aclosing(in_slices(self._missing())) as slices:
            async for slice_ in slices:
                for batch in slice_:
                    yield batch

    def _missing(self) -> Generator[_Batch]:
        """The rows that are missing, in batches of rows that follow one another."""
        first, texts = 0, list[str]()
        for index, row in enumerate(itertools.islice(read_rows(self.job.dataset), self.rows)):
            missing = index not in self.journal
            if texts and (not missing or len(texts) == self.job.batch_size):
                yield _Batch(first=first, texts=texts)
                texts = []
            if missing:
                first = first if texts else index
                texts.append(self.texts.render(row, describe_row(self.job.dataset, index)))
        if texts:
            yield _Batch(first=first, texts=texts)

    async def _work(self, batches: AsyncGenerator[_Batch], reading: asyncio.Lock) -> None:
        while True:
            async with reading:
                batch = await anext(batches, None)
            if batch is None:
                return
            await self._embed(batch, CallRecord())

    async def _embed(self, batch: _Batch, record: CallRecord) -> None:
        """Get the batch's vectors, or its error, into the journal.

        :param record: of the requests that were sent for it and are not in the journal.
        """
        internal_errors = InternalErrors()
        try:
            vectors = await self._vectors(batch, record, internal_errors)
        except _OF_THE_RUN:
            raise
        except GradientError as error:
            described = internal_errors.settled(
                describe_error(error),
                attempts=self.client.retries.attempts,
                answered=self._pacing.answered,
            )
            may_be_of_one_text = isinstance(error, ApiError | InvalidResponseError)
            if may_be_of_one_text and not described["transient"] and len(batch.texts) > 1:
                left, right = batch.halves()
                await self._embed(left, record)
                await self._embed(right, CallRecord())
                return
            self.journal.add_error(batch.first, len(batch.texts), described, requests=record.attempts)
            self.left_over.add(described, rows=len(batch.texts))
            for _ in batch.texts[:_WEIGHT]:
                self._stop_rule.on_failure(described["type"], described["message"])
        else:
            self.journal.add_vectors(batch.first, vectors, requests=record.attempts)
            self._stop_rule.on_answer()

    async def _vectors(
        self, batch: _Batch, record: CallRecord, internal_errors: InternalErrors
    ) -> list[list[float]]:
        attempt = self.client.begin_embedding(self.job.model, batch.texts, record=record)
        while True:
            sent = await self._take_turn()
            try:
                step = await attempt()
            except GradientError as error:
                internal_errors.on_error(error)
                await self._on_failure(error, sent=sent)
                raise
            if not isinstance(step, Wait):
                self._pacing.on_success(now=time.monotonic(), sent=sent, set_aside=0.0, tokens=None)
                await self._wake()
                return step.value
            internal_errors.on_error(step.error)
            await self._on_failure(step.error, sent=sent)
            await asyncio.sleep(self._pacing.wait(step.seconds, sent=sent))
            internal_errors.on_sent_again(time.monotonic())

    async def _take_turn(self) -> float:
        """Wait until a request may go, and count it; when that was."""
        async with self._turn:
            while (delay := self._pacing.delay(time.monotonic())) != 0.0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._turn.wait()
            now = time.monotonic()
            self._pacing.start(now)
            return now

    async def _wake(self) -> None:
        async with self._turn:
            self._turn.notify_all()

    async def _on_failure(self, error: GradientError, *, sent: float) -> None:
        described = describe_error(error)
        self._failures[described["type"]] += 1
        self._last_error = described["message"]
        retry_after = error.retry_after if isinstance(error, ApiError) else None
        longest = self.client.timeouts.total
        if retry_after is not None and retry_after > longest:
            raise stopped(
                f"the server asks for a pause of {retry_after:.0f} s, and more than the client's total time, "
                f"{longest:.0f} s, is not waited: {error}"
            )
        self._pacing.on_failure(
            now=time.monotonic(),
            sent=sent,
            set_aside=0.0,
            transient=described["transient"],
            overloaded=is_overload(error),
            retry_after=retry_after,
        )
        await self._wake()

    def _progress(self) -> Progress:
        return Progress(
            **self.told,
            rows=self.rows,
            done=self.journal.done,
            counts=Counts(**self.journal.counts.model_dump()),
            resumed_rows=self.journal.resumed,
            seconds=time.monotonic() - self._started,
            in_flight=self._pacing.in_flight,
            failures=dict(self._failures),
        )
