"""Choice guidance against log-probabilities summed one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from airflow_provider_gradient.api import ChoiceGuidance, CompleteRequest, UnprocessableContentError
from airflow_provider_gradient.server.guidance import Choices, Spellings, read_choices
from airflow_provider_gradient.server.llama_form import LlamaForm
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.slots import NewText, Slots

PROMPT = [0, 40, 50, 60]
CONTEXT = 128


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2"])
def served(request: pytest.FixtureRequest, model_directory: Callable[[str], Path]) -> ServedModel:
    return ServedModel.load(request.param, model_directory(request.param))


def log_probabilities(model: Any, prompt: list[int], values: Sequence[Spellings]) -> list[float]:
    """As the road of this model computes them; beside a longer text in the same batch."""
    choices = Choices(values)
    form = LlamaForm.of(model)
    if form is None:
        return choices.log_probabilities(read_choices(model, prompt, choices))
    texts = [NewText(tokens=prompt, branches=choices.branches), NewText(tokens=[*range(2, 22)])]
    return choices.log_probabilities(Slots(form, slots=2, longest=CONTEXT).prefill(texts)[0])


def spelled_out(model: Any, tokens: list[int]) -> float:
    """log P(tokens | PROMPT), by a pass of its own for every token."""
    total = 0.0
    for position, token in enumerate(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + tokens[:position]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
    return total


def test_a_value_has_the_exact_probability_of_its_tokens(served: ServedModel) -> None:
    values = [[70, 71, 72], [80], [90, 91], [70, 99]]
    found = log_probabilities(served.model, PROMPT, [[value] for value in values])
    assert found == pytest.approx([spelled_out(served.model, value) for value in values], abs=1e-4)


def test_the_spellings_of_a_value_count_together(served: ServedModel) -> None:
    found = log_probabilities(served.model, PROMPT, [[[70, 71], [80]], [[90]]])
    both = [spelled_out(served.model, [70, 71]), spelled_out(served.model, [80])]
    assert found[0] == pytest.approx(math.log(sum(map(math.exp, both))), abs=1e-4)


def test_a_value_that_begins_another_counts_only_where_it_ends(served: ServedModel) -> None:
    short, longer, longest = log_probabilities(served.model, PROMPT, [[[70]], [[70, 71]], [[70, 71, 72]]])
    chain = [spelled_out(served.model, [70, 71, 72][:length]) for length in (1, 2, 3)]
    assert longest == pytest.approx(chain[2], abs=1e-4)
    assert math.exp(longer) == pytest.approx(math.exp(chain[1]) - math.exp(chain[2]), rel=1e-4)
    assert math.exp(short) == pytest.approx(math.exp(chain[0]) - math.exp(chain[1]), rel=1e-4)


def test_values_exclude_each_other_so_their_probabilities_never_pass_one(served: ServedModel) -> None:
    values = [[[first]] for first in range(2, 300)] + [[[70, second]] for second in range(2, 300)]
    assert math.fsum(map(math.exp, log_probabilities(served.model, PROMPT, values))) <= 1 + 1e-6


class Scripted:
    """A model that says, after each text, which tokens follow it with what probability."""

    device = torch.device("cpu")

    def __init__(self, follows: dict[tuple[int, ...], dict[int, float]], vocabulary: int) -> None:
        self.follows = follows
        self.vocabulary = vocabulary

    def __call__(self, *, input_ids: torch.Tensor, past_key_values: Any = None, **_options: Any) -> Any:
        read = past_key_values or _Read()
        rows = read.rows or [[] for _ in input_ids]
        logits = torch.full((*input_ids.shape, self.vocabulary), math.log(1e-9))
        for row, tokens in enumerate(input_ids.tolist()):
            for position in range(len(tokens)):
                text = tuple(rows[row] + tokens[: position + 1])
                for token, probability in self.follows.get(text, {}).items():
                    logits[row, position, token] = math.log(probability)
            rows[row] = rows[row] + tokens
        read.rows = rows
        return type("Output", (), {"logits": logits, "past_key_values": read})


class _Read:
    rows: list[list[int]] | None = None

    def reorder_cache(self, rows: torch.Tensor) -> None:
        self.rows = [list((self.rows or [])[row]) for row in rows.tolist()]


def test_a_longer_value_is_not_punished_beyond_its_tokens() -> None:
    model = Scripted({(0,): {1: 0.6, 2: 0.4}, (0, 1): {3: 0.99, 5: 0.01}, (0, 1, 3): {4: 0.99, 5: 0.01}}, 6)
    long, short = log_probabilities(model, [0], [[[1, 3, 4]], [[2]]])
    assert long > short, "three near certain tokens outweigh one less likely"
    assert math.exp(long) == pytest.approx(0.6 * 0.99 * 0.99, rel=1e-3)


def test_a_longer_value_gets_no_bonus_for_its_length() -> None:
    model = Scripted({(0,): {1: 0.4, 2: 0.6}, (0, 1): {3: 1.0}, (0, 1, 3): {4: 1.0}}, 6)
    long, short = log_probabilities(model, [0], [[[1, 3, 4]], [[2]]])
    assert long < short, "a mean over tokens would prefer it"


def test_the_beginning_of_a_longer_value_does_not_win_by_being_its_beginning() -> None:
    model = Scripted({(0,): {1: 0.9, 2: 0.1}, (0, 1): {3: 0.8, 5: 0.2}}, 6)
    no, no_idea = log_probabilities(model, [0], [[[1]], [[1, 3]]])
    assert no_idea > no
    assert math.exp(no) == pytest.approx(0.9 * 0.2, rel=1e-3)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 1])
def test_where_the_model_gives_no_numbers_no_value_has_a_probability(number: float, row: int) -> None:
    choices = Choices([[[1]], [[1, 2]], [[3], [4]]])
    logits = torch.zeros(1 + len(choices.prefixes), 6)
    logits[row, 5] = number
    assert all(math.isnan(value) for value in choices.log_probabilities(logits))


def test_a_value_counts_with_and_without_a_blank_before_it(served: ServedModel) -> None:
    values = ["red", "green", "no"]
    request = CompleteRequest(
        query="the red hen said", auto_template=False, guidance=ChoiceGuidance(value=values)
    )
    choices = served.prompt(request).choices
    assert choices is not None
    for value, tokens in zip(values, choices.lengths, strict=True):
        assert tokens == len(served.tokenizer.encode(value, add_special_tokens=False))
    found = choices.log_probabilities(read_choices(served.model, PROMPT, choices))
    for value, told in zip(values, found, strict=True):
        spellings = [served.tokenizer.encode(text, add_special_tokens=False) for text in (value, f" {value}")]
        expected = sum(math.exp(spelled_out(served.model, tokens)) for tokens in spellings)
        assert told == pytest.approx(math.log(expected), abs=1e-4)


def test_a_value_that_does_not_fit_in_the_context_is_refused_by_its_name(served: ServedModel) -> None:
    query = "hen" * CONTEXT
    tokens = served.tokenizer(query).input_ids[: CONTEXT - 2]
    query = served.tokenizer.decode(tokens[1:])
    request = CompleteRequest(
        query=query, auto_template=False, guidance=ChoiceGuidance(value=["zebra crossing", "no"])
    )
    with pytest.raises(UnprocessableContentError, match=r"'zebra crossing' doesn't fit: \d tokens are left"):
        served.prompt(request)
