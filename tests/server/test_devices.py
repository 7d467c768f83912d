"""Devices, number types and the memory that is reckoned with before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airflow_provider_gradient.api import CompleteRequest, UnprocessableContentError
from airflow_provider_gradient.server.devices import MOST_SLOTS, Placement, key_value_bytes
from airflow_provider_gradient.server.roads import road_of
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.settings import ServerSettings, StartError
from airflow_provider_gradient.server.weights import AdapterWeights

CPU = Placement.of("cpu", "float32")
PER_TOKEN = 2 * 2 * 2 * 12 * 4
"""Key and value, two layers, two heads of 12 numbers of 4 bytes."""


@pytest.fixture
def llama(model_directory: Callable[[str], Path]) -> ServedModel:
    return ServedModel.load("llama", model_directory("llama"))


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(Placement, "free_bytes", property(lambda _: free))


def test_auto_is_the_processor_in_single_precision_where_there_is_no_cuda() -> None:
    if not torch.cuda.is_available():
        assert str(Placement.of("auto", "auto")) == "cpu, float32"
        with pytest.raises(StartError, match="--device cuda: torch finds none"):
            Placement.of("cuda", "auto")
    assert str(Placement.of("cpu", "bfloat16")) == "cpu, bfloat16"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"device": "tpu"}, "--device tpu"), ({"dtype": "int8"}, "--dtype int8"), ({"slots": 0}, "--slots 0")],
)
def test_options_that_make_no_sense_are_named(wrong: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=said):
        ServerSettings(data_dir=tmp_path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(StartError, match="--retain other: no model has that slug; there are: tiny"):
        ServerSettings(data_dir=tmp_path, retain=["other"])


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    model_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 50_000)
    with pytest.raises(StartError, match=r"base model 'big' .* for its weights .* are free. Take a smaller"):
        ServedModel.load("big", model_directory("llama"))


def test_there_are_as_many_slots_as_memory_allows(
    llama: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key_value_bytes(llama.model.config, torch.float32) == PER_TOKEN
    for context, free, slots, longest in [
        (128, 1 << 40, MOST_SLOTS, 128),
        (128, PER_TOKEN * 128 * 10, 6, 128),
        (100_000, PER_TOKEN * 4096 * 10, 6, 4096),
        (100_000, PER_TOKEN * 1000, 1, 600),
    ]:
        with_free(monkeypatch, free)
        plan = CPU.plan(llama.model.config, context_length=context, slots=None, source="it")
        assert (plan.slots, plan.longest) == (slots, longest)


def test_slots_that_were_asked_for_share_what_there_is_or_are_refused(
    llama: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, PER_TOKEN * 10_000)
    plan = CPU.plan(llama.model.config, context_length=4000, slots=3, source="it")
    assert (plan.slots, plan.longest) == (3, 2000)
    with pytest.raises(StartError, match=r"it: 50 slots leave room for 120 tokens each .* fewer --slots"):
        CPU.plan(llama.model.config, context_length=4000, slots=50, source="it")


def test_a_request_that_cannot_fit_is_refused_with_both_figures(llama: ServedModel) -> None:
    short = replace(llama, longest=20)
    with pytest.raises(UnprocessableContentError, match=r"query: \d+ tokens .* has memory here .* 20"):
        short.prompt(CompleteRequest(query="the red hen " * 12))
    assert short.prompt(CompleteRequest(query="the red")).max_new_tokens < 20


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_in_half_the_precision_takes_the_same_road(
    name: str, model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    placement = Placement.of("cpu", "bfloat16")
    served = ServedModel.load(name, model_directory(name), placement)
    assert served.model.dtype is torch.bfloat16
    plan = placement.plan(served.model.config, context_length=128, slots=2, source="it")
    expected = {"llama": "continuous batching", "gpt2": "micro-batches"}
    assert road_of(served, plan, AdapterWeights(tmp_path)).name == expected[name]


def test_neighbour_distillation_can_be_switched_on_for_any_model(
    model_directory: Callable[[str], Path],
) -> None:
    plain = ServedModel.load("llama", model_directory("llama"))
    retaining = ServedModel.load("llama", model_directory("llama"), retain=True)
    assert plain.config.training.neighbours is None
    assert retaining.config.training.neighbours is not None
    assert plain.config.training == retaining.config.training.model_copy(update={"neighbours": None})
