"""A row on its way through the requests of a run, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from airflow_provider_gradient.api import Completion, Usage
from airflow_provider_gradient.client import CallRecord, Done, Wait
from airflow_provider_gradient.completions.chains import ChainOutput
from airflow_provider_gradient.completions.failures import InternalErrors
from airflow_provider_gradient.completions.judging import Verdict

Answer = Completion | ChainOutput


@dataclass(kw_only=True, slots=True)
class RowInFlight:
    """A row on its way.

    :ivar attempt: makes the next attempt; ``None`` before the first.
    :ivar sent: when the last attempt began.
    :ivar set_aside: tokens reserved for it.
    :ivar deadline: after which it is not sent again.
    :ivar error: why it waits to be sent again; ``None`` where it waits to be asked again.
    :ivar internal_errors: those it was answered with since it was first sent or asked again; ``None`` before
        its first failure.
    :ivar asked_again: how often, for an answer that was invalid.
    :ivar invalid: the last such answer, which stays the row's if there is no better one.
    :ivar usage: of all its answers.
    """

    index: int
    columns: Mapping[str, Any]
    call: CallRecord = field(default_factory=CallRecord)
    attempt: Callable[[], Awaitable[Done[Any] | Wait]] | None = None
    sent: float = 0.0
    set_aside: float = 0.0
    deadline: float = math.inf
    error: dict[str, Any] | None = None
    internal_errors: InternalErrors | None = None
    asked_again: int = 0
    invalid: tuple[Answer, Verdict] | None = None
    usage: Usage | None = None


class Outcome(NamedTuple):
    """What became of a row: an answer and what it is worth, or the error for which there is none."""

    answer: Answer | None = None
    verdict: Verdict | None = None
    error: dict[str, Any] | None = None


def last_word(row: RowInFlight) -> Outcome:
    """What becomes of a row that is not sent again: an answer that it had before, invalid as that is, since
    it was paid for; else its error."""
    if row.invalid is None:
        return Outcome(error=row.error)
    answer, verdict = row.invalid
    if row.error is None:
        return Outcome(answer, verdict)
    before = verdict.error or {}
    message = f"{before.get('message')}; asked again, the request failed: {row.error['message']}"
    return Outcome(answer, replace(verdict, error={**before, "message": message}))


def added_usage(first: Usage | None, second: Usage | None) -> Usage | None:
    """The tokens of both, where they are known."""
    if first is None or second is None:
        return first or second
    return Usage(
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
    )
