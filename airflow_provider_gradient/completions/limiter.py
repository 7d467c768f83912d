"""How many requests a server bears at once, found out by sending.

:class:`ConcurrencyLimiter` does no I/O and reads no clock. It doubles the limit every round trip until the
first refusal (slow start), from then on adds one a round trip, and cuts by a share where a server is
overloaded.

A cut is decided once a round, over as many outcomes as the limit has places, all of requests sent in that
round: those sent before a cut say nothing of what it did. Not every refusal is for too many requests: a
gateway that fails one call in five does so at any limit, and cutting for it would end at one at a time. So
the round after a cut is a trial. Where the refusals are no rarer in it, the cut was no use: it is taken back,
and that share of them is borne from then on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_START = 64
_START_SHARE = 0.5
"""Requests in flight to begin with: this many, or this share of the ceiling if that is more."""
_SHORTEST_ROUND = 10
"""Outcomes by which a share is judged at least."""
_MARGIN = 0.1
"""A cut goes this share of the limit below what the server bore."""
_DEEPEST = 0.5
"""The share of the limit that a cut leaves at least."""
_BORNE = 0.4
"""The largest share of refusals that is put down to other causes than the load."""
_FIRST_ROUND_TRIP = 0.1
"""Seconds, until an answer tells."""


class _Trial(NamedTuple):
    """What was before a cut: the share of refusals, and the limit."""

    share: float
    limit: float


class ConcurrencyLimiter:
    """The number of requests that may be in flight. All moments are seconds of one clock.

    :param floor: below which it never cuts.
    :param ceiling: above which it never grows.
    :ivar limit: places; of a fraction, the whole part counts.
    :ivar round_trip: seconds of an answered request, smoothed.
    :ivar cuts: how many there were, those taken back included.
    :ivar lowest: the smallest limit so far, in whole places.
    :ivar highest: the largest.
    """

    def __init__(self, *, floor: int, ceiling: int, now: float) -> None:
        self._floor, self._ceiling = floor, ceiling
        self.limit = float(min(ceiling, max(floor, _START, ceiling * _START_SHARE)))
        self.round_trip = _FIRST_ROUND_TRIP
        self.cuts = 0
        self.lowest = self.highest = int(self.limit)
        self._answered = False
        self._slow_start = True
        self._background = 0.0
        self._trial: _Trial | None = None
        self._began = self._changed = self._first = now
        self._outcomes = self._overloads = self._refusals = 0
        self._area = 0.0

    def on_success(self, *, now: float, sent: float, in_flight: int) -> None:
        """An answer to a request that was sent at ``sent``.

        :param in_flight: requests, this one included; a limit that isn't used doesn't grow.
        """
        taken = now - sent
        self.round_trip += (taken - self.round_trip) * (0.1 if self._answered else 1.0)
        self._answered = True
        if in_flight * 2 >= self.limit and self._trial is None and not self._is_refused():
            self._set(self.limit + (1.0 if self._slow_start else 1.0 / self.limit), now)
        self._count(now=now, sent=sent)

    def on_refusal(self, *, sent: float) -> None:
        """The server refused a request for too much load, or left it without an answer: nothing grows until
        the round ends."""
        self._refusals += sent >= self._began

    def on_failure(self, *, now: float, sent: float, overloaded: bool) -> None:
        """The place of a failed request is free again, for which an answer's time has passed: were quick
        refusals counted at once, they would seem more than they are.

        :param overloaded: whether :meth:`on_refusal` was told of it.
        """
        self._overloads += overloaded and sent >= self._began
        self._count(now=now, sent=sent)

    def mean(self, now: float) -> float:
        """The limit, averaged over the time until ``now``."""
        elapsed = now - self._first
        return (self._area + self.limit * (now - self._changed)) / elapsed if elapsed > 0 else self.limit

    def _count(self, *, now: float, sent: float) -> None:
        self._outcomes += sent >= self._began
        if self._outcomes >= self._round or self._overloads > self._round * (1 - _DEEPEST):
            self._end_round(now)

    @property
    def _round(self) -> float:
        """Outcomes by which a round ends, unless it is clear before that the cut is the deepest."""
        return max(self.limit, _SHORTEST_ROUND)

    def _is_refused(self) -> bool:
        """Whether more is refused in this round already than is borne in a whole one."""
        return self._refusals > 0 and self._refusals > self._tolerated(self._round) * self._round

    def _end_round(self, now: float) -> None:
        share, trial = self._overloads / self._outcomes, self._trial
        self._trial = None
        if trial is not None and trial.share / 2 <= share <= _BORNE and trial.share <= _BORNE:
            self._background = (trial.share + share) / 2
            self._slow_start = True
            self._set(trial.limit, now)
        elif share > self._tolerated(self._outcomes):
            self._cut(share, now)
        elif trial is not None:
            self._background = share
        self._began, self._outcomes, self._overloads, self._refusals = now, 0, 0, 0

    def _tolerated(self, outcomes: float) -> float:
        """The background's share, and twice the deviation by which chance exceeds it."""
        background = self._background
        return background + 2 * math.sqrt(background * (1 - background) / outcomes)

    def _cut(self, share: float, now: float) -> None:
        self._slow_start = False
        self._background = 0.0
        if self.limit > self._floor:
            self.cuts += 1
            self._trial = _Trial(share, self.limit)
            self._set(self.limit * max(_DEEPEST, 1 - share - _MARGIN), now)

    def _set(self, limit: float, now: float) -> None:
        self._area += self.limit * (now - self._changed)
        self._changed = now
        self.limit = min(float(self._ceiling), max(float(self._floor), limit))
        self.lowest = min(self.lowest, int(self.limit))
        self.highest = max(self.highest, int(self.limit))
