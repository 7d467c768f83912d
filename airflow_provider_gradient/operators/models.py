"""Operators over models: list them, create an adapter, delete one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow_provider_gradient.api import (
    BaseModelInfo,
    Capability,
    InvalidRequestError,
    LoraHyperparameters,
    ModelAdapterInfo,
    TrainingArguments,
    UnknownModelError,
    build_request,
)
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    idempotency_key,
    literals,
    optional_number,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import GradientClient

IfExists = Literal["reuse", "create", "fail"]


class GradientListModelsOperator(GradientOperator):
    """Lists the workspace's models.

    XCom: a list of dicts with ``type`` (``baseModel`` or ``modelAdapter``), ``id``, ``name`` and, of a base
    model, ``slug`` and ``capabilities``, of an adapter, ``base_model_id`` and ``latest_update_time``.

    :param only_base: leave the adapters out.
    :param capability: ``complete``, ``fineTune`` or ``any``.
    """

    template_fields: Sequence[str] = ("gradient_conn_id",)

    def __init__(self, *, only_base: bool = False, capability: Capability = "any", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.only_base = only_base
        self.capability = capability
        _check_choice("capability", capability, get_args(Capability))

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """The models."""
        with self.hook.get_conn() as client:
            models = client.list_models(capability=self.capability, only_base=self.only_base)
        self.log.info("%d models", len(models))
        return [model.model_dump(mode="json") for model in models]


class GradientCreateModelAdapterOperator(GradientOperator):
    """Creates a model adapter. XCom: its id.

    Adapters' names need not be unique. With ``if_exists="reuse"``, the default, the adapter of that name over
    the same base model is taken, the one tuned last where there are several, and only created where there is
    none; a reused adapter keeps the rank and learning rate it was made with. ``create`` makes a new one in
    every run, ``fail`` refuses a taken name. A retry of a task whose request was sent but not answered makes
    no twin on a server that honours idempotency keys.

    :param base_model: slug or id of the base model.
    :param name: of the adapter.
    :param rank: of its LoRA matrices, 1 to 32; ``None`` for the server's default.
    :param learning_rate: between 0 and 1, both excluded; ``None`` for the server's default.
    :param if_exists: ``reuse``, ``create`` or ``fail``.
    """

    template_fields: Sequence[str] = ("gradient_conn_id", "base_model", "name", "rank", "learning_rate")

    def __init__(
        self,
        *,
        base_model: str,
        name: str,
        rank: int | str | None = None,
        learning_rate: float | str | None = None,
        if_exists: IfExists = "reuse",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.base_model = base_model
        self.name = name
        self.rank = rank
        self.learning_rate = learning_rate
        self.if_exists = if_exists
        _check_choice("if_exists", if_exists, get_args(IfExists))
        known = literals({"rank": rank, "learning_rate": learning_rate})
        _check_hyperparameters(known.get("rank"), known.get("learning_rate"))

    def execute(self, context: Context) -> str:
        """The adapter's id."""
        rank, learning_rate = _check_hyperparameters(self.rank, self.learning_rate)
        with self.hook.get_conn() as client:
            base = client.find_base_model(self.base_model)
            if self.if_exists != "create" and (existing := self._existing(client, base)):
                return existing.id
            wanted: dict[str, Any] = {
                "base_model_id": base.id,
                "name": self.name,
                "rank": rank,
                "learning_rate": learning_rate,
            }
            key = idempotency_key(context, *wanted.values())
            adapter_id = client.create_model_adapter(**wanted, idempotency_key=key)
            if not _exists(client, adapter_id):
                # The answer to this run's first time round, before it was cleared; that adapter was deleted.
                adapter_id = client.create_model_adapter(**wanted)
        self.log.info("Created adapter %s (%s) of %s", adapter_id, self.name, base.slug)
        return adapter_id

    def _existing(self, client: GradientClient, base: BaseModelInfo) -> ModelAdapterInfo | None:
        found = [
            model
            for model in client.list_models(capability="any")
            if isinstance(model, ModelAdapterInfo)
            and model.name == self.name
            and model.base_model_id == base.id
        ]
        if not found:
            return None
        if self.if_exists == "fail":
            raise ValueError(
                f"An adapter named {self.name!r} of {base.slug} exists already ({found[0].id}), perhaps made "
                'by an earlier try of this task. Delete it, choose another name, or set if_exists="reuse".'
            )
        latest = max(found, key=lambda model: model.latest_update_time)
        if len(found) > 1:
            self.log.warning(
                "%d adapters of %s are named %r; reusing the one updated last",
                len(found),
                base.slug,
                self.name,
            )
        self.log.info("Reusing adapter %s (%s) of %s", latest.id, self.name, base.slug)
        return latest


class GradientDeleteModelAdapterOperator(GradientOperator):
    """Deletes a model adapter.

    :param model_id: of the adapter.
    :param ignore_missing: an adapter that isn't there is logged and no error, so that a retry of a deletion
        whose answer was lost succeeds.
    """

    template_fields: Sequence[str] = ("gradient_conn_id", "model_id")

    def __init__(self, *, model_id: str, ignore_missing: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_id = model_id
        self.ignore_missing = ignore_missing

    def execute(self, context: Context) -> None:
        """Delete it."""
        with self.hook.get_conn() as client:
            try:
                client.delete_model(self.model_id)
            except UnknownModelError:
                if not self.ignore_missing:
                    raise
                self.log.info("Adapter %s isn't there", self.model_id)
            else:
                self.log.info("Deleted adapter %s", self.model_id)


def _exists(client: GradientClient, adapter_id: str) -> bool:
    try:
        client.get_model_adapter(adapter_id)
    except UnknownModelError:
        return False
    return True


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequestError(f"{field}: must be one of {', '.join(choices)} (got {value!r})")


def _check_hyperparameters(rank: Any, learning_rate: Any) -> tuple[int | None, float | None]:
    checked_rank = optional_number("rank", rank, int)
    checked_rate = optional_number("learning_rate", learning_rate, float)
    build_request(LoraHyperparameters, rank=checked_rank)
    build_request(TrainingArguments, learning_rate=checked_rate)
    return checked_rank, checked_rate
