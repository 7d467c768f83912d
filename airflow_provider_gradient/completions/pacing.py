"""When the next request of a run may go: a place is free, no pause is on, and no rate is exceeded.

:class:`Pacing` does no I/O and reads no clock: it is told what is sent and what came of it, and at what time.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.completions.limiter import ConcurrencyLimiter
from airflow_provider_gradient.completions.manifest import ConcurrencySummary

_LONE_SHARE = 0.2
"""Of the wait that is due after an outage: what a row waits that failed while others were answered."""


@dataclass(frozen=True, kw_only=True)
class SendingLimits:
    """What bounds the sending of a run.

    :param concurrency: requests in flight at most.
    :param min_concurrency: the number to which an overloaded server brings them down at most.
    :param requests_per_minute: requests sent in any 60 seconds at most, repeated ones included.
    :param tokens_per_minute: tokens, of prompts and completions, as the server reports them. Known only once
        a request is answered, they hold on average: a request is sent on the mean of those before it.
    :param max_error_rate: the share of failed rows, 0 to 1, above which a run ends early.
    :param row_deadline: seconds that a row may take, with all its attempts and the waits between them;
        ``None`` for the client's total time-out.
    :raises InvalidRequestError: names the one that is out of range.
    """

    concurrency: int = 16
    min_concurrency: int = 1
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_error_rate: float | None = None
    row_deadline: float | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "min_concurrency"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidRequestError(f"{name}: at least 1 is needed (got {value})")
        if self.min_concurrency > self.concurrency:
            raise InvalidRequestError(
                f"min_concurrency: at most concurrency, {self.concurrency} (got {self.min_concurrency})"
            )
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise InvalidRequestError(f"{name}: at least 1 is needed (got {value})")
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise InvalidRequestError(
                f"max_error_rate: a share from 0 to 1 is needed (got {self.max_error_rate})"
            )
        if self.row_deadline is not None and not 0 < self.row_deadline < math.inf:
            raise InvalidRequestError(
                f"row_deadline: a positive number of seconds is needed (got {self.row_deadline})"
            )


class TokenBucket:
    """A rate: what is taken flows back evenly.

    No more than ``per_minute`` is taken in any 60 seconds, unless one portion alone is larger than a second's
    inflow: it may leave a debt, which is waited out.

    :param per_minute: at least 1.
    """

    def __init__(self, per_minute: float, *, now: float) -> None:
        self._rate = per_minute / 61.0  # a second's inflow is kept, so 60 s give 61 s' worth at most
        self._size = max(1.0, self._rate)
        self._level = self._size
        self._then = now

    def delay(self, now: float, amount: float = 1.0) -> float:
        """Seconds until ``amount`` may be taken; of more than it holds, until it is full."""
        missing = min(amount, self._size) - self._level_at(now)
        return max(0.0, missing / self._rate)

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take ``amount``; a negative one gives back."""
        self._level = min(self._size, self._level_at(now) - amount)
        self._then = now

    def _level_at(self, now: float) -> float:
        return min(self._size, self._level + (now - self._then) * self._rate)


class Pacing:
    """The moments of a run's requests.

    A request that failed for a reason that may pass keeps its place for as long as an answered one would: a
    place that is refused at once would otherwise ask hundreds of times a second.

    The server is silent from the first such failure on until a request is answered; an error that is the
    row's own, such as a refusal, is an answer.

    :ivar in_flight: requests.
    :ivar sent: requests so far.
    :ivar answered: when one was last answered.
    """

    def __init__(self, limits: SendingLimits, *, now: float) -> None:
        self._limiter = ConcurrencyLimiter(floor=limits.min_concurrency, ceiling=limits.concurrency, now=now)
        self._requests = _bucket(limits.requests_per_minute, now)
        self._tokens = _bucket(limits.tokens_per_minute, now)
        self.in_flight = 0
        self.sent = 0
        self._held: list[tuple[float, float, bool]] = []  # until when, when sent, whether for overload
        self._paused_until = -math.inf
        self._pauses = 0
        self._paused_seconds = 0.0
        self._mean_tokens: float | None = None
        self.answered = -math.inf
        self._silent_since: float | None = None

    def delay(self, now: float) -> float | None:
        """Seconds until a request may go, 0 for at once; ``None``: not before one in flight is answered."""
        while self._held and self._held[0][0] <= now:
            until, sent, overloaded = heapq.heappop(self._held)
            self._limiter.on_failure(now=until, sent=sent, overloaded=overloaded)
        if self._tokens is not None and self._mean_tokens is None and self.in_flight:
            return None  # the first answer tells what a request takes
        seconds = self._barred(now)
        if self.in_flight + len(self._held) >= int(self._limiter.limit):
            if not self._held:
                return None
            seconds = max(seconds, self._held[0][0] - now)
        return seconds

    def start(self, now: float) -> float:
        """A request goes; gives the tokens set aside for it, for :meth:`on_success` or :meth:`on_failure`."""
        self.in_flight += 1
        self.sent += 1
        if self._requests is not None:
            self._requests.take(now)
        tokens = self._mean_tokens or 0.0
        if self._tokens is not None:
            self._tokens.take(now, tokens)
        return tokens

    def on_success(self, *, now: float, sent: float, set_aside: float, tokens: int | None) -> None:
        """An answer came.

        :param sent: when its request went.
        :param tokens: that the server reports for it.
        """
        self._on_answer(now)
        self._limiter.on_success(now=now, sent=sent, in_flight=self.in_flight + len(self._held))
        self.in_flight -= 1
        if self._tokens is not None and tokens is not None:
            self._tokens.take(now, tokens - set_aside)
            mean = self._mean_tokens
            self._mean_tokens = tokens if mean is None else mean + 0.1 * (tokens - mean)

    def on_failure(
        self,
        *,
        now: float,
        sent: float,
        set_aside: float,
        transient: bool,
        overloaded: bool,
        retry_after: float | None,
    ) -> None:
        """A request failed.

        :param transient: whether for a reason that may pass.
        :param overloaded: whether that is too much load.
        :param retry_after: seconds for which the server asks to be left alone: the whole run pauses.
        """
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.take(now, -set_aside)
        if overloaded:
            self._limiter.on_refusal(sent=sent)
        free = max(now, sent + self._limiter.round_trip) if transient else now
        heapq.heappush(self._held, (free, sent, overloaded))
        if retry_after:
            self._pause(now, now + retry_after)
        if not transient:
            self._on_answer(now)
        elif self._silent_since is None:
            self._silent_since = now
        if self._silent_since is not None and not self.in_flight:
            self._silent_since += self._barred(now)

    def patience_left(self, now: float, patience: float) -> float:
        """Seconds until the server has been silent for ``patience`` seconds, if it stays so.

        Time in which nothing is asked does not count: a pause that the server asked for, or a wait for one
        of the rates, while nothing is in flight.
        """
        return patience if self._silent_since is None else self._silent_since + patience - now

    def _on_answer(self, now: float) -> None:
        self.answered = now
        self._silent_since = None

    def _barred(self, now: float) -> float:
        """Seconds until the pause is over and the rates let a request go."""
        seconds = max(0.0, self._paused_until - now)
        if self._requests is not None:
            seconds = max(seconds, self._requests.delay(now))
        if self._tokens is not None:
            seconds = max(seconds, self._tokens.delay(now, self._mean_tokens or 0.0))
        return seconds

    def wait(self, seconds: float, *, sent: float) -> float:
        """Seconds until a row whose request failed may be sent again.

        A row that fails while nothing is answered waits for the end of an outage. Where others are answered,
        it had bad luck, and a short wait will do: it takes a place like any row, so the load is not its
        concern.

        :param seconds: what its own failures make due.
        :param sent: when the request that failed went.
        """
        return seconds * _LONE_SHARE if self.answered > sent else seconds

    def summary(self, now: float) -> ConcurrencySummary | None:
        """What became of the limit; ``None`` where nothing was sent."""
        if not self.sent:
            return None
        return ConcurrencySummary(
            min=self._limiter.lowest,
            mean=round(self._limiter.mean(now), 1),
            max=self._limiter.highest,
            cuts=self._limiter.cuts,
            pauses=self._pauses,
            paused_seconds=round(self._paused_seconds, 3),
        )

    def _pause(self, now: float, until: float) -> None:
        if until <= self._paused_until:
            return
        self._pauses += now >= self._paused_until
        self._paused_seconds += until - max(now, self._paused_until)
        self._paused_until = until


def _bucket(per_minute: float | None, now: float) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, now=now)
