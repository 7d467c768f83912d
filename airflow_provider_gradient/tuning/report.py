"""What a tuning run says of itself: a report that fits an XCom, and the progress before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_provider_gradient.datasets import KeptRecord
from airflow_provider_gradient.tuning.errors import SampleReport

SCHEMA_VERSION = 1
"""Version of the report and of the journal."""


class CallResult(BaseModel):
    """A call that was carried out.

    :ivar tokens: trainable ones.
    :ivar sum_loss: negative log-likelihood over them before the call's update, in nats.
    :ivar mean_loss: the same a token.
    :ivar seconds: from its sending to its answer.
    :ivar model_version: of the adapter after it, where the server tells.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    call: int
    epoch: int
    tokens: int
    sum_loss: float
    mean_loss: float
    seconds: float = 0.0
    model_version: int | None = None


class EpochScore(BaseModel):
    """What the adapter scored on the held-out rows after an epoch, from 0 to 1; higher is better.

    :ivar model_version: of the adapter then, where the server tells.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    epoch: int
    score: float
    model_version: int | None = None


class TuningReport(KeptRecord):
    """A tuning run, finished, stopped by a rule, or only reckoned.

    :ivar status: ``finished``: all calls are settled; ``stopped``: by a rule, and the same run may go on
        under looser ones; ``estimated``: nothing was sent.
    :ivar stop_reason: the rule that stopped it.
    :ivar fingerprint: SHA-256 over adapter, samples and plan.
    :ivar samples: in the training set; with groups, an epoch takes fewer.
    :ivar rows: what became of the dataset's rows.
    :ivar rehearsal_samples: that calls mix in.
    :ivar held_out: rows that are asked between epochs.
    :ivar calls: planned.
    :ivar planned_tokens: over all planned calls, trainable or not; ``None`` without a tokenizer.
    :ivar call_results: of the calls whose answer came, in order: the loss curve.
    :ivar epoch_losses: mean loss a token of each epoch, ``None`` where no call of it was answered.
    :ivar epoch_scores: on the held-out rows.
    :ivar best_epoch: the first of those with the highest score, from 0; ``None`` without validation.
    :ivar best_epoch_kept: whether the adapter is as it was after that epoch.
    :ivar advice: how to have the best epoch's adapter, where this one isn't.
    :ivar trainable_tokens: over all calls that were answered, as the server counts them.
    :ivar resumed_calls: calls that an earlier run had settled.
    :ivar skipped_calls: calls of which nobody knows whether they were carried out, left as they were.
    :ivar curve_path: the loss curve as a picture or JSONL, or ``None``.
    :ivar seconds: wall-clock time of the run that finished.
    """

    kind = "report of a tuning"

    schema_version: int = SCHEMA_VERSION
    status: Literal["finished", "stopped", "estimated"] = "finished"
    stop_reason: str | None = None
    model_id: str
    identity: str | None
    fingerprint: str
    samples: int
    rows: SampleReport = SampleReport()
    rehearsal_samples: int = 0
    held_out: int = 0
    epochs: int
    batch_size: int
    seed: int
    calls: int
    planned_tokens: int | None = None
    call_results: list[CallResult]
    epoch_losses: list[float | None]
    epoch_scores: list[EpochScore] = Field(default_factory=list)
    best_epoch: int | None = None
    best_epoch_kept: bool | None = None
    advice: str | None = None
    trainable_tokens: int
    resumed_calls: int
    skipped_calls: list[int]
    curve_path: str | None = None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TuningProgress:
    """A call that was just answered; ``call`` and ``epoch`` count from 0."""

    call: int
    calls: int
    epoch: int
    epochs: int
    mean_loss: float
    seconds: float


def epoch_losses(results: Sequence[CallResult], *, epochs: int) -> list[float | None]:
    """The mean loss a token of each epoch."""
    tokens, losses = [0] * epochs, [0.0] * epochs
    for result in results:
        tokens[result.epoch] += result.tokens
        losses[result.epoch] += result.sum_loss
    return [loss / count if count else None for loss, count in zip(losses, tokens, strict=True)]


def best_epoch(scores: Sequence[EpochScore]) -> int | None:
    """The first epoch with the highest score."""
    return max(scores, key=lambda score: (score.score, -score.epoch)).epoch if scores else None
