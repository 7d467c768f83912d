"""Which failures a retry can mend: a policy for the ``retry_policy`` of tasks, from Airflow 3.3 on."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_gradient.api import (
    AuthenticationError,
    BadRequestError,
    GradientConnectionError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)

if TYPE_CHECKING:
    from airflow.sdk import ExceptionRetryPolicy


def gradient_retry_policy(*, wait: timedelta = timedelta(minutes=1)) -> ExceptionRetryPolicy:
    """A retry for what passes, none for what doesn't.

    429, 5xx, time-outs and missing connections are retried after ``wait``, as often as the task's ``retries``
    say. 400, 401, 403, 404 and what is refused before it is sent fail the task at once. Anything else is
    retried as the task says.

    :param wait: before a retry, instead of the task's ``retry_delay``.
    :raises ImportError: this version of Airflow has no retry policies.
    """
    try:
        from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
    except ImportError:
        raise ImportError("gradient_retry_policy: retry policies need Airflow 3.3 or later") from None
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[RateLimitError, ServerError, GradientConnectionError],
                action=RetryAction.RETRY,
                retry_delay=wait,
                reason="the server is busy, failed or can't be reached",
            ),
            RetryRule(
                exception=[
                    BadRequestError,
                    AuthenticationError,
                    PermissionDeniedError,
                    NotFoundError,
                    InvalidRequestError,
                ],
                action=RetryAction.FAIL,
                reason="a retry would be refused as well",
            ),
        ]
    )
