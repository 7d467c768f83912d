"""Values with their uncertainty.

A proportion of rows gets E. B. Wilson's score interval ("Probable inference, the law of succession, and
statistical inference", JASA 22, 1927), which holds for few rows and near 0 and 1: with ``p`` the proportion
among ``n`` and ``z`` the normal quantile of the confidence,

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

The difference of two proportions of the same rows gets R. G. Newcombe's interval ("Improved confidence
intervals for the difference between binomial proportions based on paired data", Statistics in Medicine 17,
1998, method 10), and its p-value is McNemar's, exact: of the rows on which the two differ, half would go
either way (Q. McNemar, Psychometrika 12, 1947).

All else is bootstrapped: units (rows, or clusters of rows) are drawn with replacement and the value made anew
from their sums. The interval is the bias-corrected and accelerated one (BCa; B. Efron, "Better Bootstrap
Confidence Intervals", JASA 82, 1987), the standard error the jackknife's (B. Efron and C. Stein, "The
Jackknife Estimate of Variance", Annals of Statistics 9, 1981), which for a mean is ``s/sqrt(n)``. With the
same seed, the draws and the interval are those of ``scipy.stats.bootstrap``, but for resamples whose value is
the sample's own: here they are alike whatever rounding made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Value = Callable[["np.ndarray"], "np.ndarray"]
"""Makes values, of shape ``(...)``, of sums over units, of shape ``(..., columns)``."""

POWER = 0.8
"""With which the smallest difference would have been found."""

_CHUNK = 1 << 20
"""Draws in memory at once."""
_NORMAL = NormalDist()


def quantile(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 for a ``confidence`` of 0.95."""
    return _NORMAL.inv_cdf((1.0 + confidence) / 2.0)


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for ``successes`` among ``n``, at least 1."""
    z = quantile(confidence)
    p = successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if successes == n else min(1.0, (middle + half) / scale)
    return low, high


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """Rows by what two runs made of them.

    :ivar both: right in both.
    :ivar lost: right in the first alone; ``gained``: in the second alone.
    """

    both: int
    lost: int
    gained: int
    neither: int

    @property
    def n(self) -> int:
        """All rows."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def difference(self) -> float:
        """The second proportion less the first."""
        return (self.gained - self.lost) / self.n

    @property
    def standard_error(self) -> float:
        """Of the difference: ``sqrt(gained + lost - (gained - lost)²/n) / n``; where no row differs, that of
        one row that does."""
        apart = max(1, self.gained + self.lost)
        return math.sqrt(apart - (self.gained - self.lost) ** 2 / self.n) / self.n

    def p_value(self) -> float:
        """McNemar's, exact and two-sided: twice the chance that of fair coins, one for each row that differs,
        so few fall on the rarer side."""
        apart, fewer = self.gained + self.lost, min(self.gained, self.lost)
        log_half = apart * math.log(0.5)
        tail = sum(math.exp(_log_binomial(apart, heads) + log_half) for heads in range(fewer + 1))
        return min(1.0, 2.0 * tail)

    def interval(self, *, confidence: float) -> tuple[float, float]:
        """Newcombe's interval of the difference."""
        n = self.n
        first, second = self.both + self.lost, self.both + self.gained
        low1, high1 = wilson_interval(first, n, confidence=confidence)
        low2, high2 = wilson_interval(second, n, confidence=confidence)
        p1, p2, phi = first / n, second / n, self._phi()
        down = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
        up = (high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2
        difference = self.difference
        return (
            max(-1.0, difference - math.sqrt(max(0.0, down))),
            min(1.0, difference + math.sqrt(max(0.0, up))),
        )

    def _phi(self) -> float:
        """The correlation of the two, corrected for continuity where it is above 0."""
        first, second, n = self.both + self.lost, self.both + self.gained, self.n
        below = first * (n - first) * second * (n - second)
        if not below:
            return 0.0
        above = self.both * self.neither - self.lost * self.gained
        return (max(0.0, above - n / 2) if above > 0 else above) / math.sqrt(below)


class Resamples:
    """Units drawn with replacement, as many as there are, ``resamples`` times; made when first needed.

    :param units: shape ``(units, columns)``: what each adds to the sums.
    :param seed: of the draws.
    """

    def __init__(self, units: np.ndarray, *, resamples: int, seed: int) -> None:
        self._units = units
        self._resamples = resamples
        self._seed = seed

    @property
    def n(self) -> int:
        """How many units there are."""
        return len(self._units)

    @cached_property
    def totals(self) -> np.ndarray:
        """The sums over all units."""
        totals: np.ndarray = self._units.sum(0)
        return totals

    def bootstrap(self, value: Value) -> Bootstrap:
        """The distribution of ``value``."""
        return Bootstrap(
            value=float(value(self.totals)),
            draws=value(self._sums),
            without_one=value(self.totals - self._units) if self.n > 1 else self._units[:0, 0],
        )

    @cached_property
    def _sums(self) -> np.ndarray:
        """The sums of each resample. Memory is taken for some draws at a time, however many there are."""
        import numpy as np

        n, columns = self._units.shape
        rng = np.random.default_rng(self._seed)
        sums = np.empty((self._resamples, columns))
        step = max(1, _CHUNK // n)
        units = np.ascontiguousarray(self._units)
        for start in range(0, self._resamples, step):
            count = min(step, self._resamples - start)
            draws = rng.integers(0, n, (count, n))
            draws += np.arange(0, count * n, n)[:, None]
            times = np.bincount(draws.ravel(), minlength=count * n).reshape(count, n)
            sums[start : start + count] = times.astype(np.float64) @ units
        return sums


class Bootstrap:
    """The distribution of a value under resampling.

    :param draws: the value of each resample.
    :param without_one: the value without each unit.
    """

    def __init__(self, *, value: float, draws: np.ndarray, without_one: np.ndarray) -> None:
        self.value = value
        self._draws = draws
        self._without_one = without_one

    @property
    def is_degenerate(self) -> bool:
        """Whether all units are alike, so that resampling says nothing."""
        spread = float(self._draws.max() - self._draws.min())
        return spread <= 1e-12 * max(1.0, abs(self.value))

    @property
    def standard_error(self) -> float | None:
        """The jackknife's; ``None`` for one unit."""
        n = len(self._without_one)
        if n < 2:
            return None
        apart = self._without_one - self._without_one.mean()
        return math.sqrt((n - 1) / n * float(apart @ apart))

    def interval(self, *, confidence: float) -> tuple[float, float]:
        """The BCa interval; both ends are the value where resampling says nothing."""
        import numpy as np

        if self.is_degenerate:  # as one unit is, too
            return self.value, self.value
        nearly = 1e-12 * max(1.0, abs(self.value))
        below = float(np.mean(self._draws < self.value - nearly))
        bias = self._normal((below + float(np.mean(self._draws <= self.value + nearly))) / 2)
        apart = self._without_one.mean() - self._without_one
        squares = float(apart @ apart)
        acceleration = float((apart**3).sum()) / (6 * squares**1.5) if squares else 0.0
        ends = []
        for side in (-quantile(confidence), quantile(confidence)):
            shifted = bias + side
            ends.append(_NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
        low, high = np.quantile(self._draws, ends)
        return float(low), float(high)

    def p_value(self) -> float:
        """Of the value being 0, two-sided: how often a resample's value, less the value, is as far from 0 as
        the value is, itself counted (A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their
        Application", 1997, section 4.4)."""
        import numpy as np

        nearly = 1e-12 * max(1.0, abs(self.value))
        extreme = int(np.sum(np.abs(self._draws - self.value) >= abs(self.value) - nearly))
        return (1 + extreme) / (1 + len(self._draws))

    def _normal(self, share: float) -> float:
        """The quantile of a share; of 0 and 1, that of half a draw."""
        half = 0.5 / len(self._draws)
        return _NORMAL.inv_cdf(min(1 - half, max(half, share)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for there being several (S. Holm, "A Simple Sequentially Rejective Multiple Test
    Procedure", Scandinavian Journal of Statistics 6, 1979): the k-th smallest of m is multiplied by ``m - k +
    1``, and none is below one before it."""
    adjusted, highest, left = [0.0] * len(p_values), 0.0, len(p_values)
    for place in sorted(range(len(p_values)), key=lambda place: p_values[place]):
        highest = max(highest, min(1.0, left * p_values[place]))
        adjusted[place], left = highest, left - 1
    return adjusted


def smallest_difference(standard_error: float, *, confidence: float) -> float:
    """The true difference that would have been found with a power of 0.8, ``(z(confidence) + z(power)) *
    standard error`` (H. S. Bloom, "Minimum Detectable Effects", Evaluation Review 19, 1995)."""
    return (quantile(confidence) + _NORMAL.inv_cdf(POWER)) * standard_error


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
