"""Both roads against transformers' own ``generate`` with PEFT: alone, and in mixed batches that change."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from airflow_provider_gradient.server.adapters import twin_of
from airflow_provider_gradient.server.continuous import ContinuousRoad
from airflow_provider_gradient.server.devices import Placement
from airflow_provider_gradient.server.generation import Continuation, Prompt, Road, Row
from airflow_provider_gradient.server.guidance import Choices
from airflow_provider_gradient.server.llama_form import LlamaForm
from airflow_provider_gradient.server.lora_stack import AdapterKey, Lora, LoraStack
from airflow_provider_gradient.server.micro_batches import MicroBatchRoad
from airflow_provider_gradient.server.roads import road_of
from airflow_provider_gradient.server.sampling import Draws, Sampling, next_tokens
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.slots import NewText, Slots
from airflow_provider_gradient.server.training import new_lora_config
from airflow_provider_gradient.server.weights import AdapterWeights

TEXTS = ["the red hen", "no", "said the green hen to the bread and the red", "hen hen", "bread: ", "éß→ the"]
LONGEST = 30
CONTINUOUS = ("llama", "qwen2", "qwen3", "mistral")
RANKS = (2, 8, 5)


@dataclass
class Subject:
    """A model with three adapters of different ranks on the disk, and the road it takes."""

    served: ServedModel
    weights: AdapterWeights
    reference: PeftModel
    generated: dict[tuple[tuple[int, ...], AdapterKey | None], list[int]] = field(default_factory=dict)

    @property
    def keys(self) -> list[AdapterKey | None]:
        """The bare base model, then the adapters."""
        return [None, *(AdapterKey(f"adapter{number}", 1) for number in range(len(RANKS)))]

    def road(self, *, slots: int = 8) -> Road:
        plan = Placement.of("cpu", "float32").plan(
            self.served.model.config, context_length=128, slots=slots, source="it"
        )
        return road_of(replace(self.served, stop_tokens=frozenset()), plan, self.weights)

    def prompt(self, text: str, tokens: int = 20, **fields: Any) -> Prompt:
        ids = list(self.served.tokenizer(text).input_ids)
        return Prompt(tokens=ids, max_new_tokens=tokens, **fields)

    def expected(self, prompt: Prompt, key: AdapterKey | None) -> list[int]:
        """What transformers generates by itself, greedily."""
        known = self.generated.setdefault((tuple(prompt.tokens), key), [])
        if not known:
            known.extend(self._generate(prompt.tokens, key))
        return known[: prompt.max_new_tokens]

    @torch.no_grad()
    def _generate(self, tokens: list[int], key: AdapterKey | None) -> list[int]:
        ids = torch.tensor([tokens])
        options = {"do_sample": False, "max_new_tokens": LONGEST, "eos_token_id": None}
        if key is None:
            with self.reference.disable_adapter():
                found = self.reference.generate(input_ids=ids, **options)
        else:
            self.reference.set_adapter(key.id)
            found = self.reference.generate(input_ids=ids, **options)
        return found[0, len(tokens) :].tolist()


@pytest.fixture(scope="module")
def subject_of(
    model_directory: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Subject]:
    @cache
    def make(name: str) -> Subject:
        served = ServedModel.load(name, model_directory(name))
        weights = AdapterWeights(tmp_path_factory.mktemp(name))
        reference: Any = None
        for number, rank in enumerate(RANKS):
            torch.manual_seed(number)
            config = new_lora_config(rank, served.config.training)
            if reference is None:
                reference = PeftModel(twin_of(served.model), config, adapter_name="adapter0")
            else:
                reference.add_adapter(f"adapter{number}", config)
        for parameter_name, parameter in reference.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        reference.eval()
        for number in range(len(RANKS)):
            save = tmp_path_factory.mktemp("saved")
            reference.save_pretrained(save, selected_adapters=[f"adapter{number}"])
            found = save / f"adapter{number}"
            target = weights.path(f"adapter{number}", version=1)
            target.parent.mkdir()
            found.rename(target)
        return Subject(served, weights, reference)

    return make


@pytest.fixture(scope="module", params=[*CONTINUOUS, "gpt2", "granite"])
def subject(request: pytest.FixtureRequest, subject_of: Callable[[str], Subject]) -> Subject:
    return subject_of(request.param)


class Asked:
    """Rows put through a road; ``found`` has their ends by number."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self.found: dict[int, Continuation] = {}
        self.errors: dict[int, Exception] = {}
        self._count = 0

    def admit(self, prompt: Prompt, key: AdapterKey | None = None) -> None:
        number = self._count
        self._count += 1
        self.road.admit(
            Row(
                prompt,
                key,
                finished=lambda continuation: self.found.__setitem__(number, continuation),
                failed=lambda error: self.errors.__setitem__(number, error),
            )
        )

    def finish(self) -> list[Continuation]:
        while self.road.rows:
            self.road.step()
        assert not self.errors
        return [self.found[number] for number in range(self._count)]


def run(road: Road, prompts: Sequence[Prompt], keys: Sequence[AdapterKey | None] = ()) -> list[Continuation]:
    asked = Asked(road)
    for number, prompt in enumerate(prompts):
        asked.admit(prompt, keys[number] if keys else None)
    return asked.finish()


def test_the_road_goes_by_what_a_model_computes_and_not_by_its_name(
    subject_of: Callable[[str], Subject],
) -> None:
    for name in CONTINUOUS:
        assert isinstance(subject_of(name).road(), ContinuousRoad), name
    assert LlamaForm.of(subject_of("granite").served.model) is not None, "it has all the modules"
    for name in ("gpt2", "granite"):
        assert isinstance(subject_of(name).road(), MicroBatchRoad), name


def test_greedy_alone_is_transformers_generate_token_for_token(subject: Subject) -> None:
    road = subject.road()
    for key in subject.keys[:3]:
        for text in TEXTS[::2]:
            prompt = subject.prompt(text, LONGEST)
            assert run(road, [prompt], [key])[0].tokens == subject.expected(prompt, key)


def test_greedy_in_mixed_batches_whose_rows_come_and_go_is_transformers_generate(subject: Subject) -> None:
    chance = random.Random(1)
    asked = Asked(subject.road())
    rows = [
        (subject.prompt(chance.choice(TEXTS), chance.randint(1, LONGEST)), chance.choice(subject.keys))
        for _ in range(30)
    ]
    for prompt, key in rows:
        while asked.road.rows == asked.road.slots:
            asked.road.step()
        asked.admit(prompt, key)
        for _ in range(chance.randint(0, 3)):
            asked.road.step()
    for continuation, (prompt, key) in zip(asked.finish(), rows, strict=True):
        assert continuation.tokens == subject.expected(prompt, key)
        assert continuation.finish_reason == "length"


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_probabilities_are_those_of_transformers_with_peft(
    name: str, subject_of: Callable[[str], Subject]
) -> None:
    subject = subject_of(name)
    form = LlamaForm.of(subject.served.model)
    assert form is not None
    stack = LoraStack(
        form.targets, most=8, read=lambda key: Lora.load(subject.weights.path(key.id, version=key.version))
    )
    texts = [[*subject.prompt(text).tokens, *range(9, 21)] for text in TEXTS]
    keys = [subject.keys[number % 4] for number in range(len(texts))]
    slots = Slots(form, slots=8, longest=128)
    added = stack.added([None if key is None else stack.place(key, used=()) for key in keys])
    steps = [torch.cat(slots.prefill([NewText(tokens=text[:-9]) for text in texts], added=added))]
    steps += [slots.step([text[-9 + number] for text in texts], added=added) for number in range(9)]
    for row, (text, key) in enumerate(zip(texts, keys, strict=True)):
        with torch.no_grad():
            if key is None:
                with subject.reference.disable_adapter():
                    expected = subject.reference(input_ids=torch.tensor([text])).logits[0, -10:]
            else:
                subject.reference.set_adapter(key.id)
                expected = subject.reference(input_ids=torch.tensor([text])).logits[0, -10:]
        found = torch.stack([step[row] for step in steps])
        torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)


def test_a_row_ends_at_its_stop_token_or_its_own_limit(subject: Subject) -> None:
    prompts = [subject.prompt(text) for text in TEXTS]
    free = run(subject.road(), prompts)
    stop = free[0].tokens[4]
    road: Any = subject.road()
    road._stop_tokens = frozenset([stop])
    for continuation, unbounded in zip(run(road, prompts), free, strict=True):
        expected = unbounded.tokens
        if stop in expected:
            assert continuation.finish_reason == "stop"
            assert continuation.tokens == expected[: expected.index(stop)]
        else:
            assert continuation.finish_reason == "length"
            assert continuation.tokens == expected


def test_a_seeded_row_draws_the_same_alone_and_in_any_batch(subject: Subject) -> None:
    samplings = [
        Sampling(temperature=1.5, seed=1),
        Sampling(temperature=2.0, top_k=20, seed=2),
        Sampling(temperature=1.2, top_p=0.9, seed=3),
        Sampling(temperature=3.0, top_k=50, top_p=0.8, seed=4),
    ]
    keys = subject.keys
    prompts = [subject.prompt(TEXTS[number], sampling=sampling) for number, sampling in enumerate(samplings)]
    alone = [run(subject.road(), [prompt], [key])[0] for prompt, key in zip(prompts, keys, strict=True)]
    mates = [subject.prompt(TEXTS[2], 3, sampling=Sampling(temperature=1.0)), subject.prompt(TEXTS[1], 29)]
    mixed = run(subject.road(), [mates[0], *prompts, mates[1]], [keys[1], *keys, keys[2]])
    assert mixed[1:-1] == alone
    other = run(subject.road(), [replace(prompts[0], sampling=Sampling(temperature=1.5, seed=9))])
    assert other[0] != alone[0]


def test_rows_that_draw_leave_greedy_rows_alone(subject: Subject) -> None:
    greedy = [subject.prompt(text) for text in TEXTS]
    mixed = [
        replace(row, sampling=Sampling(temperature=2.0 * (number % 2))) for number, row in enumerate(greedy)
    ]
    expected = run(subject.road(), greedy)
    found = run(subject.road(), mixed)
    assert found[::2] == expected[::2]
    assert found[1::2] != expected[1::2]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=5, top_k=1), Sampling(temperature=5, top_p=1e-9), Sampling(temperature=1e-30)],
)
def test_a_draw_from_one_token_is_greedy(sampling: Sampling, subject: Subject) -> None:
    greedy = [subject.prompt(text) for text in TEXTS]
    one = [replace(row, sampling=sampling) for row in greedy]
    assert run(subject.road(), one) == run(subject.road(), greedy)


def diverged(subject: Subject) -> AdapterKey:
    """An adapter whose weights are no numbers."""
    healthy = subject.weights.path("adapter0", version=1)
    target = subject.weights.path("broken", version=1)
    if not target.exists():
        from safetensors.torch import load_file, save_file

        target.mkdir(parents=True)
        (target / "adapter_config.json").write_bytes((healthy / "adapter_config.json").read_bytes())
        tensors = load_file(healthy / "adapter_model.safetensors")
        save_file(
            {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()},
            target / "adapter_model.safetensors",
        )
    return AdapterKey("broken", 1)


def test_an_adapter_that_diverged_is_an_error_of_its_own_rows_alone(subject: Subject) -> None:
    broken = diverged(subject)
    prompts = [subject.prompt(text) for text in TEXTS]
    keys: list[AdapterKey | None] = [None, broken, subject.keys[1], None, broken, subject.keys[2]]
    road = subject.road()
    for _ in range(2):  # the second time in rows of the cache that held what is no number
        for number, continuation in enumerate(run(road, prompts, keys)):
            if keys[number] is broken:
                assert continuation == Continuation(finish_reason="diverged")
            else:
                assert continuation.tokens == subject.expected(prompts[number], keys[number])


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": Choices([[[70]], [[70, 71]], [[80], [81]]])},
        {"sampling": Sampling(temperature=1.0, seed=1)},
        {"sampling": Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=1)},
    ],
    ids=["choices", "temperature", "top_p"],
)
def test_an_adapter_that_diverged_has_neither_choice_nor_draw(
    fields: dict[str, Any], subject: Subject
) -> None:
    broken = diverged(subject)
    prompts = [subject.prompt(text, **fields) for text in TEXTS[:4]]
    keys: list[AdapterKey | None] = [subject.keys[1], broken, None, broken]
    healthy = [run(subject.road(), [prompts[number]], [keys[number]])[0] for number in (0, 2)]
    found = run(subject.road(), prompts, keys)
    assert found[1] == found[3] == Continuation(finish_reason="diverged")
    assert [found[0], found[2]] == healthy


def test_more_adapters_than_stay_in_memory_take_turns(subject_of: Callable[[str], Subject]) -> None:
    subject = subject_of("llama")
    form = LlamaForm.of(subject.served.model)
    assert form is not None
    reads: list[AdapterKey] = []

    def read(key: AdapterKey) -> Lora:
        reads.append(key)
        return Lora.load(subject.weights.path(key.id, version=key.version))

    stack = LoraStack(form.targets, most=2, read=read)
    cache_of_slots = Slots(form, slots=2, longest=128)
    road = ContinuousRoad(cache_of_slots, stack, slots=2, stop_tokens=frozenset())
    for _ in range(2):
        for key in subject.keys:
            prompt = subject.prompt(TEXTS[0])
            assert run(road, [prompt], [key])[0].tokens == subject.expected(prompt, key)
            assert road.resident_adapters <= 2
    assert len(reads) == 6, "the one not used for longest goes"


def test_a_row_finishes_on_the_version_it_began_with(
    subject_of: Callable[[str], Subject], tmp_path: Path
) -> None:
    subject = subject_of("llama")
    weights = AdapterWeights(tmp_path)
    first, second = AdapterKey("tuned", 1), AdapterKey("tuned", 2)
    for key, source in ((first, "adapter0"), (second, "adapter1")):
        weights.write(
            key.id,
            version=key.version,
            save=lambda path, source=source: shutil.copytree(
                subject.weights.path(source, version=1), path, dirs_exist_ok=True
            ),
        )
    asked = Asked(replace(subject, weights=weights).road())
    prompt = subject.prompt(TEXTS[0])
    asked.admit(prompt, first)
    for _ in range(5):
        asked.road.step()
    weights.remove_version("tuned", version=1)
    asked.admit(prompt, second)
    found = [continuation.tokens for continuation in asked.finish()]
    assert found == [subject.expected(prompt, subject.keys[1]), subject.expected(prompt, subject.keys[2])]
    assert found[0] != found[1]


def frequencies(sampling: Sampling, probabilities: list[float], *, draws: int = 4000) -> list[float]:
    """How often each token is drawn."""
    rows = [Draws(replace(sampling, seed=seed)) for seed in range(draws)]
    tokens = torch.tensor(next_tokens(torch.tensor(probabilities).log().expand(draws, -1), rows))
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


def test_the_temperature_comes_before_top_k_and_top_p() -> None:
    probabilities = [0.4, 0.3, 0.2, 0.1]
    flat = frequencies(Sampling(temperature=1e6, top_p=0.55), probabilities)
    assert flat == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.03), "of equals, .55 takes three"
