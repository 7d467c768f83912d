"""The trigger: asks a Gradient server again and again, and tells when what is awaited is there.

It only reads, so a triggerer that restarts runs it again without harm, and there is nothing to stop at the
server when its task is killed. Its arguments hold the connection's id and no credentials.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_gradient.api import GradientError
from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.triggers.awaited import PASSING, POLL_SECONDS, Awaited


class GradientTrigger(BaseTrigger):
    """Waits for a server to answer, or for an adapter.

    Its one event is a dict with ``found``, what :meth:`Awaited.found` gives, or with ``error``, a message:
    the server refuses what waiting doesn't change, or the connection is wrong.

    :param gradient_conn_id: id of the connection.
    :param awaited: fields of :class:`Awaited`.
    :param poll_interval: seconds between two questions.
    """

    def __init__(self, *, gradient_conn_id: str, awaited: Mapping[str, str], poll_interval: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gradient_conn_id = gradient_conn_id
        self.awaited = dict(awaited)
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """All that another triggerer needs to go on."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "gradient_conn_id": self.gradient_conn_id,
                "awaited": self.awaited,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """The event."""
        try:
            event: dict[str, Any] = {"found": await self._wait()}
        except GradientError as error:
            event = {"error": f"{type(error).__name__}: {error}"}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _wait(self) -> dict[str, Any]:
        awaited = Awaited(**self.awaited)
        async with await GradientHook(self.gradient_conn_id).get_async_conn(within=POLL_SECONDS) as client:
            while True:
                try:
                    found = awaited.found(await client.list_models(capability="any"))
                except PASSING as error:
                    self.log.info("Not ready: %s", error)
                else:
                    if found is not None:
                        return found
                await asyncio.sleep(self.poll_interval)
