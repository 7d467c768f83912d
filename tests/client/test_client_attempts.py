"""The decisions alone, without network and without clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.api import (
    BadRequestError,
    GradientConnectionError,
    InvalidResponseError,
    RateLimitError,
    ServerError,
)
from airflow_provider_gradient.client.attempts import Answer, Attempts, Done, NoAnswer, Wait
from airflow_provider_gradient.client.calls import complete, delete_model, fine_tune
from airflow_provider_gradient.client.policy import (
    CallRecord,
    RetryPolicy,
    TimeLeft,
    Timeouts,
    retry_after_seconds,
)

COMPLETE = complete("m", "q", guidance=None)
FINE_TUNE = fine_tune("m", [{"inputs": "x"}], idempotency_key=None, keys_honoured=False)
LOST = NoAnswer(reason="cut", sent=True)


def attempts(
    call=COMPLETE,
    *,
    jitter=1.0,
    record=None,
    timeouts=Timeouts(),  # noqa: B008 - frozen
    paced=False,
    **policy,
):
    return Attempts(
        call,
        url="http://x/api/models",
        policy=RetryPolicy(**policy),
        timeouts=timeouts,
        now=100.0,
        record=record,
        paced=paced,
        jitter=lambda: jitter,
    )


def test_the_ceiling_of_the_wait_doubles_up_to_the_longest():
    record = CallRecord()
    course = attempts(attempts=8, base=1.0, longest=10.0, record=record)
    waits = []
    for _ in range(6):
        course.start(now=100.0)
        waits.append(course.on_no_answer(LOST, now=100.0).seconds)
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert record == CallRecord(attempts=6, waited=sum(waits))


@given(st.integers(1, 2000), st.floats(0, 1))
def test_a_wait_lies_between_nothing_and_its_ceiling(failed, jitter):
    wait = RetryPolicy(base=0.5, longest=60).wait(failed=failed, retry_after=None, jitter=lambda: jitter)
    assert 0 <= wait <= 60


def test_jitter_comes_on_top_of_what_the_server_asked_for():
    course = attempts(jitter=0.5, base=1.0)
    course.start(now=100.0)
    answer = Answer(status=429, headers={"retry-after": "7"}, body=b"{}")
    assert course.on_answer(answer, now=100.0).seconds == 7.5


def test_no_wait_leads_past_the_total_time():
    course = attempts(timeouts=Timeouts(total=10), base=4.0, attempts=9)
    course.start(now=100.0)
    assert course.on_no_answer(LOST, now=105.0).seconds == 4.0
    assert course.start(now=109.0) == TimeLeft(connect=1.0, read=1.0, total=1.0)
    with pytest.raises(GradientConnectionError):
        course.on_no_answer(LOST, now=109.5)


def test_a_fine_tune_may_be_silent_for_all_the_time_there_is():
    course = attempts(FINE_TUNE, timeouts=Timeouts(connect=5, read=20, total=600))
    assert course.start(now=150.0) == TimeLeft(connect=5, read=550, total=550)


def test_what_was_lost_in_an_earlier_attempt_stays_unknown():
    repeatable = fine_tune("m", [{"inputs": "x"}], idempotency_key="k", keys_honoured=True)
    course = attempts(repeatable, attempts=2)
    course.start(now=100.0)
    course.on_no_answer(LOST, now=100.0)
    course.start(now=101.0)
    with pytest.raises(GradientConnectionError) as raised:
        course.on_no_answer(NoAnswer(reason="refused", sent=False), now=101.0)
    assert raised.value.outcome_unknown


def test_a_record_counts_attempts_of_failures_too():
    record = CallRecord()
    course = attempts(record=record, attempts=2)
    course.start(now=100.0)
    assert isinstance(course.on_answer(Answer(status=502, headers={}, body=b""), now=100.0), Wait)
    course.start(now=101.0)
    body = b'{"finishReason":"stop","generatedOutput":"x"}'
    assert isinstance(course.on_answer(Answer(status=200, headers={}, body=body), now=101.0), Done)
    assert record == CallRecord(attempts=2, waited=1.0)


def test_a_record_may_count_several_calls():
    record = CallRecord()
    for _ in range(3):
        course = attempts(record=record, attempts=2)
        course.start(now=100.0)
        assert isinstance(course.on_no_answer(LOST, now=100.0), Wait)
    assert record.attempts == 3


@pytest.mark.parametrize("headers", [{}, {"location": "http://[broken"}])
def test_a_redirect_to_nowhere_is_reported_too(headers):
    course = attempts()
    course.start(now=100.0)
    with pytest.raises(InvalidResponseError, match=r"redirects \(HTTP 301\)"):
        course.on_answer(Answer(status=301, headers=headers, body=b""), now=100.0)


def test_a_refusal_carries_the_time_the_server_named():
    course = attempts(attempts=1)
    course.start(now=100.0)
    headers = {"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}
    with pytest.raises(RateLimitError) as raised:
        course.on_answer(Answer(status=429, headers=headers, body=b"slow down"), now=100.0)
    assert raised.value.retry_after == 30.0


NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 17 "}, 17.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 2024 12:00:20 GMT"}, 20.0),
        ({"retry-after": "Mon, 01 Jan 2024 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 01 Jan 2024 12:00:20 -0000"}, 20.0),
        ({"retry-after": "Mon, 01 Jan 2024 09:00:05 GMT", "date": "Mon, 01 Jan 2024 09:00:00 GMT"}, 5.0),
        ({"retry-after": "Mon, 01 Jan 2024 12:00:20 GMT", "date": "not a date"}, 20.0),
        ({"retry-after": "Mon, 99 Jan 2024 12:00:20 GMT"}, None),
        ({"retry-after": f"Mon, 01 Jan 2024 12:00:20 +{'9' * 20}"}, None),
        ({"retry-after": f"Mon, 01 Jan {'9' * 20} 12:00:20 GMT"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers, seconds):
    assert retry_after_seconds(headers, now=lambda: NOON) == seconds


@given(st.text())
def test_no_retry_after_breaks_the_reading_of_it(text):
    seconds = retry_after_seconds({"retry-after": text, "date": text})
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("status", [429, 503, None])
def test_what_says_nothing_of_the_call_may_be_bounded_by_the_total_time_alone(status):
    record = CallRecord()
    course = attempts(attempts=2, paced=True, record=record, timeouts=Timeouts(total=10), longest=1)

    def fail(now):
        course.start(now=now)
        if status is None:
            return course.on_no_answer(NoAnswer(reason="refused", sent=False), now=now)
        return course.on_answer(Answer(status=status, headers={}, body=b"{}"), now=now)

    for _ in range(20):
        assert fail(100.0).error is not None
    course.start(now=100.0)
    assert isinstance(course.on_no_answer(LOST, now=100.0), Wait), "the first of two attempts that count"
    assert fail(109.5).seconds == 0.5, "what is left, of a second that was drawn"
    with pytest.raises((RateLimitError, ServerError, GradientConnectionError)):
        fail(110.0)
    assert record.attempts == 23


@pytest.mark.parametrize(
    ("now", "retry_after", "drawn", "seconds"),
    [
        (144.0, None, 10.0, 10.0),
        (144.0, None, 16.0, 10.0),  # 60 s in all: the last attempt is made when 54 are over
        (144.0, None, 60.0, 10.0),
        (144.0, "15", 16.0, 15.0),
        (144.0, "15", 0.5, 15.5),
        (144.0, "16", 0.0, None),
        (144.0, "30", 0.0, None),
        (153.0, None, 2.0, 2.0),
        (153.9, None, 10.0, pytest.approx(0.1)),
        (154.0, None, 10.0, None),
        (160.0, None, 0.0, None),
    ],
)
def test_a_draw_that_leads_past_the_deadline_is_cut_so_that_there_is_a_last_attempt(
    now, retry_after, drawn, seconds
):
    course = attempts(timeouts=Timeouts(total=60), jitter=drawn / 60.0, base=60.0)
    course.start(now=100.0)
    headers = {} if retry_after is None else {"retry-after": retry_after}
    answer = Answer(status=429, headers=headers, body=b"{}")
    if seconds is None:
        with pytest.raises(RateLimitError):
            course.on_answer(answer, now=now)
    else:
        assert course.on_answer(answer, now=now).seconds == seconds


@pytest.mark.parametrize(("paced", "again"), [(False, False), (True, True)])
@pytest.mark.parametrize("status", [500, 501, 520])
def test_a_servers_own_error_is_tried_again_where_a_run_lacks_a_row_otherwise(status, paced, again):
    course = attempts(paced=paced, attempts=5)
    answer = Answer(status=status, headers={}, body=b"{}")
    for _ in range(4 if again else 0):
        course.start(now=100.0)
        assert isinstance(course.on_answer(answer, now=100.0), Wait)
    course.start(now=100.0)
    with pytest.raises(ServerError):
        course.on_answer(answer, now=100.0)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"message":' + b"[" * 200_000, b"9" * 5000])
@pytest.mark.parametrize("status", [400, 404, 405])
def test_an_error_that_is_nested_too_deeply_or_too_long_a_number_is_told_as_any_other(status, body):
    course = attempts()
    course.start(now=100.0)
    with pytest.raises((BadRequestError, InvalidResponseError)) as raised:
        course.on_answer(Answer(status=status, headers={}, body=body), now=100.0)
    assert body[:20].decode() in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"finishReason":"stop","generatedOutput":"x","usage":{"promptTokens":%s,"completionTokens":1}}'
        % (b"9" * 400),
    ],
)
def test_an_answer_that_no_program_could_work_with_is_not_taken_for_one(body):
    course = attempts()
    course.start(now=100.0)
    with pytest.raises(InvalidResponseError):
        course.on_answer(Answer(status=200, headers={}, body=body), now=100.0)


def test_a_deletion_that_is_answered_with_a_nested_list_is_no_gradient_servers():
    course = attempts(delete_model("m"))
    course.start(now=100.0)
    with pytest.raises(InvalidResponseError):
        course.on_answer(Answer(status=200, headers={}, body=b"[" * 200_000), now=100.0)


def test_a_paced_attempt_whose_turn_comes_late_has_time_for_an_answer_and_is_the_last():
    course = attempts(paced=True, timeouts=Timeouts(read=7, total=10))
    course.start(now=100.0)
    course.on_no_answer(LOST, now=101.0)
    assert course.start(now=130.0).total == 7
    with pytest.raises(GradientConnectionError):
        course.on_no_answer(LOST, now=131.0)
