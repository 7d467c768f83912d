"""A workspace's adapters as its server lists them, with the aliases that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from airflow_provider_gradient.api import (
    BaseModelInfo,
    GradientError,
    InvalidRequestError,
    ModelAdapterInfo,
)
from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.provider_info import CONNECTION_TYPE

_SECONDS = 5.0
"""The longest that a page waits for the server."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One row of the page.

    :ivar aliases: with the version that each has reached.
    """

    id: str
    name: str
    base_model: str
    latest_update_time: datetime
    aliases: list[str]


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What the page says of a connection: its adapters, those tuned last first, or why there is nothing."""

    adapters: list[Adapter]
    problem: str | None


def workspace(conn_id: str) -> Workspace:
    """The adapters of the connection's workspace; a server that doesn't answer is a problem to show."""
    try:
        return Workspace(adapters=_adapters(GradientHook(conn_id)), problem=None)
    except (GradientError, OSError) as error:
        return Workspace(adapters=[], problem=str(error))


def _adapters(hook: GradientHook) -> list[Adapter]:
    _refuse_other_types(hook)
    with hook.get_conn(within=_SECONDS) as client:
        models = client.list_models(capability="any")
    registry = hook.get_registry()
    aliases: dict[str, list[str]] = {}
    for alias in registry.aliases():
        current = registry.current(alias)
        aliases.setdefault(current.model_id, []).append(f"{alias} (v{current.version})")
    slugs = {model.id: model.slug for model in models if isinstance(model, BaseModelInfo)}
    found = [
        Adapter(
            id=model.id,
            name=model.name,
            base_model=slugs.get(model.base_model_id, model.base_model_id),
            latest_update_time=model.latest_update_time,
            aliases=aliases.get(model.id, []),
        )
        for model in models
        if isinstance(model, ModelAdapterInfo)
    ]
    return sorted(found, key=lambda adapter: adapter.latest_update_time, reverse=True)


def _refuse_other_types(hook: GradientHook) -> None:
    """No other service's password is sent anywhere because someone typed its connection's name."""
    stored = hook.stored_connection()
    if stored is not None and stored.conn_type != CONNECTION_TYPE:
        raise InvalidRequestError(f"The connection {stored.conn_id!r} is not of type {CONNECTION_TYPE}")
