"""What is wrong with samples: the error of one, and the report over all.

A row that gives no sample is known by its number, a reason out of a short list, and a sentence that names
the remedy. The report counts every such row and holds the sentences of the first few.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airflow_provider_gradient.api import GradientError

SampleReason = Literal[
    "column", "unknown_key", "invalid", "empty", "untrainable", "weight", "duplicate", "leakage", "overlong"
]
"""``column``: the row lacks one, or it can't be read; ``invalid``: no sample of the API; ``weight``: a
multiplier that is no number above 0, or a message's weight that is none; ``leakage``: the prompt also stands
in the evaluation set."""

_SHOWN = 20
"""Rows that a report shows; the others are counted."""
_TOLD = 5
"""Rows that a message names."""


class SampleError(GradientError, ValueError):
    """Samples can't be trained on; the message names rows and what is wrong.

    :ivar reason: of the first row.
    :ivar report: over all rows, where all of them were looked at.
    """

    def __init__(
        self, message: str, *, reason: SampleReason = "invalid", report: SampleReport | None = None
    ) -> None:
        super().__init__(message)
        self.reason: SampleReason = reason
        self.report = report


class SampleProblem(BaseModel):
    """A row that gives no sample; ``row`` counts from 0."""

    model_config = ConfigDict(frozen=True)

    row: int
    reason: SampleReason
    message: str


class SampleReport(BaseModel):
    """What became of the rows.

    :ivar rows: that were read.
    :ivar kept: that gave a sample.
    :ivar left_out: the others, by reason.
    :ivar problems: the first 20 of those.
    """

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    kept: int = 0
    left_out: dict[SampleReason, int] = {}
    problems: list[SampleProblem] = []


class Findings:
    """A report in the making."""

    def __init__(self) -> None:
        self._rows = 0
        self._counts: Counter[SampleReason] = Counter()
        self._problems: list[SampleProblem] = []

    def keep(self) -> None:
        """A row gave a sample."""
        self._rows += 1

    def leave_out(self, row: int, reason: SampleReason, message: str) -> None:
        """A row gave none."""
        self._rows += 1
        self._counts[reason] += 1
        if len(self._problems) < _SHOWN:
            self._problems.append(SampleProblem(row=row, reason=reason, message=message))

    @property
    def report(self) -> SampleReport:
        """Over the rows so far."""
        return SampleReport(
            rows=self._rows,
            kept=self._rows - self._counts.total(),
            left_out=dict(self._counts),
            problems=self._problems,
        )

    def refuse(self) -> None:
        """Raise if any row gave no sample.

        :raises SampleError: names the first rows; its report has all of them.
        """
        if not self._problems:
            return
        first, *others = self._problems
        message = first.message
        if others:
            counts = ", ".join(f"{count} {reason}" for reason, count in self._counts.most_common())
            told = "".join(f"\n  {problem.message}" for problem in others[: _TOLD - 1])
            more = self._counts.total() - 1 - len(others[: _TOLD - 1])
            message = (
                f"{message}\nIn all {self._counts.total()} of {self._rows} rows can't be trained on "
                f"({counts}); on_bad_sample='skip' leaves such rows out. Further ones:{told}"
                + (f"\n  and {more} more" if more else "")
            )
        raise SampleError(message, reason=first.reason, report=self.report)
