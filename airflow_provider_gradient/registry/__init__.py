"""Which adapter a name stands for: aliases, their history, and the adapters that none of them needs."""

from airflow_provider_gradient.registry.aliases import ALIAS_PREFIX, AliasRegistry, alias_of
from airflow_provider_gradient.registry.cleanup import Unneeded, unneeded_adapters
from airflow_provider_gradient.registry.promotion import (
    Promotion,
    RegistryConflictError,
    RegistryError,
    UnknownAliasError,
)

__all__ = [
    "ALIAS_PREFIX",
    "AliasRegistry",
    "Promotion",
    "RegistryConflictError",
    "RegistryError",
    "UnknownAliasError",
    "Unneeded",
    "alias_of",
    "unneeded_adapters",
]
