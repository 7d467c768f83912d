"""Whether a number is close enough to the right one."""

from __future__ import annotations

import math
import re
from typing import ClassVar, Literal

from pydantic import Field

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric
from airflow_provider_gradient.evaluation.report import EvaluationError

_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)


def last_number(text: str) -> float | None:
    """The last number in ``text``, or ``None``: digits of any script, with a decimal point, an exponent, and
    commas between groups of three; the minus sign U+2212 too."""
    found = [match.group() for match in _NUMBER.finditer(text.replace("\u2212", "-"))]
    value = float(found[-1].replace(",", "")) if found else None
    return value if value is not None and math.isfinite(value) else None


class NumericCloseness(MeanMetric):
    """1 if the last number in the output is close to the reference, else 0.

    Close is what numpy's ``isclose`` has for it: ``|output - reference| <= absolute + relative *
    |reference|``. Of several references any may be met.

    :ivar absolute: 0 or more.
    :ivar relative: 0 or more, as a share of the reference; by default only rounding errors are borne.
    """

    is_rate: ClassVar[bool] = True
    metric: Literal["numeric_closeness"] = "numeric_closeness"
    absolute: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    relative: float = Field(default=1e-9, ge=0, allow_inf_nan=False)

    def score(self, example: Example) -> float:
        """0 or 1."""
        wanted = [self._reference(reference) for reference in example.references]
        given = last_number(example.text)
        return float(
            given is not None
            and any(abs(given - number) <= self.absolute + self.relative * abs(number) for number in wanted)
        )

    def _reference(self, text: str) -> float:
        number = last_number(text)
        if number is None:
            raise EvaluationError(f"{self.name}: the reference {text!r} holds no number")
        return number
