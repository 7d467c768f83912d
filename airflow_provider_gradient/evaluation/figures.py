"""The figures of a report, and those that a gate asks for besides."""

from __future__ import annotations

from dataclasses import replace

from airflow_provider_gradient.evaluation.comparison import Pairs
from airflow_provider_gradient.evaluation.report import Comparison, Difference, EvaluationError, MetricValue
from airflow_provider_gradient.evaluation.scoring import Method, Scored, by_slice, values

Part = tuple[str, str]
"""A slice, by its column and value."""


class ReportFigures:
    """What rules are judged by: the report's own figures, made anew only where a rule has a confidence of its
    own.

    :param pairs: with the baseline's rows, and ``comparison``: both ``None`` without one.
    """

    def __init__(
        self, scored: Scored, method: Method, pairs: Pairs | None, comparison: Comparison | None
    ) -> None:
        self._scored = scored
        self._method = method
        self._pairs = pairs
        self._comparison = comparison
        self.metrics: dict[str, MetricValue] = values(scored, method)
        self.by_slice: dict[str, dict[str, dict[str, MetricValue]]] = by_slice(
            scored, lambda rows: values(scored, method, rows)
        )

    def value(self, metric: str, part: Part | None, confidence: float) -> MetricValue:
        """A metric's value, of all rows or of a slice."""
        if confidence == self._method.confidence:
            if part is None:
                return self.metrics[metric]
            self._rows(part)
            return self.by_slice[part[0]][part[1]][metric]
        method = replace(self._method, confidence=confidence)
        return values(self._scored, method, slice(None) if part is None else self._rows(part))[metric]

    def difference(self, metric: str, part: Part | None, confidence: float) -> Difference:
        """How a metric differs from the baseline's."""
        assert self._pairs is not None  # noqa: S101 - check_gate saw to it
        assert self._comparison is not None  # noqa: S101
        rows = None if part is None else self._rows(part)
        if confidence != self._method.confidence:
            found = self._pairs.differences(rows, confidence=confidence)
        elif part is None:
            found = self._comparison.metrics
        else:
            found = self._comparison.slices[part[0]].get(part[1], {})
        if not found:
            raise EvaluationError(f"gate: the baseline has no row with {part and part[1]!r}")
        return found[metric]

    def slices(self, column: str) -> list[str]:
        """The values of a slice column on which both runs have rows."""
        assert self._comparison is not None  # noqa: S101 - check_gate saw to it
        return [name for name, found in self._comparison.slices[column].items() if found]

    def sign(self, metric: str) -> int:
        """1 where higher is better, else -1."""
        found = next(each for each in self._method.metrics if each.name == metric)
        return 1 if found.higher_is_better else -1

    def _rows(self, part: Part) -> object:
        rows = self._scored.places(*part)
        if rows is None:
            raise EvaluationError(f"gate: no row has {part[1]!r} in {part[0]!r}")
        return rows
