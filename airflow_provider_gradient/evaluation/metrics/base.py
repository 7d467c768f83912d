"""What a metric is: a score for each row, and a value for all of them that follows from sums over the rows.

Because the value is a function of sums, any set of rows drawn again has its value from their sums alone: the
bootstrap, the jackknife, slices and clusters need no metric of their own.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from airflow_provider_gradient.evaluation.metrics.text import normalize_answer, tokens

if TYPE_CHECKING:
    import numpy as np

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.evaluation.metrics.served import Answers


class Example:
    """A row to score; forms of its texts that several metrics need are made once.

    :param output: the completion's text, or ``None`` where there is none: the request failed, or the answer
        was none of the choices.
    :param reference: the right answer, or a list of them, as the row has it; ``None`` where no metric needs
        any.
    :param row: the columns of the input.
    """

    def __init__(self, output: str | None, reference: Any, row: Mapping[str, Any]) -> None:
        self.output = output
        self.reference = reference
        self.row = row
        self.forms = reference if isinstance(reference, list) else [] if reference is None else [reference]
        self.references = [str(form) for form in self.forms]

    @property
    def text(self) -> str:
        """The output, empty where there is none."""
        return self.output or ""

    @cached_property
    def answer(self) -> str:
        """The output in the form in which answers are compared."""
        return normalize_answer(self.text)

    @cached_property
    def answer_with_articles(self) -> str:
        """The output in that form, but for its articles, which stay."""
        return normalize_answer(self.text, articles=True)

    @cached_property
    def answers(self) -> list[str]:
        """The references in that form."""
        return [normalize_answer(reference) for reference in self.references]

    @cached_property
    def words(self) -> list[str]:
        """The words of the output, in lower case."""
        return tokens(self.text)

    @cached_property
    def reference_words(self) -> list[list[str]]:
        """The words of each reference."""
        return [tokens(reference) for reference in self.references]

    @cached_property
    def plain(self) -> str:
        """The output in Unicode's normal form C."""
        return unicodedata.normalize("NFC", self.text)

    @cached_property
    def plain_references(self) -> list[str]:
        """The references in that form."""
        return [unicodedata.normalize("NFC", reference) for reference in self.references]


class Metric(BaseModel):
    """A metric with its settings, as a DAG's author writes them: ``{"metric": "regex", "pattern": "^A"}``.

    :cvar is_rate: whether each score is 0 or 1, so that their mean is a proportion.
    :cvar higher_is_better: ``None`` where neither direction is.
    :cvar needs_reference: whether a row needs a right answer.
    :cvar bounds: the smallest and the largest score, where there are such.
    :cvar failed: the score of a row without a completion.
    :ivar name: by which the report knows it; by default the metric's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    is_rate: ClassVar[bool] = False
    higher_is_better: ClassVar[bool | None] = True
    needs_reference: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float] | None] = (0.0, 1.0)
    failed: ClassVar[float] = 0.0

    metric: str
    name: str = Field(default_factory=lambda fields: fields.get("metric", ""), min_length=1)

    @property
    def width(self) -> int:
        """How many sums the value follows from."""
        return 1

    def value(self, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The metric's value for rows drawn.

        :param counts: shape ``(...)``: how many rows there are.
        :param sums: shape ``(..., width)``: the sums over them.
        """
        value: np.ndarray = sums[..., 0] / counts
        return value

    def check(self, sums: np.ndarray) -> None:
        """Refuse rows over which the metric says nothing, so that even perfect outputs would score 0.

        :param sums: shape ``(width,)``: over all rows.
        :raises EvaluationError: it says nothing; names a metric that does.
        """


class RowMetric(Metric, ABC):
    """A metric that each row is measured by, by itself."""

    @abstractmethod
    def measure(self, example: Example) -> tuple[float, Sequence[float]]:
        """A row's score, and what it adds to the ``width`` sums."""


class MeanMetric(RowMetric, ABC):
    """A metric whose value is the mean of the rows' scores."""

    @abstractmethod
    def score(self, example: Example) -> float:
        """The score of a row that has a completion."""

    def measure(self, example: Example) -> tuple[float, Sequence[float]]:
        """A row's score, which is also what it adds."""
        score = self.failed if example.output is None else self.score(example)
        return score, (score,)


class ServedMetric(Metric, ABC):
    """A metric whose scores come from a Gradient server; they are asked for before the rows are scored."""

    @abstractmethod
    async def ask(self, client: AsyncGradientClient, answers: Answers) -> array[float]:
        """The score of each row, in order; NaN where there is no completion."""
