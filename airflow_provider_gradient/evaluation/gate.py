"""Whether a model may take another's place: rules over an evaluation, and the verdict.

A rule with a ``confidence`` is decided by the interval at that confidence: ``pass`` where all of it is on the
right side of the limit, ``fail`` where all of it is on the wrong one, ``undecided`` in between. Without one,
the estimate alone decides, by chance or not. All rules must pass, so there is nothing to adjust for their
number: a challenger that is bad by one of them gets through at most as often as that rule lets it through
(R. L. Berger, "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics 24, 1982).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from airflow_provider_gradient.api import describe_validation_error
from airflow_provider_gradient.evaluation.report import (
    SMALL,
    Difference,
    EvaluationError,
    GateResult,
    MetricValue,
    RuleResult,
    Verdict,
)

Share = Annotated[float, Field(gt=0, lt=1)]
_EXACT = 1e-9
"""By which rounding may miss a limit that is met exactly."""


class Figures(Protocol):
    """What rules are judged by."""

    def value(self, metric: str, part: tuple[str, str] | None, confidence: float) -> MetricValue:
        """A metric's value, of all rows or of a slice."""

    def difference(self, metric: str, part: tuple[str, str] | None, confidence: float) -> Difference:
        """How a metric differs from the baseline's."""

    def slices(self, column: str) -> Sequence[str]:
        """The values of a slice column."""

    def sign(self, metric: str) -> int:
        """1 where higher is better, else -1."""


class _Rule(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str

    @abstractmethod
    def judge(self, figures: Figures) -> tuple[Verdict, str]:
        """The rule's verdict, and its figures in words."""

    @property
    def needs_baseline(self) -> bool:
        """Whether it compares with another run."""
        return True


class _OnRows(_Rule):
    slice: Annotated[dict[str, str], Field(min_length=1, max_length=1)] | None = None

    @property
    def part(self) -> tuple[str, str] | None:
        """Column and value of the slice that the rule is about."""
        return next(iter(self.slice.items())) if self.slice else None

    @property
    def subject(self) -> str:
        """The words for what is measured."""
        return self.metric if self.part is None else f"{self.metric} where {self.part[0]} is {self.part[1]!r}"


class Better(_OnRows):
    """The metric must be better than the baseline's by more than ``by``.

    :ivar metric: by its name in the report; "better" is lower for refusals.
    :ivar slice: ``{column: value}``: these rows alone.
    :ivar by: in the metric's own unit: 0.02 is two points.
    :ivar confidence: ``None`` to decide by the estimate alone.
    """

    rule: Literal["better"] = "better"
    by: float = Field(default=0.0, ge=0)
    confidence: Share | None = 0.95

    def judge(self, figures: Figures) -> tuple[Verdict, str]:
        """See :class:`_Rule`."""
        found = figures.difference(self.metric, self.part, self.confidence or 0.95)
        estimate, low, high = _oriented(found, figures.sign(self.metric))
        if self.confidence is None:
            verdict: Verdict = "pass" if estimate > self.by + _EXACT else "fail"
        else:
            verdict = "pass" if low > self.by + _EXACT else "fail" if high <= self.by else "undecided"
        return (
            verdict,
            f"{self.subject}: {_words(found, self.confidence)}; must be better by {_more(self.by)}",
        )


class NotWorse(_OnRows):
    """The metric must not be worse than the baseline's by more than ``by``.

    :ivar metric: as in :class:`Better`, like ``slice`` and ``by``.
    :ivar confidence: ``None``, the default, decides by the estimate alone; else it must be shown.
    """

    rule: Literal["not_worse"] = "not_worse"
    by: float = Field(default=0.0, ge=0)
    confidence: Share | None = None

    def judge(self, figures: Figures) -> tuple[Verdict, str]:
        """See :class:`_Rule`."""
        found = figures.difference(self.metric, self.part, self.confidence or 0.95)
        verdict = _not_worse(found, figures.sign(self.metric), by=self.by, confidence=self.confidence)
        limit = f"must not be worse by more than {self.by:g}"
        return verdict, f"{self.subject}: {_words(found, self.confidence)}; {limit}"


class NoSliceWorse(_Rule):
    """No slice of 30 rows or more may be worse than the baseline's by more than ``by``.

    :ivar metric: as in :class:`Better`, like ``by``.
    :ivar column: a slice column; smaller slices are named and not judged, and where all are so small the rule
        is undecided.
    :ivar confidence: as in :class:`NotWorse`, for each slice.
    """

    rule: Literal["no_slice_worse"] = "no_slice_worse"
    column: str
    by: float = Field(default=0.0, ge=0)
    confidence: Share | None = None

    def judge(self, figures: Figures) -> tuple[Verdict, str]:
        """See :class:`_Rule`."""
        sign, small, verdicts = figures.sign(self.metric), [], {}
        words = []
        for name in figures.slices(self.column):
            found = figures.difference(self.metric, (self.column, name), self.confidence or 0.95)
            if found.is_small:
                small.append(name)
                continue
            verdicts[name] = _not_worse(found, sign, by=self.by, confidence=self.confidence)
            if verdicts[name] != "pass":
                words.append(f"{name!r} {_words(found, self.confidence)}")
        verdict: Verdict = "undecided" if not verdicts else worst([verdicts[name] for name in verdicts])
        told = "; ".join(words) if words else f"{len(verdicts)} slices hold"
        if small:
            told += f"; {len(small)} of fewer than {SMALL} rows not judged: {', '.join(small[:5])}"
            told += ", ..." if len(small) > 5 else ""
        return verdict, f"{self.metric} by {self.column}: {told}; none may be worse by more than {self.by:g}"


class AtLeast(_OnRows):
    """The metric must be ``value`` or higher, whatever the baseline; :class:`AtMost` likewise.

    :ivar confidence: as in :class:`NotWorse`.
    """

    rule: Literal["at_least"] = "at_least"
    value: float
    confidence: Share | None = None

    @property
    def needs_baseline(self) -> bool:
        """It doesn't."""
        return False

    def judge(self, figures: Figures) -> tuple[Verdict, str]:
        """See :class:`_Rule`."""
        found = figures.value(self.metric, self.part, self.confidence or 0.95)
        verdict = _at_least(found.value, (found.low, found.high), self.value, self.confidence)
        return verdict, f"{self.subject}: {_value(found, self.confidence)}; must be at least {self.value:g}"


class AtMost(_OnRows):
    """The metric must be ``value`` or lower; see :class:`AtLeast`."""

    rule: Literal["at_most"] = "at_most"
    value: float
    confidence: Share | None = None

    @property
    def needs_baseline(self) -> bool:
        """It doesn't."""
        return False

    def judge(self, figures: Figures) -> tuple[Verdict, str]:
        """See :class:`_Rule`."""
        found = figures.value(self.metric, self.part, self.confidence or 0.95)
        verdict = _at_least(-found.value, (-found.high, -found.low), -self.value, self.confidence)
        return verdict, f"{self.subject}: {_value(found, self.confidence)}; must be at most {self.value:g}"


Rule = Better | NotWorse | NoSliceWorse | AtLeast | AtMost
_RULE: TypeAdapter[Rule] = TypeAdapter(Annotated[Rule, Field(discriminator="rule")])


def read_gate(rules: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """The rules that are asked for, such as ``{"rule": "better", "metric": "exact_match"}``.

    :raises EvaluationError: names the rule and what is wrong with it.
    """
    if isinstance(rules, str | Mapping) or not rules:
        raise EvaluationError(f"gate: a list of at least one rule is needed (got {rules!r})")
    found = []
    for place, rule in enumerate(rules):
        try:
            found.append(_RULE.validate_python(dict(rule) if isinstance(rule, Mapping) else rule))
        except ValidationError as error:
            raise EvaluationError(f"gate[{place}]: {describe_validation_error(error)}") from None
    return found


def check_gate(
    rules: Sequence[Rule], *, metrics: Mapping[str, bool | None], columns: Sequence[str], has_baseline: bool
) -> None:
    """Refuse rules over what will not be there.

    :param metrics: their names, with whether higher is better.
    :raises EvaluationError: names the rule and what is wrong with it.
    """
    for place, rule in enumerate(rules):
        column = rule.column if isinstance(rule, NoSliceWorse) else rule.part and rule.part[0]
        if rule.metric not in metrics:
            raise EvaluationError(f"gate[{place}]: no metric {rule.metric!r} is asked for")
        if rule.needs_baseline and metrics[rule.metric] is None:
            raise EvaluationError(f"gate[{place}]: {rule.metric} is neither better nor worse by its size")
        if rule.needs_baseline and not has_baseline:
            raise EvaluationError(f"gate[{place}]: the rule {rule.rule} compares with a baseline; give one")
        if column and column not in columns:
            raise EvaluationError(f"gate[{place}]: {column!r} is none of slice_columns")


def judge(rules: Sequence[Rule], figures: Figures) -> GateResult:
    """The verdict of a gate, with that of each rule."""
    results = []
    for rule in rules:
        verdict, reason = rule.judge(figures)
        results.append(RuleResult(rule=rule.model_dump(mode="json"), verdict=verdict, reason=reason))
    verdict = worst([result.verdict for result in results])
    reasons = [result.reason for result in results if verdict == "pass" or result.verdict != "pass"]
    return GateResult(verdict=verdict, reasons=reasons, rules=results)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """``fail`` if there is one, else ``undecided`` if there is one, else ``pass``."""
    for verdict in ("fail", "undecided"):
        if verdict in verdicts:
            return verdict
    return "pass"


def _not_worse(found: Difference, sign: int, *, by: float, confidence: float | None) -> Verdict:
    estimate, low, high = _oriented(found, sign)
    return _at_least(estimate, (low, high), -by, confidence)


def _at_least(
    estimate: float, interval: tuple[float, float], limit: float, confidence: float | None
) -> Verdict:
    low, high = interval
    if confidence is None:
        return "pass" if estimate >= limit - _EXACT else "fail"
    return "pass" if low >= limit - _EXACT else "fail" if high < limit - _EXACT else "undecided"


def _oriented(found: Difference, sign: int) -> tuple[float, float, float]:
    """Estimate and interval such that higher is better."""
    low, high = sorted((sign * found.low, sign * found.high))
    return sign * found.difference, low, high


def _words(found: Difference, confidence: float | None) -> str:
    told = f"{found.baseline:.3f} to {found.challenger:.3f}, {found.difference:+.3f}"
    return told + _interval(found.low, found.high, confidence, "+") + f" over {found.n} rows"


def _value(found: MetricValue, confidence: float | None) -> str:
    return f"{found.value:.3f}" + _interval(found.low, found.high, confidence, "") + f" over {found.n} rows"


def _interval(low: float, high: float, confidence: float | None, sign: str) -> str:
    if confidence is None:
        return ""
    return f" ({confidence:.0%} interval {low:{sign}.3f} to {high:{sign}.3f})"


def _more(by: float) -> str:
    return f"more than {by:g}" if by else "any amount"
