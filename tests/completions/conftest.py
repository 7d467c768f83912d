"""A run over a dataset, on a server that echoes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_server import QUICK, Complete, EchoServer
from faults import MODEL_ID

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import CompletionManifest, complete_dataset


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture
def complete(server: EchoServer, tmp_path: Path) -> Complete:
    """``complete_dataset`` on the echo server, writing ``out.jsonl`` in the test's folder."""

    async def run(dataset: Any, **arguments: Any) -> CompletionManifest:
        given = {
            "model_id": MODEL_ID,
            "output_path": tmp_path / "out.jsonl",
            "prompt_template": "{q}",
        } | arguments
        async with AsyncGradientClient(**server.credentials, retries=QUICK) as client:
            return await complete_dataset(client, dataset=dataset, **given)

    return run
