"""What an evaluation found, as a value that fits an XCom."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from airflow_provider_gradient.api import GradientError
from airflow_provider_gradient.datasets import KeptRecord

SCHEMA_VERSION = 2
SMALL = 30
"""Rows below which a slice is marked as small: its figures say little."""

Verdict = Literal["pass", "fail", "undecided"]


class EvaluationError(GradientError, ValueError):
    """What was asked can't be evaluated; the message names the row or the parameter."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class MetricValue(_Part):
    """The value of a metric over ``n`` rows.

    :ivar standard_error: of the value; ``None`` where one row says nothing about it.
    :ivar low: lower end of the interval at the report's confidence.
    :ivar high: upper end.
    :ivar method: how the interval was made.
    """

    value: float
    standard_error: float | None
    low: float
    high: float
    n: int
    method: Literal["wilson", "bootstrap", "none"]

    @property
    def is_small(self) -> bool:
        """Whether there are too few rows to say much."""
        return self.n < SMALL


class Difference(_Part):
    """A metric of two runs over the rows that both have.

    :ivar difference: the challenger's value less the baseline's, with its interval.
    :ivar p_value: of there being none, by ``test``.
    :ivar holm_p_value: the same, adjusted for the number of metrics; ``None`` within slices.
    :ivar smallest_difference: that these rows would have shown with a power of 0.8.
    :ivar risen: rows whose score is higher than the baseline's; likewise ``fallen`` and ``same``.
    """

    baseline: float
    challenger: float
    difference: float
    standard_error: float | None
    low: float
    high: float
    n: int
    p_value: float
    holm_p_value: float | None = None
    test: Literal["mcnemar", "bootstrap"]
    smallest_difference: float | None
    risen: int
    fallen: int
    same: int

    @property
    def is_small(self) -> bool:
        """Whether there are too few rows to say much."""
        return self.n < SMALL


class Comparison(_Part):
    """A run, the challenger, beside another on the same rows, the baseline.

    :ivar source: path of the baseline's completions, or ``inline``.
    :ivar rows: that both have.
    :ivar unpaired: rows that one of them alone has, or has scored.
    :ivar slices: by column and value.
    """

    source: str
    model_id: str | None
    rows: int
    unpaired: int
    metrics: dict[str, Difference]
    slices: dict[str, dict[str, dict[str, Difference]]]


class RuleResult(_Part):
    """What came of a rule of the gate.

    :ivar rule: as it was given.
    :ivar reason: the figures, in words.
    """

    rule: dict[str, Any]
    verdict: Verdict
    reason: str


class GateResult(_Part):
    """What came of a gate.

    :ivar verdict: ``pass`` if every rule passed, ``fail`` if one failed, else ``undecided``.
    :ivar reasons: of the rules that did not pass, or of all where all did.
    """

    verdict: Verdict
    reasons: list[str]
    rules: list[RuleResult]


class EvaluationReport(KeptRecord):
    """The metrics of a set of completions.

    :ivar source: path of the completions, or ``inline``.
    :ivar model_id: that all rows have, or ``None`` where they differ or name none.
    :ivar settings: of each metric, by its name.
    :ivar rows: that were run; all of them are in every metric, one that failed with the worst score.
    :ivar counts: rows by the status of their completion, those that were not run (``not_run``) included.
    :ivar reasoning: what was done with reasoning in front of answers; see
        :func:`~airflow_provider_gradient.evaluation.evaluate`.
    :ivar reasoned: rows of which reasoning was taken off; ``unanswered``: those of them with nothing behind
        it, which are scored as empty answers.
    :ivar slices: the metrics of the rows of each value, by slice column and value.
    :ivar confusion: rows by the right choice and the choice made, for metrics over choices.
    :ivar scores_path: the scores of each row, or ``None``; likewise the JSON of this report and its page.
    """

    kind = "report of an evaluation"
    error = EvaluationError

    schema_version: int = SCHEMA_VERSION
    source: str
    model_id: str | None
    reference_column: str | None
    confidence: float
    resamples: int
    seed: int
    cluster_column: str | None
    settings: dict[str, dict[str, Any]]
    rows: int
    counts: dict[str, int]
    reasoning: str = "keep"
    reasoned: int = 0
    unanswered: int = 0
    metrics: dict[str, MetricValue]
    slices: dict[str, dict[str, dict[str, MetricValue]]]
    confusion: dict[str, dict[str, int]] | None = None
    comparison: Comparison | None = None
    gate: GateResult | None = None
    scores_path: str | None = None
    report_path: str | None = None
    page_path: str | None = None

    @property
    def excluded(self) -> int:
        """Rows that were never run, and are in no metric."""
        return self.counts.get("not_run", 0)
