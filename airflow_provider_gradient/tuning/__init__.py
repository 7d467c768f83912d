"""Rows to samples, samples to a plan, the plan's calls to a tuned adapter, resumably."""

from airflow_provider_gradient.tuning.plan import PlannedCall, TrainingPlan, plan_training
from airflow_provider_gradient.tuning.report import CallResult, TuningProgress, TuningReport
from airflow_provider_gradient.tuning.run import AmbiguousCallError, OnAmbiguous, fine_tune
from airflow_provider_gradient.tuning.samples import (
    SampleError,
    TrainingSet,
    build_samples,
    check_samples,
    training_set,
)

__all__ = [
    "AmbiguousCallError",
    "CallResult",
    "OnAmbiguous",
    "PlannedCall",
    "SampleError",
    "TrainingPlan",
    "TrainingSet",
    "TuningProgress",
    "TuningReport",
    "build_samples",
    "check_samples",
    "fine_tune",
    "plan_training",
    "training_set",
]
