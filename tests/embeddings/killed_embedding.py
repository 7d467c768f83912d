"""A run in a process of its own that begins at once: forked off one that has imported all of it."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.process import BaseProcess
from typing import Any

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.embeddings import embed_dataset


def start_embedding(credentials: dict[str, str], **arguments: Any) -> BaseProcess:
    """A process that embeds a dataset."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(credentials, arguments))
    process.start()
    return process


def _run(credentials: dict[str, str], arguments: dict[str, Any]) -> None:
    async def run() -> None:
        async with AsyncGradientClient(**credentials) as client:
            await embed_dataset(client, **arguments)

    asyncio.run(run())
