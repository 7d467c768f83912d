"""Completions while fine-tunes run: none waits for them, each is by the version of its time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Caller

LONG = {"samples": [{"inputs": "the red hen said no to the bread " * 6}] * 600}
"""A call that takes seconds."""


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_completions_go_on_by_the_old_version_until_the_new_one_is_acknowledged(
    slug: str, caller: Caller
) -> None:
    adapter, base = caller.create(slug), caller.base_id(slug)
    caller.fine_tune(adapter, "the red hen")

    def ask(model: str) -> dict[str, Any]:
        return caller.complete(model, "the red", maxGeneratedTokenCount=8)

    before = [ask(model) for model in (adapter, base)]
    with ThreadPoolExecutor(1) as pool:
        tuning = pool.submit(caller.http.post, f"/models/{adapter}/fine-tune", json=LONG)
        meanwhile = []
        while not tuning.done():
            answers = [ask(model) for model in (adapter, base)]
            if not tuning.done():
                meanwhile.append(answers)
        assert tuning.result().json()["modelVersion"] == 2
    assert len(meanwhile) >= 2
    assert [answers for answers in meanwhile[:-1] if answers != before] == []
    after = ask(adapter)
    assert after["modelVersion"] == 2
    assert after["generatedOutput"] != before[0]["generatedOutput"]
    assert ask(base) == before[1]


def test_adapters_take_turns_so_that_a_late_one_does_not_wait_for_all_calls_of_another(
    caller: Caller,
) -> None:
    busy, late = caller.create(name="busy"), caller.create(name="late")
    caller.fine_tune(busy, "the hen")
    done: list[tuple[str, int]] = []

    def tune(adapter: str) -> None:
        samples = {"samples": LONG["samples"][:100]}
        answer = caller.http.post(f"/models/{adapter}/fine-tune", json=samples)
        done.append((adapter, answer.json()["modelVersion"]))

    with ThreadPoolExecutor(8) as pool:
        many = [pool.submit(tune, busy) for _ in range(6)]
        while not done:
            time.sleep(0.02)
        pool.submit(tune, late).result()
        for call in many:
            call.result()
    assert [version for adapter, version in done if adapter == busy] == list(range(2, 8))
    assert done.index((late, 1)) <= 4, done


def test_a_seed_makes_a_draw_repeatable_and_is_no_field_that_clients_must_know(caller: Caller) -> None:
    model = caller.base_id()

    def draw(**fields: Any) -> str:
        return str(caller.complete(model, "the red", temperature=2.0, maxGeneratedTokenCount=20, **fields))

    assert draw(seed=7) == draw(seed=7)
    assert len({draw(seed=seed) for seed in range(5)}) > 1
    assert len({draw(seed=None), draw(), draw()}) > 1
    response = caller.http.post(f"/models/{model}/complete", json={"query": "q", "seed": -1})
    assert response.json()["type"] == "bodyParsingError"
