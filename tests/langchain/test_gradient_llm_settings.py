"""GradientLLM's parameters, their precedence and limits, its secrets, and its manners in LangChain."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle

import pytest
from faults import ACCESS_TOKEN, WORKSPACE_ID, FaultyServer, completion, error, reply, trained
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd, dumps, load
from langchain_core.runnables import ConfigurableField

from airflow_provider_gradient.api import BadRequestError, InvalidRequestError
from airflow_provider_gradient.langchain import GradientLLM

HERE = {"gradient_access_token": ACCESS_TOKEN, "gradient_workspace_id": WORKSPACE_ID}


def model(server=None, **fields):
    url = server.url if server else "http://127.0.0.1:1"
    return GradientLLM(**{"model": "a-model", "gradient_api_url": url} | HERE | fields)


def echo(request):
    return completion(request.json()["query"])


def sent(server):
    return [{k: v for k, v in request.json().items() if k != "query"} for request in server.requests]


class TestParameters:
    def test_all_of_them_can_be_fields(self):
        fields = {
            "auto_template": False,
            "max_generated_token_count": 9,
            "temperature": 0.0,
            "top_k": 5,
            "top_p": 0.5,
            "guidance": ["a", "b"],
        }
        with FaultyServer(completion("yes")) as server:
            model(server, **fields).invoke("hello")
        assert sent(server) == [
            {
                "autoTemplate": False,
                "maxGeneratedTokenCount": 9,
                "temperature": 0.0,
                "topK": 5,
                "topP": 0.5,
                "guidance": {"type": "choice", "value": ["a", "b"]},
            }
        ]

    def test_a_call_wins_over_a_field_and_a_field_over_model_kwargs(self):
        with FaultyServer(completion("yes")) as server:
            llm = model(
                server, model_kwargs={"temperature": 0.1, "top_k": 1, "top_p": 0.1}, top_k=2, top_p=0.2
            )
            llm.invoke("hello", top_p=0.3)
            llm.bind(top_p=0.4, top_k=None).invoke("hello")
            asyncio.run(llm.ainvoke("hello", temperature=0.9))
            llm._generate(["hello"], top_p=0.5)
        assert sent(server) == [
            {"temperature": 0.1, "topK": 2, "topP": 0.3},
            {"temperature": 0.1, "topK": 2, "topP": 0.4},
            {"temperature": 0.9, "topK": 2, "topP": 0.2},
            {"temperature": 0.1, "topK": 2, "topP": 0.5},
        ]

    @pytest.mark.parametrize("place", ["model_kwargs", "field", "call"])
    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("temperature", 1.1, r"`temperature` must be in the range \[0\.0, 1\.0\]"),
            ("temperature", -0.1, r"`temperature` must be in the range \[0\.0, 1\.0\]"),
            ("top_p", 2.0, r"`top_p` must be in the range \[0\.0, 1\.0\]"),
            ("top_p", 0.0, "top_p.*greater than 0"),
            ("top_k", 0, "`top_k` must be positive"),
            ("max_generated_token_count", 0, "`max_generated_token_count` must be positive"),
            ("max_generated_token_count", 512, "max_generated_token_count.*511"),
            ("guidance", ["x" * 33], "guidance.*32"),
            ("guidance", [], "guidance"),
        ],
    )
    def test_what_is_out_of_range_is_a_value_error_and_not_sent(self, place, name, value, words):
        given = {name: value}
        fields = {"model_kwargs": {"model_kwargs": given}, "field": given, "call": {}}[place]
        with FaultyServer(completion("yes")) as server, pytest.raises(ValueError, match=words):
            model(server, **fields).invoke("hello", **(given if place == "call" else {}))
        assert server.connections == 0

    def test_an_unknown_one_is_named_and_not_dropped(self):
        with pytest.raises(ValueError, match="no parameter of a completion: max_tokens"):
            model(model_kwargs={"max_tokens": 5})
        with pytest.raises(ValueError, match="no parameter of a completion: max_tokens"):
            model().invoke("hello", max_tokens=5)
        with pytest.raises(ValueError, match="temprature"):
            model(temprature=5)


class TestStopSequences:
    @pytest.mark.parametrize(
        ("stop", "text", "reason"),
        [
            (None, "one. two | three", "length"),
            ([], "one. two | three", "length"),
            (["."], "one", "stop"),
            (["|", "two"], "one. ", "stop"),
            ([".*"], "one. two | three", "length"),
            (["", "four"], "one. two | three", "length"),
            (["one"], "", "stop"),
        ],
    )
    def test_cut_the_answer_before_the_first_of_them(self, stop, text, reason):
        answer = {"finishReason": "length", "generatedOutput": "one. two | three"}
        with FaultyServer(reply(body=answer)) as server:
            [[generation]] = model(server).generate(["hello"], stop=stop).generations
        assert (generation.text, generation.generation_info["finish_reason"]) == (text, reason)

    def test_of_the_call_win_over_the_field_and_the_field_over_model_kwargs(self):
        with FaultyServer(completion("a b c d")) as server:
            llm = model(server, stop=["c"], model_kwargs={"stop": ["b"]})
            assert llm.invoke("hello", stop=["d"]) == "a b c "
            assert llm.invoke("hello") == "a b "
            assert model(server, model_kwargs={"stop": ["b"]}).invoke("hello") == "a "
            assert asyncio.run(llm.bind(stop=[]).ainvoke("hello")) == "a b c d"


class TestCredentials:
    def test_come_from_the_environment(self, monkeypatch):
        for name, value in {
            "ACCESS_TOKEN": "t",
            "WORKSPACE_ID": "w",
            "API_URL": "http://127.0.0.1:1/gw/",
        }.items():
            monkeypatch.setenv(f"GRADIENT_{name}", value)
        llm = GradientLLM(model="a-model")
        assert (llm.gradient_workspace_id, llm.gradient_api_url) == ("w", "http://127.0.0.1:1/gw/api")

    def test_that_lack_are_named_at_once(self):
        with pytest.raises(ValueError, match="GRADIENT_ACCESS_TOKEN"):
            GradientLLM(model="a-model")
        with pytest.raises(ValueError, match="GRADIENT_WORKSPACE_ID") as raised:
            GradientLLM(model="a-model", gradient_access_token=ACCESS_TOKEN)
        assert ACCESS_TOKEN not in str(raised.value)

    def test_show_in_no_repr_no_dump_no_trace_and_no_error(self):
        seen = []

        class Watcher(BaseCallbackHandler):
            def on_llm_start(self, serialized, _prompts, **kwargs):
                seen.append((serialized, kwargs))

            def on_llm_end(self, response, **_):
                seen.append(response)

        with FaultyServer(completion("yes")) as server:
            llm = model(server)
            llm.invoke("hello", {"callbacks": [Watcher()]})
        shown = [repr(llm), str(llm), dumps(llm), json.dumps(llm.asdict()), llm.model_dump_json(), repr(seen)]
        assert len(seen) == 2
        assert all(ACCESS_TOKEN not in text for text in shown)
        with pytest.raises(ValueError) as raised:
            model(temperature="hot")
        assert ACCESS_TOKEN not in str(raised.value)

    @pytest.mark.filterwarnings("ignore:The function `load` is in beta")
    def test_a_serialised_model_comes_back_with_the_token_of_the_environment(self):
        llm = model(temperature=0.0, top_k=3, stop=["\n"])
        stored = json.loads(json.dumps(dumpd(llm)))
        back = load(
            stored,
            secrets_map={"GRADIENT_ACCESS_TOKEN": "another"},
            valid_namespaces=["airflow_provider_gradient"],
            allowed_objects=[GradientLLM],
        )
        assert back.asdict() == llm.asdict()
        assert back.gradient_access_token.get_secret_value() == "another"

    def test_stay_with_copies_and_pickles(self):
        with FaultyServer(completion("yes")) as server:
            llm = model(server)
            llm.invoke("before")
            for other in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):  # noqa: S301
                assert other.invoke("hello") == "yes"
                assert asyncio.run(other.ainvoke("hello")) == "yes"
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {ACCESS_TOKEN}"}


class TestInLangChain:
    def test_max_concurrency_bounds_what_is_in_flight(self):
        with FaultyServer(completion("yes", wait=0.05)) as server:
            model(server).batch(["hello"] * 24, {"max_concurrency": 4})
            assert 2 <= server.most_in_flight <= 4
        with FaultyServer(completion("yes", wait=0.05)) as server:
            asyncio.run(model(server).abatch(["hello"] * 24, {"max_concurrency": 4}))
            assert 2 <= server.most_in_flight <= 4

    def test_a_batch_without_it_is_bounded_all_the_same(self):
        with FaultyServer(completion("yes", wait=0.05)) as server:
            asyncio.run(model(server).abatch(["hello"] * 200))
            asyncio.run(model(server).agenerate(["hello"] * 200))
        assert server.most_in_flight <= 64

    def test_one_failing_input_spoils_no_other(self):
        def act(request):
            query = request.json()["query"]
            return error(400, "flagged") if query == "bad" else completion(query)

        with FaultyServer(act) as server:
            llm = model(server)
            for answers in (
                llm.batch(["a", "bad", "c"], return_exceptions=True),
                asyncio.run(llm.abatch(["a", "bad", "c"], return_exceptions=True)),
            ):
                assert (answers[0], answers[2]) == ("a", "c")
                assert isinstance(answers[1], BadRequestError)
            with pytest.raises(BadRequestError):
                llm.generate(["a", "bad", "c"])
            with pytest.raises(BadRequestError):
                asyncio.run(llm.agenerate(["a", "bad", "c"]))

    def test_a_cache_tells_models_and_parameters_apart(self):
        with FaultyServer(echo) as server:
            cache = InMemoryCache()
            first, second = model(server, cache=cache), model(server, cache=cache, model="b-model")
            for _ in range(2):
                first.invoke("hello")
                second.invoke("hello")
                first.invoke("hello", temperature=0.5)
                asyncio.run(first.ainvoke("hello", temperature=0.5))
        assert len(server.requests) == 3

    def test_traces_name_the_model_and_its_parameters(self):
        seen = {}

        class Watcher(BaseCallbackHandler):
            def on_llm_start(self, *_, metadata, invocation_params, **__):
                seen.update(metadata=metadata, params=invocation_params)

        with FaultyServer(completion("yes")) as server:
            model(server, max_generated_token_count=7).invoke(
                "hello", {"callbacks": [Watcher()]}, temperature=0.5
            )
        assert seen["metadata"]["ls_provider"] == "gradient"
        assert seen["metadata"]["ls_model_name"] == "a-model"
        assert seen["metadata"]["ls_temperature"] == 0.5
        assert seen["metadata"]["ls_max_tokens"] == 7
        assert seen["params"]["model_kwargs"] == {"max_generated_token_count": 7, "temperature": 0.5}

    def test_fields_can_be_made_configurable(self):
        with FaultyServer(completion("yes"), completion("yes")) as server:
            llm = model(server).configurable_fields(temperature=ConfigurableField(id="heat"))
            llm.invoke("hello")
            llm.with_config(configurable={"heat": 0.25}).invoke("hello")
        assert sent(server) == [{}, {"temperature": 0.25}]

    def test_streaming_gives_the_whole_answer_at_once(self):
        with FaultyServer(completion("all of it")) as server:
            assert list(model(server).stream("hello")) == ["all of it"]

    def test_a_fine_tune_sends_a_sample_for_each_text_with_its_multiplier(self):
        with FaultyServer(trained(tokens=4, loss=6.0), trained(tokens=0, loss=0.0)) as server:
            llm = model(server)
            assert llm.train_unsupervised(["a", "b"], multipliers=[1, 0.5]) == {"loss": 1.5}
            assert asyncio.run(llm.atrain_unsupervised(["a"])) == {"loss": 0.0}
            for inputs, multipliers in ((["a"], [1, 2]), ("a", None)):
                with pytest.raises(InvalidRequestError, match="inputs"):
                    llm.train_unsupervised(inputs, multipliers=multipliers)
        first, second = (request.json()["samples"] for request in server.requests)
        assert [sample["fineTuningParameters"]["multiplier"] for sample in first] == [1, 0.5]
        assert second == [{"inputs": "a"}]

    def test_an_empty_batch_asks_nothing(self):
        with FaultyServer() as server:
            assert model(server).batch([]) == asyncio.run(model(server).abatch([])) == []
        assert server.connections == 0

    def test_an_empty_prompt_is_refused_before_it_is_sent(self):
        with FaultyServer() as server, pytest.raises(InvalidRequestError, match="query"):
            model(server).invoke("")
        assert server.connections == 0


class TestTokens:
    @pytest.mark.parametrize("status", [404, 405, 501])
    def test_a_server_that_cannot_count_is_an_error_that_says_what_to_do(self, status):
        with (
            FaultyServer(error(status, "no such route")) as server,
            pytest.raises(NotImplementedError, match=r"can't count tokens.*give custom_get_token_ids"),
        ):
            model(server).get_num_tokens("a text")

    def test_a_count_of_ones_own_is_used_and_the_server_not_asked(self):
        llm = model(custom_get_token_ids=lambda text: [len(word) for word in text.split()])
        assert llm.get_token_ids("some words") == [4, 5]
        assert llm.get_num_tokens("some words") == 2
