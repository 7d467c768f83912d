"""A tuning run in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.process import BaseProcess
from typing import Any

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.tuning import fine_tune

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "langchain_core.prompts"])


def start(credentials: dict[str, str], arguments: dict[str, Any]) -> BaseProcess:
    """Begin a run."""
    process = _context.Process(target=_run, args=(credentials, arguments), daemon=True)
    process.start()
    return process


def _run(credentials: dict[str, str], arguments: dict[str, Any]) -> None:
    async def tune() -> None:
        async with AsyncGradientClient(**credentials) as client:
            await fine_tune(client, **arguments)

    asyncio.run(tune())
