"""What a run may spend before it ends in good order, with the rest of its rows marked as not run.

:class:`Budget` does no I/O and reads no clock: it is told what is sent and what came of it, and at what time.
Each run has the whole budget, whatever the runs before it spent: so the next one goes on where this one ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_provider_gradient.api import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What bounds a run; ``None`` is no bound.

    :param max_rows: rows sent, however often each.
    :param max_seconds: of sending; what is in flight then is awaited, for as long as the client's time-outs
        let it.
    :param max_tokens: of prompts and completions, as the server reports them. They are known only once a
        request is answered: a request is sent where those in flight and it would stay within the budget if
        each took the mean of those before.
    :raises InvalidRequestError: names the one that is out of range.
    """

    max_rows: int | None = None
    max_seconds: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequestError(f"{name}: at least 1 is needed (got {value})")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise InvalidRequestError(
                f"max_seconds: a positive number of seconds is needed (got {self.max_seconds})"
            )


class Budget:
    """What is left of :class:`Budgets`. All moments are seconds of one clock.

    :ivar ended: why no further request may go, in words; ``None`` while one may.
    """

    def __init__(self, budgets: Budgets, *, now: float) -> None:
        self._budgets = budgets
        self._until = math.inf if budgets.max_seconds is None else now + budgets.max_seconds
        self._tokens = 0
        self._answers = 0
        self.ended: str | None = None

    def allows(self, now: float, *, in_flight: int) -> bool:
        """Whether a request may go; where it may not, an answer or :attr:`ended` decides."""
        most = self._budgets.max_tokens
        if self.ended is None and now >= self._until:
            self.ended = f"max_seconds, {self._budgets.max_seconds:g}, is over"
        if self.ended is None and most is not None:
            if not self._answers:
                return in_flight == 0  # the first answer tells what a request takes
            if self._tokens * (1 + (in_flight + 1) / self._answers) > most:
                if in_flight:
                    return False
                self.ended = f"max_tokens, {most}, is reached: {self._tokens} are spent"
        return self.ended is None

    def on_answer(self, tokens: int | None) -> None:
        """An answer came.

        :param tokens: that the server reports for it.
        """
        self._tokens += tokens or 0
        self._answers += 1

    def seconds_left(self, now: float) -> float | None:
        """Until the time is over; ``None`` where no time is set, or the run has ended."""
        if self.ended is not None or self._until == math.inf:
            return None
        return max(0.0, self._until - now)
