"""Continuations against transformers' own, alone and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from airflow_provider_gradient.server.generation import Continuation, Prompt, continue_prompts
from airflow_provider_gradient.server.sampling import BatchSampler, Sampling
from airflow_provider_gradient.server.served_model import ServedModel

TEXTS = ["the red hen", "no", "said the green hen to the bread and the red", "hen hen", "bread: ", "éß→ the"]
NEVER = frozenset[int]()


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def served(request: pytest.FixtureRequest) -> ServedModel:
    directory: Path = request.getfixturevalue(f"{request.param}_directory")
    return ServedModel.load(request.param, directory)


def run(
    model: Any, prompts: list[Prompt], *, stop: frozenset[int] = NEVER, seed: int = 0
) -> list[Continuation]:
    found: dict[int, Continuation] = {}
    chance = torch.Generator().manual_seed(seed)
    continue_prompts(model, prompts, stop_tokens=stop, generator=chance, deliver=found.__setitem__)
    return [found[index] for index in range(len(prompts))]


def prompts_of(served: ServedModel, *, tokens: int = 20) -> list[Prompt]:
    return [Prompt(tokens=list(served.tokenizer(text).input_ids), max_new_tokens=tokens) for text in TEXTS]


def test_greedy_alone_is_transformers_generate_token_for_token(served: ServedModel) -> None:
    for prompt in prompts_of(served, tokens=40):
        ids = torch.tensor([prompt.tokens])
        expected = served.model.generate(ids, do_sample=False, max_new_tokens=40, eos_token_id=None)
        assert run(served.model, [prompt])[0].tokens == expected[0, len(prompt.tokens) :].tolist()


def test_a_row_of_a_batch_gets_what_it_would_get_alone(served: ServedModel) -> None:
    prompts = [
        Prompt(tokens=prompt.tokens, max_new_tokens=5 + 7 * index)
        for index, prompt in enumerate(prompts_of(served))
    ]
    assert run(served.model, prompts) == [run(served.model, [prompt])[0] for prompt in prompts]


def test_a_row_ends_at_its_stop_token_or_its_own_limit(served: ServedModel) -> None:
    prompts = prompts_of(served)
    free = run(served.model, prompts)
    stop = free[0].tokens[4]
    bounded = run(served.model, prompts, stop=frozenset([stop]))
    for continuation, unbounded in zip(bounded, free, strict=True):
        expected = unbounded.tokens
        if stop in expected:
            assert continuation.finish_reason == "stop"
            assert continuation.tokens == expected[: expected.index(stop)]
        else:
            assert continuation.finish_reason == "length"
            assert continuation.tokens == expected


def test_rows_that_draw_leave_greedy_rows_alone(served: ServedModel) -> None:
    greedy = prompts_of(served)
    mixed = [
        Prompt(tokens=row.tokens, max_new_tokens=20, sampling=Sampling(temperature=2.0 * (index % 2)))
        for index, row in enumerate(greedy)
    ]
    expected = run(served.model, greedy)
    found = run(served.model, mixed)
    assert found[::2] == expected[::2]
    assert found[1::2] != expected[1::2]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=5, top_k=1), Sampling(temperature=5, top_p=1e-9), Sampling(temperature=1e-30)],
)
def test_a_draw_from_one_token_is_greedy(served: ServedModel, sampling: Sampling) -> None:
    greedy = prompts_of(served)
    one = [Prompt(tokens=row.tokens, max_new_tokens=20, sampling=sampling) for row in greedy]
    assert run(served.model, one) == run(served.model, greedy)


def test_a_row_whose_output_is_no_number_says_so_and_its_mates_go_on(served: ServedModel) -> None:
    class Broken:
        device = served.model.device

        def forward(self, input_ids: Any, position_ids: Any = None, **fields: Any) -> Any: ...

        def __call__(self, **fields: Any) -> Any:
            output = served.model(**fields)
            if len(output.logits) == len(TEXTS):
                output.logits[1] = torch.nan
            return output

    expected = run(served.model, prompts_of(served))
    found = run(Broken(), prompts_of(served))
    assert found[1] == Continuation(finish_reason="diverged")
    assert found[:1] + found[2:] == expected[:1] + expected[2:]


def frequencies(sampling: Sampling, probabilities: list[float], *, draws: int = 4000) -> list[float]:
    """How often each token is drawn."""
    sampler = BatchSampler([sampling] * draws, generator=torch.Generator().manual_seed(3))
    tokens = sampler.next_tokens(torch.tensor(probabilities).log().expand(draws, -1))
    return (tokens.bincount(minlength=len(probabilities)) / draws).tolist()


def test_draws_follow_the_temperature() -> None:
    assert frequencies(Sampling(temperature=1), [0.1, 0.6, 0.3]) == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    square = [0.01 / 0.46, 0.36 / 0.46, 0.09 / 0.46]
    assert frequencies(Sampling(temperature=0.5), [0.1, 0.6, 0.3]) == pytest.approx(square, abs=0.03)


def test_top_p_is_taken_over_what_top_k_left() -> None:
    probabilities = [0.4, 0.3, 0.2, 0.1]
    alone = frequencies(Sampling(temperature=1, top_p=0.55), probabilities)
    assert alone == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.03)
    after_top_k = frequencies(Sampling(temperature=1, top_k=2, top_p=0.55), probabilities)
    assert after_top_k == [1, 0, 0, 0], "0.4 is more than 0.55 of the 0.7 that top_k left"
