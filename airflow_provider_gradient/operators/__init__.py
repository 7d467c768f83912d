"""The operators. Importing them loads neither langchain nor pyarrow nor torch: DAG files are read often."""

from airflow_provider_gradient.operators.completions import (
    GradientCompleteDatasetOperator,
    GradientCompleteOperator,
)
from airflow_provider_gradient.operators.embeddings import GradientEmbedDatasetOperator
from airflow_provider_gradient.operators.evaluation import GradientEvaluateOperator, GradientGateOperator
from airflow_provider_gradient.operators.loop import generate_evaluate_finetune
from airflow_provider_gradient.operators.models import (
    GradientCreateModelAdapterOperator,
    GradientDeleteModelAdapterOperator,
    GradientListModelsOperator,
)
from airflow_provider_gradient.operators.registry import (
    GradientCleanUpModelAdaptersOperator,
    GradientPromoteModelAdapterOperator,
    GradientRollBackAliasOperator,
)
from airflow_provider_gradient.operators.shards import (
    GradientMergeCompletionsOperator,
    GradientPlanShardsOperator,
    complete_dataset_in_shards,
)
from airflow_provider_gradient.operators.tuning import GradientFineTuneOperator

__all__ = [
    "GradientCleanUpModelAdaptersOperator",
    "GradientCompleteDatasetOperator",
    "GradientCompleteOperator",
    "GradientCreateModelAdapterOperator",
    "GradientDeleteModelAdapterOperator",
    "GradientEmbedDatasetOperator",
    "GradientEvaluateOperator",
    "GradientFineTuneOperator",
    "GradientGateOperator",
    "GradientListModelsOperator",
    "GradientMergeCompletionsOperator",
    "GradientPlanShardsOperator",
    "GradientPromoteModelAdapterOperator",
    "GradientRollBackAliasOperator",
    "complete_dataset_in_shards",
    "generate_evaluate_finetune",
]
