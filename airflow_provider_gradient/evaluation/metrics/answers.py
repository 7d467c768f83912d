"""Exact match, F1 over words, and containment, each between normalised answers; of several references the
best counts. Source: the evaluation script of SQuAD, see :mod:`.text`."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric


def token_f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words, counted as often as they occur; where one side
    has none, 1 if the other has none too, else 0."""
    given, wanted = output.split(), reference.split()
    if not given or not wanted:
        return float(given == wanted)
    one, other = set(given), set(wanted)
    if len(one) == len(given) or len(other) == len(wanted):
        shared = len(one & other)  # no word of it occurs twice in both
    else:
        shared = (Counter(given) & Counter(wanted)).total()
    return 2.0 * shared / (len(given) + len(wanted))


class ExactMatch(MeanMetric):
    """1 if the answer is one of the references, else 0."""

    is_rate: ClassVar[bool] = True
    metric: Literal["exact_match"] = "exact_match"

    def score(self, example: Example) -> float:
        """0 or 1."""
        return float(example.answer in example.answers)


class TokenF1(MeanMetric):
    """F1 over the words: ``2 * common / (words of the output + words of the reference)``."""

    metric: Literal["token_f1"] = "token_f1"

    def score(self, example: Example) -> float:
        """The best over the references."""
        return max(token_f1(example.answer, reference) for reference in example.answers)


class Contains(MeanMetric):
    """1 if a reference stands somewhere in the output, within a word too (so ``10`` is in ``100``, and names
    are found in languages that write no spaces), else 0; an empty reference is in an empty output only."""

    is_rate: ClassVar[bool] = True
    metric: Literal["contains"] = "contains"

    def score(self, example: Example) -> float:
        """0 or 1."""
        answer = example.answer
        return float(any(wanted in answer if wanted else not answer for wanted in example.answers))
