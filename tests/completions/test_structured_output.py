"""Answers that have to be JSON of a shape: what is found in them, what is refused, what is asked again."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from echo_server import Complete, EchoServer, questions, read
from faults import completion, cut, error, reply
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator

from airflow_provider_gradient.api import AuthenticationError, InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
from airflow_provider_gradient.completions.output_schema import OutputMismatchError, OutputSchema
from airflow_provider_gradient.datasets import read_rows


class Ticket(BaseModel):
    topic: Literal["billing", "delivery"]
    urgency: Annotated[int, Field(ge=1, le=5)]
    tags: list[str] = []


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime.date

    @field_validator("day")
    @classmethod
    def of_this_century(cls, day: datetime.date) -> datetime.date:
        return {day.year: day}[2026]  # a KeyError, which pydantic lets pass


TICKET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"$ref": "#/$defs/topic"}, "urgency": {"type": "integer", "maximum": 5}},
    "required": ["topic", "urgency"],
    "$defs": {"topic": {"enum": ["billing", "delivery"]}},
}
TICKET = {"topic": "billing", "urgency": 3}
TEXT = json.dumps(TICKET)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"\n {TEXT} \n",
        f"```json\n{TEXT}\n```",
        f"Here it is:\n\n```\n{TEXT}\n```\nAnything else [yes/no]?",
        f"Sure! {TEXT} I hope this helps {{really}}.",
        f'<think>Perhaps {{"topic": "rent"}}?</think>\n{TEXT}',
        f'Perhaps {{"topic": "rent"}}?\n</think>\n\n```json\n{TEXT}\n```',
    ],
)
def test_json_is_found_in_what_stands_around_it(text: str) -> None:
    assert OutputSchema(TICKET_SCHEMA).parse(text) == TICKET
    assert OutputSchema(Ticket).parse(text) == {**TICKET, "tags": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON: Expecting value"),
        ("no idea", "no JSON: Expecting value"),
        (TEXT[:-1], "no JSON: Expecting ',' delimiter"),
        ('{"topic": "billing", "urgency": 3, "tags": ["a', "no JSON: Unterminated string"),
        ('{"topic": "billing", "urgency": NaN}', "no JSON: NaN is no JSON value"),
        ('{"topic": "billing", "urgency": 1e999}', "no JSON: 1e999 is too large a number"),
        ("[" * 100_000, "no JSON: "),
        ("9" * 5000, "no JSON: "),
        (f"<think>Perhaps {TEXT}", "no JSON: Expecting value"),
        ("[]", "object"),
    ],
)
def test_a_text_that_holds_no_such_json_is_told_why_and_a_cut_one_is_not_mended(
    text: str, message: str
) -> None:
    for schema in (Ticket, TICKET_SCHEMA):
        with pytest.raises(OutputMismatchError) as raised:
            OutputSchema(schema).parse(text)
        assert message in str(raised.value)
        assert len(str(raised.value)) <= 500


@pytest.mark.parametrize(
    ("schema", "messages"),
    [
        (
            Ticket,
            ["topic: Input should be 'billing' or 'delivery'", "urgency: Input should be less than or equal"],
        ),
        (
            TICKET_SCHEMA,
            ["topic: 'rent' is not one of ['billing', 'delivery']", "urgency: 9 is greater than"],
        ),
    ],
)
def test_every_field_that_is_wrong_is_named(schema: Any, messages: list[str]) -> None:
    with pytest.raises(OutputMismatchError) as raised:
        OutputSchema(schema).parse('{"topic": "rent", "urgency": 9}')
    for message in messages:
        assert message in str(raised.value)


def test_a_strict_model_takes_dates_as_json_has_them_and_a_failing_validator_is_a_mismatch() -> None:
    schema = OutputSchema(Strict)
    assert schema.parse('{"day": "2026-11-22"}') == {"day": "2026-11-22"}
    with pytest.raises(OutputMismatchError, match="KeyError: 2026"):
        schema.parse('{"day": "1999-01-01"}')


def test_schemas_are_found_by_dotted_path() -> None:
    assert OutputSchema(f"{__name__}:Ticket").parse(TEXT) == {**TICKET, "tags": []}
    assert OutputSchema(f"{__name__}:TICKET_SCHEMA").json_schema == TICKET_SCHEMA


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("Ticket", "'Ticket' is no dotted path"),
        ("no_such_package.models:Ticket", "there is no module 'no_such_package'"),
        ("test_structured_output:Tickets", "has no 'Tickets'"),
        ("test_structured_output:TEXT", "a pydantic model or a JSON schema"),
        (Ticket(topic="billing", urgency=1), "a pydantic model or a JSON schema"),
        ({"type": "objekt"}, "no JSON schema"),
        ({"type": "string", "pattern": "("}, "no JSON schema"),
        ({"$ref": "#/$defs/none"}, "nothing at the $ref '#/$defs/none'"),
        ({"items": {"$ref": "https://example.com/schema.json"}}, "nothing at the $ref 'https://example.com"),
    ],
)
async def test_what_is_no_schema_is_refused_before_the_first_request(
    complete: Complete, server: EchoServer, schema: Any, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await complete(questions(2), output_schema=schema)
    assert message in str(raised.value)
    assert server.requests == []


@pytest.mark.parametrize("retries", [-1, 1.5, True, 2])
async def test_output_retries_that_make_no_sense_are_refused(complete: Complete, retries: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_output_retries"):
        await complete(questions(2), max_output_retries=retries)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_what_an_answer_holds_stands_beside_its_text(
    complete: Complete, server: EchoServer, tmp_path: Path, name: str
) -> None:
    answers = {"question 0": f"Here: {TEXT}", "question 1": '{"topic": "rent"}', "question 2": "no idea"}
    server.answer = lambda query: completion(answers[query])
    manifest = await complete(questions(3), output_schema=Ticket, output_path=tmp_path / name)
    first, second, third = read_rows(tmp_path / name)
    assert (first["status"], first["output"], first["error"]) == ("success", f"Here: {TEXT}", None)
    assert first["parsed"] == {**TICKET, "tags": []}
    assert (second["status"], second["output"], second["parsed"]) == (
        "invalid_output",
        '{"topic": "rent"}',
        None,
    )
    assert second["error"]["type"] == "invalidOutput"
    assert second["error"]["message"] == (
        "topic: Input should be 'billing' or 'delivery' (got 'rent'); urgency: Field required"
    )
    assert third["error"]["message"] == "no JSON: Expecting value"
    assert manifest.counts.model_dump() == {"success": 1, "error": 0, "invalid_output": 2, "not_run": 0}
    failed = read(tmp_path / f"{name}.errors.jsonl")
    assert [(line["output"], line["attempts"]) for line in failed] == [
        ('{"topic": "rent"}', 1),
        ("no idea", 1),
    ]


async def test_an_invalid_answer_is_asked_for_again_and_each_time_is_counted_with_its_tokens(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    scripts = {"question 0": iter(["a", "b", TEXT]), "question 1": iter("abcd")}

    def answer(query: str) -> Any:
        usage = {"promptTokens": 10, "completionTokens": 1}
        return reply(body={"finishReason": "stop", "generatedOutput": next(scripts[query]), "usage": usage})

    server.answer = answer
    manifest = await complete(questions(2), output_schema=TICKET_SCHEMA, max_output_retries=2)
    good, bad = read(tmp_path / "out.jsonl")
    assert (good["status"], good["output"], good["attempts"]) == ("success", TEXT, 3)
    assert (bad["status"], bad["output"], bad["attempts"]) == ("invalid_output", "c", 3)
    assert good["usage"] == bad["usage"] == {"prompt_tokens": 30, "completion_tokens": 3}
    assert (manifest.attempts, manifest.prompt_tokens) == (6, 60)
    assert server.queries == {"question 0": 3, "question 1": 3}


async def test_an_invalid_answer_is_kept_where_asking_again_fails(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    script = iter([completion("no idea"), error(400, "flagged", type="flaggedContent")])
    server.answer = lambda _: next(script)
    await complete(questions(1), output_schema=Ticket, max_output_retries=3)
    (line,) = read(tmp_path / "out.jsonl")
    assert (line["status"], line["output"], line["attempts"]) == ("invalid_output", "no idea", 2)
    assert line["error"]["message"].startswith(
        "no JSON: Expecting value; asked again, the request failed: flagged"
    )


async def test_retries_of_requests_and_of_answers_are_apart(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    script = iter([cut(), completion("a"), cut(), error(429, "slow down"), completion(TEXT)])
    server.answer = lambda _: next(script)
    await complete(questions(1), output_schema=Ticket, max_output_retries=1)
    (line,) = read(tmp_path / "out.jsonl")
    assert (line["status"], line["attempts"]) == ("success", 5)


async def test_a_resumed_run_asks_no_row_again_whose_answers_were_all_invalid(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    trouble = [error(401, "expired")]
    server.answer = lambda query: (
        trouble.pop()
        if query == "question 5" and trouble
        else completion("no" if query == "question 0" else TEXT)
    )
    shared = {"output_schema": Ticket, "max_output_retries": 2, "concurrency": 1}
    with pytest.raises(AuthenticationError):
        await complete(questions(6), **shared)
    manifest = await complete(questions(6), **shared)
    assert manifest.resumed_rows == 5
    assert server.queries["question 0"] == 3
    assert [line["attempts"] for line in read(tmp_path / "out.jsonl")] == [3, 1, 1, 1, 1, 1]
    assert manifest.counts.model_dump() == {"success": 5, "error": 0, "invalid_output": 1, "not_run": 0}


async def test_another_schema_or_number_of_retries_is_another_run(
    complete: Complete, server: EchoServer
) -> None:
    server.answer = lambda _: completion(TEXT)
    for arguments in (
        {"output_schema": Ticket},
        {"output_schema": TICKET_SCHEMA},
        {"output_schema": TICKET_SCHEMA, "max_output_retries": 1},
        {"output_schema": TICKET_SCHEMA, "max_output_retries": 1},
    ):
        await complete(questions(1), **arguments)
    assert server.queries.total() == 3


async def test_a_choice_that_is_none_is_asked_for_again(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    script = iter([completion("maybe"), completion(" yes")])
    server.answer = lambda _: next(script)
    await complete(questions(1), guidance=["yes", "no"], max_output_retries=1)
    (line,) = read(tmp_path / "out.jsonl")
    assert (line["status"], line["output"], line["attempts"], line["parsed"]) == ("success", " yes", 2, None)


async def test_the_real_servers_choices_of_json_are_parsed(
    async_client: Callable[[], AsyncGradientClient], tmp_path: Path
) -> None:
    async with async_client() as client:
        model = await client.find_base_model("tiny")
        manifest = await complete_dataset(
            client,
            model_id=model.id,
            dataset=[{"q": "Is Paris in France?"}, {"q": "Is Rome in Italy?"}],
            output_path=tmp_path / "out.jsonl",
            prompt_template="{{ q }}",
            prompt_template_format="jinja2",
            guidance=['{"yes": true}', '{"yes": false}'],
            output_schema={"properties": {"yes": {"type": "boolean"}}, "required": ["yes"]},
        )
    assert manifest.counts.success == 2
    assert all(line["parsed"]["yes"] in (True, False) for line in read(tmp_path / "out.jsonl"))


NESTED: dict[str, Any] = {"$ref": "#/$defs/list", "$defs": {"list": {"items": {"$ref": "#/$defs/list"}}}}


class Nested(RootModel["list[Nested]"]):
    pass


class Doubled(BaseModel):
    size: float

    @field_validator("size")
    @classmethod
    def twice(cls, size: float) -> float:
        return size * 1e200 * 1e200


@pytest.mark.parametrize(
    ("schema", "text", "message"),
    [
        (NESTED, "[" * 300 + "]" * 300, "nested more than 100 deep"),
        (NESTED, "[" * 101 + "]" * 101, "nested more than 100 deep"),
        (Nested, "[" * 300 + "]" * 300, "nested more than 100 deep"),
        ({}, '{"a":' * 300 + "1" + "}" * 300, "nested more than 100 deep"),
        ({"multipleOf": 0.01}, "9" * 400, "OverflowError"),
        ({"type": "string"}, "9" * 4400, "no JSON"),
        (Doubled, '{"size": 3}', "can't be checked or kept: ValueError"),
    ],
)
def test_an_answer_that_no_schema_can_be_held_against_is_a_mismatch(
    schema: Any, text: str, message: str
) -> None:
    with pytest.raises(OutputMismatchError, match=message):
        OutputSchema(schema).parse(text)


def test_an_answer_that_is_nested_as_deeply_as_may_be_is_held_against_its_schema() -> None:
    text = "[" * 100 + "]" * 100
    assert json.dumps(OutputSchema(NESTED).parse(text)) == text
    assert json.dumps(OutputSchema(Nested).parse(text)) == text


async def test_answers_that_no_program_can_work_with_are_their_rows_own_and_the_run_goes_on(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    answers = {
        "question 0": completion("[" * 300 + "]" * 300),
        "question 1": reply(400, b"[" * 200_000),
        "question 2": reply(200, b"[" * 200_000),
        "question 3": completion("[1]"),
    }
    server.answer = answers.get
    for _ in range(2):
        manifest = await complete(questions(4), output_schema=NESTED)
        lines = read(tmp_path / "out.jsonl")
        assert [line["status"] for line in lines] == ["invalid_output", "error", "error", "success"]
        assert [line["error"] and line["error"]["type"] for line in lines] == [
            *("invalidOutput", "BadRequestError", "InvalidResponseError", None)
        ]
    assert manifest.resumed_rows == 4


async def test_a_count_of_tokens_that_is_none_is_its_rows_error_and_breaks_no_budget(
    complete: Complete, server: EchoServer
) -> None:
    usage = {"promptTokens": 10**400, "completionTokens": 1}
    right = {"promptTokens": 1, "completionTokens": 1}

    def answer(query: str) -> Any:
        given = usage if query == "question 1" else right
        return reply(body={"generatedOutput": "yes", "finishReason": "stop", "usage": given})

    server.answer = answer
    manifest = await complete(questions(3), max_tokens=1000, tokens_per_minute=60_000)
    assert (manifest.counts.success, manifest.counts.error, manifest.prompt_tokens) == (2, 1, 2)
