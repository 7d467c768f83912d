"""What waits for the engine's one worker, and which of it may be done together.

Work is done in the order it came, but for one thing: completions by the model whose turn it is are drawn
forward into one batch. They never pass a waiting fine-tune, so none is held up for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_gradient.api import CompleteRequest, FineTuneRequest
from airflow_provider_gradient.server.store import RepeatableCall

Answer = dict[str, Any]
"""The JSON body of a response."""


@dataclass(kw_only=True, eq=False)
class CompleteJob:
    """A completion by an adapter, or by the bare base model where ``adapter_id`` is ``None``."""

    base_slug: str
    adapter_id: str | None
    request: CompleteRequest
    answer: Future[Answer] = field(default_factory=Future)

    def is_like(self, other: object) -> bool:
        """Whether both are completions by the same model."""
        return isinstance(other, CompleteJob) and (self.base_slug, self.adapter_id) == (
            other.base_slug,
            other.adapter_id,
        )


@dataclass(kw_only=True, eq=False)
class FineTuneJob:
    """A fine-tune call on an adapter; ``call`` is given where it may be repeated."""

    adapter_id: str
    request: FineTuneRequest
    call: RepeatableCall | None
    answer: Future[Answer] = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class ForgetJob:
    """Everything that is kept of a deleted adapter can go."""

    base_slug: str
    adapter_id: str


Job = CompleteJob | FineTuneJob | ForgetJob


class JobQueue:
    """A queue that hands out batches.

    :param max_rows: the most completions in one batch.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> bool:
        """Add a job; false where the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            self._jobs.append(job)
            self._changed.notify()
            return True

    def take(self) -> list[Job]:
        """Wait for the next job and those that go with it; an empty list means that the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return []
            first = self._jobs.popleft()
            if not isinstance(first, CompleteJob):
                return [first]
            return [first, *self._draw_forward(first)]

    def close(self) -> list[Job]:
        """Hand out nothing more; what was left is the return value."""
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
            return left

    def _draw_forward(self, first: CompleteJob) -> list[Job]:
        drawn: list[Job] = []
        passed: list[Job] = []
        while self._jobs and len(drawn) < self._max_rows - 1 and not isinstance(self._jobs[0], FineTuneJob):
            job = self._jobs.popleft()
            (drawn if first.is_like(job) else passed).append(job)
        self._jobs.extendleft(reversed(passed))
        return drawn
