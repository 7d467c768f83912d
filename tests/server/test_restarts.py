"""Stops, kills and starts: nothing acknowledged is lost, nothing half-written is ever loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_gradient.server.store import Store

if TYPE_CHECKING:
    pass

QUERY = "the red hen said"


class Restarted:
    """A server that was killed after some work and started again, without one of its base models.

    Between the kill and the start, leftovers of interrupted work were put on its disk, and one adapter's
    weights were damaged.
    """

    def __init__(self, data_dir: Path, server_process: Any, caller_of: Any, models: tuple[str, ...]) -> None:
        self.server = server_process(data_dir, *models)
        self.caller = caller_of(self.server)
        names = ("tuned", "twin", "fresh", "damaged")
        self.adapters = {name: self.caller.create(name="all alike") for name in names}
        for name in ("tuned", "twin", "damaged"):
            self.caller.fine_tune(self.adapters[name], "the red hen", "the bread")
        self.adapters["homeless"] = self.caller.create("gpt2")
        self.before = self.look()
        self.trained_on = self.caller.fine_tune(self.adapters["twin"], "the green hen", key="once")
        self.token = self.server.access_token
        self.server.kill()
        self.leftovers = self.disturb(data_dir / "adapters")
        self.server = server_process(data_dir, models[0])
        self.caller = caller_of(self.server)

    def look(self) -> dict[str, Any]:
        answers = {name: self.caller.complete(self.adapters[name], QUERY) for name in ("tuned", "fresh")}
        return answers | {"base": self.caller.complete(self.caller.base_id(), QUERY)}

    def disturb(self, directory: Path) -> list[Path]:
        weights = directory / self.adapters["damaged"] / "v1" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        tuned = directory / self.adapters["tuned"]
        leftovers = [tuned / "v2", tuned / "v2.partial", directory / f"{'0' * 36}_model_adapter" / "v1"]
        for leftover in leftovers:
            leftover.mkdir(parents=True)
            (leftover / "adapter_model.safetensors").write_bytes(b"half a fi")
        return leftovers


@pytest.fixture(scope="module")
def restarted(
    tmp_path_factory: pytest.TempPathFactory,
    server_process: Any,
    make_caller: Any,
    random_models: tuple[str, ...],
) -> Iterator[Restarted]:
    found = Restarted(
        tmp_path_factory.mktemp("restarted") / "data", server_process, make_caller, random_models
    )
    yield found
    found.server.kill()


def test_adapters_and_credentials_survive_a_restart(restarted: Restarted) -> None:
    assert restarted.server.access_token == restarted.token
    assert restarted.look() == restarted.before
    listed = restarted.caller.http.get("/models").json()["models"]
    assert {model["id"] for model in listed} >= set(restarted.adapters.values())


def test_training_goes_on_as_if_never_interrupted_and_answers_are_remembered(restarted: Restarted) -> None:
    tuned, twin = restarted.adapters["tuned"], restarted.adapters["twin"]
    assert restarted.caller.fine_tune(twin, "the green hen", key="once") == restarted.trained_on
    assert restarted.caller.fine_tune(tuned, "the green hen") == restarted.trained_on
    assert restarted.caller.complete(tuned, QUERY) == restarted.caller.complete(twin, QUERY)


def test_leftovers_of_a_kill_are_swept_at_the_next_start(restarted: Restarted) -> None:
    assert not any((path / "adapter_model.safetensors").exists() for path in restarted.leftovers[1:])
    weights = restarted.leftovers[0] / "adapter_model.safetensors"
    assert not weights.exists() or weights.read_bytes() != b"half a fi"


def test_weights_that_were_damaged_on_disk_are_an_error_and_not_an_answer(restarted: Restarted) -> None:
    caller, damaged = restarted.caller, restarted.adapters["damaged"]
    for _ in range(2):
        response = caller.http.post(f"/models/{damaged}/complete", json={"query": QUERY})
        assert (response.status_code, response.json()["type"]) == (500, "failed")
        assert caller.complete(caller.base_id(), QUERY) == restarted.before["base"]


def test_an_adapter_whose_base_model_is_not_served_any_more_waits_for_it(restarted: Restarted) -> None:
    caller, homeless = restarted.caller, restarted.adapters["homeless"]
    assert caller.http.get(f"/models/{homeless}").status_code == 200
    response = caller.http.post(f"/models/{homeless}/complete", json={"query": "q"})
    assert (response.status_code, response.json()["type"]) == (404, "unknownBaseModel")
    assert "'gpt2'" in response.json()["message"]
    assert caller.http.delete(f"/models/{homeless}").status_code == 200


def versions_on_disk(data_dir: Path, adapter: str) -> list[str]:
    directory = data_dir / "adapters" / adapter
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_a_signal_stops_it_in_good_order_even_while_it_trains(
    start_server: Callable[..., Any], make_caller: Any, random_models: tuple[str, ...], tmp_path: Path
) -> None:
    data_dir = tmp_path / "stopped"
    server = start_server(random_models[0], "--grace-seconds", "1", data_dir=data_dir)
    caller = make_caller(server)
    adapter = caller.create()
    samples = [{"inputs": "the red hen said no to the bread " * 12}] * 30_000

    def tune_for_long() -> int | None:
        try:
            return caller.http.post(f"/models/{adapter}/fine-tune", json={"samples": samples}).status_code
        except httpx.TransportError:
            return None

    with ThreadPoolExecutor(1) as pool:
        tuning = pool.submit(tune_for_long)
        time.sleep(2)
        assert not tuning.done(), "it should still train when the signal comes"
        status = server.stop()
        answered = tuning.result()
    assert status == 0, server.log()
    store = Store(data_dir / "gradient.db")
    record = store.adapter(adapter)
    store.close()
    assert record is not None
    assert record.version == (1 if answered == 200 else 0)
    assert versions_on_disk(data_dir, adapter) == (["v1"] if answered == 200 else [])
