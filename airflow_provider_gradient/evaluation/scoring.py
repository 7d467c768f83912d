"""Completions in, a report out: one pass, one row in memory at a time."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from airflow_provider_gradient.datasets import (
    JSONL,
    Dataset,
    DatasetError,
    OpenDataset,
    PathLike,
    StoredRows,
    as_path,
    check_output,
    column_value,
    describe_row,
    describe_source,
    dump_row,
    open_dataset,
    read_rows,
    replacing,
)
from airflow_provider_gradient.evaluation.metrics import METRICS, Metric, normalize_answer
from airflow_provider_gradient.evaluation.report import EvaluationError, EvaluationReport, MetricValue
from airflow_provider_gradient.evaluation.statistics import Mean

_MOST_SLICES = 1000
"""Slices that a report may have: more are rows, not groups of rows."""


def evaluate(
    completions: Dataset,
    *,
    reference_column: str,
    metrics: Sequence[str] = ("exact_match",),
    output_path: PathLike | None = None,
    slice_column: str | None = None,
    confidence: float = 0.95,
) -> EvaluationReport:
    """Score every completion against its references.

    A row whose completion failed (status ``error`` or ``invalid_output``) scores 0 in every metric and is
    counted, so that a model gains nothing by failing on what is hard.

    :param completions: a run's manifest (also as a dict), or its rows or their path. Each row has ``output``
        and under ``row`` the columns of the input; where it has no ``row``, its own columns are taken.
    :param reference_column: holds the right answer, or a list of right answers of which the best match
        counts.
    :param metrics: of ``exact_match``, ``token_f1``, ``contains``.
    :param output_path: where to write ``index, id, status, output, reference``, each metric and ``row`` of
        every row as JSONL; ``None`` for nowhere.
    :param slice_column: a column by whose values the metrics are also given.
    :param confidence: of the intervals, between 0 and 1.
    :raises EvaluationError: no such metric, or a row has no usable reference, output or slice.
    :raises DatasetError: the rows can't be read, or the scores can't be written.
    """
    if not 0 < confidence < 1:
        raise EvaluationError(f"confidence must be between 0 and 1 (got {confidence!r})")
    if isinstance(completions, Mapping) and "output_path" not in completions:
        raise EvaluationError("completions: this is neither rows, nor a path, nor the manifest of a run")
    rows = open_dataset(completions)
    _refuse_to_replace(rows, output_path)
    scorer = _Scorer(_metrics_of(metrics), reference_column=reference_column, slice_column=slice_column)
    with replacing(output_path) if output_path is not None else contextlib.nullcontext() as file:
        for index, row in enumerate(read_rows(rows)):
            scores = scorer.add(index, row, describe_row(rows, index))
            if file:
                file.write(dump_row(scores))
    return EvaluationReport(
        source=describe_source(rows),
        model_id=scorer.models.pop() if len(scorer.models) == 1 else None,
        reference_column=reference_column,
        confidence=confidence,
        rows=scorer.statuses.total(),
        counts=dict(scorer.statuses),
        metrics=scorer.all.values(confidence),
        slice_column=slice_column,
        slices={name: means.values(confidence) for name, means in sorted(scorer.slices.items())},
        scores_path=None if output_path is None else str(output_path),
    )


class _Means:
    """One mean a metric."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._means = {metric.name: Mean(is_rate=metric.is_rate) for metric in metrics}

    def add(self, scores: Mapping[str, float]) -> None:
        for name, score in scores.items():
            self._means[name].add(score)

    def values(self, confidence: float) -> dict[str, MetricValue]:
        return {name: mean.value(confidence=confidence) for name, mean in self._means.items()}


class _Scorer:
    """Scores rows and adds them up, over all and by slice."""

    def __init__(self, metrics: Sequence[Metric], *, reference_column: str, slice_column: str | None) -> None:
        self._metrics = metrics
        self._reference_column = reference_column
        self._slice_column = slice_column
        self.all = _Means(metrics)
        self.slices: dict[str, _Means] = {}
        self.statuses: Counter[str] = Counter()
        self.models: set[Any] = set()

    def add(self, index: int, completion: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The row's line of scores."""
        row = completion.get("row", completion)
        if not isinstance(row, Mapping):
            raise EvaluationError(f"{where}: 'row' is no object with the columns of the input")
        status = completion.get("status", "success")
        output = _output(completion, status, where)
        reference, references = self._references(row, where)
        scores = {metric.name: 0.0 for metric in self._metrics}
        if status == "success":
            answer = normalize_answer(output)
            scores = {metric.name: metric.best(answer, references) for metric in self._metrics}
        self._count(completion, status, scores, row, where)
        return {
            "index": completion.get("index", index),
            "id": completion.get("id"),
            "status": status,
            "output": output,
            "reference": reference,
            **scores,
            "row": row,
        }

    def _count(
        self,
        completion: Mapping[str, Any],
        status: str,
        scores: Mapping[str, float],
        row: Mapping[str, Any],
        where: str,
    ) -> None:
        self.statuses[status] += 1
        if len(self.models) < 2:
            self.models.add(completion.get("model_id"))
        self.all.add(scores)
        if self._slice_column is not None:
            self._slice(row, where).add(scores)

    def _slice(self, row: Mapping[str, Any], where: str) -> _Means:
        column = cast(str, self._slice_column)
        if column not in row:
            _column(row, column, where, "slice_column")
        value = row[column]
        name = value if isinstance(value, str) else json.dumps(value)
        if name not in self.slices:
            if len(self.slices) == _MOST_SLICES:
                raise EvaluationError(
                    f"slice_column {column!r} has more than {_MOST_SLICES} values ({where} has another): "
                    "choose one that groups the rows"
                )
            self.slices[name] = _Means(self._metrics)
        return self.slices[name]

    def _references(self, row: Mapping[str, Any], where: str) -> tuple[Any, list[str]]:
        """The reference as it stands in the row, and each of its forms, normalised."""
        reference = _column(row, self._reference_column, where, "reference_column")
        forms = reference if isinstance(reference, list) else [reference]
        if not forms or not all(_is_text(form) for form in forms):
            raise EvaluationError(
                f"{where}: the reference in column {self._reference_column!r} must be a string or number, or "
                f"a list of such, not {reference!r}"
            )
        return reference, [normalize_answer(str(form)) for form in forms]


def _refuse_to_replace(rows: OpenDataset, output_path: PathLike | None) -> None:
    if output_path is None:
        return
    path = as_path(output_path)
    check_output(path, JSONL)
    if isinstance(rows, StoredRows) and rows.is_fed_by(path):
        raise EvaluationError(f"output_path {output_path} holds the completions, which it would replace")


def _metrics_of(names: Sequence[str]) -> list[Metric]:
    if isinstance(names, str) or not names:
        raise EvaluationError(f"metrics: a list of at least one name is needed (got {names!r})")
    for name in names:
        if name not in METRICS:
            raise EvaluationError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return [METRICS[name] for name in dict.fromkeys(names)]


def _output(completion: Mapping[str, Any], status: str, where: str) -> Any:
    output = completion.get("output")
    if status == "success" and not isinstance(output, str):
        raise EvaluationError(f"{where} has no text in 'output': is this the output of a run over a dataset?")
    return output


def _column(row: Mapping[str, Any], column: str, where: str, parameter: str) -> Any:
    try:
        return column_value(row, column, where=where, parameter=parameter)
    except DatasetError as error:
        raise EvaluationError(str(error)) from None


def _is_text(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
