"""Which of the idle connections a call gets."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_gradient.client.pool import KEPT_SECONDS, REST_SECONDS, Pool


@dataclass
class Idle:
    """A connection whose last answer ended at ``since``."""

    since: float
    may_be_kept: bool = True
    may_rest_less: bool = True
    has_more: bool = False
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


def pool_of(*connections: Idle) -> Pool[Idle]:
    pool: Pool[Idle] = Pool()
    for connection in connections:
        pool.put(connection)
    return pool


def test_the_one_used_last_is_taken_first():
    first, second = Idle(1.0), Idle(2.0)
    pool = pool_of(first, second)
    assert [pool.take(2.0), pool.take(2.0), pool.take(2.0)] == [second, first, None]


def test_one_whose_server_does_not_tell_whose_answer_it_sent_rests_first():
    resting = Idle(1.0, may_rest_less=False)
    pool = pool_of(resting)
    assert pool.take(1.0) is None
    assert pool.take(1.0 + REST_SECONDS / 2) is None
    assert pool.take(1.0 + REST_SECONDS * 1.01) is resting


def test_one_over_which_more_has_come_is_closed():
    spoilt, good = Idle(2.0, has_more=True), Idle(1.0)
    pool = pool_of(good, spoilt)
    assert pool.take(2.0) is good
    assert spoilt.is_closed


def test_one_that_its_last_answer_left_unfit_is_closed():
    unfit = Idle(1.0, may_be_kept=False)
    assert pool_of(unfit).take(1.0) is None
    assert unfit.is_closed


def test_those_that_are_idle_for_long_are_closed():
    old, older, new = Idle(2.0), Idle(1.0), Idle(3.0 + KEPT_SECONDS)
    pool = pool_of(older, old)
    pool.put(new)
    assert older.is_closed
    assert old.is_closed
    assert pool.take(new.since + KEPT_SECONDS + 1) is None
    assert new.is_closed


def test_all_are_closed_with_the_pool():
    ready, resting = Idle(1.0), Idle(1.0, may_rest_less=False)
    pool_of(ready, resting).close()
    assert ready.is_closed
    assert resting.is_closed
