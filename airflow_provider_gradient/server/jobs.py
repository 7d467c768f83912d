"""What waits for the engine's threads, and in which order it is handed out.

Completions of one base model are handed out in the order they came, as many at a time as there is room for.
Fine-tunes of one adapter are done in the order they came; adapters take turns, a call each, so that one with
many calls holds none of the others up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_gradient.api import CompleteRequest, FineTuneRequest
from airflow_provider_gradient.server.store import AdapterRecord, RepeatableCall

Answer = dict[str, Any]
"""The JSON body of a response."""


@dataclass(kw_only=True, eq=False)
class CompleteJob:
    """A completion by an adapter as on record, or by the bare base model where ``record`` is ``None``."""

    record: AdapterRecord | None
    request: CompleteRequest
    answer: Future[Answer] = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class FineTuneJob:
    """A fine-tune call on an adapter; ``call`` is given where it may be repeated."""

    base_slug: str
    adapter_id: str
    request: FineTuneRequest
    call: RepeatableCall | None
    answer: Future[Answer] = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class ForgetJob:
    """Everything that is kept of a deleted adapter can go. Its record is gone already."""

    base_slug: str
    adapter_id: str


class CompletionQueue:
    """Completions of one base model."""

    def __init__(self) -> None:
        self._jobs: deque[CompleteJob] = deque()
        self._deleted: dict[str, Future[None]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def forget(self, adapter_id: str) -> Future[None]:
        """Tell whoever takes jobs that an adapter was deleted; done once they have heard of it."""
        heard: Future[None] = Future()
        heard.set_running_or_notify_cancel()  # whoever waits for it may leave
        with self._changed:
            if self._closed:
                heard.set_result(None)
            else:
                self._deleted[adapter_id] = heard
                self._changed.notify()
        return heard

    def deleted(self) -> dict[str, Future[None]]:
        """The adapters deleted since this was last asked, each with what is to be set when it is heard."""
        with self._changed:
            deleted, self._deleted = self._deleted, {}
            return deleted

    def put(self, job: CompleteJob) -> bool:
        """Add a job; false where the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            self._jobs.append(job)
            self._changed.notify()
            return True

    def take(self, most: int, *, wait: bool) -> list[CompleteJob] | None:
        """The next jobs, at most so many; ``None`` means that the queue is closed.

        :param wait: until there is one, or an adapter was deleted.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._jobs or self._deleted or self._closed)
            if self._closed:
                return None
            return [self._jobs.popleft() for _ in range(min(most, len(self._jobs)))]

    def close(self) -> list[CompleteJob]:
        """Hand out nothing more; what was left is the return value."""
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
            return left


class FineTuneQueue:
    """Fine-tunes, and deletions, which end an adapter's turns and come before the other adapters'."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, deque[FineTuneJob | ForgetJob]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(isinstance(job, FineTuneJob) for jobs in self._turns.values() for job in jobs)

    def put(self, job: FineTuneJob | ForgetJob) -> bool:
        """Add a job; false where the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            self._turns.setdefault(job.adapter_id, deque()).append(job)
            if isinstance(job, ForgetJob):
                self._turns.move_to_end(job.adapter_id, last=False)
            self._changed.notify()
            return True

    def take(self) -> FineTuneJob | ForgetJob | None:
        """Wait for the first job of the adapter whose turn it is; ``None`` means that the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._closed)
            if self._closed:
                return None
            adapter_id, jobs = self._turns.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._turns[adapter_id] = jobs
                if isinstance(jobs[-1], ForgetJob):
                    self._turns.move_to_end(adapter_id, last=False)
            return job

    def close(self) -> list[FineTuneJob]:
        """Hand out nothing more; what was left is the return value."""
        with self._changed:
            self._closed = True
            left = [job for jobs in self._turns.values() for job in jobs if isinstance(job, FineTuneJob)]
            self._turns.clear()
            self._changed.notify_all()
            return left
