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
import json
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_provider_gradient.api import (
    ApiError,
    GradientError,
    InvalidRequestError,
)
from airflow_provider_gradient.client import AsyncGradientClient, Done, Wait
from airflow_provider_gradient.completions.budgets import Budget, Budgets
from airflow_provider_gradient.completions.chains import Chain
from airflow_provider_gradient.completions.failures import (
    OF_EVERY_ROW,
    InternalErrors,
    LeftOver,
    describe_error,
    is_overload,
)
from airflow_provider_gradient.completions.job import CompletionJob, Prompts, row_id
from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.judging import Judge
from airflow_provider_gradient.completions.keeping import Keeper
from airflow_provider_gradient.completions.manifest import ConcurrencySummary
from airflow_provider_gradient.completions.pacing import Pacing, SendingLimits
from airflow_provider_gradient.completions.progress import Progress
from airflow_provider_gradient.completions.row_in_flight import (
    Answer,
    Outcome,
    RowInFlight,
    added_usage,
    last_word,
)
from airflow_provider_gradient.completions.stopping import StopRule, end_after_silence, stopped
from airflow_provider_gradient.completions.threads import first_error, in_slices
from airflow_provider_gradient.datasets import DatasetError, describe_row, read_rows

T = TypeVar("T")


@dataclass(kw_only=True)
class Sender:
    """Sends the rows of ``job`` that ``journal`` lacks.

    :ivar keeper: keeps the journal safe meanwhile.
    :ivar budgets: at whose end the rows that are left are not sent.
    :ivar leaders: for each row the first that asks the same: only that one is sent. ``None`` sends all.
    :ivar told: fields of the progress that don't change.
    :ivar left_over: rows that failed for a reason that may pass.
    """

    client: AsyncGradientClient
    job: CompletionJob
    prompts: Prompts | Chain
    journal: Journal
    rows: int
    limits: SendingLimits
    keeper: Keeper
    told: Mapping[str, Any]
    budgets: Budgets = field(default_factory=Budgets)
    leaders: array[int] | None = None

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        if not isinstance(self.prompts, Chain):
            model_id = self.job.model_id or ""  # never None beside a prompt
            self._begin_completion = self.client.completions(model_id, **self.job.parameters)
        choices = self.job.parameters.get("guidance")
        self._judge = Judge(choices=choices, schema=self.job.output_schema)
        self._pacing = Pacing(self.limits, now=self._started)
        self._budget = Budget(self.budgets, now=self._started)
        left = self.rows - self.journal.done
        self._stop_rule = StopRule(self.limits.max_error_rate, rows=min(left, self.budgets.max_rows or left))
        self._arrived = 0
        self._copies: dict[int, list[tuple[int, int | str | None]]] = {}
        self._failures: Counter[str] = Counter()
        self._last_error = ""
        self.left_over = LeftOver()
        self._cut_off = False
        self._fresh: deque[RowInFlight] = deque()
        self._waiting: list[tuple[float, int, RowInFlight]] = []
        self._ties = itertools.count()
        self._all_read = False
        self._wake = asyncio.Event()
        self._hungry = asyncio.Event()

    @property
    def ended(self) -> str | None:
        """Which budget ended the run before every row was sent as often as it might have been, in words."""
        if self.journal.done == self.rows and not self._cut_off:
            return None
        return self._budget.ended or f"max_rows, {self.budgets.max_rows}, is reached"

    async def send(self) -> ConcurrencySummary | None:
        """Return when the journal has every row, or a budget is spent, with what became of the concurrency.

        :raises ApiError: one that concerns every row.
        :raises RunStoppedError: too many rows fail, the server answers nothing for the client's total time,
            or the rows' deadline if that is longer, or asks for a pause longer than the client's total time.
        """
        try:
            async with asyncio.TaskGroup() as group:
                seconds = max(self.client.timeouts.total, self.limits.row_deadline or 0.0)
                watch = end_after_silence(self._pacing, seconds=seconds, last_error=lambda: self._last_error)
                beside = [group.create_task(one) for one in (self.keeper.keep(self._progress), watch)]
                async with asyncio.TaskGroup() as senders:
                    feeder = senders.create_task(self._feed())
                    await self._dispatch(senders)
                    feeder.cancel()
                for task in beside:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        self.keeper.report(self._progress())
        return self._pacing.summary(time.monotonic())

    async def _feed(self) -> None:
        """Keep rows at hand, as many as may be in flight and a slice more."""
        rows_ = itertools.islice(read_rows(self.job.dataset), self.rows)
        missing = ((index, row) for index, row in enumerate(rows_) if index not in self.journal)
        async with contextlib.aclosing(in_slices(missing)) as slices:
            async for rows in slices:
                self._fresh.extend(row for index, columns in rows if (row := self._arrival(index, columns)))
                self._wake.set()
                if self.leaders is None and self._arrived > (self.budgets.max_rows or self.rows):
                    break  # else there may be copies, which take no request
                while len(self._fresh) > self.limits.concurrency:
                    self._hungry.clear()
                    await self._hungry.wait()
        self._all_read = True
        self._wake.set()

    def _arrival(self, index: int, columns: Mapping[str, Any]) -> RowInFlight | None:
        """The row, if it is to be sent; a copy of an earlier one takes that one's answer."""
        leader = index if self.leaders is None else self.leaders[index]
        if leader == index:
            self._arrived += 1
            over = self._arrived > (self.budgets.max_rows or self.rows)
            return None if over else RowInFlight(index=index, columns=columns)
        copy = (index, self._id(index, columns))
        if leader in self.journal:
            self._append_copy(json.loads(self.journal.line(leader)), *copy)
        else:
            self._copies.setdefault(leader, []).append(copy)
        return None

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        """Start a worker whenever a request may go; a worker goes on for as long as one more may."""
        while not self._is_done():
            while (row := self._take()) is not None:
                group.create_task(self._work(row))
            if self._budget.ended:
                self._give_up_waiting()
                if self._is_done():
                    return
            self._wake.clear()
            now = time.monotonic()
            delays = (self._delay(now), self._budget.seconds_left(now))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min((one for one in delays if one is not None), default=None)):
                    await self._wake.wait()

    def _is_done(self) -> bool:
        unsent = not self._all_read or bool(self._fresh)
        return not (self._pacing.in_flight or self._waiting or (unsent and not self._budget.ended))

    def _give_up_waiting(self) -> None:
        """Rows that wait to be sent again when a budget is spent have failed for a reason that may pass."""
        for _, _, row in self._waiting:
            self._cut_off = True
            self._record(row, last_word(row))
        self._waiting.clear()

    async def _work(self, row: RowInFlight | None) -> None:
        while row is not None:
            await self._try(row)
            row = self._take()
            if row is None or self._delay(row.sent) == 0.0:
                self._wake.set()

    def _take(self) -> RowInFlight | None:
        """The row whose turn it is, if one may be sent at this moment: one that has waited before a new
        one."""
        now = time.monotonic()
        while self._delay(now) == 0.0:
            if self._waiting and self._waiting[0][0] <= now:
                row = heapq.heappop(self._waiting)[-1]
                if now >= row.deadline:
                    self._give_up(row, row.error)
                    continue
            else:
                row = self._fresh.popleft()
                if len(self._fresh) <= self.limits.concurrency:
                    self._hungry.set()
            row.sent, row.set_aside = now, self._pacing.start(now)
            if row.internal_errors is not None:
                row.internal_errors.on_sent_again(now)
            return row
        return None

    def _delay(self, now: float) -> float | None:
        """Seconds until a request may go; ``None``: not before something happens."""
        if not self._budget.allows(now, in_flight=self._pacing.in_flight):
            return None
        if self._fresh and len(self._waiting) < self.limits.concurrency:
            due = 0.0
        elif self._waiting:
            due = max(0.0, self._waiting[0][0] - now)
        else:
            return None
        paced = self._pacing.delay(now)
        return None if paced is None else max(due, paced)

    async def _try(self, row: RowInFlight) -> None:
        """One attempt. What it raises about the row alone becomes the row's error."""
        try:
            if row.attempt is None:
                row.attempt = self._begin(row)
            step = await row.attempt()
        except OF_EVERY_ROW:
            raise
        except GradientError as error:
            self._on_failure(row, error)
            self._give_up(row, self._settled(row, describe_error(error)))
        else:
            if isinstance(step, Wait):
                self._on_failure(row, step.error)
                row.error = describe_error(step.error)
                self._wait(row, self._pacing.wait(step.seconds, sent=row.sent))
            else:
                self._on_answer(row, step.value)

    def _wait(self, row: RowInFlight, seconds: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + seconds, next(self._ties), row))
        self._wake.set()

    def _begin(self, row: RowInFlight) -> Callable[[], Awaitable[Done[Any] | Wait]]:
        now, seconds = time.monotonic(), self.limits.row_deadline
        if seconds is not None:
            row.deadline = min(row.deadline, now + seconds)
            seconds = row.deadline - now
        if isinstance(self.prompts, Chain):
            return self.prompts.begin(row.columns, row.call, deadline=seconds)
        prompt = self._of_row(self.prompts.render, row.index, row.columns)
        return self._begin_completion(prompt, record=row.call, deadline=seconds)

    def _on_answer(self, row: RowInFlight, answer: Answer) -> None:
        usage = answer.usage
        tokens = None if usage is None else usage.prompt_tokens + usage.completion_tokens
        self._pacing.on_success(now=time.monotonic(), sent=row.sent, set_aside=row.set_aside, tokens=tokens)
        self._budget.on_answer(tokens)
        row.usage = added_usage(row.usage, usage)
        verdict = self._judge.judge(answer)
        if verdict.status == "invalid_output" and row.asked_again < self.job.max_output_retries:
            row.asked_again += 1
            row.attempt, row.error, row.invalid = None, None, (answer, verdict)
            row.internal_errors = None
            self._wait(row, 0.0)
        else:
            self._finish(row, Outcome(answer, verdict))
        if tokens is None and self.limits.tokens_per_minute is not None:
            raise InvalidRequestError(
                "tokens_per_minute: this server reports no tokens, so they can't be limited; leave it out, "
                "or limit requests_per_minute"
            )
        if tokens is None and self.budgets.max_tokens is not None:
            raise InvalidRequestError(
                "max_tokens: this server reports no tokens, so they can't be limited; leave it out, or set "
                "max_rows"
            )

    def _on_failure(self, row: RowInFlight, error: GradientError) -> None:
        described = describe_error(error)
        self._failures[described["type"]] += 1
        self._last_error = described["message"]
        if row.internal_errors is None:
            row.internal_errors = InternalErrors()
        row.internal_errors.on_error(error)
        retry_after = error.retry_after if isinstance(error, ApiError) else None
        longest = self.client.timeouts.total
        if retry_after is not None and retry_after > longest:
            raise stopped(
                f"the server asks for a pause of {retry_after:.0f} s, and more than the client's total time, "
                f"{longest:.0f} s, is not waited: {error}"
            )
        self._pacing.on_failure(
            now=time.monotonic(),
            sent=row.sent,
            set_aside=row.set_aside,
            transient=described["transient"],
            overloaded=is_overload(error),
            retry_after=retry_after,
        )

    def _settled(self, row: RowInFlight, error: dict[str, Any]) -> dict[str, Any]:
        """The error of a row that is not sent again."""
        if row.internal_errors is None:
            return error
        attempts, answered = self.client.retries.attempts, self._pacing.answered
        return row.internal_errors.settled(error, attempts=attempts, answered=answered)

    def _give_up(self, row: RowInFlight, error: dict[str, Any] | None) -> None:
        row.error = error
        self._finish(row, last_word(row))

    def _finish(self, row: RowInFlight, outcome: Outcome) -> None:
        self._record(row, outcome)
        if outcome.error is not None:
            self._stop_rule.on_failure(outcome.error["type"], outcome.error["message"])
        else:
            self._stop_rule.on_answer()

    def _record(self, row: RowInFlight, outcome: Outcome) -> None:
        answer, verdict, error = outcome
        record = {
            "index": row.index,
            "id": self._id(row.index, row.columns),
            "status": verdict.status if verdict else "error",
            "output": answer and answer.generated_output,
            "parsed": verdict and verdict.parsed,
            "error": verdict.error if verdict else error,
            "finish_reason": answer and answer.finish_reason,
            "model_id": self.job.model_id,
            "attempts": row.call.attempts + self.journal.spent(row.index),
            "latency_ms": round((time.monotonic() - row.sent) * 1000, 1),
            "usage": row.usage and dict(row.usage),
        }
        self._append(record)
        for copy in self._copies.pop(row.index, ()):
            self._append_copy(record, *copy)

    def _append_copy(self, record: Mapping[str, Any], index: int, id_: int | str | None) -> None:
        """The record of a row whose answer was another's: it took no request and no tokens."""
        own = {"index": index, "id": id_, "attempts": self.journal.spent(index), "latency_ms": 0.0}
        self._append({**record, **own, "usage": None})

    def _append(self, record: Mapping[str, Any]) -> None:
        self.journal.append(record)
        if record["status"] == "error":
            self.left_over.add(record["error"])

    def _id(self, index: int, columns: Mapping[str, Any]) -> int | str | None:
        column = self.job.id_column
        if column is None:
            return None
        return self._of_row(lambda row, where: row_id(row, column, where), index, columns)

    def _of_row(
        self, make: Callable[[Mapping[str, Any], str], T], index: int, columns: Mapping[str, Any]
    ) -> T:
        """What ``make`` gives for a row. The words for its place take longer, and are made only for a row
        that is not any more what it was when it was checked."""
        try:
            return make(columns, "")
        except DatasetError:
            return make(columns, describe_row(self.job.dataset, index))

    def _progress(self) -> Progress:
        totals = self.journal.totals
        return Progress(
            **self.told,
            rows=self.rows,
            done=self.journal.done,
            counts=totals.counts,
            resumed_rows=self.journal.resumed,
            seconds=time.monotonic() - self._started,
            in_flight=self._pacing.in_flight,
            failures=dict(self._failures),
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
        )
