"""The hook: what a connection must hold, where the environment stands in, and what a test says is wrong."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow_version import OLD_AIRFLOW
from faults import Act, FaultyServer, error, free_port, html, reply

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import Timeouts

Define = Callable[..., None]
CREDENTIALS: dict[str, Any] = {
    "password": "a-token-nobody-may-see",
    "extra": {"workspace_id": "team_workspace"},
}


@pytest.fixture
def hook(airflow_database: Any) -> Any:
    """The hook of ``gradient_default``."""
    from airflow_provider_gradient.hooks.gradient import GradientHook

    return GradientHook()


def test_the_client_of_a_connection_talks_to_its_server(gradient_default: Any, hook: Any) -> None:
    with hook.get_conn() as client:
        assert [model.slug for model in client.list_models(only_base=True)] == ["tiny"]


def test_the_async_client_of_a_connection_talks_to_its_server(gradient_default: Any, hook: Any) -> None:
    async def slugs() -> list[str]:
        async with await hook.get_async_conn() as client:
            return [model.slug for model in await client.list_models(only_base=True)]

    assert asyncio.run(slugs()) == ["tiny"]


def test_the_llm_of_a_connection_answers(gradient_default: Any, hook: Any) -> None:
    with hook.get_conn() as client:
        [model] = client.list_models(only_base=True)
    llm = hook.get_llm(model.id, max_generated_token_count=4, temperature=0)
    assert isinstance(llm.invoke("Question: What is the capital of France?\n\nAnswer:"), str)
    assert gradient_default.access_token not in repr(llm)


def test_environment_variables_serve_where_there_is_no_connection(
    gradient_environment: Any, hook: Any
) -> None:
    with hook.get_conn() as client:
        assert client.list_models(only_base=True)
    assert hook.test_connection()[0] is True


def test_neither_connection_nor_environment_names_the_variables_that_are_missing(hook: Any) -> None:
    with pytest.raises(
        InvalidRequestError,
        match=r"'gradient_default'.*GRADIENT_ACCESS_TOKEN and GRADIENT_WORKSPACE_ID not set",
    ):
        hook.get_conn()
    with pytest.raises(InvalidRequestError, match="GRADIENT_ACCESS_TOKEN"):
        asyncio.run(hook.get_async_conn())


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"host": "localhost:1", "extra": {"workspace_id": "w"}}, "an access token (field password)"),
        ({"host": "localhost:1", "password": "token-1"}, "a workspace id (workspace_id in extra)"),
        ({"password": "token-1", "extra": {"workspace_id": "w"}}, "a server URL (field host)"),
    ],
)
def test_a_connection_that_lacks_a_field_is_not_filled_in_from_the_environment(
    fields: dict[str, Any], missing: str, gradient_environment: Any, airflow_connection: Define, hook: Any
) -> None:
    airflow_connection("gradient_default", **fields)
    with pytest.raises(InvalidRequestError) as caught:
        hook.get_conn()
    assert str(caught.value) == f"The Airflow connection 'gradient_default' lacks {missing}."
    assert hook.test_connection() == (False, str(caught.value))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"read_timeout": "soon"}, "read_timeout must be a number of seconds above 0 (got 'soon')"),
        ({"total_timeout": 0}, "total_timeout must be a number of seconds above 0 (got 0)"),
        ({"connect_timeout": True}, "connect_timeout must be a number of seconds above 0 (got True)"),
        ({"max_response_bytes": 0}, "max_response_bytes must be a whole number of bytes above 0 (got 0)"),
        ({"max_response_bytes": "1 MB"}, "max_response_bytes must be a whole number of bytes above 0"),
        ({"ca_bundle": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
    ],
)
def test_a_wrong_value_in_extra_is_named(
    extra: dict[str, Any], message: str, airflow_connection: Define, hook: Any
) -> None:
    airflow_connection(
        "gradient_default", host="localhost", password="token-1", extra={"workspace_id": "w", **extra}
    )
    with pytest.raises(InvalidRequestError) as caught:
        hook.get_conn()
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [1 << 30, str(1 << 30)])
def test_a_connection_may_allow_larger_answers(airflow_connection: Define, hook: Any, value: object) -> None:
    extra = {"workspace_id": "w", "max_response_bytes": value}
    airflow_connection("gradient_default", host="localhost", password="token-1", extra=extra)
    with hook.get_conn() as client:
        assert client.limits.body_bytes == 1 << 30
        assert hook.get_llm("a model")._async_client.limits.body_bytes == 1 << 30


@pytest.mark.skipif(OLD_AIRFLOW, reason="Airflow 3.1 takes a connection that it can't read for none")
def test_extra_that_is_no_object_is_named(airflow_connection: Define, hook: Any) -> None:
    airflow_connection("gradient_default", host="localhost", password="token-1", extra="workspace_id=w")
    with pytest.raises(InvalidRequestError, match="extra must be a JSON object"):
        hook.get_conn()


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "https://gradient.example.com/api"}, "https://gradient.example.com/api"),
        ({"host": "gradient.example.com"}, "https://gradient.example.com"),
        ({"host": "gradient.example.com/gateway/api"}, "https://gradient.example.com/gateway/api"),
        ({"host": "gradient.example.com", "port": 8443}, "https://gradient.example.com:8443"),
        ({"host": "gradient.example.com/api", "schema": "http"}, "http://gradient.example.com/api"),
        ({"host": "localhost:3026"}, "http://localhost:3026"),
        ({"host": "127.0.0.1", "port": 3026}, "http://127.0.0.1:3026"),
        ({"host": "[::1]:3026"}, "http://[::1]:3026"),
        ({"host": "http://gradient.internal:80", "port": 443}, "http://gradient.internal:80"),
    ],
)
def test_a_host_without_a_scheme_means_https_and_on_the_loopback_http(
    fields: dict[str, Any], url: str, airflow_connection: Define, hook: Any
) -> None:
    airflow_connection("gradient_default", **CREDENTIALS, **fields)
    assert hook._connection().base_url == url


def test_a_host_of_another_protocol_is_refused(airflow_connection: Define, hook: Any) -> None:
    airflow_connection("gradient_default", **CREDENTIALS, host="ftp://gradient.example.com")
    with pytest.raises(InvalidRequestError, match="host must be an http or https URL"):
        hook.get_conn()


def test_time_outs_may_be_numbers_or_their_text_as_a_connection_uri_gives_them(
    monkeypatch: pytest.MonkeyPatch, hook: Any
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_GRADIENT_DEFAULT",
        "gradient://:token-1@localhost:3026/?workspace_id=w&connect_timeout=2&read_timeout=3.5",
    )
    connection = hook._connection()
    assert connection.timeouts == Timeouts(connect=2.0, read=3.5)
    assert connection.base_url == "http://localhost:3026"


def test_a_good_connection_says_where_it_connected_to(gradient_default: Any, hook: Any) -> None:
    works, message = hook.test_connection()
    assert works, message
    assert message.startswith(f"Connected to {gradient_default.url}: ")


def test_a_wrong_workspace_is_named(gradient_server: Any, airflow_connection: Define, hook: Any) -> None:
    airflow_connection(
        "gradient_default",
        host=gradient_server.url,
        password=gradient_server.access_token,
        extra={"workspace_id": "another_workspace"},
    )
    works, message = hook.test_connection()
    assert not works
    assert "not allowed in workspace 'another_workspace' (403)" in message


def test_a_server_that_is_down_is_told_from_one_that_refuses(airflow_connection: Define, hook: Any) -> None:
    airflow_connection("gradient_default", **CREDENTIALS, host=f"http://127.0.0.1:{free_port()}/api")
    works, message = hook.test_connection()
    assert not works
    assert message.startswith("No route to http://127.0.0.1:")


def test_a_host_that_does_not_exist_is_no_route(airflow_connection: Define, hook: Any) -> None:
    airflow_connection("gradient_default", **CREDENTIALS, host="https://gradient.invalid/api")
    works, message = hook.test_connection()
    assert not works
    assert "https://gradient.invalid/api" in message


def test_a_private_certificate_is_trusted_only_with_its_ca_bundle(
    private_certificate: Path, airflow_connection: Define, hook: Any
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(private_certificate)
    with FaultyServer(reply(body={"models": []}), tls=context) as server:
        airflow_connection("gradient_default", **CREDENTIALS, host=server.url)
        works, message = hook.test_connection()
        assert not works
        assert message.startswith(f"No secure connection to {server.url}: ")
        assert server.requests == []
        extra = {**CREDENTIALS["extra"], "ca_bundle": str(private_certificate)}
        airflow_connection("gradient_default", password=CREDENTIALS["password"], extra=extra, host=server.url)
        assert hook.test_connection() == (True, f"Connected to {server.url}: 0 models in this workspace.")


def test_a_plain_server_behind_an_https_url_is_no_secure_connection(
    gradient_server: Any, airflow_connection: Define, hook: Any
) -> None:
    airflow_connection("gradient_default", **CREDENTIALS, host=gradient_server.url.replace("http:", "https:"))
    works, message = hook.test_connection()
    assert not works
    assert gradient_server.url.replace("http:", "https:") in message


@pytest.mark.parametrize(
    "answer",
    [
        html(200),
        html(404),
        reply(200, {"models": "many"}),
        reply(200, [1, 2]),
        reply(302, b"", content_type=""),
    ],
)
def test_something_else_than_a_gradient_server_is_recognised(
    answer: Act, airflow_connection: Define, hook: Any
) -> None:
    with FaultyServer(answer) as server:
        airflow_connection("gradient_default", **CREDENTIALS, host=server.url)
        works, message = hook.test_connection()
    assert not works
    assert f"Something answers at {server.url}, but it is not a Gradient server" in message


def test_a_failing_server_is_reported_with_its_words(airflow_connection: Define, hook: Any) -> None:
    with FaultyServer(error(503, "being upgraded")) as server:
        airflow_connection("gradient_default", **CREDENTIALS, host=server.url)
        works, message = hook.test_connection()
    assert not works
    assert "reports an error: being upgraded (HTTP 503)" in message


def test_a_server_that_never_answers_is_given_up_on(
    airflow_connection: Define, hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_gradient.hooks.gradient._TEST_SECONDS", 0.3)
    with FaultyServer(reply(body={"models": []}, wait=30)) as server:
        airflow_connection("gradient_default", **CREDENTIALS, host=server.url)
        works, message = hook.test_connection()
    assert not works
    assert message.startswith(f"The server at {server.url} did not answer in time")


def test_the_token_is_masked_in_what_airflow_logs(
    gradient_environment: Any, airflow_connection: Define, hook: Any
) -> None:
    from airflow.sdk.log import redact

    hook.get_conn().close()
    assert gradient_environment.access_token not in str(redact(f"sent {gradient_environment.access_token}"))
    airflow_connection("gradient_default", host="localhost", **CREDENTIALS)
    hook.get_conn().close()
    assert CREDENTIALS["password"] not in str(redact(f"sent {CREDENTIALS['password']}"))


def test_nothing_that_can_be_printed_shows_the_token(airflow_connection: Define, hook: Any) -> None:
    airflow_connection("gradient_default", host="localhost", **CREDENTIALS)
    with hook.get_conn() as client:
        shown = repr([client, hook, hook._connection(), vars(hook)])
    assert "nobody-may-see" not in shown
