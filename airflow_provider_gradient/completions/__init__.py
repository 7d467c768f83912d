"""A dataset in, completions out: concurrent, journaled, resumable, in memory that does not grow."""

from airflow_provider_gradient.completions.manifest import (
    CompletionManifest,
    ConcurrencySummary,
    Counts,
    Progress,
)
from airflow_provider_gradient.completions.run import complete_dataset
from airflow_provider_gradient.completions.stopping import RunStoppedError
from airflow_provider_gradient.datasets import JournalError

__all__ = [
    "CompletionManifest",
    "ConcurrencySummary",
    "Counts",
    "JournalError",
    "Progress",
    "RunStoppedError",
    "complete_dataset",
]
