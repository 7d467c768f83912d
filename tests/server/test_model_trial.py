"""Models of many architectures that transformers runs: each is answered in the way that its trial proved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
)

from airflow_provider_gradient.api import (
    CompleteRequest,
    FineTuneRequest,
    Sample,
)
from airflow_provider_gradient.server.catalogue import new_adapter_id
from airflow_provider_gradient.server.database import DATABASE_FILE
from airflow_provider_gradient.server.devices import SlotPlan
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.fingerprint import fingerprint
from airflow_provider_gradient.server.generation import Continuation, Prompt, Road, Row
from airflow_provider_gradient.server.guidance import Choices
from airflow_provider_gradient.server.micro_batches import MicroBatchRoad
from airflow_provider_gradient.server.roads import road_of
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.settings import StartError
from airflow_provider_gradient.server.store import Store
from airflow_provider_gradient.server.weights import AdapterWeights
from tests.server.conftest import CONTEXT, SMALL, VOCABULARY, save_model

if TYPE_CHECKING:
    from tests.server.conftest import Caller

_MAMBA = {
    "mamba_d_ssm": 48,
    "mamba_n_heads": 4,
    "mamba_d_head": 12,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
_LINEAR = ["linear_attention", "full_attention", "linear_attention"]
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SWITCH = 40
"""The length beyond which the model with longrope reads all of a batch in another way."""
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [4.0] * 6,
    "short_factor": [1.0] * 6,
    "original_max_position_embeddings": SWITCH,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "num_hidden_layers": 3,
        "layer_types": _LINEAR,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "head_dim": 12,
    },
    "lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "falcon_h1": _MAMBA,
    "jamba": {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
    },
    "nemotron_h": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 12,
        "ssm_state_size": 8,
        "n_groups": 2,
        "n_routed_experts": 4,
    },
    "minimax": {**_EXPERTS, "num_hidden_layers": 3, "layer_types": _LINEAR, "block_size": 32, "head_dim": 12},
    "phimoe": _EXPERTS,
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 64, "head_dim": 12},
    "phi3": {"original_max_position_embeddings": SWITCH, "rope_parameters": _LONGROPE},
    "bloom": {},
}
ONE_AT_A_TIME = ("minimax",)
READ_AGAIN = ("jamba", "minimax")
"""Those whose cache can't be shared by the values of a choice."""
NEVER_TUNED_BEFORE = ("falcon_h1", "nemotron_h", "phimoe", "llama4_text")


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory with a small random model of an architecture."""

    @cache
    def make(name: str) -> Path:
        torch.manual_seed(6)
        config = AutoConfig.for_model(name, **{**SMALL, "pad_token_id": 0, **ARCHITECTURES[name]})
        model = AutoModelForCausalLM.from_config(config)
        return save_model(tmp_path_factory.mktemp("architectures") / name, model)

    return make


@pytest.fixture(scope="module")
def served_of(directory_of: Callable[[str], Path]) -> Callable[[str], ServedModel]:
    return cache(lambda name: ServedModel.load(name, directory_of(name)))


@pytest.fixture(scope="module")
def road_for(
    served_of: Callable[[str], ServedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], MicroBatchRoad]:
    """The road that a model takes, with eight slots if it can use them; texts don't stop by themselves."""

    @cache
    def make(name: str) -> MicroBatchRoad:
        served = served_of(name)
        plan = SlotPlan(slots=8, longest=CONTEXT, bytes_per_slot=0)
        road = road_of(served, plan, AdapterWeights(tmp_path_factory.mktemp("adapters")))
        assert isinstance(road, MicroBatchRoad)
        road._stop_tokens = frozenset()
        return road

    return make


def run(road: Road, prompts: Sequence[Prompt]) -> list[Continuation]:
    """All prompts together, as far as there are slots."""
    found: dict[int, Continuation] = {}
    for number, prompt in enumerate(prompts):
        while road.rows == road.slots:
            road.step()
        road.admit(
            Row(prompt, None, finished=lambda end, number=number: found.update({number: end}), failed=_fail)
        )
    while road.rows:
        road.step()
    return [found[number] for number in range(len(prompts))]


def _fail(error: Exception) -> None:
    raise error


def generated(model: Any, prompt: Prompt) -> list[int]:
    """What transformers itself goes on with, alone and greedily."""
    ids = torch.tensor([prompt.tokens])
    with torch.no_grad():
        found = model.generate(
            ids, do_sample=False, max_new_tokens=prompt.max_new_tokens, eos_token_id=None, pad_token_id=0
        )
    return found[0, len(prompt.tokens) :].tolist()  # type: ignore[no-any-return]


def text_of(length: int, start: int = 0) -> list[int]:
    """Tokens of a text, none of them special."""
    return [5 + (start + 7 * number) % (VOCABULARY - 10) for number in range(length)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_way_a_model_is_answered_goes_by_its_trial(
    name: str, road_for: Callable[[str], MicroBatchRoad]
) -> None:
    road = road_for(name)
    assert road.name == ("one row at a time" if name in ONE_AT_A_TIME else "micro-batches")
    assert road.slots == (1 if name in ONE_AT_A_TIME else 8)
    assert road.abilities.shares_prompt is (name not in READ_AGAIN)
    assert road.abilities.tuning
    told = " ".join(road.abilities.remarks)
    assert ("one row at a time: in a batch" in told) is (name in ONE_AT_A_TIME)
    assert ("guidance reads the query again for each value" in told) is (name in READ_AGAIN)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_begin_and_end_at_different_times_get_what_generate_gives_each_alone(
    name: str, road_for: Callable[[str], MicroBatchRoad], served_of: Callable[[str], ServedModel]
) -> None:
    lengths = [(5, 14), (11, 2), (1, 6), (26, 9)]
    prompts = [Prompt(tokens=text_of(length, length), max_new_tokens=more) for length, more in lengths]
    found = [continuation.tokens for continuation in run(road_for(name), prompts)]
    assert found == [generated(served_of(name).model, prompt) for prompt in prompts]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_choice_is_the_value_that_the_model_holds_likeliest(
    name: str, road_for: Callable[[str], MicroBatchRoad], served_of: Callable[[str], ServedModel]
) -> None:
    values = [text_of(length, 31 * length) for length in (1, 1, 2, 3, 1)]
    prompts = [
        Prompt(tokens=text_of(length, length), max_new_tokens=1, choices=Choices([[v] for v in values]))
        for length in (1, 4, 9, 30)
    ]
    model = served_of(name).model
    for prompt, continuation in zip(prompts, run(road_for(name), prompts), strict=True):
        totals = [log_probability(model, prompt.tokens, value) for value in values]
        assert continuation.choice == totals.index(max(totals))


@torch.no_grad()
def log_probability(model: Any, prompt: list[int], value: list[int]) -> float:
    """Of a text's going on with a value, read in one pass without a cache."""
    logits = model(torch.tensor([[*prompt, *value]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(value).unsqueeze(-1)).sum())


def test_with_longrope_a_row_gets_the_same_beside_rows_on_the_other_side_of_the_switch(
    road_for: Callable[[str], MicroBatchRoad], served_of: Callable[[str], ServedModel]
) -> None:
    lengths = {"short": 6, "grows beyond it": SWITCH - 6, "long": SWITCH + 9, "also short": 9}
    prompts = [Prompt(tokens=text_of(length, length), max_new_tokens=20) for length in lengths.values()]
    values = [text_of(3, start) for start in (50, 90)]
    choices = Choices([[value] for value in values])
    prompts.append(Prompt(tokens=text_of(SWITCH - 1), max_new_tokens=9, choices=choices))
    road, model = road_for("phi3"), served_of("phi3").model
    assert road.abilities.switch == SWITCH
    *found, choice = run(road, prompts)
    assert {name: end.tokens for name, end in zip(lengths, found, strict=True)} == {
        name: generated(model, prompt) for name, prompt in zip(lengths, prompts, strict=False)
    }
    totals = [log_probability(model, prompts[-1].tokens, value) for value in values]
    assert choice.choice == totals.index(max(totals))


@pytest.fixture(scope="module")
def tuned_engine(
    directory_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Store]]:
    folder = tmp_path_factory.mktemp("tuned")
    store = Store(folder / "gradient.db")
    store.accounts.grant(token="t", workspace_id="w")
    directories = {name: directory_of(name) for name in (*NEVER_TUNED_BEFORE, "minimax")}
    engine = Engine(directories, store=store, weights=AdapterWeights(folder / "adapters"), threads=1, slots=4)
    yield engine, store
    assert engine.stop()
    store.close()


@pytest.mark.parametrize("name", NEVER_TUNED_BEFORE)
def test_a_fine_tune_lowers_the_loss_and_its_version_answers(
    name: str, tuned_engine: tuple[Engine, Store]
) -> None:
    engine, store = tuned_engine
    adapter = new_adapter_id()
    store.create_adapter(id=adapter, workspace_id="w", name="a", base_slug=name, rank=4, learning_rate=0.01)
    request = FineTuneRequest(samples=[Sample(inputs="the red hen said no"), Sample(inputs="bread")])
    losses = []
    for _ in range(3):
        record = store.adapter(adapter)
        assert record is not None
        losses.append(engine.fine_tune(record, request, call=None).result(60)["sumLoss"])
    assert losses == sorted(losses, reverse=True)
    answer = engine.complete(
        name, store.adapter(adapter), CompleteRequest(query="the red", max_generated_token_count=3)
    )
    assert answer.result(60)["modelVersion"] == 3


def test_the_line_at_the_start_says_why_a_model_is_answered_one_row_at_a_time(
    tuned_engine: tuple[Engine, Store],
) -> None:
    shown = next(line for line in tuned_engine[0].shown if line.startswith("minimax: "))
    assert shown.startswith(f"minimax: one row at a time, 1 slot of {CONTEXT} tokens (")
    assert "cpu, float32; one row at a time: in a batch a text gets other logits (by " in shown


def test_experts_that_fine_tunes_do_not_change_are_named_in_the_log(
    directory_of: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedModel.load("moe", directory_of("phimoe"))
    plan = SlotPlan(slots=2, longest=CONTEXT, bytes_per_slot=0)
    with caplog.at_level(logging.INFO):
        road_of(served, plan, AdapterWeights(tmp_path))
    assert "moe: fine-tunes change k_proj, o_proj, q_proj, v_proj; they leave" in caplog.text
    assert "model.layers.*.mlp.experts.gate_up_proj (" in caplog.text


def test_a_model_that_cannot_be_tuned_is_listed_so_and_an_adapter_of_it_is_neither_made_nor_tuned(
    caller: Caller, random_server: Any, fixed_directory: Path
) -> None:
    capabilities = {model["slug"]: model["capabilities"] for model in caller.models()}
    assert capabilities["fixed"] == ["complete"]
    assert capabilities["gpt2"] == ["complete", "fineTune"]
    assert caller.models("complete") == caller.models()
    assert [m["slug"] for m in caller.models("fineTune")] == ["tiny", "llama", "gpt2", "llama2-7b-chat"]
    base_id = caller.base_id("fixed")
    refused = caller.http.post("/models", json={"model": {"baseModelId": base_id, "name": "a"}})
    assert (refused.status_code, refused.json()["type"]) == (400, "modelIncapableOfFineTuning")
    assert "adapters of 'fixed' can't be fine-tuned" in refused.json()["message"]
    assert caller.complete(base_id, "bread?")["modelVersion"] == 0

    earlier = new_adapter_id()  # made when the model could still be tuned
    store = Store(random_server.data_dir / DATABASE_FILE)
    store.create_adapter(
        id=earlier,
        workspace_id=random_server.workspace_id,
        name="earlier",
        base_slug="fixed",
        rank=2,
        learning_rate=0.1,
        base_fingerprint=fingerprint(fixed_directory),
    )
    store.close()
    refused = caller.http.post(f"/models/{earlier}/fine-tune", json={"samples": [{"inputs": "bread"}]})
    assert (refused.status_code, refused.json()["type"]) == (400, "modelIncapableOfFineTuning")
    assert caller.complete(earlier, "bread?")["modelVersion"] == 0
    ids = {
        capability: [m["id"] for m in caller.http.get(f"/models?capability={capability}").json()["models"]]
        for capability in ("fineTune", "complete")
    }
    assert earlier in ids["complete"]
    assert earlier not in ids["fineTune"]
    assert "float32; no fine-tunes: in a training step it changes no answer" in random_server.log()


def test_an_encoder_is_refused_at_the_start(tmp_path: Path) -> None:
    config = BertConfig(**{**SMALL, "pad_token_id": 0})
    served = ServedModel.load("bert", save_model(tmp_path / "bert", BertLMHeadModel(config)))
    plan = SlotPlan(slots=2, longest=CONTEXT, bytes_per_slot=0)
    with pytest.raises(
        StartError, match=r"base model 'bert' .* can't be served: it reads a text in both dir"
    ):
        road_of(served, plan, AdapterWeights(tmp_path))
