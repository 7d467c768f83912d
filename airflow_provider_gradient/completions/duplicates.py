"""Rows whose requests are the same, so that one is sent for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_gradient.api import InvalidRequestError


def check_deterministic(parameters: Mapping[str, Any], runnable: object) -> None:
    """Refuse parameters under which two equal requests may have two answers.

    :raises InvalidRequestError: neither temperature 0 nor top_k 1 nor guidance is given, or a runnable is.
    """
    if runnable is not None:
        raise InvalidRequestError("deduplicate: what a runnable asks isn't known; leave one of them out")
    if parameters.get("temperature") != 0 and parameters.get("top_k") != 1 and "guidance" not in parameters:
        raise InvalidRequestError(
            "deduplicate: equal prompts have one answer only where the model does not draw its tokens, and "
            "without a temperature that is the server's affair: give temperature=0, top_k=1 or guidance"
        )
