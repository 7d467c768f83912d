"""Rows whose requests are the same, so that one is sent for all of them.

A prompt is known by 128 bits of its hash. While rows are checked that is 16 bytes a row, afterwards eight; in
between, for the moment in which they are sorted, about a hundred.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
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


class Duplicates:
    """Finds the rows that say what an earlier one said."""

    def __init__(self) -> None:
        self._high, self._low = array("Q"), array("Q")

    def add(self, prompt: str) -> None:
        """The prompt of the next row."""
        digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._high.append(int.from_bytes(digest[:8]))
        self._low.append(int.from_bytes(digest[8:]))

    def leaders(self) -> array[int]:
        """For each row the index of the first with its prompt, which is its own where it is the first."""
        leaders = array("q", range(len(self._high)))
        order = sorted(leaders, key=self._high.__getitem__)
        for _, alike in itertools.groupby(order, key=self._high.__getitem__):
            first: dict[int, int] = {}
            for index in alike:
                leaders[index] = first.setdefault(self._low[index], index)
        return leaders
