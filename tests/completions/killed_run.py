"""A run in a process of its own that begins at once: forked off one that has imported all of it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from typing import Any

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset


def start_run(credentials: dict[str, str], **arguments: Any) -> BaseProcess:
    """A process that completes a dataset."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "langchain_core.prompts"])
    process = context.Process(target=_run, args=(credentials, arguments, dict(os.environ)))
    process.start()
    return process


def _run(credentials: dict[str, str], arguments: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)  # the server of forks may have begun under another

    async def run() -> None:
        async with AsyncGradientClient(**credentials) as client:
            await complete_dataset(client, **arguments)

    asyncio.run(run())
