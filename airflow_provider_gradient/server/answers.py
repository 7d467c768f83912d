"""Giving jobs their answers, and what their callers are told of errors."""

from __future__ import annotations

import logging
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from airflow_provider_gradient.api import ApiError, ServerError
from airflow_provider_gradient.server.failures import failed, no_memory
from airflow_provider_gradient.server.jobs import Answer

_LOG = logging.getLogger(__name__)


def settle(future: Future[Answer], *, answer: Answer | None = None, error: Exception | None = None) -> None:
    """Give a job its answer or its error, unless its caller has left or it was refused already."""
    with suppress(InvalidStateError):
        if error is not None:
            future.set_exception(as_api_error(error))
        else:
            future.set_result(answer or {})


def refused() -> ServerError:
    """For a job that was not begun: ``Retry-After`` tells a client that it may send it again."""
    return ServerError("the server is stopping; try again", status=503, type="failed", retry_after=1)


def stopping() -> ServerError:
    """For a job under way, of which nobody knows how far it came."""
    return ServerError("the server is stopping; try again", status=503, type="failed")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error: the API's own as they are, of others only that there was one."""
    if isinstance(error, ApiError):
        return error
    _LOG.error("a request failed", exc_info=error)
    if _is_out_of_memory(error):
        return no_memory()
    return failed("the server failed on this request; its log says why")


def _is_out_of_memory(error: Exception) -> bool:
    """torch says so by a class of its own on a device, and by a plain ``RuntimeError`` on the CPU."""
    of_device = type(error).__name__ == "OutOfMemoryError"
    return of_device or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
