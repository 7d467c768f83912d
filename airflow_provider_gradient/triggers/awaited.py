"""What is waited for, as a decision without I/O: the sensor in a worker and the trigger ask the same one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_provider_gradient.api import (
    BaseModelInfo,
    GradientConnectionError,
    ModelAdapterInfo,
    RateLimitError,
    ServerError,
)

PASSING = (GradientConnectionError, RateLimitError, ServerError)
"""What says that the server is not ready, and passes: no connection, time-outs, 429, 5xx."""
POLL_SECONDS = 30.0
"""The longest that one question takes."""


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """An answer of the server, or with one of the two first an adapter.

    :ivar model_id: of the adapter.
    :ivar name: of the adapter; of several, the one that was updated last.
    :ivar changed_since: an ISO 8601 moment; an adapter updated after it is waited for.
    """

    model_id: str | None = None
    name: str | None = None
    changed_since: str | None = None

    def found(self, models: Iterable[BaseModelInfo | ModelAdapterInfo]) -> dict[str, Any] | None:
        """What the workspace's models have of it, as JSON has it: the adapter, or how many ``models`` there
        are; ``None`` if it is not there yet."""
        if self.model_id is None and self.name is None:
            return {"models": len(list(models))}
        adapters = [model for model in models if isinstance(model, ModelAdapterInfo) and self._is_it(model)]
        latest = max(adapters, key=lambda adapter: adapter.latest_update_time, default=None)
        return None if latest is None else latest.model_dump(mode="json")

    def _is_it(self, adapter: ModelAdapterInfo) -> bool:
        named = adapter.id == self.model_id if self.name is None else adapter.name == self.name
        if not named or self.changed_since is None:
            return named
        return _utc(adapter.latest_update_time) > _utc(datetime.fromisoformat(self.changed_since))

    def to_dict(self) -> dict[str, str]:
        """The fields that are set, for a trigger's arguments."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
