"""One call's attempts: when to try again, what to give back, what to raise.

:class:`Attempts` does no I/O and reads no clock. A client sends, tells it what came of it and at what time,
and does as it says; both clients feed the same object, so they cannot drift apart.

A call that is not repeatable is tried again only where the server surely has not carried it out: there was no
connection, or it refused (429, or 503 with ``Retry-After``; a 503 without may come from a gateway that lost
sight of the call). Every error says by ``outcome_unknown`` whether the server may have carried the call out
all the same.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from airflow_provider_gradient.api import (
    ApiError,
    GradientConnectionError,
    GradientError,
    GradientTimeoutError,
    InvalidResponseError,
    NotFoundError,
    ResponseTooLargeError,
    error_from_response,
    json_object,
)
from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.policy import (
    LAST_ATTEMPT,
    CallRecord,
    RetryPolicy,
    TimeLeft,
    Timeouts,
    retry_after_seconds,
)

T = TypeVar("T")

_SHOWN = 200
"""Characters of an answer that a message repeats."""
_GATEWAY_TROUBLE = (502, 503, 504)


class Answer(NamedTuple):
    """What came back. ``headers`` are looked up by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(eq=False, kw_only=True)
class NoAnswer(Exception):  # noqa: N818 - an outcome of an attempt, not an error of the call
    """Nothing came back.

    :param reason: in words, without secrets.
    :param sent: whether the server may have seen the request.
    :param timed_out: whether it was for lack of time.
    :param too_large: whether an answer was broken off because it is larger than it may be.
    """

    reason: str
    sent: bool
    timed_out: bool = False
    too_large: bool = False


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Try again after ``seconds``.

    :param error: what made it necessary.
    """

    seconds: float
    error: GradientError = field(compare=False)


class Done(NamedTuple, Generic[T]):
    """The call's result."""

    value: T


class Attempts(Generic[T]):
    """The attempts of one call.

    :param url: of the call, for messages.
    :param now: seconds of a clock that never goes back, as in the other methods.
    :param record: counted up as attempts are made.
    :param paced: whether the caller has many calls to make and chooses when each goes. What says nothing of
        the call, a refusal for too much load (429, 503) or no connection, then uses up none of the policy's
        attempts, only the total time; refusals don't lengthen the waits, since to send less is the caller's
        part; an attempt whose turn comes late has time for an answer all the same, unless ``deadline`` is
        given; and every answer of 5xx is tried again, since what one call costs is little beside a run that
        lacks its row.
    :param deadline: seconds from now for all attempts and waits, instead of the total time-out; no attempt
        outlasts it.
    :param jitter: gives a number from 0 to 1.
    """

    def __init__(
        self,
        call: Call[T],
        *,
        url: str,
        policy: RetryPolicy,
        timeouts: Timeouts,
        now: float,
        record: CallRecord | None = None,
        paced: bool = False,
        deadline: float | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._call = call
        self._name = f"{call.method} {url}"
        self._policy = policy
        self._timeouts = timeouts
        seconds = timeouts.total if deadline is None else deadline
        self._deadline = now + seconds
        has_time_after = paced and deadline is None
        self._least = timeouts.read if has_time_after else 0.001
        self._keep = 0.0 if has_time_after else seconds * LAST_ATTEMPT
        self._jitter = jitter
        self._paced = paced
        self._made = 0
        self._uncounted = 0
        self._refusals = 0
        self._waited = 0.0
        self._maybe_done = False
        self._record = record or CallRecord()

    @property
    def made(self) -> int:
        """How many were begun."""
        return self._made

    def start(self, *, now: float) -> TimeLeft:
        """Begin an attempt; gives the time that is left for it."""
        self._made += 1
        self._record.attempts += 1
        timeouts, left = self._timeouts, max(self._deadline - now, self._least)
        total = min(timeouts.total, left)
        read = total if self._call.silent_work else min(timeouts.read, left)
        return TimeLeft(connect=min(timeouts.connect, left), read=read, total=total)

    def on_answer(self, answer: Answer, *, now: float) -> Done[T] | Wait:
        """What an answer means.

        :raises ApiError: an error of the server's that is not, or no longer, tried again.
        :raises InvalidResponseError: the answer is not one of a Gradient server.
        """
        if 200 <= answer.status < 300:
            return Done(value=self._read(answer))
        error = self._error(answer)
        if isinstance(error, NotFoundError) and self._call.absent_is_done and self._maybe_done:
            return Done(value=cast(T, None))
        retry_after = error.retry_after if isinstance(error, ApiError) else None
        refused = answer.status == 429 or (answer.status == 503 and retry_after is not None)
        self._maybe_done |= answer.status >= 500 and not refused
        if answer.status in (429, 503) and self._paced:
            self._uncounted += 1
            self._refusals += 1
        passing = answer.status >= 500 if self._paced else answer.status in _GATEWAY_TROUBLE
        if refused or (self._call.repeatable and passing):
            return self._again(error, now=now, retry_after=retry_after)
        raise self._final(error)

    def on_no_answer(self, failure: NoAnswer, *, now: float) -> Wait:
        """What a missing answer means.

        :raises GradientConnectionError: it is not, or no longer, tried again.
        :raises ResponseTooLargeError: it would be as large again.
        """
        if failure.too_large:
            self._maybe_done = True
            raise self._final(ResponseTooLargeError(f"{self._name}: {failure.reason}"))
        cls = GradientTimeoutError if failure.timed_out else GradientConnectionError
        error = cls(f"{self._name}: {failure.reason}")
        self._maybe_done |= failure.sent
        self._uncounted += not failure.sent and self._paced
        if failure.sent and not self._call.repeatable:
            raise self._final(error)
        return self._again(error, now=now, retry_after=None)

    def _read(self, answer: Answer) -> T:
        try:
            return self._call.parse(answer.body)
        except (ValueError, RecursionError):
            self._maybe_done = True
            raise self._final(self._not_gradient(answer)) from None

    def _error(self, answer: Answer) -> GradientError:
        if answer.status < 400:
            return self._redirect(answer)
        error = error_from_response(answer.status, answer.body, retry_after_seconds(answer.headers))
        if answer.status in (404, 405) and "message" not in (json_object(answer.body) or {}):
            return self._not_gradient(answer)
        return error

    def _redirect(self, answer: Answer) -> InvalidResponseError:
        where = ""
        with contextlib.suppress(KeyError, ValueError):
            parts = urlsplit(answer.headers["location"])
            where = " to " + urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        return InvalidResponseError(
            f"{self._name}: the server redirects{where} (HTTP {answer.status}). Redirects are not followed; "
            "make base_url the place where the API is."
        )

    def _not_gradient(self, answer: Answer) -> InvalidResponseError:
        kind = answer.headers.get("content-type", "no content type")
        beginning = answer.body[: 4 * _SHOWN].decode(errors="replace").strip()[:_SHOWN]
        return InvalidResponseError(
            f"{self._name}: HTTP {answer.status}, but not as a Gradient server answers ({kind}, begins with "
            f"{beginning!r}). Is base_url right?"
        )

    def _again(self, error: GradientError, *, now: float, retry_after: float | None) -> Wait:
        if self._made - self._uncounted >= self._policy.attempts:
            raise self._final(error)
        seconds = self._policy.wait(
            failed=max(1, self._made - self._refusals),
            retry_after=retry_after,
            jitter=self._jitter,
            left=self._deadline - now,
            keep=self._keep,
        )
        if seconds is None:
            raise self._final(error)
        self._waited += seconds
        self._record.waited += seconds
        return Wait(seconds=seconds, error=error)

    def _final(self, error: GradientError) -> GradientError:
        error.outcome_unknown = self._maybe_done
        if self._made > 1:
            error.add_note(f"{self._made} attempts, {self._waited:.1f} s of waiting between them")
        return error
