"""When a run ends before its last row, or can't be called finished: a server or a prompt that fails row after
row must not take a night to say so, and a run that lacks rows must not pass for done.

Nothing here reads a clock but :func:`end_after_silence`, which waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.api import GradientError
from airflow_provider_gradient.completions.failures import LeftOver, describe_types

if TYPE_CHECKING:
    from airflow_provider_gradient.completions.manifest import RunManifest
    from airflow_provider_gradient.completions.pacing import Pacing

WINDOW = 100
"""Rows over which the share of failures is judged."""


class RunStoppedError(GradientError, RuntimeError):
    """A run was ended early, since to go on made no sense. What is done is in its journal."""


class RunUnfinishedError(RunStoppedError):
    """Every row was tried, and some failed for a reason that may pass: the output is written, but the run is
    not finished, and the same call sends just these rows.

    :ivar manifest: of what there is; it tells how many rows are ``left_over``.
    """

    def __init__(self, message: str, manifest: RunManifest) -> None:
        super().__init__(message)
        self.manifest = manifest

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.manifest)


class StopRule:
    """The share of failed rows above which to stop.

    :param max_error_rate: 0 to 1, of the last 100 rows; 1 never stops. ``None`` stops only where all of them
        failed.
    :param rows: that are to be sent; where they are fewer than 100, their share counts.
    """

    def __init__(self, max_error_rate: float | None, *, rows: int) -> None:
        self._rate = max_error_rate
        self._window = min(WINDOW, rows)
        self._last: deque[str | None] = deque(maxlen=WINDOW)
        self._failed = 0

    def on_answer(self) -> None:
        """A row has an answer."""
        self._add(None)

    def on_failure(self, error_type: str, message: str) -> None:
        """A row failed for good.

        :raises RunStoppedError: too many have; the message says how many, of what, and what to do.
        """
        self._add(error_type)
        if self._rate is not None:
            if self._failed > self._rate * self._window:
                raise self._stopped(f"max_error_rate is {self._rate:g}", message)
        elif self._failed == WINDOW:
            raise self._stopped("none was answered", message)

    def _add(self, error_type: str | None) -> None:
        if len(self._last) == WINDOW:
            self._failed -= self._last[0] is not None
        self._last.append(error_type)
        self._failed += error_type is not None

    def _stopped(self, why: str, message: str) -> RunStoppedError:
        types = Counter(type_ for type_ in self._last if type_ is not None)
        return stopped(
            f"{self._failed} of the last {len(self._last)} rows failed ({describe_types(types)}) and {why}. "
            f"The last error: {message}"
        )


async def end_after_silence(pacing: Pacing, *, seconds: float, last_error: Callable[[], str]) -> None:
    """Watch a run until it is cancelled, or the server has answered nothing for too long.

    :param seconds: that are too long: what a row may take.
    :param last_error: gives the message of the request that failed last.
    :raises RunStoppedError: it was silent for that time.
    """
    while (left := pacing.patience_left(time.monotonic(), seconds)) > 0:
        await asyncio.sleep(left)
    raise stopped(
        f"the server answered no request for {seconds:g} s, the time that a row may take. The last error: "
        f"{last_error()}"
    )


def stopped(reason: str) -> RunStoppedError:
    """The error that ends a run, with what becomes of its rows."""
    return RunStoppedError(
        f"The run was ended early: {reason.rstrip('.')}. What is done is in the journal: a retry goes on "
        "from there and sends again the rows that failed for a reason that may pass"
    )


def unfinished(left_over: LeftOver, manifest: RunManifest) -> RunUnfinishedError:
    """The error for a run that has tried every row and lacks some."""
    return RunUnfinishedError(
        f"The run is not finished: {left_over.rows} of {manifest.rows} rows failed for a reason that may "
        f"pass {left_over.describe()}. All others are done, and {manifest.output_path} is written. Once the "
        "reason is gone, run the same call again (in Airflow: retry or clear the task): just these "
        f"{left_over.rows} rows are sent",
        manifest,
    )
