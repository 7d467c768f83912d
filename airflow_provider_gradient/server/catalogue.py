"""Which base models are served, under which ids and slugs.

A base model's id is computed from its slug, so it is the same after a restart and on every machine. An alias
is one more slug for the same model and the same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from airflow_provider_gradient.api import BaseModelInfo

BASE_MODEL_SUFFIX = "_base_ml_model"
ADAPTER_SUFFIX = "_model_adapter"
_NAMESPACE = uuid.UUID("5b3f2f0e-6f57-4a53-9c39-6f1f0d5f3c11")


def base_model_id(slug: str) -> str:
    """The id of the base model with this slug."""
    return f"{uuid.uuid5(_NAMESPACE, slug)}{BASE_MODEL_SUFFIX}"


def new_adapter_id() -> str:
    """An id that no adapter had before."""
    return f"{uuid.uuid4()}{ADAPTER_SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The base models on offer.

    :param names: display name by slug.
    :param aliases: further slugs, alias to slug.
    :param context_lengths: tokens that a model reads at once, by slug; ``None`` where it names no limit.
    :param untunable: slugs of the models whose adapters can't be fine-tuned.
    """

    names: Mapping[str, str]
    aliases: Mapping[str, str]
    context_lengths: Mapping[str, int | None]
    untunable: Collection[str] = ()

    @property
    def slugs(self) -> list[str]:
        """All slugs, aliases last."""
        return [*self.names, *self.aliases]

    def entries(self) -> list[BaseModelInfo]:
        """One entry a slug."""
        own = {slug: slug for slug in self.names}
        return [
            BaseModelInfo(
                id=base_model_id(model),
                name=self.names[model],
                slug=slug,
                capabilities=["complete"] if model in self.untunable else ["complete", "fineTune"],
                context_length=self.context_lengths.get(model),
            )
            for slug, model in {**own, **self.aliases}.items()
        ]

    def slug_of(self, id: str) -> str | None:
        """The slug (no alias) of the base model with this id."""
        return next((slug for slug in self.names if base_model_id(slug) == id), None)
