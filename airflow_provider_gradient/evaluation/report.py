"""What an evaluation found, as a value that fits an XCom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_gradient.api import GradientError, describe_validation_error

SCHEMA_VERSION = 1


class EvaluationError(GradientError, ValueError):
    """What was asked can't be evaluated; the message names the row or the parameter."""


class MetricValue(BaseModel):
    """The mean of a metric over ``n`` rows, from 0 to 1.

    :ivar standard_error: of the mean; ``None`` where one row says nothing about it.
    :ivar low: lower end of the interval at the report's confidence.
    :ivar high: upper end.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    standard_error: float | None
    low: float
    high: float
    n: int


class EvaluationReport(BaseModel):
    """The metrics of a set of completions.

    :ivar source: path of the completions, or ``inline``.
    :ivar model_id: that all rows have, or ``None`` where they differ or name none.
    :ivar rows: all of them are in every metric; one without a completion scores 0.
    :ivar counts: rows by the status of their completion.
    :ivar slices: the metrics of the rows of each value of ``slice_column``.
    :ivar scores_path: JSONL with the scores of each row, or ``None``.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    source: str
    model_id: str | None
    reference_column: str
    confidence: float
    rows: int
    counts: dict[str, int]
    metrics: dict[str, MetricValue]
    slice_column: str | None
    slices: dict[str, dict[str, MetricValue]]
    scores_path: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EvaluationReport:
        """The report that :meth:`to_dict` gave.

        :raises EvaluationError: names what is missing or wrong.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise EvaluationError(f"no evaluation report: {describe_validation_error(error)}") from None
