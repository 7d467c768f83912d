"""What is sent again and what is not, seen from a server that goes wrong."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

import pytest
from faults import (
    MODEL_ID,
    Act,
    FaultyServer,
    completion,
    cut,
    cut_answer,
    error,
    free_port,
    html,
    reply,
    trained,
)

from airflow_provider_gradient.api import (
    ApiError,
    GradientConnectionError,
    GradientTimeoutError,
    InvalidResponseError,
    RateLimitError,
    ServerError,
    UnknownModelError,
)
from airflow_provider_gradient.client import CallRecord, RetryPolicy, Timeouts

SAMPLES = [{"inputs": "a text"}]
TROUBLE = [
    error(429, "slow down", headers={"Retry-After": "0"}),
    error(503, "starting"),
    error(502, "bad gateway"),
    error(504, "gateway time-out"),
    cut(),
    cut(read=False),
    cut_answer(),
]
UNSURE = [
    error(500, "failed"),
    error(502, "bad gateway"),
    error(503, "lost"),
    error(504, "late"),
    cut(),
    cut_answer(),
]


@pytest.mark.parametrize(
    "trouble", TROUBLE, ids=["429", "503", "502", "504", "cut", "cut unread", "cut answer"]
)
def test_a_completion_is_sent_again_after_trouble_on_the_way(connect, trouble):
    record = CallRecord()
    with FaultyServer(trouble, trouble, completion("at last")) as server:
        answer = connect(base_url=server.url)("complete", MODEL_ID, "hello", record=record)
    assert answer.generated_output == "at last"
    assert record.attempts == 3
    assert server.acted == 3


def test_it_gives_up_after_the_attempts_it_was_given_and_raises_the_last_error(connect):
    record = CallRecord()
    with FaultyServer(error(503, "still starting")) as server:
        call = connect(base_url=server.url, retries=RetryPolicy(attempts=3, base=0.01))
        with pytest.raises(ServerError, match="still starting") as raised:
            call("complete", MODEL_ID, "hello", record=record)
    assert len(server.requests) == record.attempts == 3
    assert "3 attempts" in raised.value.__notes__[0]


def test_one_attempt_means_no_second(connect):
    with FaultyServer(error(429, "slow down")) as server:
        call = connect(base_url=server.url, retries=RetryPolicy(attempts=1))
        with pytest.raises(RateLimitError):
            call("complete", MODEL_ID, "hello")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 501])
def test_an_error_that_another_attempt_would_not_cure_is_raised_at_once(connect, status):
    with FaultyServer(error(status, "no")) as server, pytest.raises(ApiError) as raised:
        connect(base_url=server.url)("complete", MODEL_ID, "hello")
    assert raised.value.status == status
    assert len(server.requests) == 1


def test_retry_after_is_waited_for(connect):
    record = CallRecord()
    with FaultyServer(error(429, "wait", headers={"Retry-After": "1"}), completion("thanks")) as server:
        begun = time.monotonic()
        connect(base_url=server.url)("complete", MODEL_ID, "hello", record=record)
        assert time.monotonic() - begun >= 1
    assert record.waited >= 1


def test_a_retry_after_beyond_the_total_time_is_not_waited_for_but_reported(connect):
    refusal = error(429, "come tomorrow", headers={"Retry-After": "86400"})
    with FaultyServer(refusal) as server, pytest.raises(RateLimitError, match="come tomorrow") as raised:
        connect(base_url=server.url)("complete", MODEL_ID, "hello")
    assert raised.value.retry_after == 86400
    assert len(server.requests) == 1


def test_a_call_waits_for_a_server_that_is_still_starting(connect):
    port = free_port()
    started: list[FaultyServer] = []
    threading.Timer(0.3, lambda: started.append(FaultyServer(trained(), port=port))).start()
    call = connect(
        base_url=f"http://127.0.0.1:{port}", retries=RetryPolicy(attempts=200, base=0.2, longest=0.2)
    )
    assert call("fine_tune", MODEL_ID, SAMPLES).number_of_trainable_tokens == 10
    with started[0] as server:
        assert len(server.requests) == 1


@pytest.mark.parametrize("operation", ["fine_tune", "create_model_adapter"])
class TestACallThatMustNotBeCarriedOutTwice:
    ARGUMENTS: ClassVar = {
        "fine_tune": ((MODEL_ID, SAMPLES), {}),
        "create_model_adapter": ((), {"base_model_id": "b", "name": "n"}),
    }
    ANSWER = reply(body={"numberOfTrainableTokens": 1, "sumLoss": 1.0, "id": MODEL_ID})

    def run(self, call, operation, **more):
        args, kwargs = self.ARGUMENTS[operation]
        return call(operation, *args, **kwargs, **more)

    @pytest.mark.parametrize("trouble", UNSURE, ids=["500", "502", "503", "504", "cut", "cut answer"])
    def test_is_not_sent_again_where_the_server_may_have_done_it(self, connect, operation, trouble):
        server = FaultyServer(trouble, self.ANSWER)
        with server, pytest.raises((ApiError, GradientConnectionError)) as raised:
            self.run(connect(base_url=server.url), operation)
        assert raised.value.outcome_unknown
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [429, 503])
    def test_is_sent_again_where_the_server_refused_it(self, connect, operation, status):
        refusal = error(status, "busy", headers={"Retry-After": "0"})
        with FaultyServer(refusal, refusal, self.ANSWER) as server:
            self.run(connect(base_url=server.url), operation)
        assert len(server.requests) == 3

    def test_is_known_not_to_be_done_where_there_was_no_connection(self, connect, operation):
        call = connect(base_url=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(GradientConnectionError, match="Connection refused") as raised:
            self.run(call, operation)
        assert not raised.value.outcome_unknown
        assert "5 attempts" in raised.value.__notes__[0]

    @pytest.mark.parametrize("status", [400, 401, 404, 429])
    def test_is_known_not_to_be_done_where_the_server_said_no(self, connect, operation, status):
        with FaultyServer(error(status, "no")) as server, pytest.raises(ApiError) as raised:
            self.run(connect(base_url=server.url), operation)
        assert not raised.value.outcome_unknown

    def test_may_be_done_where_the_answer_cannot_be_read(self, connect, operation):
        with FaultyServer(html()) as server, pytest.raises(InvalidResponseError) as raised:
            self.run(connect(base_url=server.url), operation)
        assert raised.value.outcome_unknown

    def test_is_not_sent_again_for_its_key_alone(self, connect, operation):
        with FaultyServer(cut(), self.ANSWER) as server, pytest.raises(GradientConnectionError):
            self.run(connect(base_url=server.url), operation, idempotency_key="k1")
        assert [request.headers["idempotency-key"] for request in server.requests] == ["k1"]

    def test_is_sent_again_with_its_key_once_the_server_has_echoed_one(self, connect, operation):
        def echo(request):
            headers = {"Idempotency-Key": request.headers["idempotency-key"]}
            body = {"numberOfTrainableTokens": 1, "sumLoss": 1.0, "id": MODEL_ID}
            return reply(body=body, headers=headers)

        with FaultyServer(echo, cut(), error(502, "lost"), echo, cut()) as server:
            call = connect(base_url=server.url)
            assert not call.client.honours_idempotency_keys
            self.run(call, operation, idempotency_key="k1")
            assert call.client.honours_idempotency_keys
            self.run(call, operation, idempotency_key="k2")
            keys = [request.headers["idempotency-key"] for request in server.requests]
            assert keys == ["k1", "k2", "k2", "k2"]
            with pytest.raises(GradientConnectionError):
                self.run(call, operation)
        assert len(server.requests) == 5

    @pytest.mark.parametrize("echoed", [{}, {"Idempotency-Key": "another"}], ids=["none", "another"])
    def test_counts_on_its_key_only_where_that_very_key_was_echoed(self, connect, operation, echoed):
        answer = {"numberOfTrainableTokens": 1, "sumLoss": 1.0, "id": MODEL_ID}
        with FaultyServer(reply(body=answer, headers=echoed)) as server:
            call = connect(base_url=server.url)
            self.run(call, operation, idempotency_key="k1")
        assert not call.client.honours_idempotency_keys

    def test_takes_a_connection_of_its_own(self, connect, operation):
        with FaultyServer(self.ANSWER) as server:
            call = connect(base_url=server.url)
            for _ in range(3):
                self.run(call, operation)
        assert server.connections == 3


@pytest.mark.usefixtures("restless")
def test_completions_keep_their_connection(connect):
    with FaultyServer(completion("yes")) as server:
        call = connect(base_url=server.url)
        for _ in range(5):
            call("complete", MODEL_ID, "hello")
    assert server.connections == 1


def test_a_kept_connection_that_the_server_has_closed_does_no_harm(connect):
    closing = Act(send=completion("yes").send, close=True)
    with FaultyServer(closing) as server:
        call = connect(base_url=server.url)
        for _ in range(3):
            assert call("complete", MODEL_ID, "hello").generated_output == "yes"


def test_a_repeated_delete_that_finds_nothing_has_deleted(connect):
    gone = error(404, "no such adapter", type="unknownModelAdapter")
    with FaultyServer(cut(), gone) as server:
        assert connect(base_url=server.url)("delete_model", MODEL_ID) is None
    server = FaultyServer(error(503, "busy", headers={"Retry-After": "0"}), gone)
    with server, pytest.raises(UnknownModelError):
        connect(base_url=server.url)("delete_model", MODEL_ID)


class TestTimeouts:
    def test_a_silent_server_is_left_after_the_read_time_out(self, connect):
        with FaultyServer(reply(wait=30)) as server:
            call = connect(
                base_url=server.url, timeouts=Timeouts(read=0.2), retries=RetryPolicy(attempts=2, base=0.01)
            )
            with pytest.raises(GradientTimeoutError):
                call("complete", MODEL_ID, "hello")
        assert len(server.requests) == 2

    @pytest.mark.parametrize("operation", ["complete", "list_models"])
    def test_the_total_time_bounds_all_attempts_together(self, connect, operation):
        with FaultyServer(reply(wait=30)) as server:
            call = connect(base_url=server.url, timeouts=Timeouts(read=0.3, total=0.8))
            begun = time.monotonic()
            with pytest.raises(GradientTimeoutError):
                call(operation, *([MODEL_ID, "hello"] if operation == "complete" else []))
            assert time.monotonic() - begun < 10
        assert len(server.requests) >= 2

    def test_the_silence_of_a_training_server_is_not_timed(self, connect):
        def act(request):
            return reply(body={"numberOfTrainableTokens": 1, "sumLoss": 1.0}, wait=0.8)

        with FaultyServer(act) as server:
            call = connect(base_url=server.url, timeouts=Timeouts(read=0.2))
            assert call("fine_tune", MODEL_ID, SAMPLES).sum_loss == 1.0

    def test_but_a_training_ends_with_the_total_time_and_may_have_been_done(self, connect):
        with FaultyServer(reply(wait=30)) as server:
            call = connect(base_url=server.url, timeouts=Timeouts(total=0.5))
            with pytest.raises(GradientTimeoutError) as raised:
                call("fine_tune", MODEL_ID, SAMPLES)
        assert raised.value.outcome_unknown
        assert len(server.requests) == 1

    @pytest.mark.parametrize("operation", ["complete", "fine_tune"])
    def test_a_handshake_that_never_ends_is_left_after_the_connect_time_out(self, connect, operation):
        with FaultyServer(Act(read=False, wait=30)) as server:
            url = server.url.replace("http://", "https://")
            call = connect(base_url=url, timeouts=Timeouts(connect=0.3), retries=RetryPolicy(attempts=1))
            with pytest.raises(GradientTimeoutError) as raised:
                call(operation, MODEL_ID, "hello" if operation == "complete" else SAMPLES)
        if operation == "fine_tune":
            assert not raised.value.outcome_unknown
