"""The metrics there are, a module for each family, and how a DAG's author names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from airflow_provider_gradient.api import describe_validation_error
from airflow_provider_gradient.evaluation.metrics.answers import Contains, ExactMatch, TokenF1
from airflow_provider_gradient.evaluation.metrics.base import Example, Metric, RowMetric, ServedMetric
from airflow_provider_gradient.evaluation.metrics.choices import ChoiceAccuracy, MacroF1
from airflow_provider_gradient.evaluation.metrics.form import JsonSchema, Length, Refusal, Regex
from airflow_provider_gradient.evaluation.metrics.numbers import NumericCloseness
from airflow_provider_gradient.evaluation.metrics.overlap import Bleu, ChrF, EditSimilarity, Rouge
from airflow_provider_gradient.evaluation.metrics.own import GivenFunction, OwnFunction
from airflow_provider_gradient.evaluation.metrics.served import EmbeddingSimilarity, Judge, PairwiseJudge
from airflow_provider_gradient.evaluation.metrics.text import normalize_answer, tokens
from airflow_provider_gradient.evaluation.report import EvaluationError

__all__ = [
    "METRICS",
    "Example",
    "GivenFunction",
    "Metric",
    "MetricLike",
    "PairwiseJudge",
    "RowMetric",
    "ServedMetric",
    "asks_server",
    "normalize_answer",
    "read_metrics",
    "tokens",
]

MetricLike = str | Mapping[str, Any] | Metric
"""A metric's name, ``module:function``, a dict with ``metric`` and settings, or the metric itself."""

_AnyMetric = Annotated[
    ExactMatch
    | TokenF1
    | Contains
    | Regex
    | JsonSchema
    | Length
    | Refusal
    | ChoiceAccuracy
    | MacroF1
    | NumericCloseness
    | EditSimilarity
    | Rouge
    | Bleu
    | ChrF
    | EmbeddingSimilarity
    | Judge
    | PairwiseJudge
    | OwnFunction,
    Field(discriminator="metric"),
]
_ADAPTER: TypeAdapter[Metric] = TypeAdapter(_AnyMetric)

METRICS = (
    *("exact_match", "token_f1", "contains", "regex", "json_schema", "length", "refusal"),
    *("choice_accuracy", "macro_f1", "numeric_closeness", "edit_similarity"),
    *("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"),
    *("embedding_similarity", "judge", "pairwise_judge", "function"),
)
"""The metrics' names."""

_COLUMNS = {"index", "id", "status", "output", "reference", "row", "model_id"}


def read_metrics(metrics: Sequence[MetricLike]) -> list[Metric]:
    """The metrics that are asked for.

    :raises EvaluationError: there is none of that name, a setting is wrong, or two have one name.
    """
    if isinstance(metrics, str | Mapping) or not metrics:
        raise EvaluationError(f"metrics: a list of at least one metric is needed (got {metrics!r})")
    found: dict[str, Metric] = {}
    for place, given in enumerate(metrics):
        metric = _read(given, f"metrics[{place}]")
        if found.setdefault(metric.name, metric) != metric:
            raise EvaluationError(
                f"metrics[{place}]: two metrics are called {metric.name!r}; give one of them another 'name'"
            )
        if metric.name in _COLUMNS:
            raise EvaluationError(f"metrics[{place}]: the name {metric.name!r} is that of another column")
    return list(found.values())


def asks_server(metrics: Sequence[MetricLike]) -> bool:
    """Whether one of the metrics needs a Gradient server."""
    return any(isinstance(metric, ServedMetric) for metric in read_metrics(metrics))


def _read(given: MetricLike, where: str) -> Metric:
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        own = {"metric": "function", "function": given, "name": given.rpartition(":")[2]}
        given = own if ":" in given else {"metric": given}
    name = given.get("metric") if isinstance(given, Mapping) else None
    if name not in METRICS:
        raise EvaluationError(
            f"{where}: there is no metric {name or given!r}; there are {', '.join(METRICS)}"
        )
    try:
        return _ADAPTER.validate_python(dict(given))
    except ValidationError as error:
        raise EvaluationError(f"{where}: {describe_validation_error(error)}") from None
