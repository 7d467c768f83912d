"""What becomes of answers: results, typed errors, and what is no Gradient server's answer."""

from __future__ import annotations

import logging
import pickle
import traceback
from datetime import UTC, datetime

import pytest
from faults import ACCESS_TOKEN, MODEL_ID, FaultyServer, completion, cut, error, free_port, html, reply

from airflow_provider_gradient import api
from airflow_provider_gradient.client import RetryPolicy, Timeouts

BASE = {
    "type": "baseModel",
    "id": "b" * 50,
    "name": "Base",
    "slug": "tiny",
    "capabilities": ["complete", "fineTune"],
}
ADAPTER = {
    "type": "modelAdapter",
    "id": "a" * 50,
    "name": "Mine",
    "baseModelId": "b" * 50,
    "latestUpdateTime": "2024-05-06T07:08:09Z",
}


def test_the_models_come_as_values(connect):
    with FaultyServer(reply(body={"models": [BASE, ADAPTER], "aFieldOfTomorrow": 1})) as server:
        base, adapter = connect(base_url=server.url)("list_models")
    assert (base.slug, base.capabilities) == ("tiny", ["complete", "fineTune"])
    assert adapter.base_model_id == base.id
    assert adapter.latest_update_time == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize("wanted", ["tiny", "b" * 50])
def test_a_base_model_is_found_by_slug_or_id(connect, wanted):
    with FaultyServer(reply(body={"models": [BASE]})) as server:
        assert connect(base_url=server.url)("find_base_model", wanted).name == "Base"
    assert server.requests[0].path == "/api/models?capability=any&onlyBase=true"


def test_an_unknown_slug_names_the_ones_there_are(connect):
    models = [BASE, BASE | {"slug": "large", "id": "c" * 50}]
    with (
        FaultyServer(reply(body={"models": models})) as server,
        pytest.raises(api.UnknownModelError, match="'huge'; the server has: large, tiny"),
    ):
        connect(base_url=server.url)("find_base_model", "huge")


def test_usage_is_given_where_the_server_reports_it(connect):
    body = {
        "finishReason": "length",
        "generatedOutput": "",
        "usage": {"promptTokens": 3, "completionTokens": 4},
    }
    with FaultyServer(reply(body=body)) as server:
        answer = connect(base_url=server.url)("complete", MODEL_ID, "hello")
    assert (answer.finish_reason, answer.generated_output) == ("length", "")
    assert answer.usage == api.Usage(prompt_tokens=3, completion_tokens=4)


@pytest.mark.parametrize(
    "answer", [reply(body={}), reply(204, b""), reply(body=b"")], ids=["{}", "204", "empty"]
)
def test_a_delete_takes_any_json_or_nothing_for_an_answer(connect, answer):
    with FaultyServer(answer) as server:
        assert connect(base_url=server.url)("delete_model", MODEL_ID) is None


@pytest.mark.parametrize(
    "answer",
    [
        html(),
        reply(body={"status": "ok"}),
        reply(body=[1, 2]),
        reply(body=b'{"finishReason": "stop", "generatedOut'),
        reply(body={"finishReason": "stop", "generatedOutput": None}),
        reply(204, b""),
        html(404),
        html(405),
        reply(404, {"detail": "Not Found"}),
    ],
    ids=["html", "other json", "array", "half json", "null text", "204", "html 404", "html 405", "other 404"],
)
def test_what_is_no_gradient_answer_is_said_to_be_none(connect, answer):
    with (
        FaultyServer(answer) as server,
        pytest.raises(
            api.InvalidResponseError, match=r"not as a Gradient server answers .* Is base_url right\?"
        ),
    ):
        connect(base_url=server.url)("complete", MODEL_ID, "hello")
    assert len(server.requests) == 1


def test_html_is_no_answer_to_a_delete(connect):
    with FaultyServer(html()) as server, pytest.raises(api.InvalidResponseError, match="text/html"):
        connect(base_url=server.url)("delete_model", MODEL_ID)


@pytest.mark.parametrize("operation", ["complete", "list_models"])
def test_a_redirect_is_reported_and_the_token_goes_nowhere(connect, operation):
    with FaultyServer(completion("gotcha")) as elsewhere:
        target = f"http://user:secret@127.0.0.1:{elsewhere.port}/api/models?key=secret"
        with (
            FaultyServer(reply(307, headers={"Location": target})) as server,
            pytest.raises(api.InvalidResponseError, match=r"redirects to http://127\.0\.0\.1") as raised,
        ):
            connect(base_url=server.url)(operation, *([MODEL_ID, "hi"] if operation == "complete" else []))
    assert "secret" not in str(raised.value)
    assert elsewhere.connections == 0


@pytest.mark.parametrize(
    ("status", "type_", "expected"),
    [
        (400, None, api.BadRequestError),
        (400, "bodyParsingError", api.BodyParsingError),
        (422, "unprocessableContent", api.UnprocessableContentError),
        (400, "nanLoss", api.NanLossError),
        (400, "modelIncapableOfFineTuning", api.ModelIncapableOfFineTuningError),
        (400, "modelDoesNotSupportGuidance", api.GuidanceNotSupportedError),
        (400, "flaggedContent", api.FlaggedContentError),
        (401, None, api.AuthenticationError),
        (403, None, api.PermissionDeniedError),
        (404, "unknownBaseModel", api.UnknownModelError),
        (404, None, api.NotFoundError),
        (418, "aTypeOfTomorrow", api.ApiError),
        (500, None, api.ServerError),
    ],
)
def test_an_error_is_of_the_type_the_server_gives_and_carries_its_words(connect, status, type_, expected):
    with FaultyServer(error(status, "these words", type=type_)) as server, pytest.raises(expected) as raised:
        connect(base_url=server.url)("complete", MODEL_ID, "hello")
    assert type(raised.value) is expected
    assert (raised.value.message, raised.value.status, raised.value.type) == ("these words", status, type_)


@pytest.mark.parametrize(
    "trouble", [error(401, "no"), error(429, "later"), cut(), html(), reply(307), reply(wait=30)]
)
@pytest.mark.parametrize("operation", ["complete", "list_models"])
def test_no_error_and_no_log_shows_the_token(connect, trouble, operation, caplog):
    caplog.set_level(logging.DEBUG)
    with FaultyServer(trouble) as server:
        call = connect(
            base_url=server.url, retries=RetryPolicy(attempts=2, base=0.01), timeouts=Timeouts(read=0.2)
        )
        with pytest.raises(api.GradientError) as raised:
            call(operation, *([MODEL_ID, "hi"] if operation == "complete" else []))
    shown = "".join(traceback.format_exception(raised.value)) + repr(call.client) + caplog.text
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
    assert ACCESS_TOKEN not in shown + repr(again.__dict__)
    assert str(again) == str(raised.value)
    assert "/models" in caplog.text


def test_a_log_at_debug_has_no_prompt_and_no_answer(connect, caplog):
    caplog.set_level(logging.DEBUG)
    with FaultyServer(completion("an answer in confidence")) as server:
        connect(base_url=server.url)("complete", MODEL_ID, "a question in confidence")
    assert "HTTP 200" in caplog.text
    assert "confidence" not in caplog.text


@pytest.mark.parametrize("operation", ["complete", "list_models"])
def test_a_missing_server_is_named_with_its_address(connect, operation):
    port = free_port()
    with pytest.raises(api.GradientConnectionError, match=f"127.0.0.1:{port}/api/models.*Connection refused"):
        connect(base_url=f"http://127.0.0.1:{port}")(
            operation, *([MODEL_ID, "hi"] if operation == "complete" else [])
        )


@pytest.mark.parametrize("operation", ["complete", "list_models"])
def test_an_unknown_host_is_a_connection_error(connect, operation):
    with pytest.raises(api.GradientConnectionError, match="no-such-host"):
        connect(base_url="http://no-such-host.invalid", retries=RetryPolicy(attempts=1))(
            operation, *([MODEL_ID, "hi"] if operation == "complete" else [])
        )
