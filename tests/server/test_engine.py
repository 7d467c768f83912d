"""The engine in this process: what it tells of its load, and what it does when something breaks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import wait_until

from airflow_provider_gradient.api import (
    CompleteRequest,
    FineTuneRequest,
    Sample,
    ServerError,
    UnknownModelError,
)
from airflow_provider_gradient.server.catalogue import new_adapter_id
from airflow_provider_gradient.server.engine import Engine, EngineLoad
from airflow_provider_gradient.server.micro_batches import MicroBatchRoad
from airflow_provider_gradient.server.slots import Slots
from airflow_provider_gradient.server.store import AdapterRecord, Store
from airflow_provider_gradient.server.weights import AdapterWeights


class Workplace:
    """An engine of two models, its records and its files."""

    def __init__(self, folder: Path, **directories: Path) -> None:
        self.files = folder / "adapters"
        self.store = Store(folder / "gradient.db")
        self.store.accounts.grant(token="t", workspace_id="w")
        self.engine = Engine(directories, store=self.store, weights=AdapterWeights(self.files), threads=1)

    def tune(self, record: AdapterRecord | None = None, *, base_slug: str = "llama") -> AdapterRecord:
        """A new adapter after a fine-tune, or the next version of one."""
        adapter_id = record.id if record else new_adapter_id()
        if record is None:
            self.store.create_adapter(
                id=adapter_id, workspace_id="w", name="a", base_slug=base_slug, rank=2, learning_rate=0.05
            )
        request = FineTuneRequest(samples=[Sample(inputs="the red hen")])
        self.engine.fine_tune(self.record(adapter_id), request, call=None).result(60)
        return self.record(adapter_id)

    def record(self, adapter_id: str) -> AdapterRecord:
        found = self.store.adapter(adapter_id)
        assert found is not None
        return found


@pytest.fixture
def workplace(llama_directory: Path, gpt2_directory: Path, tmp_path: Path) -> Iterator[Workplace]:
    made = Workplace(tmp_path, llama=llama_directory, gpt2=gpt2_directory)
    yield made
    assert made.engine.stop()
    made.store.close()


def question(tokens: int = 7) -> CompleteRequest:
    return CompleteRequest(query="the red hen", max_generated_token_count=tokens)


def test_tokens_and_adapters_are_counted_as_they_come(workplace: Workplace) -> None:
    engine = workplace.engine
    idle = engine.load()
    assert idle == EngineLoad(
        waiting=0, running=0, slots=idle.slots, resident_adapters=0, generated_tokens=0, trained_tokens=0
    )
    assert idle.slots >= 2
    tuned = workplace.tune()
    answers = [engine.complete("llama", tuned, question()) for _ in range(5)]
    generated = sum(answer.result(60)["usage"]["completionTokens"] for answer in answers)
    load = engine.load()
    assert load.generated_tokens == generated > 0
    assert load.trained_tokens > 0
    assert load.resident_adapters == 1
    assert (load.waiting, load.running) == (0, 0)


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_where_a_batch_breaks_each_of_its_requests_is_tried_by_itself(
    slug: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = workplace.engine.complete(slug, None, question()).result(60)
    broken: list[int] = []

    def breaking(method: Any) -> Any:
        def step(self: Any, *arguments: Any, **options: Any) -> Any:
            if len(self) > 1:
                broken.append(len(self))
                raise RuntimeError("no room for more than one")
            return method(self, *arguments, **options)

        return step

    if slug == "llama":
        monkeypatch.setattr(Slots, "step", breaking(Slots.step))
    else:
        monkeypatch.setattr(MicroBatchRoad, "__len__", lambda road: road.rows, raising=False)
        monkeypatch.setattr(MicroBatchRoad, "_begin", breaking(MicroBatchRoad._begin))
    waiting = [workplace.engine.complete(slug, None, question()) for _ in range(6)]
    assert [answer.result(60) for answer in waiting] == [expected] * 6
    assert broken


def test_a_request_for_which_there_is_no_memory_is_told_so_and_the_next_is_answered(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Slots._make_room

    def make_room(slots: Slots, length: int) -> None:
        if length > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate much")
        whole(slots, length)

    monkeypatch.setattr(Slots, "_make_room", make_room)
    short, long = (workplace.engine.complete("llama", None, question(tokens)) for tokens in (3, 100))
    assert short.result(60)
    with pytest.raises(ServerError, match="not enough memory for this request") as refusal:
        long.result(60)
    assert (refusal.value.status, refusal.value.retry_after) == (503, 5)
    assert workplace.engine.complete("llama", None, question(3)).result(60) == short.result()


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_a_completion_whose_version_is_gone_from_the_disk_is_by_the_next(
    slug: str, workplace: Workplace
) -> None:
    first = workplace.tune(base_slug=slug)
    second = workplace.tune(first)
    assert (first.version, second.version) == (1, 2)
    answer = workplace.engine.complete(slug, first, question()).result(60)
    assert answer["modelVersion"] == 2


def test_a_completion_whose_adapter_is_deleted_meanwhile_is_told_so(workplace: Workplace) -> None:
    gone = workplace.tune()
    workplace.store.delete_adapter(gone.id, workspace_id="w")
    shutil.rmtree(workplace.files / gone.id)
    with pytest.raises(UnknownModelError):
        workplace.engine.complete("llama", gone, question()).result(60)
    assert workplace.engine.complete("llama", None, question()).result(60)


def delete(workplace: Workplace, record: AdapterRecord) -> None:
    """As the server does it."""
    assert workplace.store.delete_adapter(record.id, workspace_id="w")
    workplace.engine.forget(record).result(60)


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_a_deleted_adapter_has_left_memory_and_the_others_stay(slug: str, workplace: Workplace) -> None:
    engine = workplace.engine
    base = engine.complete(slug, None, question()).result(60)
    gone, other = workplace.tune(base_slug=slug), workplace.tune(workplace.tune(base_slug=slug))
    of_gone, of_other = (engine.complete(slug, record, question()).result(60) for record in (gone, other))
    assert of_gone != of_other
    assert engine.load().resident_adapters == 2
    delete(workplace, gone)
    assert engine.load().resident_adapters == 1
    assert engine.complete(slug, other, question()).result(60) == of_other
    with pytest.raises(UnknownModelError):
        engine.complete(slug, gone, question()).result(60)
    assert engine.load().resident_adapters == 1, "no late request brings it back"
    delete(workplace, other)
    assert engine.load().resident_adapters == 0
    assert engine.complete(slug, None, question()).result(60) == base
    twin = workplace.tune(base_slug=slug)
    assert engine.complete(slug, twin, question()).result(60) == of_gone, "in the place of one that left"


@pytest.mark.parametrize("slug", ["llama", "gpt2"])
def test_a_completion_under_way_finishes_by_its_deleted_adapter_which_leaves_memory_then(
    slug: str, workplace: Workplace
) -> None:
    engine, record = workplace.engine, workplace.tune(base_slug=slug)
    expected = engine.complete(slug, record, question(100)).result(60)
    begun = engine.complete(slug, record, question(100))
    while not engine.load().running:
        assert not begun.done()
    delete(workplace, record)
    assert begun.result(60) == expected
    wait_until(lambda: engine.load().resident_adapters == 0, seconds=10)


def test_how_each_model_is_served_is_shown(workplace: Workplace) -> None:
    llama, gpt2 = workplace.engine.shown
    assert llama.startswith("llama: continuous batching, ")
    assert gpt2.startswith("gpt2: micro-batches, ")
    assert "slots of 128 tokens" in llama
    assert llama.endswith("MiB of cache each), cpu, float32")
