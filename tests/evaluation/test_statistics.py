"""Intervals, p-values and what n rows could show: equal to the literature and to scipy, and true in the long
run."""

from __future__ import annotations

import math
import statistics
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from airflow_provider_gradient.evaluation.statistics import (
    PairedCounts,
    Resamples,
    holm,
    smallest_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_that_of_the_literature(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data(), st.floats(0.5, 0.999))
def test_wilsons_ends_are_where_the_score_test_just_fails(n: int, data: st.DataObject, level: float) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson_interval(successes, n, confidence=level)
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6)


def mean(sums: Any) -> Any:
    return sums[..., 1] / sums[..., 0]


def counted(scores: Any) -> Any:
    return np.stack([np.ones(len(scores)), scores], axis=1)


@pytest.mark.parametrize("n", [2, 12, 30, 500])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bootstrap_of_a_mean_is_scipys(n: int, confidence: float) -> None:
    scores = np.random.default_rng(n).beta(0.7, 2.0, n)
    ours = Resamples(counted(scores), resamples=3000, seed=5).bootstrap(mean)
    theirs = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=3000,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(5),
        vectorized=True,
    )
    interval = theirs.confidence_interval
    assert ours.interval(confidence=confidence) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert ours.standard_error == pytest.approx(scores.std(ddof=1) / math.sqrt(n), abs=1e-12)


def test_clusters_are_drawn_whole() -> None:
    draw = np.random.default_rng(1)
    sizes, levels = draw.integers(1, 9, 60), draw.uniform(0, 1, 60)
    sums = [draw.binomial(size, level) for size, level in zip(sizes, levels, strict=True)]
    units = np.stack([sizes, sums], axis=1).astype(float)
    ours = Resamples(units, resamples=2000, seed=3).bootstrap(mean)

    def ratio(sizes: Any, sums: Any, axis: int = -1) -> Any:
        return np.sum(sums, axis=axis) / np.sum(sizes, axis=axis)

    theirs = stats.bootstrap(
        (units[:, 0], units[:, 1]), ratio, paired=True, n_resamples=2000, rng=np.random.default_rng(3)
    )
    interval = theirs.confidence_interval
    assert ours.interval(confidence=0.95) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_memory_is_flat_in_the_number_of_resamples() -> None:
    scores = counted(np.random.default_rng(1).uniform(size=20_000))
    peaks = []
    for resamples in (200, 800):
        tracemalloc.start()
        try:
            Resamples(scores, resamples=resamples, seed=1).bootstrap(mean)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_one_unit_has_no_standard_error_and_units_alike_have_no_spread() -> None:
    one = Resamples(counted(np.array([0.5])), resamples=100, seed=0).bootstrap(mean)
    assert one.standard_error is None
    same = Resamples(counted(np.full(9, 0.1)), resamples=100, seed=0).bootstrap(mean)
    assert same.is_degenerate
    assert same.interval(confidence=0.95) == (same.value, same.value)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_p_value_is_scipys_binomial_test(lost: int, gained: int) -> None:
    counts = PairedCounts(both=3, lost=lost, gained=gained, neither=4)
    expected = stats.binomtest(gained, lost + gained).pvalue if lost + gained else 1.0
    assert counts.p_value() == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 20), st.integers(0, 20), st.integers(1, 60))
def test_newcombes_interval_is_that_of_its_definition(
    both: int, lost: int, gained: int, neither: int
) -> None:
    n = both + lost + gained + neither
    first, second = both + lost, both + gained
    one, two = (stats.binomtest(count, n).proportion_ci(method="wilson") for count in (second, first))
    phi = (
        np.corrcoef(
            [1] * both + [1] * lost + [0] * (gained + neither),
            [1] * both + [0] * lost + [1] * gained + [0] * neither,
        )[0, 1]
        if 0 < first < n and 0 < second < n
        else 0.0
    )
    if phi > 0:
        below = math.sqrt(first * (n - first) * second * (n - second))
        phi = max(0.0, phi - n / 2 / below)
    down, up = second / n - one.low, one.high - second / n
    other_down, other_up = first / n - two.low, two.high - first / n
    low = gained / n - lost / n - math.sqrt(down**2 - 2 * phi * down * other_up + other_up**2)
    high = gained / n - lost / n + math.sqrt(up**2 - 2 * phi * up * other_down + other_down**2)
    counts = PairedCounts(both=both, lost=lost, gained=gained, neither=neither)
    assert counts.interval(confidence=0.95) == pytest.approx((low, high), abs=1e-9)
    swapped = PairedCounts(both=both, lost=gained, gained=lost, neither=neither)
    assert swapped.interval(confidence=0.95) == pytest.approx((-high, -low), abs=1e-9)


def test_the_bootstraps_p_value_is_that_of_a_paired_test_for_many_rows() -> None:
    draw = np.random.default_rng(2)
    for shift in (0.0, 0.02, 0.05):
        difference = draw.normal(shift, 0.4, 1000)
        ours = Resamples(counted(difference), resamples=20_000, seed=1).bootstrap(mean).p_value()
        assert ours == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.02)


def test_holms_adjustment_is_that_of_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    draw = np.random.default_rng(4)
    n, spread = 200, 0.5
    shift = smallest_difference(spread / math.sqrt(n), confidence=0.95)
    found = np.abs(draw.normal(shift, spread, (4000, n)).mean(1)) > 1.96 * spread / math.sqrt(n)
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def coverage(truth: float, intervals: list[tuple[float, float]]) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(5)
    rates = [wilson_interval(draw.binomial(60, 0.9), 60) for _ in range(1000)]
    assert coverage(0.9, rates) == pytest.approx(0.95, abs=0.02)

    def interval(units: Any) -> tuple[float, float]:
        return Resamples(units, resamples=600, seed=1).bootstrap(mean).interval(confidence=0.95)

    skewed = [interval(counted(draw.beta(0.5, 2.0, 60))) for _ in range(600)]
    assert coverage(0.2, skewed) == pytest.approx(0.95, abs=0.03)


def test_rows_that_belong_together_need_clusters_for_their_interval_to_be_true() -> None:
    draw = np.random.default_rng(6)
    clustered, alone = [], []
    for _ in range(400):
        scores = (draw.uniform(size=(50, 10)) < draw.beta(1, 1, 50)[:, None]).astype(float)
        units = np.stack([np.full(50, 10.0), scores.sum(1)], axis=1)
        clustered.append(Resamples(units, resamples=500, seed=1).bootstrap(mean).interval(confidence=0.95))
        alone.append(wilson_interval(scores.sum(), 500))
    assert coverage(0.5, clustered) == pytest.approx(0.95, abs=0.035)
    assert coverage(0.5, alone) < 0.8


@pytest.mark.parametrize(("same", "gained", "lost"), [(0.7, 0.2, 0.1), (0.9, 0.05, 0.05), (0.96, 0.03, 0.01)])
def test_newcombes_interval_covers_the_true_difference(same: float, gained: float, lost: float) -> None:
    draw = np.random.default_rng(7)
    found = []
    for both, plus, minus, neither in draw.multinomial(
        150, [same / 2, gained, lost, same / 2], 1500
    ).tolist():
        counts = PairedCounts(both=both, lost=minus, gained=plus, neither=neither)
        found.append(counts.interval(confidence=0.95))
    assert 0.93 <= coverage(gained - lost, found) <= 0.99
