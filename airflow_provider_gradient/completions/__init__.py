"""A dataset in, completions out: concurrent, journaled, resumable, in memory that does not grow."""

from airflow_provider_gradient.completions.estimate import CompletionEstimate, estimate_completions
from airflow_provider_gradient.completions.manifest import (
    CompletionManifest,
    ConcurrencySummary,
    Counts,
)
from airflow_provider_gradient.completions.merge import merge_completions
from airflow_provider_gradient.completions.output_lock import OutputLockedError
from airflow_provider_gradient.completions.progress import Progress
from airflow_provider_gradient.completions.progress_bar import ProgressBar
from airflow_provider_gradient.completions.run import complete_dataset
from airflow_provider_gradient.completions.sharding import plan_runs
from airflow_provider_gradient.completions.stopping import RunStoppedError, RunUnfinishedError
from airflow_provider_gradient.datasets import JournalError

__all__ = [
    "CompletionEstimate",
    "CompletionManifest",
    "ConcurrencySummary",
    "Counts",
    "JournalError",
    "OutputLockedError",
    "Progress",
    "ProgressBar",
    "RunStoppedError",
    "RunUnfinishedError",
    "complete_dataset",
    "estimate_completions",
    "merge_completions",
    "plan_runs",
]
