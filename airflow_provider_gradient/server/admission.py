"""Which requests may come in at this moment: how many a token has left, and how much work is under way.

Both decide at once and make nobody wait; who is refused is told when to come again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_provider_gradient.server.failures import queue_full, stopping, too_many_requests


class RequestRates:
    """How many requests each token may still make.

    A token may use up its minute at once and gets the requests back evenly (a token bucket, full at first).

    :param per_minute: requests.
    :param clock: seconds that only grow.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, token: str) -> None:
        """Count one request of a token.

        :param token: of the tokens on record, or whatever stands for it.
        :raises RateLimitError: it has none left; says after how many seconds it has.
        """
        now = self._clock()
        left, before = self._left.get(token, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - before) * self._per_minute / 60)
        if left < 1:
            raise too_many_requests(
                self._per_minute, retry_after=math.ceil((1 - left) * 60 / self._per_minute)
            )
        self._left[token] = (left - 1, now)


class Admission:
    """Counts the work under way, and lets no more in than there may be. For one event loop.

    :param at_most: requests waiting or under way.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._under_way = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the server lets nothing in any more."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._under_way == 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Do a request's work in this context.

        :raises ServerError: there is too much of it already, or the server is stopping.
        """
        if self._closed:
            raise stopping()
        if self._under_way >= self._at_most:
            raise queue_full(self._at_most)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Let nothing in any more."""
        self._closed = True
