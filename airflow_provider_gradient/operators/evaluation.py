"""The operator that measures completions against references."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_provider_gradient.operators.base import RowsField, located, number

if TYPE_CHECKING:
    from airflow.sdk import Context


class GradientEvaluateOperator(BaseOperator):
    """Scores completions against a reference column. It asks no server, so it needs no connection.

    XCom: the evaluation report, a dict with each metric's value, standard error and confidence interval, the
    same for each slice, the counts, and the path of the per-row scores. A failed completion counts as wrong.

    :param completions: what to score: the manifest of
        :class:`~airflow_provider_gradient.operators.completions.GradientCompleteDatasetOperator`, the path or
            URL of its output, or such rows.
    :param reference_column: the carried column that holds the right answer.
    :param metrics: of ``exact_match``, ``token_f1`` and ``contains``.
    :param output_path: path or URL of the JSONL file of per-row scores; ``None`` for none.
    :param slice_column: a carried column; the metrics are also given for each of its values.
    :param confidence: level of the intervals, between 0 and 1.
    """

    template_fields: Sequence[str] = (
        "completions",
        "reference_column",
        "metrics",
        "output_path",
        "slice_column",
        "confidence",
    )
    completions = RowsField()

    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        completions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str],
        reference_column: str,
        metrics: Sequence[str] = ("exact_match",),
        output_path: str | os.PathLike[str] | None = None,
        slice_column: str | None = None,
        confidence: float | str = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.completions = completions
        self.reference_column = reference_column
        self.metrics = metrics
        self.output_path = output_path
        self.slice_column = slice_column
        self.confidence = confidence

    def execute(self, context: Context) -> dict[str, Any]:
        """The report, as a dict."""
        from airflow_provider_gradient.evaluation import evaluate

        report = evaluate(
            located(self.completions),
            reference_column=self.reference_column,
            metrics=tuple(self.metrics),
            output_path=located(self.output_path),
            slice_column=self.slice_column,
            confidence=number("confidence", self.confidence, float),
        )
        for name, metric in report.metrics.items():
            self.log.info(
                "%s %.3f, between %.3f and %.3f (n %d)", name, metric.value, metric.low, metric.high, metric.n
            )
        return report.to_dict()
