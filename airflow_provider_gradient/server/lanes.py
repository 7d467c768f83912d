"""The engine's threads: one a base model for completions, and one for all fine-tunes.

Training has a thread of its own, over a twin of the model, so that completions go on meanwhile: most of a
training step is spent inside torch, where Python's lock is free. What the two share are the base model's
weights, which nobody writes, and the adapters' versions on the disk, which are written once and only read.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch

from airflow_provider_gradient.api import Completion, Usage
from airflow_provider_gradient.server.adapter_files import AdapterFileError, finding
from airflow_provider_gradient.server.answers import refused, settle, stopping
from airflow_provider_gradient.server.failures import damaged_adapter, failed, unknown_adapter
from airflow_provider_gradient.server.generation import Continuation, Prompt, Road, Row
from airflow_provider_gradient.server.jobs import (
    Answer,
    CompleteJob,
    CompletionQueue,
    FineTuneJob,
    FineTuneQueue,
    ForgetJob,
)
from airflow_provider_gradient.server.lora_stack import AdapterKey
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.store import Store
from airflow_provider_gradient.server.weights import AdapterWeights

if TYPE_CHECKING:
    from airflow_provider_gradient.server.trainer import Trainer

_LOG = logging.getLogger(__name__)


class CompletionLane:
    """Completes by one base model and its adapters, on a thread of its own."""

    def __init__(self, served: ServedModel, road: Road, *, store: Store, threads: int) -> None:
        self.road = road
        self.generated_tokens = 0
        self._served = served
        self._store = store
        self._threads = threads
        self._queue = CompletionQueue()
        self._at_work: dict[CompleteJob, None] = {}
        self._alone: deque[Row] = deque()
        self._deleted: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"complete-{served.slug}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Completions not yet begun."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Completions under way."""
        return len(self._at_work)

    def put(self, job: CompleteJob) -> None:
        """Take a completion on."""
        if not self._queue.put(job):
            settle(job.answer, error=refused())

    def forget(self, adapter_id: str) -> Future[None]:
        """Let a deleted adapter leave memory: by the time that the future is done or, where completions by it
        are under way, with the last of them."""
        return self._queue.forget(adapter_id)

    def close(self) -> None:
        """Begin nothing more; what waits is refused."""
        for job in self._queue.close():
            settle(job.answer, error=refused())

    def join(self, seconds: float) -> bool:
        """Wait for the thread; what it then still has under way is told that the server stops."""
        self._thread.join(seconds)
        for job in list(self._at_work):
            settle(job.answer, error=stopping())
        return not self._thread.is_alive()

    # --- on the thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        closed = False
        while not closed or self.road.rows or self._alone:
            jobs = self._queue.take(self._room(), wait=not (closed or self.road.rows or self._alone))
            closed = jobs is None
            for job in jobs or ():
                self._at_work[job] = None
                self._admit(job)
            self._step()
            self._forget_deleted()

    def _room(self) -> int:
        return 0 if self._alone else self.road.slots - self.road.rows

    def _admit(self, job: CompleteJob) -> None:
        if job.answer.done():
            self._at_work.pop(job, None)
            return
        record = job.record if job.record is not None and job.record.version > 0 else None
        try:
            if job.record is not None and self._store.adapter(job.record.id) is None:
                raise unknown_adapter(job.record.id)  # deleted while it waited
            prompt = self._served.prompt(job.request)
        except Exception as error:
            self._fail(job, error)
            return
        row = Row(
            prompt,
            AdapterKey(record.id, record.version, record.digests) if record else None,
            finished=lambda continuation: self._finish(job, row, continuation),
            failed=lambda error: self._fail(job, error),
            left=job.answer.done,
        )
        self.road.admit(row)

    def _step(self) -> None:
        """One step of the road. Where it breaks, each row is tried once more by itself."""
        if self._alone and not self.road.rows:
            self.road.admit(self._alone.popleft())
        if not self.road.rows:
            return
        try:
            self.road.step()
        except Exception as error:
            rows = self.road.drop()
            if len(rows) == 1:
                rows[0].failed(error)
            else:
                _LOG.warning("a batch of %d failed; trying each by itself", len(rows), exc_info=error)
                self._alone.extend(row.again() for row in rows)

    def _forget_deleted(self) -> None:
        """Let go of deleted adapters that no completion under way uses; no later one is begun by them."""
        heard = self._queue.deleted()
        self._deleted.update(heard)
        if self._deleted:
            used = {job.record.id for job in self._at_work if job.record is not None}
            for adapter_id in self._deleted - used:
                try:
                    self.road.forget(adapter_id)
                except Exception:
                    _LOG.exception("what is in memory of %s could not be removed", adapter_id)
            self._deleted &= used
        for told in heard.values():
            told.set_result(None)

    def _finish(self, job: CompleteJob, row: Row, continuation: Continuation) -> None:
        self._at_work.pop(job, None)
        try:
            answer = self._answer(job, row.prompt, continuation)
        except Exception as error:
            settle(job.answer, error=error)
        else:
            settle(job.answer, answer=answer)

    def _answer(self, job: CompleteJob, prompt: Prompt, continuation: Continuation) -> Answer:
        if continuation.finish_reason == "diverged":
            raise failed("the model's output is not a number")
        chosen = continuation.choice
        if chosen is not None and job.request.guidance is not None and prompt.choices is not None:
            text, length = job.request.guidance.value[chosen], prompt.choices.lengths[chosen]
        else:
            text, length = self._served.text(prompt, continuation.tokens), len(continuation.tokens)
        self.generated_tokens += length
        completion = Completion(
            finish_reason=continuation.finish_reason,
            generated_output=text,
            usage=Usage(prompt_tokens=len(prompt.tokens), completion_tokens=length),
        )
        return completion.to_wire() | {"modelVersion": job.record.version if job.record else 0}

    def _fail(self, job: CompleteJob, error: Exception) -> None:
        self._at_work.pop(job, None)
        if isinstance(error, AdapterFileError | FileNotFoundError) and job.record is not None:
            try:
                current = self._store.adapter(job.record.id)
            except Exception as other:
                settle(job.answer, error=other)
                return
            if current is not None and current.version != job.record.version:
                job.record = current  # a fine-tune came first: by its weights, then
                self.put(job)
                return
            if current is None:
                error = unknown_adapter(job.record.id)
            else:
                _LOG.error("adapter %s, version %d: %s", current.id, current.version, error)
                error = damaged_adapter(current.id, current.version, finding(error))
        settle(job.answer, error=error)


class FineTuneLane:
    """Fine-tunes adapters, one call after another, on a thread of its own."""

    def __init__(
        self, models: Mapping[str, ServedModel], *, store: Store, weights: AdapterWeights, threads: int
    ) -> None:
        self.trained_tokens = 0
        self._models = models
        self._store = store
        self._weights = weights
        self._threads = threads
        self._trainers: dict[str, Trainer] = {}
        self._queue = FineTuneQueue()
        self._at_work: FineTuneJob | None = None
        self._thread = threading.Thread(target=self._work, name="fine-tune", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Fine-tunes not yet begun."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Fine-tunes under way: one or none."""
        return int(self._at_work is not None)

    def put(self, job: FineTuneJob | ForgetJob) -> None:
        """Take a fine-tune or a deletion on."""
        if not self._queue.put(job) and isinstance(job, FineTuneJob):
            settle(job.answer, error=refused())

    def close(self) -> None:
        """Begin nothing more; what waits is refused."""
        for job in self._queue.close():
            settle(job.answer, error=refused())

    def join(self, seconds: float) -> bool:
        """Wait for the thread; what it then still has under way is told that the server stops."""
        self._thread.join(seconds)
        if self._at_work is not None:
            settle(self._at_work.answer, error=stopping())
        return not self._thread.is_alive()

    # --- on the thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while (job := self._queue.take()) is not None:
            if isinstance(job, ForgetJob):
                self._forget(job)
            elif not job.answer.done():
                self._at_work = job
                self._fine_tune(job)
                self._at_work = None

    def _fine_tune(self, job: FineTuneJob) -> None:
        try:
            answer = self._store.answer(job.call)
            if answer is None:
                answer, tokens = self._trainer(job.base_slug).train(job)
                self.trained_tokens += tokens
        except Exception as error:
            settle(job.answer, error=error)
        else:
            settle(job.answer, answer=answer)

    def _trainer(self, slug: str) -> Trainer:
        if slug not in self._trainers:
            from airflow_provider_gradient.server.trainer import Trainer  # PEFT takes two seconds to import

            self._trainers[slug] = Trainer(self._models[slug], store=self._store, weights=self._weights)
        return self._trainers[slug]

    def _forget(self, job: ForgetJob) -> None:
        try:
            if job.base_slug in self._trainers:
                self._trainers[job.base_slug].forget(job.adapter_id)
            self._weights.remove(job.adapter_id)
        except Exception:
            _LOG.exception("what was kept of %s could not be removed", job.adapter_id)
