"""What can be wrong with a dataset, and how a file system's error is told."""

from __future__ import annotations

from airflow_provider_gradient.api import GradientError

_REASONS: tuple[tuple[type[OSError], str], ...] = (
    (FileNotFoundError, "there is no such file"),
    (PermissionError, "permission denied"),
    (IsADirectoryError, "this is a folder, not a file"),
    (NotADirectoryError, "a part of this path is a file, not a folder"),
)


class DatasetError(GradientError, ValueError):
    """A dataset can't be read or written, or a row isn't what it must be; the message names path and row."""


class JournalError(GradientError, RuntimeError):
    """A journal or manifest is there but can't be trusted; the message says what to do."""


def path_error(path: object, action: str, error: Exception) -> DatasetError:
    """The error for a ``path`` that can't be opened, read or written.

    :param action: what was tried, such as ``read``.
    """
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return DatasetError(f"can't {action} {path}: {reason}")
    return DatasetError(f"can't {action} {path}: {error or type(error).__name__}")
