"""Rows to samples, samples to a plan, the plan's calls to a tuned adapter, resumably."""

from airflow_provider_gradient.tuning.calls import AmbiguousCallError, OnAmbiguous
from airflow_provider_gradient.tuning.chat import CHAT_TEMPLATES, ChatTemplate
from airflow_provider_gradient.tuning.checks import OnBadSample
from airflow_provider_gradient.tuning.errors import SampleError, SampleProblem, SampleReport
from airflow_provider_gradient.tuning.plan import Order, PlannedCall, TrainingPlan, plan_training
from airflow_provider_gradient.tuning.report import CallResult, EpochScore, TuningProgress, TuningReport
from airflow_provider_gradient.tuning.run import Validate, fine_tune
from airflow_provider_gradient.tuning.samples import build_samples, check_samples
from airflow_provider_gradient.tuning.stopping import StopReason, StopRules
from airflow_provider_gradient.tuning.training_set import TrainingSet, training_set

__all__ = [
    "CHAT_TEMPLATES",
    "AmbiguousCallError",
    "CallResult",
    "ChatTemplate",
    "EpochScore",
    "OnAmbiguous",
    "OnBadSample",
    "Order",
    "PlannedCall",
    "SampleError",
    "SampleProblem",
    "SampleReport",
    "StopReason",
    "StopRules",
    "TrainingPlan",
    "TrainingSet",
    "TuningProgress",
    "TuningReport",
    "Validate",
    "build_samples",
    "check_samples",
    "fine_tune",
    "plan_training",
    "training_set",
]
