"""Connections that wait for another call, and get it only where whatever comes then will be its answer.

A server that answers a request twice is found out by what it sends while nothing is asked of it. So a
connection rests for a moment after its answer, unless the answer bore its request's id, which an answer that
comes late would bear, too.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

KEPT_SECONDS = 4.0
"""How long an idle connection is used again: less than the 5 s after which uvicorn closes it."""
REST_SECONDS = 0.06
"""How long one rests: more than the 40 ms for which TCP holds back a small second segment until the first is
acknowledged. While it rests another connection does its work, so there are more of them: by 60 ms over a
request's time, a third more at 200 ms."""


class Connection(Protocol):
    """A connection, as the pool sees it.

    :ivar since: when its last answer ended, in seconds of a clock that never goes back.
    """

    since: float

    @property
    def may_be_kept(self) -> bool:
        """Whether it is open, and its last answer left it fit for another call."""

    @property
    def may_rest_less(self) -> bool:
        """Whether its last answer bore its request's id."""

    @property
    def has_more(self) -> bool:
        """Whether anything has come that was not read yet: nobody asked for it."""

    def close(self) -> None:
        """Close it at once."""


C = TypeVar("C", bound=Connection)


class Pool(Generic[C]):
    """Idle connections. The one used last is taken first, so that those that are too many grow old."""

    def __init__(self) -> None:
        self._rested: deque[C] = deque()
        self._resting: deque[C] = deque()

    def take(self, now: float) -> C | None:
        """A connection that may be used again."""
        while self._resting and now - self._resting[0].since >= REST_SECONDS:
            self._rested.append(self._resting.popleft())
        while self._rested:
            connection = self._rested.pop()
            if connection.may_be_kept and not _is_old(connection, now) and not connection.has_more:
                return connection
            connection.close()
        return None

    def put(self, connection: C) -> None:
        """Keep a connection, if it may be, after its answer."""
        if not connection.may_be_kept:
            connection.close()
            return
        while self._rested and _is_old(self._rested[0], connection.since):
            self._rested.popleft().close()
        (self._rested if connection.may_rest_less else self._resting).append(connection)

    def close(self) -> None:
        """Close them all."""
        for connection in (*self._rested, *self._resting):
            connection.close()
        self._rested.clear()
        self._resting.clear()


def _is_old(connection: Connection, now: float) -> bool:
    return now - connection.since > KEPT_SECONDS
