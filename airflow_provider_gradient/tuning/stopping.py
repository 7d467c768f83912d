"""When a tuning run ends before its plan does: a plain decision over what the journal holds.

It is taken between two calls and looks at nothing but settled calls and validated epochs, so a resumed run
decides as the one before it would have. The rules are no part of the plan: whoever loosens one goes on where
the run stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.tuning.report import CallResult, EpochScore, epoch_losses

StopReason = Literal["patience", "max_loss", "max_tokens", "max_seconds"]


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """Rules, of which ``None`` never stops a run.

    :param patience: epochs in a row without a better validation score, or without a better mean loss where
        there is no validation.
    :param min_delta: what counts as better: more than this above the best score (0 to 1), or below the best
        loss (nats a token).
    :param max_loss: a call's mean loss, in nats a token, above which the training is taken to diverge.
    :param max_tokens: trainable tokens, of all attempts; a call that was begun is finished.
    :param max_seconds: spent in calls, waiting for a busy server included, of all attempts; likewise.
    :raises InvalidRequestError: a value is out of range.
    """

    patience: int | None = None
    min_delta: float = 0.0
    max_loss: float | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "min_delta" else 1 if field.name == "patience" else None
            wrong = value is not None and (not value >= least if least is not None else not value > 0)
            if wrong:
                wanted = f"at least {least}" if least is not None else "above 0"
                raise InvalidRequestError(f"{field.name}: must be {wanted} (got {value!r})")

    def reason_to_stop(
        self, results: Sequence[CallResult], scores: Sequence[EpochScore] | None, *, epochs: int | None
    ) -> StopReason | None:
        """Why the next call is not to be sent, if so.

        :param results: of all calls that were answered.
        :param scores: of the complete epochs, or ``None`` where nothing is validated.
        :param epochs: how many are complete, or ``None`` in the middle of one.
        """
        if self.max_loss is not None and results and results[-1].mean_loss > self.max_loss:
            return "max_loss"
        if self.max_tokens is not None and sum(result.tokens for result in results) >= self.max_tokens:
            return "max_tokens"
        if self.max_seconds is not None and sum(result.seconds for result in results) >= self.max_seconds:
            return "max_seconds"
        if self.patience is not None and epochs is not None:
            watched: list[float | None]
            if scores is not None:
                watched = [score.score for score in scores]
            else:
                losses = epoch_losses(results, epochs=epochs)
                watched = [None if loss is None else -loss for loss in losses]
            if self._epochs_since_best(watched) >= self.patience:
                return "patience"
        return None

    def _epochs_since_best(self, watched: Sequence[float | None]) -> int:
        best: float | None = None
        since = 0
        for figure in watched:
            if figure is not None and (best is None or figure > best + self.min_delta):
                best, since = figure, 0
            else:
                since += 1
        return since
