"""GradientLLM as LangChain uses it, against a real server."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from airflow_provider_gradient.api import (
    AuthenticationError,
    ModelIncapableOfFineTuningError,
    UnknownModelError,
)
from airflow_provider_gradient.client import GradientClient
from airflow_provider_gradient.langchain import GradientLLM

GREEDY = {"temperature": 0.0, "max_generated_token_count": 12}


@pytest.fixture
def base_id(client):
    return client.find_base_model("tiny").id


@pytest.fixture
def llm(gradient_environment, base_id):
    return GradientLLM(model=base_id, **GREEDY)


def test_a_chain_of_prompt_model_and_parser_answers(llm, client, base_id):
    chain = PromptTemplate.from_template("What is {thing}?") | llm | StrOutputParser()
    answer = chain.invoke({"thing": "an airflow"})
    assert answer == client.complete(base_id, "What is an airflow?", **GREEDY).generated_output
    assert chain.invoke({"thing": "an airflow"}) == asyncio.run(chain.ainvoke({"thing": "an airflow"}))


def test_a_batch_keeps_the_order_of_its_inputs(llm):
    questions = [f"Name number {number}." for number in range(8)]
    one_by_one = [llm.invoke(question) for question in questions]
    assert llm.batch(questions, {"max_concurrency": 3}) == one_by_one
    assert asyncio.run(llm.abatch(questions, {"max_concurrency": 3})) == one_by_one
    assert llm.generate(questions).generations[5][0].text == one_by_one[5]


def test_the_parameters_of_the_published_class_work_unchanged(gradient_server, base_id):
    llm = GradientLLM(
        model=base_id,
        model_kwargs={
            "max_generated_token_count": 3,
            "temperature": 0.75,
            "top_p": 0.95,
            "top_k": 20,
            "stop": [],
        },
        gradient_workspace_id=gradient_server.workspace_id,
        gradient_access_token=gradient_server.access_token,
        gradient_api_url=gradient_server.url,
    )
    generation = llm.generate(["Tell me a story."]).generations[0][0]
    assert generation.generation_info["usage"]["completion_tokens"] <= 3
    assert llm.model_id == base_id
    assert GradientLLM(model_id=base_id, client=llm._client).model_id == base_id


def test_finish_reason_and_usage_are_told(llm):
    result = llm.generate(["Hello?", "And you?"], max_generated_token_count=1)
    for [generation] in result.generations:
        assert generation.generation_info["finish_reason"] in ("length", "stop")
        assert generation.generation_info["usage"]["completion_tokens"] == 1
    usage = result.llm_output["token_usage"]
    assert usage["completion_tokens"] == 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + 2
    assert result.llm_output["model_id"] == llm.model_id


def test_tokens_are_counted_as_the_server_reads_them(llm, client, base_id):
    text = "The quick brown fox jumps over the lazy dog"
    expected = client.complete(base_id, text, auto_template=False, max_generated_token_count=1)
    assert llm.get_num_tokens(text) == expected.usage.prompt_tokens > 1
    assert len(llm.get_token_ids(text)) == llm.get_num_tokens(text)
    assert llm.get_num_tokens("") == 0
    assert llm.get_num_tokens_from_messages([HumanMessage(text)]) > llm.get_num_tokens(text)
    with pytest.raises(UnknownModelError):
        llm.model_copy(update={"model_id": "0" * 36 + "_model_adapter"}).get_num_tokens(text)


def test_both_clients_give_the_same_tokens(client, async_client, base_id):
    async def ask():
        async with async_client() as other:
            return await other.tokenize(base_id, "The quick brown fox")

    told = client.tokenize(base_id, "The quick brown fox")
    assert told == asyncio.run(ask())
    assert told.count == len(told.tokens)
    assert told.count == client.complete(base_id, "The quick brown fox").usage.prompt_tokens


def test_guidance_chooses_among_what_is_given(llm):
    assert llm.invoke("Is it?", guidance=["maybe", "never"]) in ("maybe", "never")


def test_a_fine_tune_on_a_text_gives_its_mean_loss(gradient_environment, adapter):
    assert GradientLLM(model=adapter).train_unsupervised(["The sky is green."])["loss"] > 0


def test_a_base_model_is_not_tuned(llm):
    with pytest.raises(ModelIncapableOfFineTuningError):
        llm.train_unsupervised(["text"])


def test_errors_are_the_clients_own(gradient_environment, gradient_server):
    with pytest.raises(UnknownModelError):
        GradientLLM(model="0" * 50).invoke("hello")
    with pytest.raises(AuthenticationError):
        GradientLLM(model="0" * 50, gradient_access_token="wrong").invoke("hello")


def test_a_client_that_is_given_makes_the_calls(gradient_server, base_id):
    client = GradientClient(
        access_token=gradient_server.access_token,
        workspace_id=gradient_server.workspace_id,
        base_url=gradient_server.url,
    )
    llm = GradientLLM(model=base_id, client=client, **GREEDY)
    assert llm.gradient_api_url == client.base_url
    assert llm.invoke("Hello?") == asyncio.run(llm.ainvoke("Hello?"))
