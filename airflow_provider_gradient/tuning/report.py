"""What a tuning run says of itself: a report that fits an XCom, and the progress before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_gradient.api import describe_validation_error
from airflow_provider_gradient.datasets import JournalError

SCHEMA_VERSION = 1
"""Version of the report and of the journal."""


class CallResult(BaseModel):
    """A call that was carried out.

    :ivar tokens: trainable ones.
    :ivar sum_loss: negative log-likelihood over them before the call's update, in nats.
    :ivar mean_loss: the same a token.
    """

    model_config = ConfigDict(frozen=True)

    call: int
    epoch: int
    tokens: int
    sum_loss: float
    mean_loss: float


class TuningReport(BaseModel):
    """A finished tuning run.

    :ivar fingerprint: SHA-256 over adapter, samples and plan.
    :ivar samples: in the training set; with groups, an epoch takes fewer.
    :ivar calls: planned, and all of them settled.
    :ivar call_results: of the calls whose answer came, in order: the loss curve.
    :ivar epoch_losses: mean loss a token of each epoch, ``None`` where no call of it was answered.
    :ivar trainable_tokens: over all calls.
    :ivar resumed_calls: calls that an earlier run had settled.
    :ivar skipped_calls: calls of which nobody knows whether they were carried out, left as they were.
    :ivar seconds: wall-clock time of the run that finished.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model_id: str
    identity: str | None
    fingerprint: str
    samples: int
    epochs: int
    batch_size: int
    seed: int
    calls: int
    call_results: list[CallResult]
    epoch_losses: list[float | None]
    trainable_tokens: int
    resumed_calls: int
    skipped_calls: list[int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TuningReport:
        """The report that :meth:`to_dict` gave.

        :raises JournalError: names what is missing or wrong.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise JournalError(f"no tuning report: {describe_validation_error(error)}") from None


@dataclass(frozen=True, kw_only=True)
class TuningProgress:
    """A call that was just answered; ``call`` and ``epoch`` count from 0."""

    call: int
    calls: int
    epoch: int
    epochs: int
    mean_loss: float
    seconds: float


def epoch_losses(results: list[CallResult], *, epochs: int) -> list[float | None]:
    """The mean loss a token of each epoch."""
    losses: list[float | None] = []
    for epoch in range(epochs):
        own = [result for result in results if result.epoch == epoch]
        tokens = sum(result.tokens for result in own)
        losses.append(sum(result.sum_loss for result in own) / tokens if tokens else None)
    return losses
