"""An adapter whose files are not what its last fine-tune wrote answers nothing and is trained no further."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from airflow_provider_gradient.api import (
    ChoiceGuidance,
    CompleteRequest,
    FineTuneRequest,
    Sample,
    ServerError,
)
from airflow_provider_gradient.server.catalogue import new_adapter_id
from airflow_provider_gradient.server.database import ADAPTERS
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.store import AdapterRecord, Store
from airflow_provider_gradient.server.weights import AdapterWeights

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MOMENTS = "trainer.safetensors"
STATE = "trainer.json"


class Workplace:
    """An engine of two models with a tuned adapter each, of which copies can be had."""

    def __init__(self, folder: Path, **directories: Path) -> None:
        self.files = folder / "adapters"
        self.store = Store(folder / "gradient.db")
        self.store.accounts.grant(token="t", workspace_id="w")
        self.engine = Engine(directories, store=self.store, weights=AdapterWeights(self.files), threads=1)
        self.tuned = {slug: self._tuned(slug) for slug in directories}

    def _tuned(self, base_slug: str) -> AdapterRecord:
        made = new_adapter_id()
        self.store.create_adapter(
            id=made, workspace_id="w", name="a", base_slug=base_slug, rank=2, learning_rate=0.05
        )
        self.train(self.record(made))
        return self.record(made)

    def record(self, adapter_id: str) -> AdapterRecord:
        found = self.store.adapter(adapter_id)
        assert found is not None
        return found

    def directory(self, record: AdapterRecord) -> Path:
        return self.files / record.id / f"v{record.version}"

    def copy(self, base_slug: str, *, with_digests: bool) -> AdapterRecord:
        """The tuned adapter under a new id, as it is after a restart: on the disk alone."""
        original, copied = self.tuned[base_slug], new_adapter_id()
        shutil.copytree(self.directory(original), self.files / copied / f"v{original.version}")
        with self.store._database.write() as connection:
            row = connection.execute(ADAPTERS.select().where(ADAPTERS.c.id == original.id)).mappings().one()
            fields = dict(row) | {"id": copied} | ({} if with_digests else {"digests": None})
            connection.execute(ADAPTERS.insert(), [fields])
        return self.record(copied)

    def ask(self, record: AdapterRecord, **fields: Any) -> dict[str, Any]:
        request = CompleteRequest(query="the red hen", max_generated_token_count=5, **fields)
        return self.engine.complete(record.base_slug, record, request).result(60)

    def choose(self, record: AdapterRecord) -> dict[str, Any]:
        return self.ask(record, guidance=ChoiceGuidance(value=["red", "green"]))

    def train(self, record: AdapterRecord) -> dict[str, Any]:
        request = FineTuneRequest(samples=[Sample(inputs="the red hen")])
        return self.engine.fine_tune(record, request, call=None).result(60)


@pytest.fixture(scope="module")
def workplace(
    llama_directory: Path, gpt2_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workplace]:
    made = Workplace(tmp_path_factory.mktemp("damaged"), llama=llama_directory, gpt2=gpt2_directory)
    yield made
    assert made.engine.stop()
    made.store.close()


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def tensors_of(file: str, change: Change) -> Callable[[Path], None]:
    """Damage that is done to the tensors of a file."""

    def damage(directory: Path) -> None:
        save_file(change(load_file(directory / file)), directory / file)

    return damage


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in sorted(tensors)[len(tensors) // 2 :]}


def without_b(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}


def of_one_layer_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    more = {name.replace(".1.", ".2."): tensor.clone() for name, tensor in tensors.items()}
    return tensors | more


def of_a_wider_model(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.ones(2, tensor.shape[1] + 8) if "lora_A" in name else torch.ones(len(tensor) + 8, 2)
        for name, tensor in tensors.items()
    }


def of_a_higher_rank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([tensor] * 2, dim=0 if "lora_A" in name else 1) for name, tensor in tensors.items()
    }


def of_integers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}


def cut_off(file: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = (directory / file).read_bytes()
        (directory / file).write_bytes(content[: len(content) // 2])

    return damage


def missing(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).unlink()


def with_another_rank(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | {"r": 4}))


def with_another_models_layers(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | {"target_modules": ["query_key_value"]}))
    spoil = tensors_of(WEIGHTS, lambda tensors: {name.replace("proj", "x"): t for name, t in tensors.items()})
    spoil(directory)


def a_flipped_bit(directory: Path) -> None:
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-2] ^= 1
    (directory / WEIGHTS).write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "half of the tensors": (WEIGHTS, tensors_of(WEIGHTS, half)),
    "A without B": (WEIGHTS, tensors_of(WEIGHTS, without_b)),
    "a layer more": (WEIGHTS, tensors_of(WEIGHTS, of_one_layer_more)),
    "another base model's shapes": (WEIGHTS, tensors_of(WEIGHTS, of_a_wider_model)),
    "a higher rank than the configuration's": (WEIGHTS, tensors_of(WEIGHTS, of_a_higher_rank)),
    "integers": (WEIGHTS, tensors_of(WEIGHTS, of_integers)),
    "weights cut off": (WEIGHTS, cut_off(WEIGHTS)),
    "no weights": (WEIGHTS, missing(WEIGHTS)),
    "a configuration of another rank": (f"{CONFIG}|{WEIGHTS}", with_another_rank),
    "another model's layers": (f"{CONFIG}|{WEIGHTS}", with_another_models_layers),
    "a configuration cut off": (CONFIG, cut_off(CONFIG)),
    "no configuration": (CONFIG, missing(CONFIG)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("with_digests", [True, False], ids=["recorded", "older"])
@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_a_damaged_adapter_is_refused_with_its_version_and_file_and_left_as_it_is(
    slug: str, with_digests: bool, damage: str, workplace: Workplace
) -> None:
    file, spoil = DAMAGES[damage]
    record = workplace.copy(slug, with_digests=with_digests)
    directory = workplace.directory(record)
    spoil(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for use in (workplace.ask, workplace.choose, workplace.train):
        with pytest.raises(ServerError, match=f"is damaged: ({file}) ") as refusal:
            use(record)
        assert (refusal.value.status, refusal.value.type) == (500, "failed")
        assert f"version 1 of the model adapter {record.id!r}" in refusal.value.message
        assert f"adapters/{record.id}/v1" in refusal.value.message, "what to put back from a backup"
    assert workplace.record(record.id) == record
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == ["v1"]


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_a_flipped_bit_is_refused_where_the_digests_are_on_record(slug: str, workplace: Workplace) -> None:
    record = workplace.copy(slug, with_digests=True)
    a_flipped_bit(workplace.directory(record))
    for use in (workplace.ask, workplace.choose, workplace.train):
        with pytest.raises(ServerError, match="is not what the fine-tune wrote: its SHA-256 is another"):
            use(record)


@pytest.mark.parametrize(
    "spoil",
    [tensors_of(MOMENTS, half), missing(MOMENTS), missing(STATE), cut_off(STATE)],
    ids=["half of the moments", "no moments", "no state", "state cut off"],
)
@pytest.mark.parametrize("with_digests", [True, False], ids=["recorded", "older"])
def test_a_damaged_training_state_ends_training_and_no_completions(
    with_digests: bool, spoil: Callable[[Path], None], workplace: Workplace
) -> None:
    record = workplace.copy("llama", with_digests=with_digests)
    spoil(workplace.directory(record))
    with pytest.raises(ServerError, match=r"is damaged: trainer\.(json|safetensors) "):
        workplace.train(record)
    assert workplace.record(record.id).version == 1
    assert workplace.ask(record) == workplace.ask(workplace.tuned["llama"])


def nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_an_older_adapter_of_what_is_no_number_is_an_error_with_choices_as_without(
    slug: str, workplace: Workplace
) -> None:
    record = workplace.copy(slug, with_digests=False)
    tensors_of(WEIGHTS, nan)(workplace.directory(record))
    for use in (workplace.ask, workplace.choose):
        with pytest.raises(ServerError, match="the model's output is not a number"):
            use(record)
    with pytest.raises(ServerError, match=f"is damaged: {WEIGHTS} holds what is no number"):
        workplace.train(record)
    assert workplace.choose(workplace.tuned[slug])["finishReason"] == "stop"


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_an_adapter_without_digests_is_used_as_before_and_has_some_after_its_next_fine_tune(
    slug: str, workplace: Workplace
) -> None:
    record = workplace.copy(slug, with_digests=False)
    assert workplace.ask(record) == workplace.ask(workplace.tuned[slug])
    assert workplace.train(record)["modelVersion"] == 2
    digests = workplace.record(record.id).digests
    assert digests is not None
    assert set(digests) == {WEIGHTS, CONFIG, MOMENTS, STATE}


def test_what_was_repaired_answers_again(workplace: Workplace) -> None:
    record = workplace.copy("gpt2", with_digests=True)
    weights = workplace.directory(record) / WEIGHTS
    whole = weights.read_bytes()
    tensors_of(WEIGHTS, half)(weights.parent)
    with pytest.raises(ServerError, match="is damaged"):
        workplace.ask(record)
    weights.write_bytes(whole)
    assert workplace.ask(record) == workplace.ask(workplace.tuned["gpt2"])
    assert workplace.train(record)["modelVersion"] == 2
