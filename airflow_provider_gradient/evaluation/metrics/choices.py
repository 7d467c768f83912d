"""Answers that are one of a few choices: how many are right, and F1 by class.

The answer chosen is the choice that equals the normalised output, for which punctuation of any script around
the output is no matter; an output that is none of them counts as a wrong answer, and as a prediction of no
class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric, Metric, RowMetric
from airflow_provider_gradient.evaluation.metrics.text import (
    normalize_answer,
    without_punctuation_around,
)
from airflow_provider_gradient.evaluation.report import EvaluationError

if TYPE_CHECKING:
    import numpy as np

OTHER = "(none of them)"
"""The column of a confusion table for outputs that are no choice."""


class _Choices(Metric):
    choices: Annotated[tuple[str, ...], Field(min_length=2, max_length=50)]

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: tuple[str, ...]) -> tuple[str, ...]:
        normal = [normalize_answer(choice) for choice in choices]
        if len(set(normal)) < len(normal) or not all(normal):
            raise ValueError("must differ in more than case, punctuation and articles, and not be empty")
        return choices

    @cached_property
    def _places(self) -> dict[str, int]:
        return {normalize_answer(choice): place for place, choice in enumerate(self.choices)}

    def places(self, example: Example) -> tuple[int, int | None]:
        """The right choice's place, and that of the choice made, if it is one.

        :raises EvaluationError: the reference is none of the choices, or there are several.
        """
        if len(example.answers) != 1 or example.answers[0] not in self._places:
            raise EvaluationError(
                f"{self.name}: the reference must be one of the choices {', '.join(map(repr, self.choices))} "
                f"(got {list(example.references)!r})"
            )
        made = self._places.get(example.answer)
        if made is None:  # normalising leaves the punctuation of other scripts, such as "。", where it is
            made = self._places.get(without_punctuation_around(example.answer))
        return self._places[example.answers[0]], made


class ChoiceAccuracy(_Choices, MeanMetric):
    """1 if the output is the right choice, else 0.

    :ivar choices: 2 to 50.
    """

    is_rate: ClassVar[bool] = True
    metric: Literal["choice_accuracy"] = "choice_accuracy"

    def score(self, example: Example) -> float:
        """0 or 1."""
        right, made = self.places(example)
        return float(right == made)


class MacroF1(_Choices, RowMetric):
    """The mean of the classes' F1, ``2 TP / (2 TP + FP + FN)``, over the choices that are the right answer of
    some row; a row's own score is 0 or 1.

    Source: scikit-learn's ``f1_score(average="macro", labels=<those choices>, zero_division=0)``.

    :ivar choices: 2 to 50.
    """

    metric: Literal["macro_f1"] = "macro_f1"

    @property
    def width(self) -> int:
        """Right answers, choices made and those of them that are right, of each class."""
        return 3 * len(self.choices)

    def measure(self, example: Example) -> tuple[float, Sequence[float]]:
        """0 or 1, and the row's part of the counts."""
        right, made = self.places(example)
        sums = [0.0] * self.width
        sums[right] = 1.0
        if made is not None and example.output is not None:
            sums[len(self.choices) + made] = 1.0
        is_right = made == right and example.output is not None
        sums[2 * len(self.choices) + right] = float(is_right)
        return float(is_right), sums

    def value(self, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The mean over the classes that occur."""
        import numpy as np

        wanted, made, right = np.split(np.round(sums, 6), 3, axis=-1)
        f1 = 2 * right / np.maximum(wanted + made, 1)
        occurs = wanted > 0
        value: np.ndarray = (f1 * occurs).sum(-1) / np.maximum(occurs.sum(-1), 1)
        return value


def confusion_choices(metrics: Sequence[Metric]) -> _Choices | None:
    """The metric whose choices make the confusion table, if there is one."""
    return next((metric for metric in metrics if isinstance(metric, _Choices)), None)


def confused(metric: _Choices, example: Example) -> tuple[str, str]:
    """The row and the column of the confusion table in which ``example`` counts."""
    right, made = metric.places(example)
    is_choice = made is not None and example.output is not None
    return metric.choices[right], metric.choices[made] if is_choice and made is not None else OTHER
