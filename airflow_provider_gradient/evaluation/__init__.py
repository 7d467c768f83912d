"""How good completions are: metrics with intervals, slices, and a score for every row."""

from airflow_provider_gradient.evaluation.metrics import METRICS, Metric, normalize_answer
from airflow_provider_gradient.evaluation.report import EvaluationError, EvaluationReport, MetricValue
from airflow_provider_gradient.evaluation.scoring import evaluate

__all__ = [
    "METRICS",
    "EvaluationError",
    "EvaluationReport",
    "Metric",
    "MetricValue",
    "evaluate",
    "normalize_answer",
]
