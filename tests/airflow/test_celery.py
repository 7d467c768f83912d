"""The sharded completions on several machines: CeleryExecutor, two workers, one of which is killed.

Needs PostgreSQL and Redis (``DEMO_POSTGRES``, ``DEMO_REDIS``). Where they are absent, the tests are skipped,
but fail where ``CI`` is set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts import celery_airflow
from scripts.demo_celery import run_with_a_killed_worker


@pytest.fixture
def services() -> None:
    if missing := celery_airflow.missing_services():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(missing))


@pytest.mark.timeout(1200)  # a minute and a half on two free cores, eight minutes where they are very busy
def test_a_worker_that_is_killed_loses_no_row_and_only_what_was_in_flight_is_sent_again(
    services: None, tmp_path: Path
) -> None:
    outcome = run_with_a_killed_worker(tmp_path, rows=2400)

    assert outcome.state == "success"
    assert outcome.ids == outcome.expected
    assert outcome.killed
    assert {number for number, tries in outcome.tries.items() if tries > 1} == set(outcome.killed)
    assert 0 <= outcome.sent_again <= outcome.most_in_flight


def test_what_is_missing_is_named_with_the_variable_that_names_another(
    services: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    with redis.Redis.from_url(celery_airflow.REDIS) as client:
        client.set("somebody's", "key")
        (in_use,) = celery_airflow.missing_services()
        client.delete("somebody's")
    assert "is not empty; name an empty one in DEMO_REDIS" in in_use

    monkeypatch.setattr(celery_airflow, "POSTGRES", "postgresql://user:a-secret@127.0.0.1:1/postgres")
    monkeypatch.setattr(celery_airflow, "REDIS", "redis://:a-secret@127.0.0.1:1/3")
    postgres, redis_ = celery_airflow.missing_services()
    assert postgres.startswith("PostgreSQL does not answer")
    assert "DEMO_POSTGRES" in postgres
    assert redis_.startswith("Redis at 127.0.0.1:1, database 3, does not answer")
    assert "DEMO_REDIS" in redis_
    assert "a-secret" not in postgres + redis_
