"""Means with their uncertainty, from sums alone, so that no score is kept.

A proportion gets E. B. Wilson's score interval ("Probable inference, the law of succession, and statistical
inference", JASA 22, 1927), which holds for few rows and near 0 and 1: with ``p`` the proportion among ``n``
and ``z`` the normal quantile of the confidence,

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

Any other mean of scores between 0 and 1 gets the normal approximation ``mean ± z·s/sqrt(n)``, ``s`` being the
sample's standard deviation (divisor ``n - 1``), cut at 0 and 1. Where all scores are alike, ``s`` is 0 and
says nothing; the interval is then Wilson's, which is wide enough for any scores of that mean, since scores
between 0 and 1 vary at most as much as a proportion.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from airflow_provider_gradient.evaluation.report import MetricValue


def quantile(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 for a ``confidence`` of 0.95."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


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


class Mean:
    """The mean of scores from 0 to 1, added one by one.

    :param is_rate: whether the scores are all 0 or 1.
    """

    def __init__(self, *, is_rate: bool) -> None:
        self._is_rate = is_rate
        self._n = 0
        self._mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean (B. P. Welford, Technometrics 4, 1962)

    def add(self, score: float) -> None:
        """Take one more score."""
        self._n += 1
        distance = score - self._mean
        self._mean += distance / self._n
        self._squares += distance * (score - self._mean)

    def value(self, *, confidence: float) -> MetricValue:
        """The mean with its standard error and interval; there must be a score."""
        n, mean = self._n, min(1.0, max(0.0, self._mean))
        if self._is_rate:
            successes = round(mean * n)
            mean = successes / n
            error: float | None = math.sqrt(mean * (1 - mean) / n)
            low, high = wilson_interval(successes, n, confidence=confidence)
        elif self._squares <= 0.0:
            error = None if n == 1 else 0.0
            low, high = wilson_interval(mean * n, n, confidence=confidence)
        else:
            error = math.sqrt(self._squares / (n - 1) / n)
            half = quantile(confidence) * error
            low, high = max(0.0, mean - half), min(1.0, mean + half)
        return MetricValue(value=mean, standard_error=error, low=low, high=high, n=n)
