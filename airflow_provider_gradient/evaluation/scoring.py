"""A run's scores: one pass over its rows, of which numbers alone are kept, a few bytes a row and metric."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.evaluation.metrics import Metric, RowMetric
from airflow_provider_gradient.evaluation.metrics.choices import confused, confusion_choices
from airflow_provider_gradient.evaluation.reading import NOT_RUN, Answered, Completions, needed
from airflow_provider_gradient.evaluation.report import EvaluationError, MetricValue
from airflow_provider_gradient.evaluation.statistics import Resamples, Value, wilson_interval

if TYPE_CHECKING:
    import numpy as np

_MOST_SLICES = 1000
"""Values that a slice column may have: more are rows, not groups of rows."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How values are made, and how their uncertainty.

    :ivar slice_columns: by whose values the metrics are also given.
    :ivar cluster_column: rows with the same value belong together, and are drawn together.
    """

    metrics: Sequence[Metric]
    slice_columns: Sequence[str]
    cluster_column: str | None
    confidence: float
    resamples: int
    seed: int

    def columns(self) -> dict[str, slice]:
        """Where each metric's sums stand among all sums."""
        places, start = {}, 0
        for metric in self.metrics:
            places[metric.name] = slice(start, start + metric.width)
            start += metric.width
        return places

    def is_plain_rate(self, metric: Metric) -> bool:
        """Whether the metric is a proportion of rows that have nothing to do with each other."""
        return metric.is_rate and self.cluster_column is None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of a run's rows.

    :ivar reasoned: rows of which reasoning was taken off; ``unanswered``: those of them with no answer.
    :ivar keys: of each row, by which it is found in another run; likewise ``questions``.
    :ivar scores: shape ``(rows, metrics)``.
    :ivar sums: shape ``(rows, sums)``: what each row adds to the sums.
    :ivar slices: for each column, the place of each row's value among the values' names.
    :ivar clusters: the number of each row's cluster, or ``None``.
    """

    model_id: str | None
    counts: dict[str, int]
    reasoned: int
    unanswered: int
    confusion: dict[str, dict[str, int]] | None
    keys: np.ndarray
    questions: np.ndarray
    scores: np.ndarray
    sums: np.ndarray
    slices: dict[str, tuple[np.ndarray, list[str]]]
    clusters: np.ndarray | None

    def places(self, column: str, name: str) -> np.ndarray | None:
        """The places of the rows of a slice, or ``None`` if there is no such slice."""
        import numpy as np

        codes, names = self.slices[column]
        return np.flatnonzero(codes == names.index(name)) if name in names else None

    def lowest(self, method: Method, metric: Metric, *, most: int) -> dict[int, float]:
        """The rows with the worst scores, by key, with their scores."""
        import numpy as np

        scores = self.scores[:, method.metrics.index(metric)]
        sign = -1 if metric.higher_is_better is False else 1
        order = np.argsort(sign * scores, kind="stable")[:most]
        return {int(self.keys[row]): float(scores[row]) for row in order}


def score(
    completions: Completions,
    method: Method,
    *,
    served: Mapping[str, Sequence[float]],
    keyed: bool = True,
    on_row: Callable[[Answered, dict[str, float]], None] | None = None,
) -> Scored:
    """The scores of every row.

    :param served: of the metrics that a server was asked about, those of each row.
    :param keyed: whether rows must be found again, in another run or another pass.
    :param on_row: is given each row with its scores.
    :raises EvaluationError: a row has no usable reference, output or slice, none was run at all, or the rows
        are such that a metric says nothing about them.
    """
    scorer = _Scorer(method, served, keyed=keyed)
    for answered in completions:
        scores = scorer.add(answered)
        if on_row:
            on_row(answered, scores)
    return scorer.scored(completions)


class _Scorer:
    def __init__(self, method: Method, served: Mapping[str, Sequence[float]], *, keyed: bool) -> None:
        self._method = method
        self._keyed = keyed
        self._rows = 0
        self._served = served
        self._keys: array[int] = array("Q")
        self._questions: array[int] = array("Q")
        self._scores: array[float] = array("d")
        self._sums: array[float] = array("d")
        self._slices = {column: _Places(column, most=_MOST_SLICES) for column in method.slice_columns}
        self._clusters = None if method.cluster_column is None else _Places(method.cluster_column)
        self._statuses: Counter[str] = Counter()
        self._models: set[Any] = set()
        self._confusing = confusion_choices(method.metrics)
        self._confusion: dict[str, Counter[str]] = {}

    def add(self, answered: Answered) -> dict[str, float]:
        self._statuses[answered.status] += 1
        if len(self._models) < 2:
            self._models.add(answered.model_id)
        try:
            scores = self._measure(answered)
        except EvaluationError as error:
            raise EvaluationError(f"{answered.where}: {error}") from None
        self._rows += 1
        if self._keyed:
            self._keys.append(answered.key)
            self._questions.append(answered.question)
        row = answered.example.row
        for column, places in self._slices.items():
            places.add(_cell(row, column, answered), answered)
        if self._clusters is not None:
            cluster = row.get(self._clusters.column)
            if cluster is None:
                needed(row, self._clusters.column, answered.where, "cluster_column")
            self._clusters.add(hashlib.blake2b(_name(cluster).encode(), digest_size=8).digest(), answered)
        return scores

    def _measure(self, answered: Answered) -> dict[str, float]:
        row, scores = self._rows, {}
        for metric in self._method.metrics:
            if isinstance(metric, RowMetric):
                value, sums = metric.measure(answered.example)
            else:
                value = self._served[metric.name][row]
                value = metric.failed if math.isnan(value) else value
                sums = (value,)
            scores[metric.name] = value
            self._scores.append(value)
            self._sums.extend(sums)
        if self._confusing is not None:
            right, made = confused(self._confusing, answered.example)
            self._confusion.setdefault(right, Counter())[made] += 1
        return scores

    def scored(self, completions: Completions) -> Scored:
        import numpy as np

        n = self._rows
        if not n:
            raise EvaluationError(f"{completions.source}: not one of its rows was run")
        if completions.not_run:
            self._statuses[NOT_RUN] = completions.not_run
        sums = np.frombuffer(self._sums).reshape(n, -1)
        totals, places = sums.sum(axis=0), self._method.columns()
        for metric in self._method.metrics:
            metric.check(totals[places[metric.name]])
        return Scored(
            model_id=self._models.pop() if len(self._models) == 1 else None,
            counts=dict(self._statuses),
            reasoned=completions.reasoned,
            unanswered=completions.unanswered,
            confusion=None if self._confusing is None else {k: dict(v) for k, v in self._confusion.items()},
            keys=np.frombuffer(self._keys, dtype=np.uint64),
            questions=np.frombuffer(self._questions, dtype=np.uint64),
            scores=np.frombuffer(self._scores).reshape(n, -1),
            sums=sums,
            slices={
                column: (np.frombuffer(places.codes, dtype=np.int32), [str(name) for name in places.names])
                for column, places in self._slices.items()
            },
            clusters=None if self._clusters is None else np.frombuffer(self._clusters.codes, dtype=np.int32),
        )


class _Places:
    """A column's values as numbers, in the order in which they were met."""

    def __init__(self, column: str, most: int | None = None) -> None:
        self.column = column
        self.codes: array[int] = array("i")
        self.names: dict[Any, int] = {}
        self._most = most

    def add(self, name: Any, answered: Answered) -> None:
        if name not in self.names and len(self.names) == self._most:
            raise EvaluationError(
                f"slice_columns: {self.column!r} has more than {self._most} values ({answered.where} has "
                "another): choose one that groups the rows"
            )
        self.codes.append(self.names.setdefault(name, len(self.names)))


def values(scored: Scored, method: Method, rows: Any = slice(None)) -> dict[str, MetricValue]:
    """The value of each metric over some rows.

    :param rows: their places or a mask; all by default.
    """
    sums = scored.sums[rows]
    resamples = Resamples(
        units(sums, None if scored.clusters is None else scored.clusters[rows]),
        resamples=method.resamples,
        seed=method.seed,
    )
    places = method.columns()
    return {
        metric.name: _rate(sums[:, places[metric.name]], method.confidence)
        if method.is_plain_rate(metric)
        else _bootstrapped(resamples, metric, places[metric.name], method.confidence, len(sums))
        for metric in method.metrics
    }


def by_slice(scored: Scored, make: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    """What ``make`` gives for the rows of each value of each slice column; values in their order."""
    import numpy as np

    found: dict[str, dict[str, Any]] = {}
    for column, (codes, names) in scored.slices.items():
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        parts = dict(zip(names, np.split(order, ends[:-1]), strict=True))
        found[column] = {name: make(parts[name]) for name in sorted(parts)}
    return found


def units(sums: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """What is drawn: the rows, or their clusters, with how many rows each is in the first column."""
    import numpy as np

    counted = np.concatenate([np.ones((len(sums), 1)), sums], axis=1)
    if clusters is None:
        return counted
    _, codes = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(codes, weights=column) for column in counted.T], axis=1)


def value_of(metric: Metric, place: slice) -> Value:
    """The metric's value of the sums of units."""
    return lambda sums: metric.value(sums[..., 0], sums[..., 1 + place.start : 1 + place.stop])


def _rate(scores: np.ndarray, confidence: float) -> MetricValue:
    n, successes = len(scores), int(scores.sum())
    p = successes / n
    low, high = wilson_interval(successes, n, confidence=confidence)
    error = math.sqrt(p * (1 - p) / n)
    return MetricValue(value=p, standard_error=error, low=low, high=high, n=n, method="wilson")


def _bootstrapped(
    resamples: Resamples, metric: Metric, place: slice, confidence: float, n: int
) -> MetricValue:
    """Where all units are alike, resampling says nothing; the interval is then Wilson's, which is wide enough
    for any scores of that mean, since scores between 0 and 1 vary at most as much as a proportion."""
    found = resamples.bootstrap(value_of(metric, place))
    low, high = found.interval(confidence=confidence)
    method = "bootstrap"
    if found.is_degenerate:
        method = "none"
        if metric.bounds is not None:
            method = "wilson"
            least, most = metric.bounds
            share = min(1.0, max(0.0, (found.value - least) / (most - least)))
            low, high = wilson_interval(share * resamples.n, resamples.n, confidence=confidence)
            low, high = (least + end * (most - least) for end in (low, high))
    return MetricValue.model_validate(
        {
            "value": found.value,
            "standard_error": found.standard_error,
            "low": low,
            "high": high,
            "n": n,
            "method": method,
        }
    )


def _cell(row: Mapping[str, Any], column: str, answered: Answered) -> str:
    if column not in row:
        needed(row, column, answered.where, "slice_columns")
    return _name(row[column])


def _name(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
