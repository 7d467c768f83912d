"""How long a call may take and how often it is tried: plain values, and nothing that waits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from airflow_provider_gradient.api import InvalidRequestError

LAST_ATTEMPT = 0.1
"""The share of a call's time that is kept for the attempt after a wait that had to be cut."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds that a call may take.

    :param connect: until there is a connection, TLS included.
    :param read: the longest silence of the server. It does not apply to fine-tunes, whose answer is preceded
        by the whole training: only ``total`` bounds them.
    :param total: the whole call, with all its attempts and the waits between them.
    :raises InvalidRequestError: a value that is not a positive number.
    """

    connect: float = 10.0
    read: float = 120.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_seconds(f"timeouts.{field.name}", getattr(self, field.name))

    def within(self, seconds: float) -> Timeouts:
        """These, none longer than ``seconds``."""
        return Timeouts(
            connect=min(self.connect, seconds), read=min(self.read, seconds), total=min(self.total, seconds)
        )


@dataclass(frozen=True, kw_only=True)
class ResponseLimits:
    """How large an answer may be. A larger one ends its connection at once and fails its call for good.

    :param body_bytes: of the body, decompressed.
    :param header_bytes: of everything else that comes with it: status line, header fields, trailers, what is
        written beside the lengths of chunks, and answers such as ``100 Continue`` before it.
    :raises InvalidRequestError: a value that is not a positive whole number.
    """

    body_bytes: int = 64 << 20
    header_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidRequestError(
                    f"limits.{field.name} must be a positive whole number of bytes (got {value!r})"
                )


class TimeLeft(NamedTuple):
    """Seconds that one attempt may take, as :class:`Timeouts` has them."""

    connect: float
    read: float
    total: float


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a call is tried, and the wait in between.

    The wait before attempt ``n + 1`` is drawn evenly from 0 to ``base * 2 ** (n - 1)`` seconds, at most
    ``longest`` ("full jitter": clients that failed together don't come back together). A server's
    ``Retry-After`` is waited for in full, and the draw added. A draw that would lead past the call's deadline
    is cut, so that a last attempt is made when nine tenths of the time are over.

    :param attempts: the first one included; 1 never repeats.
    :param base: seconds.
    :param longest: seconds.
    :raises InvalidRequestError: ``attempts`` below 1, or seconds that are not positive.
    """

    attempts: int = 5
    base: float = 1.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidRequestError(
                f"retries.attempts must be a whole number from 1 (got {self.attempts!r})"
            )
        _check_seconds("retries.base", self.base)
        _check_seconds("retries.longest", self.longest)

    def wait(
        self,
        *,
        failed: int,
        retry_after: float | None,
        jitter: Callable[[], float],
        left: float = math.inf,
        keep: float = 0.0,
    ) -> float | None:
        """Seconds to wait after ``failed`` attempts; ``None`` where no time is left for another.

        :param retry_after: seconds the server asked for, if it did; it is never asked again earlier.
        :param jitter: gives a number from 0 to 1.
        :param left: seconds until the deadline. A draw that leads past it is cut, so that no call is given
            up while there is time for one more attempt.
        :param keep: seconds before the deadline at which that attempt is made.
        """
        asked = retry_after or 0.0
        ceiling = min(self.longest, self.base * 2.0 ** min(failed - 1, 60))
        drawn = asked + ceiling * jitter()
        if drawn < left:
            return drawn
        return max(asked, left - keep) if asked < left and keep < left else None


@dataclass(kw_only=True, slots=True)
class CallRecord:
    """What a call took; given to a call by its caller, and added to whether the call succeeds or not.

    :param attempts: requests sent or tried; 1 where the first one did it.
    :param waited: seconds spent between attempts.
    """

    attempts: int = 0
    waited: float = 0.0


def retry_after_seconds(
    headers: Mapping[str, str], *, now: Callable[[], datetime] | None = None
) -> float | None:
    """Seconds that ``Retry-After`` asks to wait, from its number or its HTTP date; ``None`` where it has
    neither.

    A date is counted from the answer's own ``Date``, so that clocks that differ do no harm.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    moment = _http_date(value)
    if moment is None:
        return None
    sent = _http_date(headers.get("date", "")) or (now() if now else datetime.now(UTC))
    return max(0.0, (moment - sent).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidRequestError(f"{name} must be a positive number of seconds (got {value!r})")
