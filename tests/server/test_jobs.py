"""The order in which the engine's worker gets its work."""

from __future__ import annotations

import threading

from airflow_provider_gradient.api import CompleteRequest, FineTuneRequest, Sample
from airflow_provider_gradient.server.jobs import CompleteJob, FineTuneJob, ForgetJob, Job, JobQueue


def complete(adapter_id: str | None = None, base_slug: str = "tiny") -> CompleteJob:
    return CompleteJob(base_slug=base_slug, adapter_id=adapter_id, request=CompleteRequest(query="q"))


def fine_tune(adapter_id: str) -> FineTuneJob:
    request = FineTuneRequest(samples=[Sample(inputs="s")])
    return FineTuneJob(adapter_id=adapter_id, request=request, call=None)


def queue_of(*jobs: Job, max_rows: int = 32) -> JobQueue:
    queue = JobQueue(max_rows=max_rows)
    for job in jobs:
        assert queue.put(job)
    return queue


def test_completions_by_one_model_are_drawn_into_one_batch_and_the_rest_keeps_its_order() -> None:
    base, a, b = [complete() for _ in range(3)], [complete("a") for _ in range(2)], complete(None, "other")
    queue = queue_of(base[0], a[0], b, base[1], a[1], base[2])
    assert queue.take() == base
    assert queue.take() == a
    assert queue.take() == [b]


def test_a_batch_has_no_more_than_its_rows() -> None:
    jobs = [complete() for _ in range(5)]
    queue = queue_of(*jobs, max_rows=2)
    assert [queue.take(), queue.take(), queue.take()] == [jobs[:2], jobs[2:4], jobs[4:]]


def test_no_completion_passes_a_waiting_fine_tune() -> None:
    before, tune, after = complete("a"), fine_tune("a"), complete("a")
    queue = queue_of(before, tune, after)
    assert [queue.take(), queue.take(), queue.take()] == [[before], [tune], [after]]


def test_a_closed_queue_gives_back_what_was_left_and_takes_no_more() -> None:
    job = complete()
    queue = queue_of(job)
    assert queue.close() == [job]
    assert not queue.put(ForgetJob(base_slug="tiny", adapter_id="a"))
    assert queue.take() == []


def test_closing_wakes_whoever_waits() -> None:
    queue = JobQueue(max_rows=1)
    taken: list[list[Job]] = []
    waiting = threading.Thread(target=lambda: taken.append(queue.take()))
    waiting.start()
    queue.close()
    waiting.join(10)
    assert taken == [[]]
