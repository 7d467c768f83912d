"""Tuning runs on a server that counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL_ID
from trainer_server import QUICK, TrainerServer, Tune

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.tuning import TuningReport, calls, fine_tune


@pytest.fixture
def keyless() -> Iterator[TrainerServer]:
    """Knows no idempotency keys, as the hosted service."""
    with TrainerServer(keys=False) as server:
        yield server


@pytest.fixture
def keyed() -> Iterator[TrainerServer]:
    """Honours idempotency keys."""
    with TrainerServer(keys=True) as server:
        yield server


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tune:
    """``fine_tune`` over rows with ``q`` and ``a``, two a call, journaled in the test's folder; a busy server
    is waited for as long as the client does it, and no longer."""
    monkeypatch.setattr(calls, "_BUSY_SECONDS", 0.0)

    async def run(server: TrainerServer, samples: Any, **arguments: Any) -> TuningReport:
        given = {
            "model_id": MODEL_ID,
            "prompt_template": "{q}",
            "completion_template": "{a}",
            "batch_size": 2,
            "journal_path": tmp_path / "tuning.journal.jsonl",
        } | arguments
        async with AsyncGradientClient(**server.credentials, retries=QUICK) as client:
            return await fine_tune(client, samples=samples, **given)

    return run
