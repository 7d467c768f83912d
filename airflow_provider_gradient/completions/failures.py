"""What a request's error means for its row and for the run."""

from __future__ import annotations

from typing import Any

from airflow_provider_gradient.api import (
    ApiError,
    AuthenticationError,
    GradientConnectionError,
    GradientError,
    GradientTimeoutError,
    GuidanceNotSupportedError,
    NotFoundError,
    PermissionDeniedError,
    QueryOrPathParsingError,
)
from airflow_provider_gradient.completions.chains import ChainError
from airflow_provider_gradient.datasets import DatasetError

OF_EVERY_ROW = (
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
    QueryOrPathParsingError,
    GuidanceNotSupportedError,
    DatasetError,
)
"""Errors that say nothing about a row: the next would fail with the same, or the dataset has changed."""
_OVERLOAD = (429, 503, 504)


def describe_error(error: GradientError) -> dict[str, Any]:
    """Type and message for a row's record, and whether the reason may pass: a resumed run sends such a row
    again. The type is the API's where it gave one, else the exception's."""
    told = error.type if isinstance(error, ApiError | ChainError) else None
    name = told or type(error).__name__
    transient = isinstance(error, GradientConnectionError) or (
        isinstance(error, ApiError) and (error.status == 429 or error.status >= 500)
    )
    return {"type": name, "message": str(error), "transient": transient}


def is_overload(error: GradientError) -> bool:
    """Whether the server could not cope with the request in time."""
    if isinstance(error, ApiError):
        return error.status in _OVERLOAD
    return isinstance(error, GradientTimeoutError)
