"""Thirty kills at random moments of creates, fine-tunes and deletes.

After each the server starts again; every step that was acknowledged is there, every adapter works in the
version that its record says, and nothing else is on the disk.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.server.forking import ForkingServer

if TYPE_CHECKING:
    from tests.server.conftest import Caller

KILLS = 30
QUERY = "the red hen said"


class Expected:
    """What the server acknowledged so far, and what it may have done beyond."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.gone: set[str] = set()
        self.unanswered: set[str] = set()
        """Adapters whose last fine-tune or delete was not answered."""


class Worker:
    """Creates, tunes and deletes adapters of its own until the server is gone."""

    def __init__(self, expected: Expected, seed: int) -> None:
        self.expected = expected
        self.chance = random.Random(seed)
        self.mine: list[str] = []

    def work(self, caller: Caller, killed: threading.Event) -> None:
        while not killed.is_set():
            try:
                self.step(caller)
            except httpx.TransportError:
                return

    def step(self, caller: Caller) -> None:
        what = self.chance.random()
        if not self.mine or what < 0.25:
            adapter = caller.create(name="a")
            self.mine.append(adapter)
            self.expected.versions[adapter] = 0
            return
        adapter = self.chance.choice(self.mine)
        self.expected.unanswered.add(adapter)
        if what < 0.85 or len(self.mine) < 2:
            self.expected.versions[adapter] = caller.fine_tune(adapter, "the red hen said no")["modelVersion"]
        else:
            assert caller.http.delete(f"/models/{adapter}").status_code == 200
            self.mine.remove(adapter)
            self.expected.gone.add(adapter)
        self.expected.unanswered.discard(adapter)


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[ForkingServer]:
    forking = ForkingServer(tmp_path / "forking.log")
    yield forking
    forking.close()


def on_disk(data_dir: Path) -> dict[str, list[str]]:
    return {
        adapter.name: [version.name for version in adapter.iterdir()]
        for adapter in (data_dir / "adapters").iterdir()
    }


def test_thirty_kills_lose_nothing_that_was_acknowledged(
    forking: ForkingServer, make_caller: Callable[[Any], Any], llama_directory: Path, tmp_path: Path
) -> None:
    chance = random.Random(20)
    expected = Expected()
    workers = [Worker(expected, seed) for seed in range(2)]
    data_dir = tmp_path / "data"
    options = (f"--base-model=llama={llama_directory}",)
    server = forking.server(data_dir, *options)
    for _kill in range(KILLS):
        killed = threading.Event()
        with ThreadPoolExecutor(len(workers)) as pool:
            working = [pool.submit(worker.work, make_caller(server), killed) for worker in workers]
            time.sleep(chance.uniform(0.02, 0.6))
            killed.set()
            server.kill()
            for each in working:
                each.result()
        server = forking.server(data_dir, *options)
        check(make_caller(server), expected, workers, on_disk(data_dir), look_into=chance)
    server.kill()
    assert len(expected.gone) >= 3
    assert sum(expected.versions.values()) >= KILLS // 2  # on a slow machine, too, kills came amid work


def check(
    caller: Caller,
    expected: Expected,
    workers: list[Worker],
    disk: dict[str, list[str]],
    *,
    look_into: random.Random,
) -> None:
    """Compare the server with what it acknowledged, and take over what it did beyond."""
    listed = {
        model["id"]
        for model in caller.http.get("/models").json()["models"]
        if model["type"] == "modelAdapter"
    }
    assert not listed & expected.gone, "what was deleted stays deleted"
    missing = expected.versions.keys() - expected.gone - listed
    assert missing <= expected.unanswered, "only a delete that was not answered may have been done"
    for adapter in missing:
        expected.gone.add(adapter)
        for worker in workers:
            worker.mine = [mine for mine in worker.mine if mine != adapter]
    for adapter in listed - expected.versions.keys():  # made, but the answer was lost
        expected.versions[adapter] = 0
    kept = {adapter: versions[0] for adapter, versions in disk.items() if versions}
    assert all(len(versions) <= 1 for versions in disk.values()), disk
    assert set(disk) <= listed, "no files without a record"
    for adapter in listed:
        version = int(kept.get(adapter, "v0").removeprefix("v"))
        acknowledged = expected.versions[adapter]
        assert acknowledged <= version <= acknowledged + (adapter in expected.unanswered)
        expected.versions[adapter] = version
    expected.unanswered.clear()
    for adapter in look_into.sample(sorted(listed), min(5, len(listed))):
        assert (
            caller.complete(adapter, QUERY, maxGeneratedTokenCount=2)["modelVersion"]
            == expected.versions[adapter]
        )


def tune_until_killed(caller: Caller, adapter: str, acknowledged: list[int]) -> str:
    """Fine-tune call after call; the key of the one that got no answer."""
    while True:
        key = f"call {acknowledged[-1] + 1}"
        try:
            acknowledged.append(caller.fine_tune(adapter, "the red hen said no", key=key)["modelVersion"])
        except httpx.TransportError:
            return key


def test_a_fine_tune_cut_by_a_kill_is_trained_once_when_it_is_sent_again_with_its_key(
    forking: ForkingServer, make_caller: Callable[[Any], Any], llama_directory: Path, tmp_path: Path
) -> None:
    chance = random.Random(5)
    data_dir = tmp_path / "killed"
    options = (f"--base-model=llama={llama_directory}",)
    server = forking.server(data_dir, *options)
    caller = make_caller(server)
    adapter = caller.create()
    acknowledged = [0]
    for _round in range(3):
        with ThreadPoolExecutor(1) as pool:
            tuning = pool.submit(tune_until_killed, caller, adapter, acknowledged)
            time.sleep(chance.uniform(0.1, 1.0))
            server.kill()
            unanswered = tuning.result()
        server = forking.server(data_dir, *options)
        caller = make_caller(server)
        kept = caller.complete(adapter, QUERY)["modelVersion"]
        assert acknowledged[-1] <= kept <= acknowledged[-1] + 1
        assert on_disk(data_dir).get(adapter, []) == ([f"v{kept}"] if kept else [])
        repeated = caller.fine_tune(adapter, "the red hen said no", key=unanswered)
        assert repeated["modelVersion"] == acknowledged[-1] + 1, "trained once, whether or not it was kept"
        acknowledged.append(repeated["modelVersion"])
    server.kill()
    assert acknowledged[-1] > 3
