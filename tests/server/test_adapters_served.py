"""What an adapter answers: as PEFT would, after every fine-tune, among many clients and many adapters."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from tests.server.conftest import Caller

QUERIES = ["the red hen", "no", "said the green hen to the bread", "hen hen", "bread: "]


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_greedy_is_peft_with_transformers_generate_from_the_files_on_disk(
    slug: str, caller: Caller, random_server: Any, request: pytest.FixtureRequest
) -> None:
    adapter = caller.create(slug)
    caller.fine_tune(adapter, "the red hen said no", "the green hen")
    version = caller.fine_tune(adapter, "the bread")["modelVersion"]
    directory: Path = request.getfixturevalue(f"{slug}_directory")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(directory),
        random_server.data_dir / f"adapters/{adapter}/v{version}",
    )
    assert caller.complete(adapter, "the") != caller.complete(caller.base_id(slug), "the")
    for query in QUERIES:
        ids = torch.tensor([tokenizer(query).input_ids])
        expected = reference.generate(input_ids=ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        answer = caller.complete(adapter, query, maxGeneratedTokenCount=12)
        assert answer["generatedOutput"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_a_new_adapter_answers_as_its_base_and_a_tuned_one_leaves_the_base_alone(caller: Caller) -> None:
    base, adapter = caller.base_id(), caller.create()
    before = caller.complete(base, "the red")
    assert caller.complete(adapter, "the red") == before
    tuned = [caller.fine_tune(adapter, "the red hen said no to the bread")["sumLoss"] for _ in range(3)]
    assert tuned[2] < tuned[0]
    assert caller.complete(base, "the red") == before


def test_every_completion_after_an_acknowledged_fine_tune_is_by_the_new_weights(caller: Caller) -> None:
    adapter = caller.create()
    for expected in range(1, 4):
        assert caller.fine_tune(adapter, "the red hen")["modelVersion"] == expected
        assert caller.complete(adapter, "the")["modelVersion"] == expected


def test_many_clients_at_once_each_get_what_they_would_get_alone(caller: Caller) -> None:
    models = [caller.base_id(), caller.base_id("gpt2"), *(caller.create(name=name) for name in "ab")]
    for model in models[2:]:
        caller.fine_tune(model, "the red hen said no")
    questions = [
        (model, {"query": query, "maxGeneratedTokenCount": 3 + 5 * number})
        for model in models
        for number, query in enumerate(QUERIES)
    ] + [
        (model, {"query": "the", "guidance": {"type": "choice", "value": ["red", "green", "bread"]}})
        for model in models
    ]
    alone = [caller.complete(model, **fields) for model, fields in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: caller.complete(question[0], **question[1]), questions * 3))
    assert together == alone * 3


def test_a_request_that_cannot_be_answered_does_not_hurt_those_it_shares_a_batch_with(caller: Caller) -> None:
    base = caller.base_id()
    expected = caller.complete(base, "the red hen")

    def ask(number: int) -> tuple[int, Any]:
        query = "the red hen" if number % 2 else "the red hen " * 200
        response = caller.http.post(f"/models/{base}/complete", json={"query": query})
        return response.status_code, response.json()

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    assert [status for status, _ in answers] == [400, 200] * 12
    assert all(answer == expected for _, answer in answers[1::2])


def test_fine_tunes_of_several_clients_at_once_are_all_kept(caller: Caller) -> None:
    adapters = [caller.create(name=str(number)) for number in range(3)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda adapter: caller.fine_tune(adapter, "the red hen"), adapters * 4))
    for adapter, mine in zip(adapters, zip(*[iter(answers)] * 3, strict=True), strict=False):
        assert mine
        assert caller.complete(adapter, "the")["modelVersion"] == 4
    assert sorted(answer["modelVersion"] for answer in answers) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_more_adapters_than_stay_in_memory_still_answer_each_as_itself(caller: Caller) -> None:
    adapters = [caller.create(name=f"adapter {number}") for number in range(11)]
    for number, adapter in enumerate(adapters):
        caller.fine_tune(adapter, f"the red hen said {number}" * (1 + number % 3))
    first = [caller.complete(adapter, "the red hen said") for adapter in adapters]
    assert len({answer["generatedOutput"] for answer in first}) == len(adapters)
    assert [caller.complete(adapter, "the red hen said") for adapter in adapters] == first
    for adapter in adapters:
        assert caller.fine_tune(adapter, "the red hen said no")["modelVersion"] == 2


def test_two_adapters_of_one_name_tuned_alike_become_the_same(caller: Caller) -> None:
    twins = [caller.create(name="twin"), caller.create(name="twin")]
    losses = [[caller.fine_tune(twin, "the red hen")["sumLoss"] for _ in range(3)] for twin in twins]
    assert losses[0] == losses[1]
    assert caller.complete(twins[0], "the") == caller.complete(twins[1], "the")


def test_a_deleted_adapter_is_gone_at_once_and_its_files_soon(caller: Caller, random_server: Any) -> None:
    adapter = caller.create()
    caller.fine_tune(adapter, "the red hen")
    files = random_server.data_dir / "adapters" / adapter
    assert files.exists()
    assert caller.http.delete(f"/models/{adapter}").json() == {}
    for method, path in [("GET", ""), ("DELETE", "")]:
        assert caller.http.request(method, f"/models/{adapter}{path}").status_code == 404
    assert caller.http.post(f"/models/{adapter}/complete", json={"query": "q"}).status_code == 404
    for _ in range(100):
        if not files.exists():
            break
        time.sleep(0.1)
    assert not files.exists()


def test_a_client_that_hangs_up_does_not_disturb_the_next(caller: Caller) -> None:
    adapter = caller.create()
    for _ in range(5):
        with pytest.raises(httpx.TimeoutException):
            caller.http.post(
                f"/models/{adapter}/fine-tune", json={"samples": [{"inputs": "the hen"}] * 64}, timeout=0.01
            )
        with pytest.raises(httpx.TimeoutException):
            caller.http.post(f"/models/{adapter}/complete", json={"query": "the"}, timeout=0.001)
    assert caller.complete(adapter, "the")["modelVersion"] <= 5
    assert caller.fine_tune(adapter, "the red hen")["modelVersion"] <= 6
