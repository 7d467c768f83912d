"""The metrics' values, and the intervals of their means."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.evaluation import METRICS, normalize_answer
from airflow_provider_gradient.evaluation.statistics import Mean, wilson_interval


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Dallas Cowboys.", "dallas cowboys"),
        ("an apple, a day", "apple day"),
        ("theatre and Anna", "theatre and anna"),
        ("it's U.S.A.", "its usa"),
        ("well-known", "wellknown"),
        ("\u00a0 tab\tand\nline ", "tab and line"),
        ("ÄRGER", "ärger"),
        ("Cafe\u0301", "café"),
        ("東京、です", "東京、です"),
        ("The", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_squads_script_does(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("metric", "output", "reference", "score"),
    [
        ("exact_match", "The cat", "cat", 1.0),
        ("exact_match", "cats", "cat", 0.0),
        ("exact_match", "the", "", 1.0),
        ("token_f1", "the cat sat", "a cat sat down", 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("token_f1", "b b c", "b c c", 2 * 2 / 6),
        ("token_f1", "x", "y", 0.0),
        ("token_f1", "the", "an", 1.0),
        ("token_f1", "the", "x", 0.0),
        ("contains", "It was Dallas, surely", "dallas", 1.0),
        ("contains", "東京です", "東京", 1.0),
        ("contains", "Dal las", "dallas", 0.0),
        ("contains", "anything", "the", 0.0),
        ("contains", "", "the", 1.0),
    ],
)
def test_a_metric_has_the_value_that_its_definition_gives(
    metric: str, output: str, reference: str, score: float
) -> None:
    value = METRICS[metric].best(normalize_answer(output), [normalize_answer(reference)])
    assert value == pytest.approx(score, abs=1e-12)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "the", "dé", "é", "東"]), max_size=6).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_metrics_lie_between_0_and_1_and_agree_with_each_other(output: str, references: list[str]) -> None:
    output, references = normalize_answer(output), [normalize_answer(text) for text in references]
    exact, f1, contained = (METRICS[name].best(output, references) for name in METRICS)
    assert 0 <= exact <= f1 <= 1
    assert exact <= contained <= 1
    assert METRICS["token_f1"].best(output, [output]) == 1.0
    for reference in references:
        score = METRICS["token_f1"].score
        assert score(output, reference) == score(reference, output)


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


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50).filter(lambda scores: len(set(scores)) > 1))
def test_a_mean_and_its_standard_error_are_those_of_the_list(scores: list[float]) -> None:
    mean = Mean(is_rate=False)
    for score in scores:
        mean.add(score)
    value = mean.value(confidence=0.95)
    assert value.value == pytest.approx(statistics.fmean(scores), abs=1e-12)
    error = statistics.stdev(scores) / math.sqrt(len(scores))
    assert value.standard_error == pytest.approx(error, abs=1e-9)
    assert 0 <= value.low <= value.value <= value.high <= 1


def test_scores_that_are_all_alike_have_an_interval_all_the_same() -> None:
    means = [Mean(is_rate=is_rate) for is_rate in (False, True)]
    for mean in means:
        for _ in range(20):
            mean.add(0.0)
    values = [mean.value(confidence=0.95) for mean in means]
    assert values[0] == values[1]
    assert values[0].high == pytest.approx(0.1611, abs=5e-5)


def test_one_score_has_no_standard_error_unless_it_is_a_rate() -> None:
    for is_rate, expected in ((False, None), (True, 0.0)):
        mean = Mean(is_rate=is_rate)
        mean.add(1.0)
        assert mean.value(confidence=0.95).standard_error == expected


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draw = random.Random(1)
    covered = {True: 0, False: 0}
    runs = 800
    for _ in range(runs):
        rate, plain = Mean(is_rate=True), Mean(is_rate=False)
        for _ in range(60):
            rate.add(float(draw.random() < 0.8))
            plain.add(draw.betavariate(2, 3))
        for mean, truth, is_rate in ((rate, 0.8, True), (plain, 0.4, False)):
            value = mean.value(confidence=0.95)
            covered[is_rate] += value.low <= truth <= value.high
    assert 0.92 <= covered[True] / runs <= 0.98
    assert 0.92 <= covered[False] / runs <= 0.98
