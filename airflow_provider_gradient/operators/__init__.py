"""The operators. Importing them loads neither langchain nor pyarrow nor torch: DAG files are read often."""

from airflow_provider_gradient.operators.completions import (
    GradientCompleteDatasetOperator,
    GradientCompleteOperator,
)
from airflow_provider_gradient.operators.evaluation import GradientEvaluateOperator
from airflow_provider_gradient.operators.models import (
    GradientCreateModelAdapterOperator,
    GradientDeleteModelAdapterOperator,
    GradientListModelsOperator,
)
from airflow_provider_gradient.operators.tuning import GradientFineTuneOperator

__all__ = [
    "GradientCompleteDatasetOperator",
    "GradientCompleteOperator",
    "GradientCreateModelAdapterOperator",
    "GradientDeleteModelAdapterOperator",
    "GradientEvaluateOperator",
    "GradientFineTuneOperator",
    "GradientListModelsOperator",
]
