"""Two runs over the same rows, paired."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from airflow_provider_gradient.datasets import read_rows, write_rows
from airflow_provider_gradient.evaluation import EvaluationError, EvaluationReport, evaluate


def run(right: list[bool], *, model: str = "m", **columns: list[Any]) -> list[dict[str, Any]]:
    """A run's completions: right or wrong."""
    return [
        {
            "index": index,
            "id": f"r{index}",
            "output": f"answer {index}" if is_right else "no",
            "model_id": model,
            "row": {"answer": f"answer {index}", **{name: values[index] for name, values in columns.items()}},
        }
        for index, is_right in enumerate(right)
    ]


def draws(count: int, share: float, *, seed: int) -> list[bool]:
    draw = random.Random(seed)
    return [draw.random() < share for _ in range(count)]


def test_a_rates_difference_is_mcnemars_and_any_others_is_the_paired_bootstraps() -> None:
    new, old = draws(200, 0.7, seed=1), draws(200, 0.6, seed=2)
    report = evaluate(
        run(new, model="new"),
        baseline=run(old, model="old"),
        reference_column="answer",
        metrics=["exact_match", "token_f1"],
    )
    assert report.comparison is not None
    assert (report.comparison.model_id, report.comparison.rows, report.comparison.unpaired) == ("old", 200, 0)
    rate = report.comparison.metrics["exact_match"]
    gained, lost = (sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((new, old), (old, new)))
    assert (rate.risen, rate.fallen, rate.same) == (gained, lost, 200 - gained - lost)
    assert rate.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert rate.test == "mcnemar"
    assert rate.difference == pytest.approx((sum(new) - sum(old)) / 200)
    f1 = report.comparison.metrics["token_f1"]
    assert f1.test == "bootstrap"
    # F1 of "no" against "answer 7" is 0: each row's score is that of exact match, and so is the difference.
    assert f1.difference == pytest.approx(rate.difference)
    paired = np.array(new, float) - np.array(old, float)
    assert f1.p_value == pytest.approx(stats.ttest_1samp(paired, 0).pvalue, abs=0.02)
    expected = stats.bootstrap(
        (paired,), np.mean, n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (f1.low, f1.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    holm = [report.comparison.metrics[name].holm_p_value for name in ("exact_match", "token_f1")]
    smaller, larger = sorted((rate.p_value, f1.p_value))
    assert sorted(p for p in holm if p is not None) == pytest.approx([2 * smaller, max(2 * smaller, larger)])


def test_rows_are_paired_by_id_whatever_their_order_and_the_others_counted() -> None:
    new, old = run(draws(60, 0.7, seed=1)), run(draws(60, 0.5, seed=2))
    straight = evaluate(new[:50], baseline=old[10:], reference_column="answer").comparison
    assert straight is not None
    assert (straight.rows, straight.unpaired) == (40, 20)
    shuffled = random.Random(1).sample(old[10:], 50)
    mixed = evaluate(new[:50], baseline=shuffled, reference_column="answer").comparison
    assert mixed is not None
    assert mixed.metrics == straight.metrics


def test_rows_without_ids_are_paired_by_index() -> None:
    new, old = ([{**row, "id": None} for row in run(draws(40, share, seed=3))] for share in (0.9, 0.2))
    comparison = evaluate(new, baseline=list(reversed(old)), reference_column="answer").comparison
    assert comparison is not None
    assert comparison.metrics["exact_match"].n == 40


def test_a_baseline_is_a_report_a_manifest_a_path_or_rows(tmp_path: Path) -> None:
    old = run(draws(50, 0.5, seed=1))
    write_rows(tmp_path / "old.jsonl", old)
    earlier = {
        kind: evaluate(
            old,
            reference_column="answer",
            output_path=tmp_path / f"scores.{kind}",
            report_path=tmp_path / f"{kind}.json",
        )
        for kind in ("jsonl", "parquet")
    }
    given = [
        old,
        tmp_path / "old.jsonl",
        {"output_path": str(tmp_path / "old.jsonl")},
        earlier["jsonl"],
        earlier["parquet"].to_dict(),
        tmp_path / "parquet.json",
    ]
    new = run(draws(50, 0.7, seed=2))
    found = [evaluate(new, baseline=each, reference_column="answer").comparison for each in given]
    assert all(each is not None and each.metrics == found[0].metrics for each in found)  # type: ignore[union-attr]
    stored = json.loads((tmp_path / "jsonl.json").read_text())
    assert EvaluationReport.from_dict(stored) == earlier["jsonl"]
    assert list(read_rows(tmp_path / "scores.parquet"))[3]["row"] == old[3]["row"]


def test_an_id_that_is_a_number_is_found_in_parquet_where_it_is_text(tmp_path: Path) -> None:
    new, old = (
        [{**row, "id": number} for number, row in enumerate(run(draws(40, share, seed=1)))]
        for share in (0.9, 0.4)
    )
    earlier = evaluate(old, reference_column="answer", output_path=tmp_path / "old.parquet")
    comparison = evaluate(new, baseline=earlier, reference_column="answer").comparison
    assert comparison is not None
    assert comparison.rows == 40


def test_what_cannot_be_compared_is_refused() -> None:
    rows = run([True] * 5)
    other = [{**row, "row": {"answer": "another"}} for row in rows]
    twice = [*rows, rows[0]]
    scored = evaluate(rows, reference_column="answer")
    for baseline, message in (
        (run([True] * 9)[5:], "no row in common"),
        (other, "its right answers are others"),
        (twice, "baseline: two rows have the same id"),
        (scored, "no per-row scores to compare with"),
        ({"x": 1}, "baseline: this is neither rows"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(rows, baseline=baseline, reference_column="answer")


def test_rows_that_were_not_run_are_counted_and_in_no_metric(tmp_path: Path) -> None:
    rows = run([True, False, True, True])
    rows[1] = {**rows[1], "status": "not_run", "output": None}
    report = evaluate(
        rows, baseline=run([True] * 4), reference_column="answer", output_path=tmp_path / "s.jsonl"
    )
    assert (report.rows, report.excluded) == (3, 1)
    assert report.counts == {"success": 3, "not_run": 1}
    assert report.metrics["exact_match"].n == 3
    assert report.metrics["exact_match"].value == 1.0
    assert report.comparison is not None
    assert (report.comparison.rows, report.comparison.unpaired) == (3, 1)
    assert [row["exact_match"] for row in read_rows(tmp_path / "s.jsonl")] == [1.0, 1.0, 1.0]
    with pytest.raises(EvaluationError, match="not one of its rows was run"):
        evaluate(rows[1:2], reference_column="answer")


def test_clusters_widen_the_intervals_of_rows_that_belong_together() -> None:
    draw = random.Random(2)
    levels = [draw.random() for _ in range(40)]
    right = [draw.random() < levels[row // 10] for row in range(400)]
    texts = [row // 10 for row in range(400)]
    rows = run(right, text=texts)
    alone, together = (
        evaluate(rows, baseline=run([False] * 400), reference_column="answer", cluster_column=column)
        for column in (None, "text")
    )
    assert alone.comparison is not None
    assert together.comparison is not None
    one, other = alone.metrics["exact_match"], together.metrics["exact_match"]
    assert other.value == one.value
    assert other.method == "bootstrap"
    assert other.high - other.low > 1.5 * (one.high - one.low)
    one, other = (each.comparison.metrics["exact_match"] for each in (alone, together))  # type: ignore[union-attr, assignment]
    assert other.test == "bootstrap"  # type: ignore[attr-defined]
    assert other.high - other.low > 1.5 * (one.high - one.low)


def test_small_slices_are_marked() -> None:
    kinds = ["few"] * 29 + ["many"] * 30
    report = evaluate(run([True] * 59, kind=kinds), reference_column="answer", slice_columns=["kind"])
    assert {name: found["exact_match"].is_small for name, found in report.slices["kind"].items()} == {
        "few": True,
        "many": False,
    }


def test_the_same_seed_gives_the_same_report() -> None:
    rows = [{"output": "a b c"[: n % 6], "answer": "a b"} for n in range(50)]
    reports = [
        evaluate(rows, reference_column="answer", metrics=["token_f1"], seed=seed) for seed in (1, 1, 2)
    ]
    assert reports[0] == reports[1]
    assert reports[0].metrics != reports[2].metrics


def test_the_corpus_score_is_what_is_drawn_again_in_bleu() -> None:
    draw = random.Random(1)
    rows = []
    for _ in range(80):
        words = [draw.choice("abcdefgh") for _ in range(draw.randrange(5, 30))]
        output = [word if draw.random() < 0.8 else "x" for word in words]
        rows.append({"output": " ".join(output), "answer": " ".join(words)})
    value = evaluate(rows, reference_column="answer", metrics=["bleu"], resamples=500).metrics["bleu"]
    from sacrebleu.metrics import BLEU

    drawn = BLEU(references=[[row["answer"] for row in rows]])
    their = drawn.corpus_score([row["output"] for row in rows], None, n_bootstrap=1000)
    assert value.value == pytest.approx(their.score / 100)
    assert (value.high - value.low) / 2 == pytest.approx(their._ci / 100, rel=0.15)
