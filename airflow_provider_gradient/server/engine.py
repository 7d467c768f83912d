"""The one thread that owns torch: it completes in batches and fine-tunes, one after another.

A fine-tune is acknowledged after its weights and its record are on the disk, and a completion looks the
record up when its turn comes; so a completion that arrives after an acknowledgement always sees
the new weights.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path

import torch

from airflow_provider_gradient.api import (
    ApiError,
    ChoiceGuidance,
    CompleteRequest,
    Completion,
    FineTuneRequest,
    ServerError,
    Usage,
)
from airflow_provider_gradient.server.adapters import ResidentAdapters, seed_of
from airflow_provider_gradient.server.encoding import encode_samples
from airflow_provider_gradient.server.failures import failed, unknown_adapter
from airflow_provider_gradient.server.generation import Continuation, Prompt, continue_prompts
from airflow_provider_gradient.server.jobs import Answer, CompleteJob, FineTuneJob, ForgetJob, Job, JobQueue
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.store import AdapterRecord, RepeatableCall, Store
from airflow_provider_gradient.server.training import fine_tune
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_MAX_ROWS = 32
"""Completions in one batch."""
_NO_LIMIT = 1 << 30
_STOP_SECONDS = 5.0


class Engine:
    """Answers completions and fine-tunes for the models it loads.

    :param directories: the models' Hugging Face directories by slug.
    :param threads: CPU threads of torch.
    :raises StartError: a model can't be loaded.
    """

    def __init__(
        self, directories: Mapping[str, Path], *, store: Store, weights: AdapterWeights, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._threads = threads
        self._store = store
        self._weights = weights
        self.models = {slug: ServedModel.load(slug, path) for slug, path in directories.items()}
        self._adapters = {slug: ResidentAdapters(model, weights) for slug, model in self.models.items()}
        self._chance = torch.Generator()
        self._chance.seed()
        self._queue = JobQueue(max_rows=_MAX_ROWS)
        self._at_work: Sequence[Job] = ()
        self._worker = threading.Thread(target=self._work, name="gradient-engine", daemon=True)
        self._worker.start()

    def complete(self, base_slug: str, adapter_id: str | None, request: CompleteRequest) -> Future[Answer]:
        """Complete by an adapter, or by the bare base model.

        The future gives the response's body or raises an :class:`ApiError`.
        """
        job = CompleteJob(base_slug=base_slug, adapter_id=adapter_id, request=request)
        return self._submit(job)

    def fine_tune(
        self, adapter_id: str, request: FineTuneRequest, *, call: RepeatableCall | None
    ) -> Future[Answer]:
        """Train an adapter on samples; the same ``call`` again gives the first answer and doesn't train.

        The future gives the response's body or raises an :class:`ApiError`; in that case nothing is kept.
        """
        return self._submit(FineTuneJob(adapter_id=adapter_id, request=request, call=call))

    def forget(self, record: AdapterRecord) -> None:
        """Remove a deleted adapter from memory and disk when its turn comes."""
        self._queue.put(ForgetJob(base_slug=record.base_slug, adapter_id=record.id))

    def stop(self) -> bool:
        """Answer nothing more: what waits is refused at once, what runs if it isn't done in a few seconds.

        :returns: whether the worker is done; if not, torch still runs on its thread.
        """
        for job in self._queue.close():
            _settle(job, error=_refused())
        self._worker.join(_STOP_SECONDS)
        for job in self._at_work:
            _settle(job, error=_stopping())
        return not self._worker.is_alive()

    def _submit(self, job: CompleteJob | FineTuneJob) -> Future[Answer]:
        if not self._queue.put(job):
            _settle(job, error=_refused())
        return job.answer

    # --- on the worker's thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while jobs := self._queue.take():
            self._at_work = jobs
            self._complete([job for job in jobs if isinstance(job, CompleteJob)])
            for job in jobs:
                if isinstance(job, FineTuneJob):
                    self._fine_tune(job)
                elif isinstance(job, ForgetJob):
                    self._forget(job)
            self._at_work = ()

    def _complete(self, jobs: Sequence[CompleteJob]) -> None:
        """Answer completions by one model; where the batch breaks, each is tried once more by itself."""
        waiting = [job for job in jobs if not job.answer.done()]
        if not waiting:
            return
        try:
            self._complete_together(waiting)
        except Exception as error:
            if len(jobs) == 1:
                _settle(jobs[0], error=_as_api_error(error))
                return
            for job in waiting:
                self._complete([job])

    def _complete_together(self, jobs: Sequence[CompleteJob]) -> None:
        served = self.models[jobs[0].base_slug]
        record = self._record(jobs[0].adapter_id) if jobs[0].adapter_id else None
        prompts: list[tuple[CompleteJob, Prompt]] = []
        with self._adapters[served.slug].applied(record):
            for job in jobs:
                try:
                    prompt = served.prompt(job.request)
                    if job.request.guidance is None:
                        prompts.append((job, prompt))
                    else:
                        _settle(job, answer=_choice(served, record, prompt, job.request.guidance))
                except ApiError as error:
                    _settle(job, error=error)
            self._continue(served, record, prompts)

    def _continue(
        self, served: ServedModel, record: AdapterRecord | None, prompts: Sequence[tuple[CompleteJob, Prompt]]
    ) -> None:
        def deliver(index: int, continuation: Continuation) -> None:
            job, prompt = prompts[index]
            if continuation.finish_reason == "diverged":
                _settle(job, error=failed("the model's output is not a number"))
                return
            answer = _completion(
                record,
                text=served.text(prompt, continuation.tokens),
                finish_reason=continuation.finish_reason,
                prompt_tokens=len(prompt.tokens),
                completion_tokens=len(continuation.tokens),
            )
            _settle(job, answer=answer)

        if prompts:
            continue_prompts(
                served.model,
                [prompt for _, prompt in prompts],
                stop_tokens=served.stop_tokens,
                generator=self._chance,
                deliver=deliver,
            )

    def _fine_tune(self, job: FineTuneJob) -> None:
        if job.answer.done():
            return
        try:
            _settle(job, answer=self._store.answer(job.call) or self._train(job))
        except Exception as error:
            _settle(job, error=_as_api_error(error))

    def _train(self, job: FineTuneJob) -> Answer:
        """One fine-tune, from samples to the record of the new version."""
        began = time.monotonic()
        record = self._record(job.adapter_id)
        served = self.models[record.base_slug]
        samples = encode_samples(
            served.tokenizer,
            job.request.samples,
            config=served.config,
            max_length=served.context_length or _NO_LIMIT,
        )
        adapters = self._adapters[record.base_slug]
        try:
            resident = adapters.resident(record)
            result = fine_tune(
                adapters.peft_model,
                served.tokenizer,
                samples,
                resident.trainer,
                config=served.config,
                learning_rate=record.learning_rate,
                seed=seed_of(record),
            )
            version = record.version + 1
            answer = result.to_wire() | {"modelVersion": version}
            self._weights.write(record.id, version=version, save=lambda path: adapters.save(record, path))
            if not self._store.advance(record.id, version=version, answer=answer, call=job.call):
                raise unknown_adapter(record.id)
        except BaseException:
            adapters.evict(record.id)
            raise
        resident.version = version
        self._weights.remove_version(record.id, version=record.version)
        _LOG.info(
            "fine-tuned %s to version %d: %d samples, %d tokens, mean loss %.3f, %.2f s",
            record.id,
            version,
            len(samples),
            result.number_of_trainable_tokens,
            result.mean_loss,
            time.monotonic() - began,
        )
        return answer

    def _forget(self, job: ForgetJob) -> None:
        try:
            if job.base_slug in self._adapters:
                self._adapters[job.base_slug].evict(job.adapter_id)
            self._weights.remove(job.adapter_id)
        except Exception:
            _LOG.exception("what was kept of %s could not be removed", job.adapter_id)

    def _record(self, adapter_id: str) -> AdapterRecord:
        record = self._store.adapter(adapter_id)
        if record is None:
            raise unknown_adapter(adapter_id)
        return record


def _choice(
    served: ServedModel, record: AdapterRecord | None, prompt: Prompt, guidance: ChoiceGuidance
) -> Answer:
    value, length = served.choose(prompt, guidance)
    return _completion(
        record, text=value, finish_reason="stop", prompt_tokens=len(prompt.tokens), completion_tokens=length
    )


def _completion(
    record: AdapterRecord | None, *, text: str, finish_reason: str, prompt_tokens: int, completion_tokens: int
) -> Answer:
    completion = Completion(
        finish_reason=finish_reason,
        generated_output=text,
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens),
    )
    return completion.to_wire() | {"modelVersion": record.version if record else 0}


def _settle(job: Job, *, answer: Answer | None = None, error: ApiError | None = None) -> None:
    """Give a job its answer or its error, unless its caller has left or it was refused already."""
    if isinstance(job, ForgetJob):
        return
    with suppress(InvalidStateError):
        if error is not None:
            job.answer.set_exception(error)
        else:
            job.answer.set_result(answer or {})


def _refused() -> ServerError:
    """For a job that was not begun: ``Retry-After`` tells a client that it may send it again."""
    return ServerError("the server is stopping; try again", status=503, type="failed", retry_after=1)


def _stopping() -> ServerError:
    """For a job under way, of which nobody knows how far it came."""
    return ServerError("the server is stopping; try again", status=503, type="failed")


def _as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error: the API's own as they are, of others only that there was one."""
    if isinstance(error, ApiError):
        return error
    _LOG.error("a request failed", exc_info=error)
    return failed("the server failed on this request; its log says why")
