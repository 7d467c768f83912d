"""Where a client gets its settings from, and which it refuses."""

from __future__ import annotations

import httpx
import pytest
from faults import ACCESS_TOKEN, MODEL_ID, FaultyServer, completion, reply
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.api import GradientConnectionError, InvalidRequestError
from airflow_provider_gradient.client import GradientClient, RetryPolicy, Timeouts, normalise_base_url

URLS = {
    "https://x": "https://x/api",
    "https://x/": "https://x/api",
    "https://x/api": "https://x/api",
    "https://x/api/": "https://x/api",
    "https://x//": "https://x/api",
    "https://x/gw": "https://x/gw/api",
    "https://x/gw/": "https://x/gw/api",
    "https://x/gw/api": "https://x/gw/api",
    "https://x/gw/api/": "https://x/gw/api",
    "https://x/myapi": "https://x/myapi/api",
    "https://x/api/v2": "https://x/api/v2/api",
    "  https://x/api\n": "https://x/api",
    "HTTP://LOCALHOST:3026": "http://localhost:3026/api",
    "http://[::1]:80/": "http://[::1]:80/api",
    "http://127.0.0.1:1/a%20b/": "http://127.0.0.1:1/a%20b/api",
}
NO_URLS = {
    "http://.0": "host",
    "": "http",
    "x": "begin with http:// or https://",
    "localhost:3026": "begin with http:// or https://",
    "x.example.com/api": "begin with http:// or https://",
    "ftp://x/api": "begin with http:// or https://",
    "http:/x": "begin with http:// or https://",
    "http://": "host",
    "http:///api": "host",
    "http://x y/api": "host",
    "http://x:port/api": "not a URL",
    "http://x:99999/api": "not a URL",
    "http://[::1/api": "not a URL",
    "https://x/api?key=1": "query",
    "https://x/api#here": "fragment",
    "https://user:secret@x/api": "credentials",
    "https://secret@x": "credentials",
    "user:secret@x": "credentials",
}


@pytest.mark.parametrize("url", URLS)
def test_a_base_url_is_brought_to_one_form(url):
    assert normalise_base_url(url) == URLS[url]
    assert normalise_base_url(URLS[url]) == URLS[url]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_base_url_is_refused_without_repeating_secrets(url):
    with pytest.raises(InvalidRequestError, match=NO_URLS[url]) as raised:
        normalise_base_url(url)
    assert "secret" not in str(raised.value)


@given(st.text() | st.text().map("http://x".__add__) | st.text().map("https://x/".__add__))
def test_any_text_is_a_base_url_that_can_be_called_or_a_clear_error(text):
    try:
        url = normalise_base_url(text)
    except InvalidRequestError:
        return
    assert url.endswith("/api")
    assert normalise_base_url(url) == url
    host = httpx.URL(url).raw_host
    assert host
    assert host.decode().encode("idna")


def test_the_environment_serves_where_an_argument_lacks(monkeypatch):
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", " from-the-environment\n")
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", "from-there-too")
    assert GradientClient().base_url == "https://api.gradient.ai/api"
    monkeypatch.setenv("GRADIENT_API_URL", "http://127.0.0.1:1")
    client = GradientClient()
    assert (client.base_url, client.workspace_id) == ("http://127.0.0.1:1/api", "from-there-too")
    assert GradientClient(workspace_id="mine", base_url="http://x").workspace_id == "mine"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"workspace_id": "w"}, "access_token.*GRADIENT_ACCESS_TOKEN"),
        ({"access_token": "t"}, "workspace_id.*GRADIENT_WORKSPACE_ID"),
        ({"access_token": " ", "workspace_id": "w"}, "access_token"),
        ({"access_token": "secret\nX-Evil: 1", "workspace_id": "w"}, "access_token"),
        ({"access_token": "sécret", "workspace_id": "w"}, "access_token"),
        (
            {"access_token": "t", "workspace_id": "w", "verify": "/no/such/bundle.pem"},
            "verify.*no/such/bundle",
        ),
        ({"access_token": "t", "workspace_id": "w", "proxy": "secret:proxy"}, "proxy"),
    ],
)
def test_a_missing_or_wrong_setting_is_named(connect, arguments, names):
    with pytest.raises(InvalidRequestError, match=names) as raised:
        GradientClient(**arguments)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeouts(connect=0),
        lambda: Timeouts(read=-1),
        lambda: Timeouts(total=float("inf")),
        lambda: Timeouts(total="60"),
        lambda: RetryPolicy(attempts=0),
        lambda: RetryPolicy(attempts=2.5),
        lambda: RetryPolicy(base=0),
        lambda: RetryPolicy(longest=float("nan")),
    ],
)
def test_impossible_times_are_refused(make):
    with pytest.raises(InvalidRequestError, match=r"(timeouts|retries)\.\w+ must be"):
        make()


def test_a_client_shows_where_it_calls_and_not_its_token(connect):
    client = connect(base_url="http://127.0.0.1:1", proxy="http://user:proxy-secret@127.0.0.1:2").client
    assert "http://127.0.0.1:1/api" in repr(client)
    for shown in (repr(client), repr(client._endpoint), str(vars(client))):
        assert ACCESS_TOKEN not in shown
        assert "proxy-secret" not in shown


@pytest.mark.parametrize("operation", ["complete", "list_models"])
def test_calls_go_through_the_proxy_that_is_given(connect, operation):
    answer = completion("yes") if operation == "complete" else reply(body={"models": []})
    with FaultyServer(answer) as proxy:
        call = connect(base_url="http://gradient.invalid", proxy=f"http://127.0.0.1:{proxy.port}")
        call(operation, *([MODEL_ID, "hello"] if operation == "complete" else []))
    assert proxy.requests[0].path.startswith("http://gradient.invalid/api/models")


@pytest.mark.parametrize("operation", ["complete", "list_models"])
class TestCertificates:
    def run(self, call, operation):
        return call(operation, *([MODEL_ID, "hello"] if operation == "complete" else []))

    def answer(self, operation):
        return completion("yes") if operation == "complete" else reply(body={"models": []})

    def test_of_an_authority_in_the_bundle_are_trusted(self, connect, authority, operation):
        bundle, context = authority
        with FaultyServer(self.answer(operation), tls=context) as server:
            self.run(connect(base_url=server.url, verify=str(bundle)), operation)
        assert len(server.requests) == 1

    def test_of_an_unknown_authority_are_not(self, connect, authority, operation):
        with FaultyServer(self.answer(operation), tls=authority[1]) as server:
            call = connect(base_url=server.url, retries=RetryPolicy(attempts=1))
            with pytest.raises(GradientConnectionError, match=r"(?i)certificate"):
                self.run(call, operation)
        assert server.requests == []

    def test_are_not_looked_at_where_verification_is_off(self, connect, authority, operation):
        with FaultyServer(self.answer(operation), tls=authority[1]) as server:
            self.run(connect(base_url=server.url, verify=False), operation)
        assert len(server.requests) == 1

    def test_that_are_none_are_an_error_that_names_the_bundle(self, connect, tmp_path, operation):
        bundle = tmp_path / "bundle.pem"
        bundle.write_text("nothing of the kind")
        call = connect(base_url="https://127.0.0.1:1", verify=str(bundle))
        with pytest.raises(InvalidRequestError, match=r"bundle\.pem"):
            self.run(call, operation)
