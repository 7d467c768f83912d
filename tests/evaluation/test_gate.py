"""Gates at their edges, and in the long run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from airflow_provider_gradient.evaluation import EvaluationError, evaluate, read_gate
from airflow_provider_gradient.evaluation.gate import judge
from airflow_provider_gradient.evaluation.report import Difference, MetricValue
from airflow_provider_gradient.evaluation.statistics import PairedCounts


def difference(value: float, low: float, high: float, *, n: int = 100) -> Difference:
    return Difference(
        baseline=0.5,
        challenger=0.5 + value,
        difference=value,
        standard_error=0.01,
        low=low,
        high=high,
        n=n,
        p_value=0.5,
        test="mcnemar",
        smallest_difference=0.03,
        risen=0,
        fallen=0,
        same=n,
    )


@dataclass
class Given:
    """Figures that a test chose."""

    overall: Difference | None = None
    by_slice: dict[str, Difference] = field(default_factory=dict)
    metric: MetricValue | None = None
    higher: bool = True
    asked: list[float] = field(default_factory=list)

    def value(self, _metric: str, _part: Any, _confidence: float) -> MetricValue:
        assert self.metric is not None
        return self.metric

    def difference(self, _metric: str, part: Any, confidence: float) -> Difference:
        self.asked.append(confidence)
        found = self.overall if part is None else self.by_slice[part[1]]
        assert found is not None
        return found

    def slices(self, _column: str) -> list[str]:
        return list(self.by_slice)

    def sign(self, _metric: str) -> int:
        return 1 if self.higher else -1


def verdict(rule: dict[str, Any], figures: Given) -> str:
    return judge(read_gate([{"metric": "m", **rule}]), figures).verdict


@pytest.mark.parametrize(
    ("rule", "found", "expected"),
    [
        ({"rule": "better"}, (0.1, 0.01, 0.2), "pass"),
        ({"rule": "better"}, (0.1, 0.0, 0.2), "undecided"),
        ({"rule": "better"}, (0.0, -0.1, 0.1), "undecided"),
        ({"rule": "better"}, (-0.1, -0.2, 0.0), "fail"),
        ({"rule": "better", "by": 0.02}, (0.1, 0.02, 0.2), "undecided"),
        ({"rule": "better", "by": 0.02}, (0.1, 0.021, 0.2), "pass"),
        ({"rule": "better", "by": 0.02}, (0.01, 0.005, 0.02), "fail"),
        ({"rule": "better", "confidence": None}, (0.001, -1, 1), "pass"),
        ({"rule": "better", "confidence": None}, (0.0, 0, 0), "fail"),
        ({"rule": "not_worse", "by": 0.02}, (-0.02, -1, 1), "pass"),
        ({"rule": "not_worse", "by": 0.02}, (-0.0201, -1, 1), "fail"),
        ({"rule": "not_worse"}, (0.0, -1, 1), "pass"),
        ({"rule": "not_worse", "by": 0.02, "confidence": 0.9}, (0.0, -0.02, 0.1), "pass"),
        ({"rule": "not_worse", "by": 0.02, "confidence": 0.9}, (0.0, -0.021, 0.1), "undecided"),
        ({"rule": "not_worse", "by": 0.02, "confidence": 0.9}, (-0.1, -0.2, -0.02), "undecided"),
        ({"rule": "not_worse", "by": 0.02, "confidence": 0.9}, (-0.1, -0.2, -0.021), "fail"),
    ],
)
def test_a_comparing_rule_at_its_edges(rule: dict[str, Any], found: tuple[float, ...], expected: str) -> None:
    assert verdict(rule, Given(difference(*found))) == expected
    value, low, high = found
    mirrored = Given(difference(-value, -high, -low), higher=False)
    assert verdict(rule, mirrored) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"rule": "at_least", "value": 0.8}, "pass"),
        ({"rule": "at_least", "value": 0.8001}, "fail"),
        ({"rule": "at_least", "value": 0.7, "confidence": 0.95}, "pass"),
        ({"rule": "at_least", "value": 0.71, "confidence": 0.95}, "undecided"),
        ({"rule": "at_least", "value": 0.91, "confidence": 0.95}, "fail"),
        ({"rule": "at_most", "value": 0.8}, "pass"),
        ({"rule": "at_most", "value": 0.79}, "fail"),
        ({"rule": "at_most", "value": 0.9, "confidence": 0.95}, "pass"),
        ({"rule": "at_most", "value": 0.69, "confidence": 0.95}, "fail"),
    ],
)
def test_a_limit_at_its_edges(rule: dict[str, Any], expected: str) -> None:
    value = MetricValue(value=0.8, standard_error=0.05, low=0.7, high=0.9, n=64, method="wilson")
    assert verdict(rule, Given(metric=value)) == expected


def test_no_slice_of_thirty_rows_may_be_worse() -> None:
    rule = {"rule": "no_slice_worse", "column": "c", "by": 0.05}
    fine, bad = difference(-0.05, -0.2, 0.1, n=30), difference(-0.06, -0.2, 0.1, n=30)
    small = difference(-0.5, -0.9, -0.1, n=29)
    assert verdict(rule, Given(by_slice={"a": fine, "b": small})) == "pass"
    assert verdict(rule, Given(by_slice={"a": fine, "b": bad})) == "fail"
    assert verdict(rule, Given(by_slice={"b": small})) == "undecided"
    found = judge(read_gate([{"metric": "m", **rule}]), Given(by_slice={"a": fine, "b": bad, "c": small}))
    assert "'b' 0.500 to 0.440, -0.060" in found.reasons[0]
    assert "1 of fewer than 30 rows not judged: c" in found.reasons[0]


def test_one_failing_rule_fails_the_gate_and_an_undecided_one_leaves_it_open() -> None:
    figures = Given(difference(0.01, -0.01, 0.03))
    passes, opens, fails = (
        {"rule": "not_worse", "metric": "m"},
        {"rule": "better", "metric": "m"},
        {"rule": "not_worse", "metric": "m", "by": 0.0, "confidence": 0.99},
    )
    worse = Given(difference(-0.02, -0.03, -0.01))
    assert judge(read_gate([passes]), figures).verdict == "pass"
    assert judge(read_gate([passes, opens]), figures).verdict == "undecided"
    assert judge(read_gate([opens, fails]), worse).verdict == "fail"


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ([], "a list of at least one rule"),
        ({"rule": "better"}, "a list of at least one rule"),
        ([{"rule": "best", "metric": "exact_match"}], "gate[0]: "),
        ([{"rule": "better"}], "gate[0]: better.metric: Field required"),
        ([{"rule": "better", "metric": "exact_match", "by": -1}], "greater than or equal to 0"),
        ([{"rule": "better", "metric": "exact_match", "confidence": 95}], "less than 1"),
        ([{"rule": "better", "metric": "rouge_l"}], "gate[0]: no metric 'rouge_l' is asked for"),
        ([{"rule": "better", "metric": "length"}], "gate[0]: length is neither better nor worse by its size"),
        ([{"rule": "better", "metric": "exact_match", "slice": {"x": "y"}}], "'x' is none of slice_columns"),
        ([{"rule": "at_least", "metric": "exact_match", "value": 1, "slice": {"s": "z"}}], "no row has 'z'"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused_by_rule(gate: Any, message: str) -> None:
    rows = [{"output": "a", "answer": "a", "s": "s"}]
    with pytest.raises(EvaluationError) as raised:
        evaluate(
            rows,
            baseline=rows,
            reference_column="answer",
            metrics=["exact_match", "length"],
            slice_columns=["s"],
            gate=gate,
        )
    assert message in str(raised.value)


def test_a_rule_that_compares_needs_a_baseline() -> None:
    with pytest.raises(EvaluationError, match="the rule better compares with a baseline; give one"):
        evaluate(
            [{"output": "a", "answer": "a"}],
            reference_column="answer",
            gate=[{"rule": "better", "metric": "exact_match"}],
        )


def test_a_rules_own_confidence_is_that_of_its_interval() -> None:
    old = [{"output": "a" if n % 2 else "b", "answer": "a"} for n in range(100)]
    new = [{"output": "a" if n % 2 or n % 20 == 0 else "b", "answer": "a"} for n in range(100)]
    verdicts = [
        evaluate(
            new,
            baseline=old,
            reference_column="answer",
            gate=[{"rule": "better", "metric": "exact_match", "confidence": confidence}],
        ).gate.verdict  # type: ignore[union-attr]
        for confidence in (0.8, 0.999)
    ]
    assert verdicts == ["pass", "undecided"]


def test_noise_passes_at_most_once_in_twenty_and_a_gain_nine_times_in_ten() -> None:
    rules = read_gate([{"rule": "better", "metric": "m"}])
    draw = np.random.default_rng(1)

    def passed(gain: float) -> float:
        # Rows of a challenger: 60 % right in both, some gained, some lost, by a true difference of ``gain``.
        shares = [0.6, 0.1 + gain, 0.1, 0.2 - gain]
        verdicts = []
        for both, gained, lost, neither in draw.multinomial(300, shares, 1000).tolist():
            counts = PairedCounts(both=both, lost=lost, gained=gained, neither=neither)
            low, high = counts.interval(confidence=0.95)
            verdicts.append(judge(rules, Given(difference(counts.difference, low, high))).verdict)
        return verdicts.count("pass") / len(verdicts)

    assert passed(0.0) <= 0.05
    assert passed(0.1) >= 0.9
