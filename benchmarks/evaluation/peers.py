"""The same figures by the usual tools: SQuAD's script in a loop, rouge-score, and scipy's bootstrap.

SQuAD's formulas are written here as its script has them: four passes a normalisation, a counter a pair.
"""

from __future__ import annotations

import collections
import re
import string
import time
from typing import Any


def normalized(text: str) -> str:
    exclude = set(string.punctuation)
    text = "".join(character for character in text.lower() if character not in exclude)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad(output: str, reference: str) -> tuple[float, float]:
    """Exact match and F1."""
    given, wanted = normalized(output).split(), normalized(reference).split()
    exact = float(given == wanted)
    if not given or not wanted:
        return exact, exact
    same = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    if not same:
        return exact, 0.0
    precision, recall = same / len(given), same / len(wanted)
    return exact, 2 * precision * recall / (precision + recall)


def evaluate(rows: list[dict[str, Any]], *, resamples: int, seed: int) -> dict[str, Any]:
    """The figures, and the seconds that each of them took."""
    import numpy as np
    from rouge_score.rouge_scorer import RougeScorer
    from scipy import stats

    started = time.perf_counter()
    pairs = [squad(row["output"], row["row"]["answer"]) for row in rows]
    exact, f1 = (np.array(column) for column in zip(*pairs, strict=True))
    squad_done = time.perf_counter()
    scorer = RougeScorer(["rougeL"])
    rouge = np.array([scorer.score(row["row"]["answer"], row["output"])["rougeL"].fmeasure for row in rows])
    rouge_done = time.perf_counter()
    found = {"exact_match": _rate(exact, stats)}
    for name, scores in (("token_f1", f1), ("rouge_l", rouge)):
        interval = stats.bootstrap(
            (scores,),
            np.mean,
            n_resamples=resamples,
            batch=max(1, 2**20 // len(scores)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
        found[name] = (float(scores.mean()), float(interval.low), float(interval.high))
    done = time.perf_counter()
    return {
        "figures": found,
        "seconds": done - started,
        "squad_seconds": squad_done - started,
        "rouge_seconds": rouge_done - squad_done,
        "bootstrap_seconds": done - rouge_done,
    }


def _rate(scores: Any, stats: Any) -> tuple[float, float, float]:
    found = stats.binomtest(int(scores.sum()), len(scores)).proportion_ci(method="wilson")
    return float(scores.mean()), float(found.low), float(found.high)
