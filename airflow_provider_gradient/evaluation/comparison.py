"""Two runs over the same rows: how they differ, row by row paired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.evaluation.metrics import Metric
from airflow_provider_gradient.evaluation.report import Comparison, Difference, EvaluationError
from airflow_provider_gradient.evaluation.scoring import Method, Scored, by_slice, units, value_of
from airflow_provider_gradient.evaluation.statistics import (
    Bootstrap,
    PairedCounts,
    Resamples,
    holm,
    smallest_difference,
)

if TYPE_CHECKING:
    import numpy as np


class Pairs:
    """The rows that two runs have in common.

    :param challenger: whose slices and clusters count.
    :raises EvaluationError: they have none in common, a row's right answer is another in the baseline, or two
        rows of one run have the same id.
    """

    def __init__(self, challenger: Scored, baseline: Scored, method: Method) -> None:
        import numpy as np

        self._challenger = challenger
        self._method = method
        _, mine, theirs = np.intersect1d(
            _distinct(challenger.keys, "completions"),
            _distinct(baseline.keys, "baseline"),
            assume_unique=True,
            return_indices=True,
        )
        if not len(mine):
            raise EvaluationError("baseline: it has no row in common with the completions, by id or index")
        if (challenger.questions[mine] != baseline.questions[theirs]).any():
            raise EvaluationError(
                "baseline: its right answers are others; these are not runs over the same rows"
            )
        self.rows = len(mine)
        self.unpaired = len(challenger.keys) + len(baseline.keys) - 2 * self.rows
        self._mine = mine
        self._theirs = np.full(len(challenger.keys), -1)
        self._theirs[mine] = theirs
        self._baseline = baseline

    def compare(self, source: str) -> Comparison:
        """The differences over all rows and by slice, at the report's confidence."""
        metrics = self.differences(confidence=self._method.confidence)
        adjusted = holm([each.p_value for each in metrics.values()])
        return Comparison(
            source=source,
            model_id=self._baseline.model_id,
            rows=self.rows,
            unpaired=self.unpaired,
            metrics={
                name: each.model_copy(update={"holm_p_value": p})
                for (name, each), p in zip(metrics.items(), adjusted, strict=True)
            },
            slices=by_slice(
                self._challenger,
                lambda rows: self.differences(rows, confidence=self._method.confidence),
            ),
        )

    def differences(self, rows: Any = None, *, confidence: float) -> dict[str, Difference]:
        """The difference in each metric.

        :param rows: places among the challenger's rows, of which those count that the baseline has too; all
            by default. Without any, there is no difference.
        """
        mine = self._mine if rows is None else rows[self._theirs[rows] >= 0]
        if not len(mine):
            return {}
        new, old, theirs = self._challenger, self._baseline, self._theirs[mine]
        paired = _Paired(
            (new.scores[mine], new.sums[mine]),
            (old.scores[theirs], old.sums[theirs]),
            None if new.clusters is None else new.clusters[mine],
            self._method,
        )
        return {metric.name: paired.difference(metric, confidence) for metric in self._method.metrics}

    def most_changed(self, metric: Metric, *, most: int) -> dict[int, float]:
        """The rows whose score rose or fell most, by key, with the challenger's score less the baseline's.

        :param most: rows of either kind.
        """
        import numpy as np

        place = self._method.metrics.index(metric)
        change = (
            self._challenger.scores[self._mine, place]
            - self._baseline.scores[self._theirs[self._mine], place]
        )
        order = np.argsort(change, kind="stable")
        ends = [*(row for row in order[:most] if change[row] < 0)]
        ends += [row for row in order[::-1][:most] if change[row] > 0]
        keys = self._challenger.keys[self._mine]
        return {int(keys[row]): float(change[row]) for row in ends}


class _Paired:
    """Some rows of both runs, paired: how they differ in each metric."""

    def __init__(
        self,
        challenger: tuple[np.ndarray, np.ndarray],
        baseline: tuple[np.ndarray, np.ndarray],
        clusters: np.ndarray | None,
        method: Method,
    ) -> None:
        """Scores and sums of either run."""
        import numpy as np

        (self._new, new_sums), (self._old, old_sums) = challenger, baseline
        self._method = method
        self._width = new_sums.shape[1]
        self._places = method.columns()
        self._resamples = Resamples(
            units(np.concatenate([new_sums, old_sums], axis=1), clusters),
            resamples=method.resamples,
            seed=method.seed,
        )

    def difference(self, metric: Metric, confidence: float) -> Difference:
        """In one metric."""
        import numpy as np

        column = self._method.metrics.index(metric)
        new, old = self._new[:, column], self._old[:, column]
        here = self._places[metric.name]
        there = slice(here.start + self._width, here.stop + self._width)
        totals = self._resamples.totals
        new_value, old_value = value_of(metric, here), value_of(metric, there)
        found: dict[str, Any]
        if self._method.is_plain_rate(metric):
            found = _of_rates(new, old, confidence)
        else:
            found = _of_values(
                self._resamples.bootstrap(lambda sums: new_value(sums) - old_value(sums)), confidence
            )
        error = found["standard_error"]
        return Difference(
            baseline=float(old_value(totals)),
            challenger=float(new_value(totals)),
            n=len(new),
            smallest_difference=smallest_difference(error, confidence=confidence) if error else None,
            risen=int(np.sum(new > old)),
            fallen=int(np.sum(new < old)),
            same=int(np.sum(new == old)),
            **found,
        )


def _of_rates(new: np.ndarray, old: np.ndarray, confidence: float) -> dict[str, Any]:
    counts = PairedCounts(
        both=int((new * old).sum()),
        lost=int((old * (1 - new)).sum()),
        gained=int((new * (1 - old)).sum()),
        neither=int(((1 - new) * (1 - old)).sum()),
    )
    low, high = counts.interval(confidence=confidence)
    return {
        "difference": counts.difference,
        "standard_error": counts.standard_error,
        "low": low,
        "high": high,
        "p_value": counts.p_value(),
        "test": "mcnemar",
    }


def _of_values(found: Bootstrap, confidence: float) -> dict[str, Any]:
    low, high = found.interval(confidence=confidence)
    return {
        "difference": found.value,
        "standard_error": found.standard_error,
        "low": low,
        "high": high,
        "p_value": found.p_value(),
        "test": "bootstrap",
    }


def _distinct(keys: np.ndarray, parameter: str) -> np.ndarray:
    import numpy as np

    if len(np.unique(keys)) < len(keys):
        raise EvaluationError(f"{parameter}: two rows have the same id, so rows can't be paired")
    return keys
