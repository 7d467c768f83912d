"""The decisions of sending alone, by simulation: no network, no clock."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.completions.manifest import ConcurrencySummary
from airflow_provider_gradient.completions.pacing import Pacing, SendingLimits, TokenBucket
from airflow_provider_gradient.completions.stopping import RunStoppedError, StopRule

LATENCY = 0.2


@dataclass(kw_only=True)
class Simulation:
    """A server that answers after 200 ms, more or less, and refuses at once what is beyond ``bears``.

    :ivar faults: share of the requests that are refused whatever the load.
    :ivar cuts: share of the connections that break at once.
    """

    bears: float = float("inf")
    faults: float = 0.0
    cuts: float = 0.0
    seconds: float = 60.0
    seed: int = 0
    answered: int = 0
    refused: int = 0

    def run(self, **limits: Any) -> ConcurrencySummary:
        pacing = Pacing(SendingLimits(**limits), now=0.0)
        chance, now, busy, ties = random.Random(self.seed), 0.0, 0, itertools.count()
        events: list[tuple[float, int, str, float]] = []
        while now < self.seconds:
            while (delay := pacing.delay(now)) == 0.0:
                pacing.start(now)
                kind = self._kind(chance.random(), busy)
                busy += kind == "answer"
                takes = LATENCY * chance.uniform(0.85, 1.15) if kind == "answer" else 0.001
                heapq.heappush(events, (now + takes, next(ties), kind, now))
            if delay is not None and (not events or now + delay < events[0][0]):
                now += max(delay, 1e-9)
                continue
            now, _, kind, sent = heapq.heappop(events)
            if kind == "answer":
                busy -= 1
                self.answered += 1
                pacing.on_success(now=now, sent=sent, set_aside=0, tokens=None)
            else:
                self.refused += kind == "refusal"
                pacing.on_failure(
                    now=now,
                    sent=sent,
                    set_aside=0,
                    transient=True,
                    overloaded=kind == "refusal",
                    retry_after=None,
                )
        summary = pacing.summary(now)
        assert summary is not None
        return summary

    def _kind(self, drawn: float, busy: int) -> str:
        if busy >= self.bears or drawn < self.faults:
            return "refusal"
        return "cut" if drawn < self.faults + self.cuts else "answer"

    def share_of(self, in_flight: float) -> float:
        return self.answered / (self.seconds * in_flight / LATENCY)


@pytest.mark.parametrize("ceiling", [64, 256, 1000])
@pytest.mark.parametrize("bears", [4, 40, 200])
def test_a_server_that_bears_so_many_is_kept_busy_and_hardly_refuses(bears: int, ceiling: int) -> None:
    server = Simulation(bears=bears)
    summary = server.run(concurrency=ceiling)
    assert server.share_of(min(bears, ceiling)) >= 0.85
    assert server.refused <= 0.15 * server.answered + 2 * max(64, ceiling / 2)
    assert summary.max <= max(1.2 * bears, 64, ceiling / 2, ceiling * (bears >= ceiling))


def test_a_server_that_bears_one_at_a_time_gets_little_more() -> None:
    server = Simulation(bears=1, seconds=200)
    summary = server.run(concurrency=64)
    assert server.share_of(1) >= 0.85
    assert summary.min == 1
    assert summary.mean < 3


@pytest.mark.parametrize("ceiling", [16, 64, 256])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("faults", "cuts"), [(0.2, 0.0), (0.13, 0.07), (0.05, 0.15)])
def test_refusals_whatever_the_load_do_not_bring_the_limit_down(
    ceiling: int, seed: int, faults: float, cuts: float
) -> None:
    server = Simulation(faults=faults, cuts=cuts, seed=seed)
    summary = server.run(concurrency=ceiling)
    assert server.share_of(ceiling) >= 0.6
    assert summary.mean >= 0.75 * ceiling


def test_a_server_that_bears_40_and_fails_at_random_too_is_used_still() -> None:
    server = Simulation(bears=40, faults=0.1)
    server.run(concurrency=256)
    assert server.share_of(40) >= 0.65


def test_a_server_that_never_refuses_gets_the_ceiling_within_two_seconds() -> None:
    summary = Simulation(seconds=2.0).run(concurrency=1000)
    assert (summary.max, summary.cuts) == (1000, 0)


def test_the_floor_is_kept_where_all_is_refused() -> None:
    server = Simulation(bears=0)
    summary = server.run(concurrency=64, min_concurrency=5)
    assert summary.min == 5
    assert server.refused <= 60 * 64  # a place that is refused does not ask again at once


@settings(max_examples=50, deadline=None)
@given(
    floor=st.integers(1, 20),
    above=st.integers(0, 100),
    bears=st.integers(0, 50),
    faults=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_limit_stays_between_floor_and_ceiling(
    floor: int, above: int, bears: int, faults: float, seed: int
) -> None:
    server = Simulation(bears=bears, faults=faults, seed=seed, seconds=5)
    summary = server.run(concurrency=floor + above, min_concurrency=floor)
    assert floor <= summary.min <= summary.mean + 0.1
    assert summary.mean <= summary.max + 1
    assert summary.max <= floor + above


def test_refusals_of_one_round_trip_are_one_cut() -> None:
    pacing = Pacing(SendingLimits(concurrency=32), now=0.0)
    for _ in range(32):
        assert pacing.delay(0.0) == 0.0
        pacing.start(0.0)
    assert pacing.delay(0.0) is None
    for _ in range(32):
        pacing.on_failure(now=0.1, sent=0.0, set_aside=0, transient=True, overloaded=True, retry_after=None)
    assert pacing.delay(0.1) == 0.0
    summary = pacing.summary(0.1)
    assert summary is not None
    assert (summary.cuts, summary.min) == (1, 16)


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    pacing = Pacing(SendingLimits(concurrency=100), now=0.0)
    for second in range(200):
        pacing.start(second)
        pacing.on_success(now=second + 0.2, sent=second, set_aside=0, tokens=None)
    summary = pacing.summary(200.0)
    assert summary is not None
    assert summary.max == 64


def test_all_wait_for_as_long_as_the_server_asks_and_overlapping_pauses_are_one() -> None:
    pacing = Pacing(SendingLimits(concurrency=8), now=0.0)
    for _ in range(4):
        pacing.start(0.0)
    pacing.on_failure(now=1.0, sent=0.0, set_aside=0, transient=True, overloaded=True, retry_after=5)
    pacing.on_failure(now=2.0, sent=0.0, set_aside=0, transient=True, overloaded=True, retry_after=5)
    pacing.on_failure(now=3.0, sent=0.0, set_aside=0, transient=True, overloaded=True, retry_after=1)
    assert pacing.delay(3.0) == 4.0
    assert pacing.delay(7.0) == 0.0
    pacing.on_failure(now=10.0, sent=0.0, set_aside=0, transient=True, overloaded=True, retry_after=2)
    summary = pacing.summary(12.0)
    assert summary is not None
    assert (summary.pauses, summary.paused_seconds) == (2, 8.0)


@given(per_minute=st.integers(1, 100_000), gaps=st.lists(st.floats(0, 90), max_size=300))
def test_no_more_than_the_rate_is_taken_in_any_minute(per_minute: int, gaps: list[float]) -> None:
    bucket, now, taken = TokenBucket(per_minute, now=0.0), 0.0, []
    for gap in gaps:
        now += gap + bucket.delay(now + gap)
        bucket.take(now)
        taken.append(now)
    for first in range(len(taken)):
        within = sum(1 for moment in taken[first:] if moment < taken[first] + 60)
        assert within <= per_minute


def test_the_rate_is_reached() -> None:
    bucket, now, count = TokenBucket(600, now=0.0), 0.0, 0
    while (now := now + bucket.delay(now)) < 600:
        bucket.take(now)
        count += 1
    assert count >= 0.95 * 6000


def test_tokens_that_answers_report_are_held_to_their_rate() -> None:
    pacing = Pacing(SendingLimits(concurrency=64, tokens_per_minute=6000), now=0.0)
    assert pacing.delay(0.0) == 0.0
    aside = pacing.start(0.0)
    assert pacing.delay(0.0) is None, "what a request takes is known only by the first answer"
    now, tokens = 0.2, 0
    pacing.on_success(now=now, sent=0.0, set_aside=aside, tokens=300)
    while now < 600:
        delay = pacing.delay(now)
        assert delay is not None
        now += delay
        aside = pacing.start(now)
        pacing.on_success(now=now + 0.2, sent=now, set_aside=aside, tokens=250)
        now += 0.2
        tokens += 250
    assert 0.9 * 60_000 <= tokens <= 1.02 * 60_000


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_concurrency": 0}, "min_concurrency: at least 1"),
        ({"concurrency": 4, "min_concurrency": 5}, "min_concurrency: at most concurrency, 4"),
        ({"requests_per_minute": 0.5}, "requests_per_minute: at least 1"),
        ({"tokens_per_minute": float("nan")}, "tokens_per_minute: at least 1"),
        ({"tokens_per_minute": float("inf")}, "tokens_per_minute: at least 1"),
        ({"max_error_rate": 1.1}, "max_error_rate: a share from 0 to 1"),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        SendingLimits(**limits)


def feed(rule: StopRule, outcomes: str) -> int | None:
    """The number of the row at which the rule stops; ``x`` is a failed one."""
    for number, outcome in enumerate(outcomes, 1):
        try:
            if outcome == "x":
                rule.on_failure("ServerError", "on fire")
            else:
                rule.on_answer()
        except RunStoppedError:
            return number
    return None


@pytest.mark.parametrize(
    ("rate", "rows", "outcomes", "stops_at"),
    [
        (None, 1000, "x" * 200, 100),
        (None, 1000, "." + "x" * 500, 101),
        (None, 1000, ("x" * 99 + ".") * 9, None),
        (None, 1000, ("x" * 99 + ".") * 9 + "x" * 100, 1000),
        (None, 99, "x" * 99, None),
        (0.5, 1000, "x" * 60, 51),
        (0.5, 1000, ".x" * 500, None),
        (0.5, 1000, "." * 500 + "x" * 60, 551),
        (0.5, 1000, ("x" * 50 + "." * 100) * 5, None),
        (0.5, 10, "x" * 10, 6),
        (0.0, 1000, "..x", 3),
        (1.0, 1000, "x" * 1000, None),
    ],
)
def test_a_run_stops_where_more_fail_than_is_allowed(
    rate: float | None, rows: int, outcomes: str, stops_at: int | None
) -> None:
    assert feed(StopRule(rate, rows=rows), outcomes) == stops_at


def test_the_error_that_stops_a_run_says_what_failed_and_what_a_retry_does() -> None:
    rule = StopRule(0.02, rows=1000)
    feed(rule, "..xx")
    with pytest.raises(RunStoppedError) as raised:
        rule.on_failure("RateLimitError", "slow down (HTTP 429)")
    message = str(raised.value)
    assert "3 of the last 5 rows failed (2 ServerError, 1 RateLimitError)" in message
    assert "max_error_rate is 0.02. The last error: slow down (HTTP 429)" in message
    assert "a retry goes on from there" in message


def test_a_row_that_fails_while_others_are_answered_waits_a_fifth_and_in_an_outage_all_of_it() -> None:
    pacing = Pacing(SendingLimits(concurrency=4), now=0.0)
    for _ in range(3):
        pacing.start(0.0)
    assert pacing.wait(10.0, sent=0.0) == 10.0
    pacing.on_success(now=0.2, sent=0.0, set_aside=0, tokens=None)
    assert pacing.wait(10.0, sent=0.1) == 2.0
    assert pacing.wait(10.0, sent=0.3) == 10.0


def fail(pacing: Pacing, now: float, *, transient: bool = True, retry_after: float | None = None) -> None:
    """A request that failed the moment it was sent."""
    pacing.start(now)
    pacing.on_failure(
        now=now, sent=now, set_aside=0, transient=transient, overloaded=False, retry_after=retry_after
    )


def test_a_server_is_silent_from_the_first_failure_on_until_a_request_is_answered() -> None:
    pacing = Pacing(SendingLimits(), now=0.0)
    assert pacing.patience_left(500.0, 60.0) == 60.0
    fail(pacing, 500.0)
    fail(pacing, 510.0)
    assert pacing.patience_left(520.0, 60.0) == 40.0
    pacing.start(530.0)
    pacing.on_success(now=530.0, sent=530.0, set_aside=0, tokens=None)
    assert pacing.patience_left(540.0, 60.0) == 60.0
    fail(pacing, 550.0)
    fail(pacing, 560.0, transient=False)
    assert pacing.patience_left(570.0, 60.0) == 60.0, "a refusal of the row is an answer"


def test_a_pause_that_the_server_asks_for_is_no_silence_once_nothing_is_in_flight() -> None:
    pacing = Pacing(SendingLimits(), now=0.0)
    fail(pacing, 0.0, retry_after=30.0)
    assert pacing.patience_left(20.0, 60.0) == 70.0
    pacing.start(30.0)
    fail(pacing, 31.0, retry_after=30.0)
    assert pacing.patience_left(35.0, 60.0) == 55.0, "one is in flight, and is waited for"


def test_a_wait_for_a_rate_is_no_silence() -> None:
    pacing = Pacing(SendingLimits(requests_per_minute=1), now=0.0)
    for minute in range(10):
        fail(pacing, 61.0 * minute)
    assert pacing.patience_left(61.0 * 10, 60.0) == pytest.approx(60.0)
