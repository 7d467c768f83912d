"""LangChain runnables in the place of a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example_chains
import pytest
from echo_server import QUICK, Complete, EchoServer, questions, read, refused
from faults import ACCESS_TOKEN, MODEL_ID, completion, cut, error, reply
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda

from airflow_provider_gradient.api import AuthenticationError, InvalidRequestError, UnknownModelError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import (
    CompletionManifest,
    RunStoppedError,
    RunUnfinishedError,
    complete_dataset,
)
from airflow_provider_gradient.datasets import DatasetError

NO_PROMPT: dict[str, Any] = {"prompt_template": None}
OWN_MODEL: dict[str, Any] = {"prompt_template": None, "model_id": None}


async def test_a_chain_is_given_the_runs_model_and_every_row(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    manifest = await complete(questions(50), runnable="example_chains:asked", temperature=0.5, **NO_PROMPT)
    assert [line["output"] for line in read(tmp_path / "out.jsonl")] == [
        f"echo question {number}!" for number in range(50)
    ]
    assert all(
        request.json()["temperature"] == 0.5 and MODEL_ID in request.path
        for request in server.requests
        if request.method == "POST"
    )
    assert (manifest.runnable, manifest.model_id) == ("example_chains:asked", MODEL_ID)
    assert (manifest.prompt_template, manifest.prompt_column) == (None, None)
    assert manifest.counts.success == manifest.attempts == 50
    line = read(tmp_path / "out.jsonl")[0]
    assert (line["finish_reason"], line["model_id"], line["usage"]) == ("stop", MODEL_ID, None)
    assert line["row"] == questions(1)[0]


@pytest.mark.parametrize(
    ("runnable", "output"),
    [
        ("example_chains:measured", {"topic": "even", "length": 10}),
        (RunnableLambda(lambda row: [row["topic"], None], name="a list"), ["even", None]),
        (
            RunnableLambda(lambda _: example_chains.Length(text="é", length=1), name="a"),
            {"text": "é", "length": 1},
        ),
    ],
)
async def test_a_chain_without_the_runs_model_gives_what_json_can_hold(
    complete: Complete, server: EchoServer, tmp_path: Path, runnable: Any, output: Any
) -> None:
    manifest = await complete(questions(1), runnable=runnable, **OWN_MODEL)
    (line,) = read(tmp_path / "out.jsonl")
    assert json.loads(line["output"]) == output
    assert (line["status"], line["model_id"], manifest.model_id, manifest.model_version) == (
        "success",
        None,
        None,
        None,
    )
    assert server.requests == []


async def test_a_chat_models_message_is_its_text(complete: Complete, tmp_path: Path) -> None:
    chain = ChatPromptTemplate.from_template("{q}") | FakeListChatModel(responses=["hello"])
    chain.name = "chat"
    await complete(questions(2), runnable=chain, **OWN_MODEL)
    assert [line["output"] for line in read(tmp_path / "out.jsonl")] == ["hello", "hello"]


async def test_tokens_are_summed_over_a_chains_model_calls(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    usage = {"promptTokens": 7, "completionTokens": 2}
    server.answer = lambda query: reply(
        body={"finishReason": "length", "generatedOutput": f"<{query}>", "usage": usage}
    )
    manifest = await complete(questions(2), runnable="example_chains:asked_twice", **NO_PROMPT)
    line = read(tmp_path / "out.jsonl")[0]
    assert json.loads(line["output"]) == {"text": "<<question 0!>>", "length": 15}
    assert (line["usage"], line["finish_reason"]) == ({"prompt_tokens": 14, "completion_tokens": 4}, "length")
    assert (manifest.prompt_tokens, manifest.completion_tokens, manifest.attempts) == (28, 8, 2)


async def test_a_chains_exception_is_its_rows_error_and_the_stop_rule_holds_for_it(
    complete: Complete, tmp_path: Path
) -> None:
    shared = {"runnable": "example_chains:choosy", **OWN_MODEL}
    manifest = await complete(questions(4), **shared)
    assert manifest.counts.model_dump() == {"success": 2, "error": 2, "invalid_output": 0, "not_run": 0}
    assert read(tmp_path / "out.jsonl")[1]["error"] == {
        "type": "KeyError",
        "message": "'I like no odd rows'",
        "transient": False,
    }
    with pytest.raises(RunStoppedError, match="KeyError"):
        await complete(questions(40), max_error_rate=0.1, **shared)


async def test_an_output_that_json_cannot_hold_is_its_rows_error(complete: Complete, tmp_path: Path) -> None:
    await complete(questions(1), runnable="example_chains:no_json", **OWN_MODEL)
    assert read(tmp_path / "out.jsonl")[0]["error"]["type"] == "TypeError"


async def test_what_a_chains_parser_refuses_is_invalid_output_with_the_raw_text_and_asked_again(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    scripts = {"question 0!": iter(["no idea", '{"a": 1}']), "question 1!": iter(["no idea", "still none"])}
    server.answer = lambda query: completion(next(scripts[query]))
    await complete(questions(2), runnable="example_chains:asked_for_json", max_output_retries=1, **NO_PROMPT)
    good, bad = read(tmp_path / "out.jsonl")
    assert (good["status"], json.loads(good["output"]), good["attempts"]) == ("success", {"a": 1}, 2)
    assert (bad["status"], bad["output"], bad["attempts"]) == ("invalid_output", "still none", 2)
    assert bad["error"]["type"] == "invalidOutput"
    assert bad["error"]["message"].startswith("Invalid json output: still none")


async def test_a_chains_output_is_held_to_the_schema(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: completion('{"a": 1}' if query == "question 0!" else '{"a": "1"}')
    schema = {"properties": {"a": {"type": "integer"}}}
    await complete(questions(2), runnable="example_chains:asked_for_json", output_schema=schema, **NO_PROMPT)
    good, bad = read(tmp_path / "out.jsonl")
    assert (good["parsed"], bad["parsed"], bad["status"]) == ({"a": 1}, None, "invalid_output")
    assert bad["error"]["message"] == "a: '1' is not of type 'integer'"


async def test_errors_of_the_runs_model_are_judged_as_without_a_chain(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    scripts: dict[str, Any] = {
        "question 0!": iter([reply(503, headers={"Retry-After": "0"}), cut(), error(429, "slow down")]),
        "question 1!": iter(error(429, "slow down") for _ in range(8)),  # refusals use up no attempts
    }

    def answer(query: str) -> Any:
        if query == "question 2!":
            return refused(query)
        return cut() if query == "question 3!" else next(scripts.get(query, iter(())), None)

    server.answer = answer
    # Two at once, so that the ten outcomes by which the limit is judged are there whatever their order.
    with pytest.raises(RunUnfinishedError) as raised:
        await complete(questions(6), runnable="example_chains:asked", concurrency=2, **NO_PROMPT)
    manifest = raised.value.manifest
    assert isinstance(manifest, CompletionManifest)
    lines = read(tmp_path / "out.jsonl")
    assert [line["status"] for line in lines] == [
        "success",
        "success",
        "error",
        "error",
        "success",
        "success",
    ]
    assert [line["attempts"] for line in lines] == [4, 9, 1, QUICK.attempts, 1, 1]
    assert lines[2]["error"]["type"] == "unprocessableContent"
    assert (lines[3]["error"]["type"], lines[3]["error"]["transient"]) == ("GradientConnectionError", True)
    assert server.queries["question 3!"] == QUICK.attempts
    assert manifest.retries == 3 + 8 + 4
    assert manifest.concurrency is not None
    assert manifest.concurrency.cuts > 0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(401, "expired"), AuthenticationError),
        (error(404, "no such model", type="unknownModelAdapter"), UnknownModelError),
    ],
)
async def test_an_error_that_concerns_every_row_ends_the_run_from_within_a_chain(
    complete: Complete, server: EchoServer, answer: Any, kind: type[Exception]
) -> None:
    server.answer = lambda _: answer
    with pytest.raises(kind):
        await complete(questions(200), runnable="example_chains:asked", concurrency=4, **NO_PROMPT)
    assert server.queries.total() <= 4


async def test_a_run_of_a_chain_that_was_ended_goes_on_after_its_journal(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    trouble = [error(401, "expired")]
    server.answer = lambda query: trouble.pop() if query == "question 7!" and trouble else None
    shared = {"runnable": "example_chains:asked", "concurrency": 1, **NO_PROMPT}
    with pytest.raises(AuthenticationError):
        await complete(questions(10), **shared)
    assert ACCESS_TOKEN not in (tmp_path / "out.jsonl.journal.jsonl").read_text()
    manifest = await complete(questions(10), **shared)
    assert manifest.resumed_rows == 7
    assert server.queries == {f"question {n}!": 1 + (n == 7) for n in range(10)}


async def test_another_chain_another_prompt_and_another_name_are_other_runs(
    complete: Complete, server: EchoServer
) -> None:
    def chain(name: str, template: str, calls: list[str]) -> Any:
        def answer(prompt: Any) -> str:
            calls.append(name)
            return str(prompt)

        made = PromptTemplate.from_template(template) | answer | StrOutputParser()
        made.name = name
        return made

    calls: list[str] = []
    for name, template in (("a", "{q}"), ("a", "{q}"), ("a", "{q}?"), ("b", "{q}?")):
        await complete(questions(1), runnable=chain(name, template, calls), **OWN_MODEL)
    assert calls == ["a", "a", "b"]


async def test_a_prompts_function_is_the_same_wherever_it_lies_in_memory(complete: Complete) -> None:
    calls: list[str] = []

    def chain() -> Any:
        def day() -> str:
            return "Sunday"

        prompt = PromptTemplate.from_template("{q} {day}", partial_variables={"day": day})
        made = prompt | (lambda asked: calls.append(asked.text) or asked.text)
        made.name = "with a day"
        return made

    kept = [chain() for _ in range(2)]  # both alive, so at two addresses
    for each in kept:
        await complete(questions(1), runnable=each, **OWN_MODEL)
    assert calls == ["question 0 Sunday"]


async def test_columns_that_a_chains_first_prompt_asks_for_are_checked_before_the_first_request(
    complete: Complete, server: EchoServer
) -> None:
    rows = [*questions(3), {"topic": "none"}]
    reason = r"^row 3 of the inline dataset has no column 'q', which the prompt of the runnable names"
    with pytest.raises(DatasetError, match=reason):
        await complete(rows, runnable="example_chains:asked", **NO_PROMPT)
    bound = (PromptTemplate.from_template("{q}") | RunnableLambda(str)).with_retry()
    bound.name = "bound"
    with pytest.raises(DatasetError, match=reason):
        await complete(rows, runnable=bound, **OWN_MODEL)
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runnable": "example_chains"}, "'example_chains' is no dotted path"),
        ({"runnable": "no_such.chains:chain", "model_id": None}, "there is no module 'no_such'"),
        ({"runnable": "example_chains:unasked", "model_id": None}, "has no 'unasked'"),
        ({"runnable": "example_chains:no_chain", "model_id": None}, "a LangChain Runnable is needed"),
        ({"runnable": "example_chains:PROMPT", "prompt_column": "q"}, "exactly one of"),
        ({"runnable": "example_chains:measured"}, "model_id: the runnable brings its own model"),
        ({"runnable": "example_chains:measured", "model_id": None, "top_k": 1}, "top_k: the runnable brings"),
        (
            {"runnable": "example_chains:asked", "model_id": None},
            "model_id: is needed, since the runnable takes",
        ),
        (
            {"runnable": "example_chains:asked", "temperature": 2},
            "model for the runnable can't be made.*temperature",
        ),
        ({"runnable": "example_chains:two_models"}, "takes the run's model or nothing, not llm, other"),
        ({"runnable": PromptTemplate.from_template("{q}"), "model_id": None}, "give it a name"),
        ({"runnable": None, "prompt_template": "{q}", "model_id": None}, "model_id: is needed"),
    ],
)
async def test_what_is_no_runnable_is_refused_before_the_first_request(
    complete: Complete, server: EchoServer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await complete(questions(1), **(NO_PROMPT | arguments))
    assert server.requests == []


async def test_a_chain_asks_the_real_server_and_its_tokens_are_counted(
    async_client: Callable[[], AsyncGradientClient], tmp_path: Path
) -> None:
    async with async_client() as client:
        model = await client.find_base_model("tiny")
        manifest = await complete_dataset(
            client,
            model_id=model.id,
            dataset=[{"q": "Is Paris in France?"}, {"q": "Is Rome in Italy?"}],
            output_path=tmp_path / "out.jsonl",
            runnable="example_chains:asked_for_json",
            guidance=['{"yes": true}', '{"yes": false}'],
        )
    assert manifest.counts.success == 2
    assert all(json.loads(line["output"])["yes"] in (True, False) for line in read(tmp_path / "out.jsonl"))
    assert manifest.prompt_tokens
    assert manifest.completion_tokens
