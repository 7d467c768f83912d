"""A disk that takes nothing more: the caller is told, nothing half-written counts, and the server still
serves."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Caller

QUERY = "the red hen said"
SAMPLES = {"samples": [{"inputs": "the green hen"}]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB at ``disk``, and a data directory ``data`` on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "gradient-test", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this user may mount nothing: {mounted.stderr.strip()}")
    (tmp_path / "data").symlink_to(disk)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def is_ready(caller: Caller) -> bool:
    return httpx.get(caller.server.url.removesuffix("/api") + "/ready").status_code == 200


def check_a_full_disk(caller: Caller, adapter: str, before: dict[str, Any]) -> None:
    """The disk is full at this moment."""
    assert not is_ready(caller)
    for _again in range(2):
        answer = caller.http.post(f"/models/{adapter}/fine-tune", json=SAMPLES)
        assert (answer.status_code, answer.json()["type"]) == (507, "failed")
        assert "disk is full" in answer.json()["message"]
    assert caller.complete(adapter, QUERY) == before, "still the version before"
    assert caller.complete(caller.base_id(), QUERY)
    assert caller.http.get("/models").status_code == 200


def test_a_full_disk_is_said_and_once_there_is_room_all_goes_on(
    small_disk: Path,
    start_server: Callable[..., Any],
    make_caller: Callable[[Any], Any],
    llama_directory: Path,
    tmp_path: Path,
) -> None:
    options = (f"--base-model=llama={llama_directory}",)
    server = start_server(*options, data_dir=tmp_path / "data")
    caller = make_caller(server)
    adapter = caller.create()
    caller.fine_tune(adapter, "the red hen")
    before = caller.complete(adapter, QUERY)
    fill(small_disk / "filler")
    check_a_full_disk(caller, adapter, before)
    new = {"model": {"baseModelId": caller.base_id(), "name": "n" * 5000}}
    refused = [caller.http.post("/models", json=new).status_code for _ in range(100)]
    assert set(refused) <= {200, 507}
    assert refused[-1] == 507
    (small_disk / "filler").unlink()
    assert is_ready(caller)
    assert caller.fine_tune(adapter, "the green hen")["modelVersion"] == 2
    server.kill()
    caller = make_caller(start_server(*options, data_dir=tmp_path / "data"))
    assert caller.complete(adapter, QUERY)["modelVersion"] == 2
    listed = caller.http.get("/models").json()["models"]
    assert sum(model["name"] == "n" * 5000 for model in listed if "name" in model) == refused.count(200)


def test_files_that_may_not_grow_are_as_good_as_a_full_disk(
    start_server: Callable[..., Any], make_caller: Callable[[Any], Any], llama_directory: Path, tmp_path: Path
) -> None:
    server = start_server(f"--base-model=llama={llama_directory}")
    caller = make_caller(server)
    adapter = caller.create()
    caller.fine_tune(adapter, "the red hen")
    before = caller.complete(adapter, QUERY)
    process = psutil.Process(server.process.pid)
    _, most = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (2048, most))
    check_a_full_disk(caller, adapter, before)
    process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, most))
    assert caller.fine_tune(adapter, "the green hen")["modelVersion"] == 2
    assert [path.name for path in (tmp_path / "data" / "adapters" / adapter).iterdir()] == ["v2"]
