"""What a request's error means for its row and for the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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
_GATEWAY_TROUBLE = (502, 503, 504)


def describe_error(error: GradientError) -> dict[str, Any]:
    """Type and message for a row's record, and whether the reason may pass: a resumed run sends such a row
    again. The type is the API's where it gave one, else the exception's."""
    told = error.type if isinstance(error, ApiError | ChainError) else None
    name = told or type(error).__name__
    transient = isinstance(error, GradientConnectionError) or (
        isinstance(error, ApiError) and (error.status == 429 or error.status >= 500)
    )
    return {"type": name, "message": str(error), "transient": transient}


@dataclass(slots=True)
class InternalErrors:
    """The answers of 500 that one request got, each time it was sent.

    They may be due to the server or to what was asked. A request that is answered so as often as it may be
    sent, while others were answered after it had been sent for the second time, is itself the reason.

    :ivar count: how many there were.
    :ivar sent_again: when the request was sent for the second time.
    """

    count: int = 0
    sent_again: float = math.inf

    def on_error(self, error: GradientError) -> None:
        """An attempt failed; counted if the server, and no gateway before it, answered with 5xx."""
        status = error.status if isinstance(error, ApiError) else 0
        self.count += status >= 500 and status not in _GATEWAY_TROUBLE

    def on_sent_again(self, now: float) -> None:
        """The request is sent for another time."""
        self.sent_again = min(self.sent_again, now)

    def settled(self, error: dict[str, Any], *, attempts: int, answered: float) -> dict[str, Any]:
        """The error with which the request failed for good: where the request itself is the reason, one that
        does not pass.

        :param attempts: how often a request may be sent.
        :param answered: when any request was last answered.
        """
        if self.count < attempts or answered <= self.sent_again:
            return error
        message = f"{error['message']}; {self.count} times, while other requests were answered"
        return {**error, "message": message, "transient": False}


class LeftOver:
    """The rows that failed for a reason that may pass, by the type of their errors."""

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()
        self._last = ""

    def add(self, error: Mapping[str, Any] | None, *, rows: int = 1) -> None:
        """Count rows that were given up with ``error``, if that may pass."""
        if error and error["transient"]:
            self._types[error["type"]] += rows
            self._last = error["message"]

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._types.total()

    def describe(self) -> str:
        """How many, of which types, and the last message."""
        return f"({describe_types(self._types)}). The last error: {self._last.rstrip('.')}"


def describe_types(types: Counter[str]) -> str:
    """Counts by type, the most frequent first."""
    return ", ".join(f"{count} {type_}" for type_, count in types.most_common())


def is_overload(error: GradientError) -> bool:
    """Whether the server could not cope with the request in time."""
    if isinstance(error, ApiError):
        return error.status in _OVERLOAD
    return isinstance(error, GradientTimeoutError)
