"""Adapters that can be deleted, since no alias needs them.

The API does not say who uses an adapter. One that an alias stands for, or stood for among its last few
promotions, is needed, for rollback too; one that was tuned a short while ago may be a running task's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from airflow_provider_gradient.api import ModelAdapterInfo
from airflow_provider_gradient.registry.aliases import AliasRegistry


@dataclass(frozen=True, kw_only=True)
class Unneeded:
    """An adapter to delete."""

    id: str
    name: str
    latest_update_time: datetime


def unneeded_adapters(
    adapters: Iterable[ModelAdapterInfo],
    registry: AliasRegistry,
    *,
    now: datetime,
    unused_for: timedelta,
    keep_versions: int,
    name_prefix: str | None = None,
) -> Iterator[Unneeded]:
    """Those of ``adapters`` that no alias needs.

    :param now: with a time zone.
    :param unused_for: since an adapter was last tuned.
    :param keep_versions: adapters that each alias keeps, counted from the current one back; at least 1.
    :param name_prefix: only those whose names begin so; ``None`` for all.
    :raises RegistryError: an alias can't be read; then nothing can be called unneeded.
    """
    needed = {
        model_id for alias in registry.aliases() for model_id in _latest(registry, alias, keep_versions)
    }
    for adapter in adapters:
        old = now - adapter.latest_update_time >= unused_for
        if old and adapter.id not in needed and adapter.name.startswith(name_prefix or ""):
            yield Unneeded(id=adapter.id, name=adapter.name, latest_update_time=adapter.latest_update_time)


def _latest(registry: AliasRegistry, alias: str, count: int) -> list[str]:
    """The last ``count`` different adapters of ``alias``."""
    return list(dict.fromkeys(each.model_id for each in reversed(registry.history(alias))))[:count]
