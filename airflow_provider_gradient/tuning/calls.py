"""The calls of a plan, settled one by one.

A call is never trained twice by accident. What the client repeats by itself are calls that were surely not
carried out, and any call once the server was seen to honour idempotency keys. What is left, a call that was
sent and whose answer never came, on a server that may not know keys, is decided by ``on_ambiguous``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from airflow_provider_gradient.api import (
    ApiError,
    FineTuneResult,
    GradientError,
    InvalidResponseError,
    NanLossError,
    Sample,
)
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.datasets import describe_row
from airflow_provider_gradient.tuning.journal import TuningJournal
from airflow_provider_gradient.tuning.plan import PlannedCall, TrainingPlan
from airflow_provider_gradient.tuning.report import CallResult, TuningProgress
from airflow_provider_gradient.tuning.training_set import TrainingSet

log = logging.getLogger(__name__)

OnAmbiguous = Literal["fail", "skip", "resend"]

_RESENDS = 3
"""How often one run sends a call again whose answer does not come."""
_BUSY_SECONDS = 1800.0
"""How long one call waits for a server that says that it is busy, beyond what the client waits by itself."""
_BUSY_PAUSE = (5.0, 60.0)
"""The first pause of that wait and the longest; each is twice the one before."""


class AmbiguousCallError(GradientError, RuntimeError):
    """A call was sent and its answer never came: it may have been trained, or not."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What it takes to settle a call.

    :param on_progress: called after every call.
    :param started: by the clock of :func:`time.monotonic`.
    """

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
        """Return when the call is carried out, or skipped.

        :raises AmbiguousCallError: nobody knows whether it was, and the user wants to decide.
        :raises NanLossError: the training diverged.
        :raises InvalidResponseError: the server trained nothing of it.
        :raises ApiError: the server refused it.
        """
        if self.journal.pending:
            log.warning("%s was sent by an earlier run, and its answer never came", self._name(call))
            if await self._give_up(call, None):
                return
        for sending in range(_RESENDS + 1):
            self.journal.sent(call)
            begun = time.monotonic()
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
                self._acknowledge(call, answer, seconds=time.monotonic() - begun)
                return

    async def _send(self, call: PlannedCall) -> FineTuneResult:
        """The call's answer; a server that refuses it for too much load is waited for."""
        batch = self._batch(call)
        pause, until = _BUSY_PAUSE[0], time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                key = self.journal.key(call)
                return await self.client.fine_tune(self.model_id, batch, idempotency_key=key)
            except ApiError as error:
                left, asked = until - time.monotonic(), error.retry_after or 0.0
                is_busy = error.status in (429, 503) and not error.outcome_unknown
                if not is_busy or left <= 0 or asked > left:
                    raise
                wait = min(max(pause, asked), left)
                log.warning("%s waits %.0f s for a busy server: %s", self._name(call), wait, error)
            await asyncio.sleep(wait)
            pause = min(2 * pause, _BUSY_PAUSE[1])

    def _batch(self, call: PlannedCall) -> list[Sample]:
        batch = [self.data.samples[index] for index in call.indices]
        if self.data.rehearsal is not None:
            batch += [self.data.rehearsal.samples[index] for index in call.rehearsed]
        return batch

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

    def _acknowledge(self, call: PlannedCall, answer: FineTuneResult, *, seconds: float) -> None:
        if not math.isfinite(answer.sum_loss):
            raise NanLossError(f"the server reports a loss of {answer.sum_loss}", status=200, type="nanLoss")
        if answer.number_of_trainable_tokens < 1:
            self.journal.refused(call)
            raise InvalidResponseError(
                f"{self._name(call)}: the server trained {answer.number_of_trainable_tokens} tokens of it: "
                "nothing was learnt. Look at what its model makes of these samples, and at its log"
            )
        result = CallResult(
            call=call.number,
            epoch=call.epoch,
            tokens=answer.number_of_trainable_tokens,
            sum_loss=answer.sum_loss,
            mean_loss=answer.mean_loss,
            seconds=round(seconds, 3),
            model_version=answer.model_version,
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

    def _row(self, call: PlannedCall, place: int) -> str | None:
        """The words for the row that gave the sample at this place of the call."""
        if place < len(call.indices):
            return f"row {self.data.samples.rows[call.indices[place]]}"
        place -= len(call.indices)
        if self.data.rehearsal is None or place >= len(call.rehearsed):
            return None
        row = self.data.rehearsal.samples.rows[call.rehearsed[place]]
        return f"rehearsal_samples: {describe_row(self.data.rehearsal.source, row)}"

    def _in_words(self, call: PlannedCall, error: GradientError) -> GradientError:
        """The error with the call, and the rows for the samples that the server names."""
        if not isinstance(error, ApiError):
            return error

        def with_row(match: re.Match[str]) -> str:
            row = self._row(call, int(match[1]))
            return match[0] if row is None else f"{match[0]} ({row})"

        message = f"{self._name(call)}: " + re.sub(r"samples\[(\d+)\]", with_row, error.message)
        if isinstance(error, NanLossError):
            message = (
                f"{message.rstrip('.')}. The training diverged; {call.number} calls before it are kept. "
                "Lower the learning rate, which is set when the adapter is made, or look for samples that "
                "are no text to learn"
            )
        return type(error)(
            message,
            status=error.status,
            type=error.type,
            payload=error.payload,
            retry_after=error.retry_after,
        )
