"""The order in which the engine's threads get their work."""

from __future__ import annotations

import threading

from airflow_provider_gradient.api import CompleteRequest, FineTuneRequest, Sample
from airflow_provider_gradient.server.jobs import (
    CompleteJob,
    CompletionQueue,
    FineTuneJob,
    FineTuneQueue,
    ForgetJob,
)


def complete() -> CompleteJob:
    return CompleteJob(record=None, request=CompleteRequest(query="q"))


def fine_tune(adapter_id: str) -> FineTuneJob:
    request = FineTuneRequest(samples=[Sample(inputs="s")])
    return FineTuneJob(base_slug="tiny", adapter_id=adapter_id, request=request, call=None)


def test_completions_are_handed_out_as_they_came_and_no_more_than_there_is_room_for() -> None:
    queue, jobs = CompletionQueue(), [complete() for _ in range(5)]
    for job in jobs:
        assert queue.put(job)
    assert len(queue) == 5
    assert [queue.take(2, wait=True), queue.take(0, wait=False), queue.take(9, wait=True)] == [
        jobs[:2],
        [],
        jobs[2:],
    ]
    assert queue.take(9, wait=False) == [], "whoever has rows under way doesn't wait"


def test_fine_tunes_of_one_adapter_keep_their_order_and_adapters_take_turns() -> None:
    queue = FineTuneQueue()
    many, two, one = [fine_tune("a") for _ in range(4)], [fine_tune("b") for _ in range(2)], fine_tune("c")
    for job in (*many, *two, one):
        assert queue.put(job)
    assert len(queue) == 7
    expected = [many[0], two[0], one, many[1], two[1], many[2], many[3]]
    assert [queue.take() for _ in range(7)] == expected


def test_an_adapter_is_forgotten_after_the_fine_tunes_that_came_before() -> None:
    queue, tune, gone = FineTuneQueue(), fine_tune("a"), ForgetJob(base_slug="tiny", adapter_id="a")
    queue.put(tune)
    queue.put(gone)
    assert len(queue) == 1, "only fine-tunes count"
    assert [queue.take(), queue.take()] == [tune, gone]


def test_a_closed_queue_gives_back_what_was_left_and_takes_no_more() -> None:
    completions, job = CompletionQueue(), complete()
    completions.put(job)
    assert completions.close() == [job]
    assert not completions.put(complete())
    assert completions.take(1, wait=True) is None
    fine_tunes, tune = FineTuneQueue(), fine_tune("a")
    fine_tunes.put(tune)
    fine_tunes.put(ForgetJob(base_slug="tiny", adapter_id="b"))
    assert fine_tunes.close() == [tune]
    assert not fine_tunes.put(fine_tune("a"))
    assert fine_tunes.take() is None


def test_closing_wakes_whoever_waits() -> None:
    completions, fine_tunes = CompletionQueue(), FineTuneQueue()
    taken: list[object] = []
    waiting = [
        threading.Thread(target=lambda: taken.append(completions.take(1, wait=True))),
        threading.Thread(target=lambda: taken.append(fine_tunes.take())),
    ]
    for thread in waiting:
        thread.start()
    completions.close()
    fine_tunes.close()
    for thread in waiting:
        thread.join(10)
    assert taken == [None, None]
