"""What is measured: the time for the same figures, the memory of the bootstrap, and how often a gate is
right."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.evaluation import evaluate
from airflow_provider_gradient.evaluation.statistics import Resamples
from benchmarks.evaluation import peers, texts

METRICS = ("exact_match", "token_f1", "rouge_l")
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    :ivar runs: of the gate, each of a gain and of noise.
    :ivar gate_rows: of each of them, where the metric is a rate.
    """

    rows: int
    resamples: int
    runs: int
    gate_rows: int = 500


FULL = Scale(rows=100_000, resamples=10_000, runs=400)
QUICK = Scale(rows=500, resamples=1000, runs=20)


def speed(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """The same figures here and by the usual tools, one after the other, on the same rows in memory."""
    rows = texts.rows(scale.rows)
    evaluate(rows[:100], reference_column="answer", metrics=METRICS, resamples=100)  # loads what it needs
    say(f"speed: {scale.rows} rows, {scale.resamples} resamples, here")
    started, busy = time.perf_counter(), time.process_time()
    report = evaluate(rows, reference_column="answer", metrics=METRICS, resamples=scale.resamples, seed=SEED)
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    say(f"speed: {seconds:.1f} s; the peers")
    busy = time.process_time()
    peer = peers.evaluate(rows, resamples=scale.resamples, seed=SEED)
    peer_cpu = time.process_time() - busy
    figures = {name: (each.value, each.low, each.high) for name, each in report.metrics.items()}
    apart = max(
        abs(ours - theirs)
        for name in METRICS
        for ours, theirs in zip(figures[name], peer["figures"][name], strict=True)
    )
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peer_seconds": peer["seconds"],
        "peer_cpu_seconds": peer_cpu,
        "peer_squad_seconds": peer["squad_seconds"],
        "peer_rouge_seconds": peer["rouge_seconds"],
        "peer_bootstrap_seconds": peer["bootstrap_seconds"],
        "times_as_fast": peer["seconds"] / seconds,
        "largest_difference": apart,
        "figures": figures,
    }


def memory(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """The most that a bootstrap takes, for a tenth of the resamples and for all."""
    import numpy as np

    draw = np.random.default_rng(SEED)
    units = np.stack([np.ones(scale.rows), draw.uniform(size=scale.rows)], axis=1)
    peaks = {}
    for resamples in (scale.resamples // 10, scale.resamples):
        say(f"memory: {resamples} resamples")
        tracemalloc.start()
        Resamples(units, resamples=resamples, seed=SEED).bootstrap(lambda sums: sums[..., 1] / sums[..., 0])
        peaks[resamples] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    few, many = peaks.values()
    return {"peak_mib_a_tenth": few, "peak_mib": many, "growth": many / few - 1}


def gate(scale: Scale, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """How often the gate "better with 95 % confidence" passes a gain of 8 points, and noise: two runs of the
    same quality."""
    found = []
    for name, metric, cluster, rows in (
        ("a rate, 500 rows", "exact_match", None, scale.gate_rows),
        # Partial answers make the gain smaller, and rows in clusters say less: it takes more of them.
        ("a mean, 1000 rows", "token_f1", None, 2 * scale.gate_rows),
        ("a rate, 1000 rows in clusters of 10", "exact_match", "text", 2 * scale.gate_rows),
    ):
        say(f"gate: {name}")
        passed = {
            gain: sum(_passes(seed, gain, metric, cluster, rows) for seed in range(scale.runs))
            for gain in (0.0, 0.08)
        }
        found.append(
            {
                "metric": name,
                "rows": rows,
                "runs": scale.runs,
                "noise_passed": passed[0.0] / scale.runs,
                "gains_passed": passed[0.08] / scale.runs,
            }
        )
    return found


def _passes(seed: int, gain: float, metric: str, cluster: str | None, count: int) -> bool:
    draw = random.Random(f"{seed} {gain} {metric} {cluster}")
    pairs = [_answers(draw, gain, metric) for _ in range(count)]
    if cluster:  # as much as ten rows say together: a share of each text's rows follows its first
        pairs = [pairs[row - row % 10] if draw.random() < 0.2 else pair for row, pair in enumerate(pairs)]
    runs = [
        [
            {"output": pair[side], "row": {"answer": "one two three four", "text": row // 10}}
            for row, pair in enumerate(pairs)
        ]
        for side in (0, 1)
    ]
    report = evaluate(
        runs[1],
        baseline=runs[0],
        reference_column="answer",
        metrics=[metric],
        cluster_column=cluster,
        resamples=1000,
        gate=[{"rule": "better", "metric": metric}],
    )
    assert report.gate is not None
    return report.gate.verdict == "pass"


def _answers(draw: random.Random, gain: float, metric: str) -> tuple[str, str]:
    """The baseline's and the challenger's answer: both right, one of them, or neither. Where partial answers
    count, wrong ones have some of the words."""
    place = draw.random()
    gained, lost = 0.09 + gain, 0.09
    new = place < 0.5 + gained
    old = place < 0.5 or 0.5 + gained <= place < 0.5 + gained + lost
    right = "one two three four"
    words = right.split()
    wrong = [" ".join(words[: draw.randrange(4)]) if metric == "token_f1" else "wrong" for _ in range(2)]
    return right if old else wrong[0], right if new else wrong[1]
