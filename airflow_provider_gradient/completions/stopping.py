"""When a run ends early: a server or a prompt that fails row after row must not take a night to say so.

:class:`StopRule` does no I/O; it is told every row that ends.
"""

from __future__ import annotations

from collections import Counter, deque

from airflow_provider_gradient.api import GradientError

WINDOW = 100
"""Rows over which the share of failures is judged."""


class RunStoppedError(GradientError, RuntimeError):
    """A run was ended early, since to go on made no sense. What is done is in its journal."""


class StopRule:
    """The share of failed rows above which to stop.

    :param max_error_rate: 0 to 1, of the last 100 rows; 1 never stops. ``None`` stops only where the first
        100 rows fail, every one.
    :param rows: that are to be sent; where they are fewer than 100, their share counts.
    """

    def __init__(self, max_error_rate: float | None, *, rows: int) -> None:
        self._rate = max_error_rate
        self._window = min(WINDOW, rows)
        self._last: deque[str | None] = deque(maxlen=WINDOW)
        self._failed = 0
        self._any_success = False

    def on_answer(self) -> None:
        """A row has an answer."""
        self._any_success = True
        self._add(None)

    def on_failure(self, error_type: str, message: str) -> None:
        """A row failed for good.

        :raises RunStoppedError: too many have; the message says how many, of what, and what to do.
        """
        self._add(error_type)
        if self._rate is not None:
            if self._failed > self._rate * self._window:
                raise self._stopped(f"max_error_rate is {self._rate:g}", message)
        elif len(self._last) == WINDOW and not self._any_success:
            raise self._stopped("there was no answer at all", message)

    def _add(self, error_type: str | None) -> None:
        if len(self._last) == WINDOW:
            self._failed -= self._last[0] is not None
        self._last.append(error_type)
        self._failed += error_type is not None

    def _stopped(self, why: str, message: str) -> RunStoppedError:
        types = Counter(type_ for type_ in self._last if type_ is not None)
        found = ", ".join(f"{count} {type_}" for type_, count in types.most_common())
        return stopped(
            f"{self._failed} of the last {len(self._last)} rows failed ({found}) and {why}. The last error: "
            f"{message}"
        )


def stopped(reason: str) -> RunStoppedError:
    """The error that ends a run, with what becomes of its rows."""
    return RunStoppedError(
        f"The run was ended early: {reason.rstrip('.')}. What is done is in the journal: a retry goes on "
        "from there and sends again the rows that failed for a reason that may pass"
    )
