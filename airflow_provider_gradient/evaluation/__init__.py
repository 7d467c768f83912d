"""How good completions are: metrics with intervals, slices, a score for every row, the comparison with
another run, and whether one may take the other's place."""

from airflow_provider_gradient.evaluation.evaluation import evaluate, evaluate_with_server
from airflow_provider_gradient.evaluation.gate import read_gate
from airflow_provider_gradient.evaluation.metrics import METRICS, asks_server, normalize_answer, read_metrics
from airflow_provider_gradient.evaluation.report import (
    Comparison,
    Difference,
    EvaluationError,
    EvaluationReport,
    GateResult,
    MetricValue,
)

__all__ = [
    "METRICS",
    "Comparison",
    "Difference",
    "EvaluationError",
    "EvaluationReport",
    "GateResult",
    "MetricValue",
    "asks_server",
    "evaluate",
    "evaluate_with_server",
    "normalize_answer",
    "read_gate",
    "read_metrics",
]
