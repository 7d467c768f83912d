"""Samples in, a tuned adapter out, one call after another.

A call is never trained twice by accident. What the client repeats by itself are calls that were surely not
carried out, and any call once the server was seen to honour idempotency keys. What is left, a call that was
sent and whose answer never came, on a server that may not know keys, is decided by ``on_ambiguous``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from airflow_provider_gradient.api import (
    ApiError,
    FineTuneResult,
    GradientError,
    InvalidRequestError,
    NanLossError,
)
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.datasets import Dataset, PathLike, dump_row
from airflow_provider_gradient.tuning.journal import TuningJournal
from airflow_provider_gradient.tuning.plan import PlannedCall, TrainingPlan, plan_training
from airflow_provider_gradient.tuning.report import CallResult, TuningProgress, TuningReport, epoch_losses
from airflow_provider_gradient.tuning.samples import TrainingSet, training_set

log = logging.getLogger(__name__)

OnAmbiguous = Literal["fail", "skip", "resend"]

_RESENDS = 3
"""How often one run sends a call again whose answer does not come."""


class AmbiguousCallError(GradientError, RuntimeError):
    """A call was sent and its answer never came: it may have been trained, or not."""


async def fine_tune(
    client: AsyncGradientClient,
    *,
    model_id: str,
    samples: Dataset,
    prompt_template: str | None = None,
    completion_template: str | None = None,
    multiplier_column: str | None = None,
    train_on_prompt: bool = False,
    group_column: str | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    identity: str | None = None,
    journal_path: PathLike | None = None,
    on_ambiguous: OnAmbiguous = "fail",
    on_progress: Callable[[TuningProgress], None] | None = None,
) -> TuningReport:
    """Tune an adapter on ``samples``, in epochs of shuffled calls.

    Called again with the same arguments and journal, it goes on after the last settled call; if all are, it
    gives the report again and sends nothing. To train once more on purpose, use another journal.

    :param model_id: of the adapter.
    :param samples: Gradient samples, or with the two templates rows to build them from; or the path of a
        JSONL file of either.
    :param prompt_template: f-string over the row's columns; not trained on.
    :param completion_template: the same, for the text to learn, which follows the prompt as it is.
    :param multiplier_column: holds the weight of a row's loss, above 0.
    :param train_on_prompt: learn the prompt's text as well.
    :param group_column: rows with the same value say the same thing in other words; each epoch takes one of
        them.
    :param epochs: passes over the samples, or over the groups.
    :param batch_size: samples a call at most.
    :param seed: of the order, and of the choice within groups.
    :param identity: names this piece of work; with it the idempotency keys are the same even where the
        journal was lost, so to train once more it must be another too. Never with the number of the try in
        it.
    :param journal_path: a file that outlives this process; ``None`` for no resuming.
    :param on_ambiguous: what to do with a call that was sent but not answered, on a server that was not seen
        to honour idempotency keys: ``fail``; ``skip`` it as if trained; ``resend`` it, at the risk of
        training it twice.
    :param on_progress: called after every call.
    :raises SampleError: a sample can't be trained on; nothing was sent.
    :raises DatasetError: a row or path is wrong; nothing was sent.
    :raises InvalidRequestError: a parameter is out of range; nothing was sent.
    :raises AmbiguousCallError: see ``on_ambiguous``.
    :raises NanLossError: the training diverged.
    :raises ApiError: the server refused a call; what was trained before it stays.
    """
    if on_ambiguous not in get_args(OnAmbiguous):
        raise InvalidRequestError(f"on_ambiguous: one of {get_args(OnAmbiguous)} (got {on_ambiguous!r})")
    data = training_set(
        samples,
        prompt_template=prompt_template,
        completion_template=completion_template,
        multiplier_column=multiplier_column,
        train_on_prompt=train_on_prompt,
        group_column=group_column,
    )
    plan = plan_training(data.groups, epochs=epochs, batch_size=batch_size, seed=seed)
    fingerprint = _fingerprint(model_id, data, plan)
    with TuningJournal(journal_path, identity=identity, fingerprint=fingerprint) as journal:
        run = _Run(
            client=client,
            model_id=model_id,
            data=data,
            plan=plan,
            journal=journal,
            on_ambiguous=on_ambiguous,
            on_progress=on_progress,
            started=time.monotonic(),
        )
        if journal.resumed:
            log.info("%d of %d calls are settled already", journal.resumed, len(plan.calls))
        for call in plan.calls[journal.settled :]:
            await run.settle(call)
        return run.report(identity=identity, fingerprint=fingerprint)


def _fingerprint(model_id: str, data: TrainingSet, plan: TrainingPlan) -> str:
    fields = [model_id, data.fingerprint, plan.epochs, plan.batch_size, plan.seed]
    return hashlib.sha256(dump_row(fields)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The calls of a plan, settled one by one."""

    client: AsyncGradientClient
    model_id: str
    data: TrainingSet
    plan: TrainingPlan
    journal: TuningJournal
    on_ambiguous: OnAmbiguous
    on_progress: Callable[[TuningProgress], None] | None
    started: float

    async def _keys_honoured(self) -> bool:
        """Whether a call may be sent again by its key; the server is asked where no answer has told yet."""
        if not (self.journal.keys_honoured or self.client.honours_idempotency_keys):
            with contextlib.suppress(GradientError):
                await self.client.get_model_adapter(self.model_id)
        return self.journal.keys_honoured or self.client.honours_idempotency_keys

    async def settle(self, call: PlannedCall) -> None:
        """Return when the call is carried out, or skipped."""
        if self.journal.pending:
            log.warning("%s was sent by an earlier run, and its answer never came", self._name(call))
            if await self._give_up(call, None):
                return
        for sending in range(_RESENDS + 1):
            self.journal.sent(call)
            try:
                answer = await self._send(call)
            except GradientError as error:
                if not error.outcome_unknown:
                    self.journal.refused(call)
                    raise self._in_words(call, error) from error
                if await self._give_up(call, error):
                    return
                if sending == _RESENDS:
                    raise
                log.warning("%s is sent again: %s", self._name(call), error)
            else:
                self._acknowledge(call, answer)
                return

    async def _send(self, call: PlannedCall) -> FineTuneResult:
        batch = [self.data.samples[index] for index in call.indices]
        return await self.client.fine_tune(self.model_id, batch, idempotency_key=self.journal.key(call))

    async def _give_up(self, call: PlannedCall, error: GradientError | None) -> bool:
        """Whether to leave a call of unknown outcome; ``False`` says that it may be sent again.

        :raises AmbiguousCallError: the user wants to decide.
        """
        if self.on_ambiguous == "resend" or await self._keys_honoured():
            return False
        if self.on_ambiguous == "skip":
            log.warning("%s is skipped: it may have been trained or not", self._name(call))
            self.journal.skip(call)
            return True
        raise AmbiguousCallError(
            f"{self._name(call)} was sent and its answer never came{f' ({error})' if error else ''}: it may "
            "have been trained or not, and this server was not seen to honour idempotency keys, by which it "
            "could be sent again without harm. Choose on_ambiguous='skip' to go on as if it was trained, or "
            "'resend' to send it again, maybe for the second time; or begin anew with a new adapter"
        ) from error

    def _acknowledge(self, call: PlannedCall, answer: FineTuneResult) -> None:
        if not math.isfinite(answer.sum_loss):
            raise NanLossError(f"the server reports a loss of {answer.sum_loss}", status=200, type="nanLoss")
        result = CallResult(
            call=call.number,
            epoch=call.epoch,
            tokens=answer.number_of_trainable_tokens,
            sum_loss=answer.sum_loss,
            mean_loss=answer.mean_loss,
        )
        self.journal.acknowledged(result, keys_honoured=self.client.honours_idempotency_keys)
        if self.on_progress:
            self.on_progress(
                TuningProgress(
                    call=call.number,
                    calls=len(self.plan.calls),
                    epoch=call.epoch,
                    epochs=self.plan.epochs,
                    mean_loss=result.mean_loss,
                    seconds=time.monotonic() - self.started,
                )
            )

    def _name(self, call: PlannedCall) -> str:
        return f"call {call.number + 1} of {len(self.plan.calls)} (epoch {call.epoch + 1})"

    def _in_words(self, call: PlannedCall, error: GradientError) -> GradientError:
        """The error with the call, and the rows for the samples that the server names."""
        if not isinstance(error, ApiError):
            return error

        def with_row(match: re.Match[str]) -> str:
            place = int(match[1])
            return f"{match[0]} (row {call.indices[place]})" if place < len(call.indices) else match[0]

        message = f"{self._name(call)}: " + re.sub(r"samples\[(\d+)\]", with_row, error.message)
        if isinstance(error, NanLossError):
            message += (
                f". The training diverged; {call.number} calls before it are kept. Lower the learning rate, "
                "which is set when the adapter is made, or look for samples that are no text to learn"
            )
        return type(error)(
            message,
            status=error.status,
            type=error.type,
            payload=error.payload,
            retry_after=error.retry_after,
        )

    def report(self, *, identity: str | None, fingerprint: str) -> TuningReport:
        """What came of all calls."""
        results = self.journal.results
        return TuningReport(
            model_id=self.model_id,
            identity=identity,
            fingerprint=fingerprint,
            samples=len(self.data.samples),
            epochs=self.plan.epochs,
            batch_size=self.plan.batch_size,
            seed=self.plan.seed,
            calls=len(self.plan.calls),
            call_results=results,
            epoch_losses=epoch_losses(results, epochs=self.plan.epochs),
            trainable_tokens=sum(result.tokens for result in results),
            resumed_calls=self.journal.resumed,
            skipped_calls=self.journal.skipped,
            seconds=round(time.monotonic() - self.started, 3),
        )
