"""The connections that frequent calls of the asynchronous client keep, on either kind of event loop."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from faults import ACCESS_TOKEN, MODEL_ID, Act, FaultyServer, completion, cut, free_port, reply, wait_until

from airflow_provider_gradient.api import (
    GradientConnectionError,
    GradientTimeoutError,
    InvalidRequestError,
    InvalidResponseError,
)
from airflow_provider_gradient.client import AsyncGradientClient, RetryPolicy, Timeouts, pool
from tests.client.tunnel import TunnelProxy

pytestmark = pytest.mark.usefixtures("restless")

ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, base=0.01)
BODY = b'{"finishReason": "stop", "generatedOutput": "yes"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

Use = Callable[[AsyncGradientClient], Awaitable[Any]]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a function of a client: ``run(use, base_url=...)``."""

    def run_(use: Use, **arguments: Any) -> Any:
        async def main() -> Any:
            given = {"access_token": ACCESS_TOKEN, "workspace_id": "w", "retries": ONCE} | arguments
            async with AsyncGradientClient(**given) as client:
                return await use(client)

        return request.param(main())

    return run_


@pytest.fixture(autouse=True)
def _no_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def once(client: AsyncGradientClient) -> str:
    return (await client.complete(MODEL_ID, "hello")).generated_output


async def twice(client: AsyncGradientClient) -> list[str]:
    return [await once(client), await once(client)]


ANSWERS = {
    "with a length": WHOLE,
    "in chunks": CHUNKED + b"10\r\n%s\r\n22\r\n%s\r\n0\r\n\r\n" % (BODY[:16], BODY[16:]),
    "after others that only announce it": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + WHOLE,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_read_to_its_end_and_its_connection_used_again(run, answer):
    with FaultyServer(Act(send=ANSWERS[answer])) as server:
        assert run(twice, base_url=server.url) == ["yes", "yes"]
    assert server.connections == 1


ENDING = {
    "that says so": WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "of HTTP/1.0": WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("answer", ENDING)
def test_a_connection_is_not_used_after_an_answer(run, answer):
    with FaultyServer(Act(send=ENDING[answer])) as server:
        assert run(twice, base_url=server.url) == ["yes", "yes"]
    assert server.connections == 2


def test_the_head_of_an_earlier_answer_is_no_answer_to_the_next_call(run):
    empty = Act(send=b"HTTP/1.1 204 No Content\r\n\r\n")
    ends = Act(send=b"\r\n", close=True)  # in good order, and nothing said

    async def use(client: AsyncGradientClient) -> str:
        with pytest.raises(InvalidResponseError, match="HTTP 204"):
            await once(client)
        return await once(client)

    with FaultyServer(empty, ends) as server, pytest.raises(GradientConnectionError, match="was lost"):
        run(use, base_url=server.url)
    assert server.connections == 1


def test_an_answer_without_a_length_ends_with_its_connection(run):
    with FaultyServer(Act(send=HEAD + b"\r\n" + BODY, close=True)) as server:
        assert run(twice, base_url=server.url) == ["yes", "yes"]
    assert server.connections == 2


def test_what_comes_unasked_is_no_answer_to_the_next_call(run):
    async def use(client: AsyncGradientClient) -> list[str]:
        first = await once(client)
        await asyncio.sleep(0.1)
        return [first, await once(client)]

    other = WHOLE.replace(b"yes", b"bad")
    with FaultyServer(Act(send=WHOLE + other), completion("no")) as server:
        assert run(use, base_url=server.url) == ["yes", "no"]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Act(send=b"SSH-2.0-OpenSSH_9.2\r\n"), "the answer is no HTTP"),
        (Act(send=HEAD + b"Content-Length: 99\r\n\r\n{", close=True), "the connection was lost"),
        (Act(send=HEAD[:30], close=True), "the connection was lost"),
        (cut(), r"the connection was lost \(.*reset"),
    ],
)
def test_a_broken_answer_is_an_error_that_says_what_broke(run, script, says):
    with FaultyServer(script) as server, pytest.raises(GradientConnectionError, match=says) as raised:
        run(once, base_url=server.url)
    assert raised.value.outcome_unknown


def test_without_a_connection_nothing_was_sent(run):
    with pytest.raises(GradientConnectionError, match=r"no connection \(.*refused") as raised:
        run(once, base_url=f"http://127.0.0.1:{free_port()}")
    assert not raised.value.outcome_unknown


def test_a_name_that_nobody_has_is_no_connection(run):
    with pytest.raises(GradientConnectionError, match="no connection"):
        run(once, base_url="http://gradient.invalid")


def test_a_silent_server_is_left_after_the_read_time_out(run):
    with (
        FaultyServer(completion("yes", wait=5)) as server,
        pytest.raises(GradientTimeoutError, match=r"no answer within 0\.2 s"),
    ):
        run(once, base_url=server.url, timeouts=Timeouts(read=0.2))


def test_a_server_that_drips_is_not_silent_but_may_take_too_long(run):
    class Dripping(FaultyServer):
        def _answer(self, connection, stream, number):  # noqa: ARG002 - as it is called
            while stream.readline() != b"\r\n":
                pass
            for piece in (CHUNKED, *[b"1\r\n \r\n"] * 20, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)):
                connection.sendall(piece)
                self._stopped.wait(0.1)
            return False

    with Dripping() as server:
        assert run(once, base_url=server.url, timeouts=Timeouts(read=0.5)) == "yes"
        with pytest.raises(GradientTimeoutError, match="took too long"):
            run(once, base_url=server.url, timeouts=Timeouts(read=0.5, total=0.8))


def test_an_idle_connection_is_not_used_again_for_long(run, monkeypatch):
    async def use(client: AsyncGradientClient) -> None:
        await asyncio.gather(*(once(client) for _ in range(3)))
        await asyncio.sleep(0.3)
        await once(client)

    monkeypatch.setattr(pool, "KEPT_SECONDS", 0.1)
    with FaultyServer(completion("yes", wait=0.1)) as server:
        run(use, base_url=server.url)
        assert server.connections == 4
        wait_until(lambda: not server._open)  # the client has closed its last one too


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(run):
    async def use(client: AsyncGradientClient) -> str:
        await once(client)
        await asyncio.sleep(0.1)
        return await once(client)

    with FaultyServer(Act(send=WHOLE, close=True)) as server:
        assert run(use, base_url=server.url) == "yes"
    assert server.connections == 2


def test_a_cancelled_call_takes_its_connection_with_it(run):
    async def use(client: AsyncGradientClient) -> str:
        await once(client)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(once(client), 0.1)
        return await once(client)

    with FaultyServer(completion("first"), completion("late", wait=0.3), completion("third")) as server:
        assert run(use, base_url=server.url) == "third"
    assert server.connections == 2


def test_event_loops_at_once_have_connections_of_their_own(run):
    with FaultyServer(completion("yes", wait=0.02)) as server:
        client = AsyncGradientClient(access_token=ACCESS_TOKEN, workspace_id="w", base_url=server.url)
        answers: list[list[str]] = []

        async def use() -> None:
            answers.append([await once(client) for _ in range(10)])
            await client.aclose()

        threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [["yes"] * 10] * 4
    assert server.connections == 4


class TestProxies:
    def test_a_tunnel_leads_to_a_server_with_tls(self, run, authority):
        bundle, context = authority
        with (
            FaultyServer(completion("yes"), tls=context) as server,
            TunnelProxy(server.port) as proxy,
        ):
            given = proxy.url.replace("://", "://user:p%40ss@")
            answers = run(twice, base_url=server.url, verify=str(bundle), proxy=given)
        assert answers == ["yes", "yes"]
        (head,) = proxy.heads  # one tunnel, used again
        assert head.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n")
        pair = base64.b64encode(b"user:p@ss").decode()
        assert f"Proxy-Authorization: Basic {pair}\r\n" in head
        assert ACCESS_TOKEN not in head
        assert "proxy-authorization" not in server.requests[0].headers

    def test_a_proxy_may_be_spoken_to_with_tls_too(self, run, authority):
        bundle, context = authority
        with (
            FaultyServer(completion("yes"), tls=context) as server,
            TunnelProxy(server.port, tls=context) as proxy,
        ):
            assert run(once, base_url=server.url, verify=str(bundle), proxy=proxy.url) == "yes"

    def test_a_tunnel_to_an_unknown_authority_is_none(self, run, authority):
        with (
            FaultyServer(tls=authority[1]) as server,
            TunnelProxy(server.port) as proxy,
            pytest.raises(GradientConnectionError, match=r"no connection \(.*(?i:certificate)"),
        ):
            run(once, base_url=server.url, proxy=proxy.url)
        assert server.requests == []

    def test_a_refused_tunnel_sends_nothing_and_may_be_tried_again(self, run):
        with (
            TunnelProxy(1, status=407) as proxy,
            pytest.raises(
                GradientConnectionError, match=r"no connection \(the proxy: it answers HTTP 407"
            ) as raised,
        ):
            run(once, base_url="https://gradient.invalid", proxy=proxy.url, retries=TWICE)
        assert not raised.value.outcome_unknown
        assert [head.split()[1] for head in proxy.heads] == ["gradient.invalid:443"] * 2

    def test_of_a_tunnel_that_breaks_the_server_has_seen_nothing(self, run):
        with (
            FaultyServer(cut()) as proxy,
            pytest.raises(
                GradientConnectionError, match=r"no connection \(the proxy: the connection"
            ) as raised,
        ):
            run(once, base_url="https://gradient.invalid", proxy=f"http://127.0.0.1:{proxy.port}")
        assert not raised.value.outcome_unknown

    def test_a_server_that_goes_without_an_answer_has_not_answered_by_the_tunnels(self, run, authority):
        bundle, context = authority
        with (
            FaultyServer(Act(send=b"", close=True), tls=context) as server,
            TunnelProxy(server.port) as proxy,
            pytest.raises(GradientConnectionError, match="the connection was lost") as raised,
        ):
            run(once, base_url=server.url, verify=str(bundle), proxy=proxy.url)
        assert raised.value.outcome_unknown

    def test_credentials_of_a_proxy_are_sent_to_it(self, run):
        with FaultyServer(completion("yes")) as proxy:
            given = f"http://user:secret@127.0.0.1:{proxy.port}"
            assert run(once, base_url="http://gradient.invalid", proxy=given) == "yes"
        headers = proxy.requests[0].headers
        assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:secret").decode()
        assert headers["host"] == "gradient.invalid"

    @pytest.mark.parametrize("value", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
    @pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
    def test_the_environments_proxy_is_used_but_not_for_whom_it_excepts(self, run, monkeypatch, name, value):
        with FaultyServer(completion("by the proxy")) as proxy, FaultyServer(completion("itself")) as server:
            monkeypatch.setenv(name.lower(), value.format(port=proxy.port))
            assert run(once, base_url=server.url) == "by the proxy"
            monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
            assert run(once, base_url=server.url) == "itself"

    @pytest.mark.parametrize(
        "value", ["socks5://user:secret@127.0.0.1:1", "http://", "http://[::1", "http://.:1"]
    )
    def test_what_is_no_http_proxy_is_refused_without_repeating_it(self, run, monkeypatch, value):
        monkeypatch.setenv("all_proxy", value)
        with pytest.raises(InvalidRequestError, match=r"an HTTP proxy is needed.*ALL_PROXY") as raised:
            run(once, base_url="http://127.0.0.1:1")
        assert "secret" not in str(raised.value)


def test_a_server_with_an_address_of_version_6_is_called(run):
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = FaultyServer(completion("yes"))
    server._listener.close()
    server._listener = listener
    port = listener.getsockname()[1]
    threading.Thread(target=server._accept, daemon=True).start()
    with server:
        assert run(once, base_url=f"http://[::1]:{port}") == "yes"
    assert server.requests[0].headers["host"] == f"[::1]:{port}"


def test_a_refusal_is_read_like_any_answer(run):
    with FaultyServer(
        reply(429, {"message": "later"}, headers={"Retry-After": "0"}), completion("yes")
    ) as server:
        assert run(once, base_url=server.url, retries=TWICE) == "yes"
    assert server.connections == 1
