"""Both clients behind one blocking call, so that every test runs with either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import ACCESS_TOKEN, WORKSPACE_ID

from airflow_provider_gradient.client import AsyncGradientClient, GradientClient, RetryPolicy

QUICK = RetryPolicy(attempts=5, base=0.01)


class Caller:
    """A client, blocking or not: ``caller("complete", model_id, query)``."""

    def __init__(self, *, asynchronous: bool, **arguments: Any) -> None:
        given = {"access_token": ACCESS_TOKEN, "workspace_id": WORKSPACE_ID, "retries": QUICK} | arguments
        self._runner = asyncio.Runner()
        self.client: Any = AsyncGradientClient(**given) if asynchronous else GradientClient(**given)

    def __call__(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.client, operation)(*args, **kwargs)
        return self._runner.run(result) if asyncio.iscoroutine(result) else result

    def close(self) -> None:
        self("aclose" if isinstance(self.client, AsyncGradientClient) else "close")
        self._runner.close()


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Caller]]:
    """Makes clients: ``connect(base_url=...)``, with credentials that the test need not care for."""
    callers: list[Caller] = []

    def make(**arguments: Any) -> Caller:
        callers.append(Caller(asynchronous=request.param, **arguments))
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()
