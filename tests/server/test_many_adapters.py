"""A thousand adapters on the disk, of which only those in use are in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from airflow_provider_gradient.server.catalogue import new_adapter_id
from airflow_provider_gradient.server.database import ADAPTERS, Database

ADAPTERS_ON_DISK = 1000
RESIDENT = 4
MEBIBYTE = 1 << 20


def metric(server: Any, name: str) -> float:
    text = httpx.get(server.url.removesuffix("/api") + "/metrics").text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def multiply(data_dir: Path, adapter: str) -> list[str]:
    """A thousand more adapters like this one."""
    ids = [new_adapter_id() for _ in range(ADAPTERS_ON_DISK)]
    version = data_dir / "adapters" / adapter / "v1"
    for each in ids:
        copy = data_dir / "adapters" / each / "v1"
        copy.mkdir(parents=True)
        for file in version.iterdir():
            os.link(file, copy / file.name)
    database = Database(data_dir / "gradient.db")
    with database.write() as connection:
        row = connection.execute(ADAPTERS.select().where(ADAPTERS.c.id == adapter)).mappings().one()
        connection.execute(ADAPTERS.insert(), [dict(row) | {"id": each} for each in ids])
    database.close()
    return ids


def test_a_deleted_adapter_is_no_longer_in_memory_when_its_deletion_is_answered(
    start_server: Callable[..., Any],
    make_caller: Callable[[Any], Any],
    llama_directory: Path,
    gpt2_directory: Path,
) -> None:
    server = start_server(f"--base-model=llama={llama_directory}", f"--base-model=gpt2={gpt2_directory}")
    caller = make_caller(server)
    adapters = [caller.create(slug) for slug in ("llama", "gpt2")]
    for adapter in adapters:
        caller.fine_tune(adapter, "the red hen")
        caller.complete(adapter, "the red hen said")
    for left, adapter in ((1, adapters[0]), (0, adapters[1])):
        assert metric(server, "gradient_adapters_resident") == left + 1
        assert caller.http.delete(f"/models/{adapter}").status_code == 200
        assert metric(server, "gradient_adapters_resident") == left
    assert "Traceback" not in server.log()


def test_a_thousand_adapters_cost_no_memory_until_they_are_used(
    start_server: Callable[..., Any], make_caller: Callable[[Any], Any], llama_directory: Path, tmp_path: Path
) -> None:
    options = (f"--base-model=llama={llama_directory}", "--resident-adapters", str(RESIDENT))
    server = start_server(*options)
    before = metric(server, "process_resident_memory_bytes")
    caller = make_caller(server)
    adapter = caller.create()
    caller.fine_tune(adapter, "the red hen")
    answer = caller.complete(adapter, "the red hen said")
    server.stop()
    ids = multiply(tmp_path / "data", adapter)
    size = sum(file.stat().st_size for file in (tmp_path / "data" / "adapters" / adapter / "v1").iterdir())
    assert size * ADAPTERS_ON_DISK > 60 * MEBIBYTE, "in memory they would be seen"
    server = start_server(*options)
    assert metric(server, "gradient_adapters_resident") == 0
    assert metric(server, "process_resident_memory_bytes") - before < 30 * MEBIBYTE
    caller = make_caller(server)
    for used in (*ids[: 3 * RESIDENT], ids[0]):
        assert caller.complete(used, "the red hen said") == answer
        assert 1 <= metric(server, "gradient_adapters_resident") <= RESIDENT
    assert len(caller.http.get("/models").json()["models"]) > ADAPTERS_ON_DISK
