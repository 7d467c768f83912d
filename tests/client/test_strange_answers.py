"""Whatever a server sends, a call has its own answer or an error that says what is wrong, and the next call
has its own, too: with either client."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable

import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, Script, completion, reply, wait_until

from airflow_provider_gradient.api import (
    ApiError,
    GradientConnectionError,
    GradientError,
    GradientTimeoutError,
    InvalidResponseError,
    ResponseTooLargeError,
)
from airflow_provider_gradient.client import ResponseLimits, RetryPolicy, Timeouts, pool

ONCE = RetryPolicy(attempts=1)
QUICK = RetryPolicy(attempts=5, base=0.01)
BODY = b'{"finishReason": "stop", "generatedOutput": "yes"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"10\r\n%s\r\n22\r\n%s\r\n" % (BODY[:16], BODY[16:])
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
OTHER = WHOLE.replace(b"yes", b"bad")


def _compressed(body: bytes, encoding: bytes) -> bytes:
    head = HEAD + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (encoding, len(body)) + body


ANSWERS: dict[str, Act] = {
    "with a length": Act(send=WHOLE),
    "in chunks": Act(send=CHUNKED + CHUNKS + b"0\r\n\r\n"),
    "in chunks with extensions": Act(
        send=CHUNKED + b'32;a=b;c;d="e"\r\n%s\r\n0;f\r\n\r\n' % BODY,
    ),
    "with trailers, which say nothing": Act(
        send=CHUNKED + CHUNKS + b"0\r\nContent-Encoding: gzip\r\nX-Request-Id: 1\r\n\r\n"
    ),
    "after 100 Continue": Act(send=b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE),
    "after two times 103 Early Hints": Act(
        send=b"HTTP/1.1 103 Early Hints\r\nContent-Encoding: gzip\r\n\r\n" * 2 + WHOLE
    ),
    "of HTTP/1.0": Act(send=WHOLE.replace(b"1.1", b"1.0")),
    "of HTTP/1.0, ended by the connection's end": Act(
        send=HEAD.replace(b"1.1", b"1.0") + b"\r\n" + BODY, close=True
    ),
    "ended by the connection's end": Act(send=HEAD + b"\r\n" + BODY, close=True),
    "after which the server closes": Act(send=WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
    "without a reason": Act(send=WHOLE.replace(b" OK", b"")),
    "with a field that is empty": Act(send=WHOLE.replace(b"\r\n\r\n", b"\r\nX-Empty:\r\n\r\n")),
    "after empty lines": Act(send=b"\r\n\r\n" + WHOLE),
    "before an empty line": Act(send=WHOLE + b"\r\n"),
    "with another behind it": Act(send=WHOLE + OTHER),
    "with half of another behind it": Act(send=WHOLE + OTHER[:30]),
    "with a head behind it that lacks its body": Act(send=WHOLE + HEAD + b"\r\n"),
    "with garbage behind it": Act(send=WHOLE + b"\x00\xff{"),
    "in chunks, with another behind it": Act(send=CHUNKED + CHUNKS + b"0\r\n\r\n" + OTHER),
    "after which the server closes, with another behind it": Act(
        send=WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + OTHER
    ),
    "compressed unasked, by gzip": Act(send=_compressed(gzip.compress(BODY), b"gzip")),
    "compressed unasked, by deflate": Act(send=_compressed(zlib.compress(BODY), b"deflate")),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_its_calls_and_the_next_call_has_the_next(connect, answer):
    with FaultyServer(ANSWERS[answer], completion("next")) as server:
        call = connect(base_url=server.url, retries=ONCE, timeouts=Timeouts(read=5))
        assert call("complete", MODEL_ID, "hello").generated_output == "yes"
        assert call("complete", MODEL_ID, "hello").generated_output == "next"
    assert len(server.requests) == 2


def _with(field: bytes) -> bytes:
    return HEAD + field + b"\r\n\r\n" + BODY


NO_HTTP: dict[str, bytes] = {
    "two lengths that differ": _with(b"Content-Length: 50\r\nContent-Length: 49"),
    "two lengths that are the same": _with(b"Content-Length: 50\r\nContent-Length: 50"),
    "a list of lengths": _with(b"Content-Length: 50, 50"),
    "a negative length": _with(b"Content-Length: -50"),
    "a length with a sign": _with(b"Content-Length: +50"),
    "a length beyond all numbers": _with(b"Content-Length: 99999999999999999999999"),
    "a length beside chunks": _with(b"Content-Length: 50\r\nTransfer-Encoding: chunked"),
    "chunks beside a length": _with(b"Transfer-Encoding: chunked\r\nContent-Length: 50"),
    "a chunk of a size that is no number": CHUNKED + b"x\r\n" + BODY,
    "a chunk of a negative size": CHUNKED + b"-32\r\n" + BODY,
    "a chunk beyond all numbers": CHUNKED + b"fffffffffffffffff\r\n" + BODY,
    "a chunk longer than it says": CHUNKED + b"20\r\n" + BODY + b"\r\n0\r\n\r\n",
    "lines without a carriage return": WHOLE.replace(b"\r\n", b"\n"),
    "a field that is folded": _with(b"X-Long: a\r\n b\r\nContent-Length: 50"),
    "a space after a field's name": _with(b"Content-Length : 50"),
    "a zero byte in a field": _with(b"X-Zero: a\x00b\r\nContent-Length: 50"),
    "another protocol from now on": b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + WHOLE,
    "another protocol, not named": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + WHOLE,
    "garbage before it": b"xx" + WHOLE,
    "no head at all": BODY,
    "frames of HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a status of two digits": WHOLE.replace(b"200", b"20"),
    "a status of four digits": WHOLE.replace(b"200", b"2000"),
    "a request": b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", NO_HTTP)
def test_what_is_no_http_is_no_answer_and_the_next_call_has_its_own(connect, answer):
    with FaultyServer(Act(send=NO_HTTP[answer]), completion("next")) as server:
        call = connect(base_url=server.url, retries=ONCE, timeouts=Timeouts(read=5))
        with pytest.raises(GradientConnectionError, match="the answer is no HTTP") as raised:
            call("complete", MODEL_ID, "hello")
        assert raised.value.outcome_unknown
        assert call("complete", MODEL_ID, "hello").generated_output == "next"
    assert server.connections == 2


BROKEN: dict[str, tuple[Act, type[GradientError], str]] = {
    "a length that is too long": (
        Act(send=HEAD + b"Content-Length: 60\r\n\r\n" + BODY, close=True),
        GradientConnectionError,
        "the connection was lost",
    ),
    "a length that is too long, and a server that waits": (
        Act(send=HEAD + b"Content-Length: 60\r\n\r\n" + BODY),
        GradientTimeoutError,
        "no answer within",
    ),
    "a head alone, as for HEAD": (
        Act(send=HEAD + b"Content-Length: 60\r\n\r\n"),
        GradientTimeoutError,
        "no answer within",
    ),
    "a length that is too short": (
        Act(send=HEAD + b"Content-Length: 40\r\n\r\n" + BODY),
        InvalidResponseError,
        "not as a Gradient server",
    ),
    "chunks without an end": (
        Act(send=CHUNKED + CHUNKS, close=True),
        GradientConnectionError,
        "the connection was lost",
    ),
    "a coding that is not known": (
        Act(send=HEAD + b"Transfer-Encoding: odd\r\n\r\n" + BODY, close=True),
        GradientConnectionError,
        "the connection was lost",
    ),
    "only 100 Continue": (
        Act(send=b"HTTP/1.1 100 Continue\r\n\r\n", close=True),
        GradientConnectionError,
        "the connection was lost",
    ),
    "204 with a body": (
        Act(send=WHOLE.replace(b"200 OK", b"204 No Content")),
        InvalidResponseError,
        "HTTP 204",
    ),
    "304 with a body": (
        Act(send=WHOLE.replace(b"200 OK", b"304 Not Modified")),
        InvalidResponseError,
        "HTTP 304",
    ),
    "a compression that is not known": (
        Act(send=_compressed(BODY[::-1], b"br")),
        InvalidResponseError,
        "not as a Gradient server",
    ),
    "a compressed body that is damaged": (
        Act(send=_compressed(gzip.compress(BODY)[:-9], b"gzip")),
        InvalidResponseError,
        "not as a Gradient server",
    ),
}


@pytest.mark.parametrize("answer", BROKEN)
def test_a_broken_answer_is_an_error_and_the_next_call_has_its_own(connect, answer):
    act, error, words = BROKEN[answer]
    with FaultyServer(act, completion("next")) as server:
        call = connect(base_url=server.url, retries=ONCE, timeouts=Timeouts(read=0.2))
        with pytest.raises(error, match=words):
            call("complete", MODEL_ID, "hello")
        call.client._timeouts = Timeouts(read=5)
        assert call("complete", MODEL_ID, "hello").generated_output == "next"


@pytest.mark.parametrize("close", [True, False], ids=["then closes", "then reads on"])
def test_an_answer_that_comes_before_the_body_was_sent_is_heard(connect, close):
    refused = b"HTTP/1.1 413 Too Large\r\nContent-Length: 24\r\n\r\n" + b'{"message": "too large"}'
    query = "x" * (12 << 20)  # more than the sockets hold
    with FaultyServer(Act(early=True, send=refused, close=close), completion("next")) as server:
        call = connect(base_url=server.url, retries=ONCE, timeouts=Timeouts(read=5))
        with pytest.raises((ApiError, GradientConnectionError), match=r"too large|was lost"):
            call("complete", MODEL_ID, query)
        assert call("complete", MODEL_ID, "hello").generated_output == "next"
    assert server.connections == 2


class TestAnswersThatNobodyAskedFor:
    """A server that now and then answers twice, a moment later."""

    def texts(self, call, rows: int) -> list[str]:
        return [call("complete", MODEL_ID, f"row {row}").generated_output for row in range(rows)]

    def twice(self, *, after: float, tell: Callable[[Received], str | None]) -> Script:
        def act(request: Received) -> Act:
            query = request.json()["query"]
            told = tell(request)
            headers = {} if told is None else {"X-Request-Id": told}
            answer = reply(body={"finishReason": "stop", "generatedOutput": query}, headers=headers).send
            again = answer if query.endswith("3") else b""
            return Act(send=answer, then=again, then_after=after)

        return act

    @pytest.mark.parametrize("after", [0.0, 0.003])
    def test_are_no_answers_to_the_next_call_where_the_server_tells_whose_they_are(self, connect, after):
        told = self.twice(after=after, tell=lambda request: request.headers["x-request-id"])
        with FaultyServer(told) as server:
            call = connect(base_url=server.url, retries=QUICK)
            assert self.texts(call, 25) == [f"row {row}" for row in range(25)]

    def test_are_found_out_while_a_connection_rests_where_the_server_does_not_tell_whose_they_are(
        self, connect, monkeypatch
    ):
        monkeypatch.setattr(pool, "REST_SECONDS", 0.3)  # time enough for a busy machine
        with FaultyServer(self.twice(after=0.003, tell=lambda _: None)) as server:
            call = connect(base_url=server.url, retries=ONCE)
            for row in (3, 4, 5):
                assert call("complete", MODEL_ID, f"row {row}").generated_output == f"row {row}"
            time.sleep(0.4)
            assert self.texts(call, 3) == ["row 0", "row 1", "row 2"]
        assert [request.connection for request in server.requests] == [1, 2, 3, 3, 2, 4]

    @pytest.mark.usefixtures("restless")
    def test_are_no_answers_to_the_next_call_where_they_have_come_before_it_is_sent(self, connect):
        with FaultyServer(self.twice(after=0.0, tell=lambda _: None)) as server:
            call = connect(base_url=server.url, retries=QUICK)
            for row in range(15):
                assert call("complete", MODEL_ID, f"row {row}").generated_output == f"row {row}"
                if row % 10 == 3:
                    time.sleep(0.05)  # the event loop does not run, so it has read nothing
        assert server.connections >= 3

    @pytest.mark.usefixtures("restless")
    def test_are_no_answers_where_two_come_at_once_and_nobody_knows_which_is_late(self, connect):
        with FaultyServer(completion("first"), Act(send=OTHER + WHOLE), completion("yes")) as server:
            call = connect(base_url=server.url, retries=QUICK)
            assert call("complete", MODEL_ID, "hello").generated_output == "first"
            assert call("complete", MODEL_ID, "hello").generated_output == "yes"
        assert [request.connection for request in server.requests] == [1, 1, 2]


class TestRequestIds:
    def test_are_sent_with_each_attempt_and_never_the_same(self, connect):
        with FaultyServer(reply(503, headers={"Retry-After": "0"}), completion("yes")) as server:
            call = connect(base_url=server.url, retries=QUICK)
            for _ in range(3):
                call("complete", MODEL_ID, "hello")
        assert len({request.headers["x-request-id"] for request in server.requests}) == 4

    @pytest.mark.parametrize(
        "told",
        [
            lambda _: "a-gateways-own-id",
            lambda sent: f"{sent}, gateway-1",
            lambda sent: f"gateway/{sent}",
            lambda sent: f"{sent}-1",
            lambda sent: sent.upper(),
            lambda _: "",
            lambda sent: "f" * len(sent),
        ],
    )
    @pytest.mark.usefixtures("restless")
    def test_of_the_servers_own_say_nothing(self, connect, told):
        def act(request: Received) -> Act:
            body = {"finishReason": "stop", "generatedOutput": request.json()["query"]}
            return reply(body=body, headers={"X-Request-Id": told(request.headers["x-request-id"])})

        with FaultyServer(act) as server:
            call = connect(base_url=server.url, retries=ONCE)
            for row in range(3):
                assert call("complete", MODEL_ID, f"row {row}").generated_output == f"row {row}"
        assert server.connections == 1

    def test_of_another_request_make_an_answer_none(self, connect):
        seen: list[str] = []

        def act(request: Received) -> Act:
            seen.append(request.headers["x-request-id"])
            return reply(
                body={"finishReason": "stop", "generatedOutput": "yes"}, headers={"X-Request-Id": seen[0]}
            )

        with FaultyServer(act) as server:
            call = connect(base_url=server.url, retries=ONCE)
            assert call("complete", MODEL_ID, "hello").generated_output == "yes"
            with pytest.raises(GradientConnectionError, match="another request's") as raised:
                call("complete", MODEL_ID, "hello")
        assert raised.value.outcome_unknown


LIMITS = ResponseLimits(body_bytes=100_000, header_bytes=20_000)
PIECE = b"x" * 5_000
ENDLESS: dict[str, tuple[Act, str]] = {
    "a body with a length": (
        Act(send=HEAD + b"Content-Length: 3000000000\r\n\r\n", endless=PIECE),
        "larger than 100000 bytes",
    ),
    "a body in chunks": (
        Act(send=CHUNKED, endless=b"1388\r\n%s\r\n" % PIECE),
        "larger than 100000 bytes",
    ),
    "a body in small chunks": (
        Act(send=CHUNKED, endless=b"1\r\nx\r\n" * 1000),
        "larger than 100000 bytes",
    ),
    "a body without a length": (Act(send=HEAD + b"\r\n", endless=PIECE), "larger than 100000 bytes"),
    "a body of an error": (
        Act(send=CHUNKED.replace(b"200", b"500"), endless=b"1388\r\n%s\r\n" % PIECE),
        "larger than 100000 bytes",
    ),
    "a body of a refusal": (
        Act(send=CHUNKED.replace(b"200", b"429"), endless=b"1388\r\n%s\r\n" % PIECE),
        "larger than 100000 bytes",
    ),
    "a body that is small while it is compressed": (
        Act(send=_compressed(gzip.compress(bytes(1 << 24)), b"gzip")),
        "larger than 100000 bytes",
    ),
    "header fields": (Act(send=HEAD, endless=b"X-Field: value\r\n" * 300), "larger than 20000 bytes"),
    "a header field's name": (Act(send=HEAD, endless=PIECE), "larger than 20000 bytes"),
    "a header field's value": (Act(send=HEAD + b"X: ", endless=PIECE), "larger than 20000 bytes"),
    "a reason": (Act(send=b"HTTP/1.1 200 ", endless=PIECE), "larger than 20000 bytes"),
    "empty lines": (Act(send=b"\r\n", endless=b"\r\n" * 1000), "larger than 20000 bytes"),
    "early hints": (
        Act(endless=b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100),
        "larger than 20000 bytes",
    ),
    "100 Continue": (Act(endless=b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "larger than 20000 bytes"),
    "a chunk's extension": (Act(send=CHUNKED + b"1;", endless=PIECE), "larger than 20000 bytes"),
    "extensions of chunks": (
        Act(send=CHUNKED, endless=b"1;%s\r\nx\r\n" % PIECE),
        "larger than 20000 bytes",
    ),
    "trailers": (
        Act(send=CHUNKED + CHUNKS + b"0\r\n", endless=b"X-Field: value\r\n" * 300),
        "larger than 20000 bytes",
    ),
    "a trailer's value": (
        Act(send=CHUNKED + CHUNKS + b"0\r\nX: ", endless=PIECE),
        "larger than 20000 bytes",
    ),
}


@pytest.mark.parametrize("answer", ENDLESS)
@pytest.mark.parametrize("operation", ["complete", "embed", "list_models"])
def test_an_answer_without_an_end_is_broken_off_and_not_asked_for_again(connect, answer, operation):
    act, words = ENDLESS[answer]
    asked = {"complete": (MODEL_ID, "hello"), "embed": ("bge-large", ["hello"]), "list_models": ()}
    with FaultyServer(act) as server:
        call = connect(base_url=server.url, retries=QUICK, limits=LIMITS, timeouts=Timeouts(read=5))
        with pytest.raises(ResponseTooLargeError, match=f"{words}; raise") as raised:
            call(operation, *asked[operation])
        assert raised.value.outcome_unknown
        wait_until(lambda: not server._open)  # the connection was closed at once
    assert len(server.requests) == 1


def test_an_answer_as_large_as_it_may_be_is_read(connect):
    text = "x" * 90_000
    with FaultyServer(completion(text)) as server:
        assert connect(base_url=server.url, limits=LIMITS)("complete", MODEL_ID, "q").generated_output == text


@pytest.mark.parametrize("limits", [{"body_bytes": 0}, {"header_bytes": -1}, {"body_bytes": 1.5}])
def test_a_limit_that_is_none_is_refused(limits):
    with pytest.raises(ValueError, match=rf"limits\.{next(iter(limits))} must be"):
        ResponseLimits(**limits)
