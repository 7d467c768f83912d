"""Operators over aliases: promote an adapter, roll back, delete the adapters that no alias needs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetAlias

from airflow_provider_gradient.api import (
    BaseModelInfo,
    InvalidRequestError,
    ModelAdapterInfo,
    UnknownModelError,
)
from airflow_provider_gradient.lineage import promotion_lineage
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    check_at_least_one,
    optional_number,
    work_identity,
)
from airflow_provider_gradient.operators.lineage import TellsLineage
from airflow_provider_gradient.operators.on_page import OnGradientPage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import GradientClient
    from airflow_provider_gradient.registry import Promotion

PROMOTIONS = "gradient_promotions"
"""The asset alias that every promotion belongs to: a DAG scheduled on it runs after each."""


class _AliasOperator(OnGradientPage, TellsLineage, GradientOperator):
    """Moves an alias, and tells so by an asset event.

    :param alias: a-z, 0-9, ``.``, ``_`` and ``-``.
    :param reason: kept in the alias's history.
    """

    def __init__(self, *, alias: str, reason: str | None = None, **kwargs: Any) -> None:
        outlets = [*(kwargs.pop("outlets", None) or ()), AssetAlias(PROMOTIONS)]
        super().__init__(outlets=outlets, **kwargs)
        self.alias = alias
        self.reason = reason

    def announce(self, context: Context, promotion: Promotion, workspace_id: str) -> dict[str, Any]:
        """The promotion as XCom; the asset event has its figures."""
        self.tell_lineage(context, promotion_lineage(promotion, workspace_id=workspace_id))
        self.log.info(
            "alias:%s is %s now (version %d)", promotion.alias, promotion.model_id, promotion.version
        )
        return promotion.to_dict()


class GradientPromoteModelAdapterOperator(_AliasOperator):
    """Lets an alias stand for an adapter: ``alias:<name>`` then means it wherever a model id may stand.

    XCom: the promotion, a dict with ``alias``, ``version``, ``model_id`` and what is known of how it came
    about. A retry promotes once. The asset ``gradient://<workspace>/<alias>`` gets an event with the report's
    metrics; so does the asset alias ``gradient_promotions``, for all promotions.

    :param model_id: of the adapter.
    :param alias: a-z, 0-9, ``.``, ``_`` and ``-``.
    :param evaluation: the evaluation report that speaks for it, an earlier task's XCom. One whose gate has a
        verdict must have passed.
    :param tuning: the tuning report of the task that made it.
    :param replaces: id of the adapter that the alias must stand for until now, the champion that the
        evaluation compared with; ``""`` where nothing was promoted yet; ``None`` for whatever it is. A
        champion that changed meanwhile fails the task.
    :param reason: kept in the alias's history.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "alias",
        "model_id",
        "evaluation",
        "tuning",
        "replaces",
        "reason",
    )

    def __init__(
        self,
        *,
        model_id: str,
        alias: str,
        evaluation: Mapping[str, Any] | None = None,
        tuning: Mapping[str, Any] | None = None,
        replaces: str | None = None,
        reason: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alias=alias, reason=reason, **kwargs)
        self.model_id = model_id
        self.evaluation = evaluation
        self.tuning = tuning
        self.replaces = replaces

    def execute(self, context: Context) -> dict[str, Any]:
        """The promotion."""
        from airflow_provider_gradient.registry import alias_of

        if self.replaces and alias_of(self.replaces) == self.alias:
            raise InvalidRequestError(
                f"replaces: {self.replaces} is what it stands for now, whatever that is; give the id of the "
                "champion that the evaluation compared with"
            )
        registry = self.hook.get_registry()
        model_id = registry.resolve(self.model_id)
        with self.hook.get_conn() as client:
            workspace_id = client.workspace_id
            model = _models(client).get(model_id)
        if model is None:
            raise InvalidRequestError(f"model_id: this workspace has no model {model_id}")
        promotion = registry.promote(
            self.alias,
            model_id,
            model_version=model.latest_update_time.isoformat()
            if isinstance(model, ModelAdapterInfo)
            else None,
            promoted_by="/".join(work_identity(context)),
            reason=self.reason,
            replaces=self.replaces and registry.resolve(self.replaces),
            evaluation=self.evaluation,
            tuning=self.tuning,
        )
        return self.announce(context, promotion, workspace_id)


class GradientRollBackAliasOperator(_AliasOperator):
    """Lets an alias stand for an earlier adapter again. XCom and asset event as those of a promotion.

    :param alias: its name.
    :param to_version: of its history; ``None`` for the last one with another adapter than the current.
    :param reason: kept in the alias's history.
    """

    template_fields: Sequence[str] = ("gradient_conn_id", "alias", "to_version", "reason")

    def __init__(
        self,
        *,
        alias: str,
        to_version: int | str | None = None,
        reason: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alias=alias, reason=reason, **kwargs)
        self.to_version = to_version

    def execute(self, context: Context) -> dict[str, Any]:
        """The promotion."""
        with self.hook.get_conn() as client:
            workspace_id, existing = client.workspace_id, _models(client)
        promotion = self.hook.get_registry().roll_back(
            self.alias,
            existing=existing,
            to_version=optional_number("to_version", self.to_version, int),
            promoted_by="/".join(work_identity(context)),
            reason=self.reason,
        )
        return self.announce(context, promotion, workspace_id)


class GradientCleanUpModelAdaptersOperator(GradientOperator):
    """Deletes the adapters that no alias needs.

    XCom: a dict with ``dry_run`` and ``adapters``, those that were deleted, or would be: ``id``, ``name`` and
    ``latest_update_time`` of each.

    An adapter is kept that is one of the last ``keep_versions`` of an alias, or was tuned within
    ``unused_for``: a task may be at work with it. The API doesn't tell who uses an adapter, so make that
    longer than your longest run.

    :param dry_run: delete nothing and tell what would be. Look at its XCom before you set it to ``False``.
    :param unused_for: since the adapter was last tuned, or created.
    :param keep_versions: adapters that each alias keeps, the current one and those before it.
    :param name_prefix: only adapters whose names begin so.
    """

    template_fields: Sequence[str] = ("gradient_conn_id", "name_prefix")

    def __init__(
        self,
        *,
        dry_run: bool = True,
        unused_for: timedelta = timedelta(days=7),
        keep_versions: int = 3,
        name_prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.is_dry_run = dry_run
        self.unused_for = unused_for
        self.keep_versions = keep_versions
        self.name_prefix = name_prefix
        check_at_least_one(keep_versions=keep_versions)

    def execute(self, context: Context) -> dict[str, Any]:
        """What was deleted, or would be."""
        from airflow_provider_gradient.registry import unneeded_adapters

        registry = self.hook.get_registry()
        with self.hook.get_conn() as client:
            found = unneeded_adapters(
                (model for model in _models(client).values() if isinstance(model, ModelAdapterInfo)),
                registry,
                now=datetime.now(UTC),
                unused_for=self.unused_for,
                keep_versions=self.keep_versions,
                name_prefix=self.name_prefix,
            )
            adapters = []
            for adapter in found:
                self.log.info(
                    "%s %s (%s), last tuned %s",
                    "Would delete" if self.is_dry_run else "Deleting",
                    adapter.id,
                    adapter.name,
                    f"{adapter.latest_update_time:%Y-%m-%d %H:%M}",
                )
                if not self.is_dry_run:
                    with contextlib.suppress(UnknownModelError):  # an earlier try deleted it
                        client.delete_model(adapter.id)
                adapters.append(
                    {
                        "id": adapter.id,
                        "name": adapter.name,
                        "latest_update_time": adapter.latest_update_time.isoformat(),
                    }
                )
        return {"dry_run": self.is_dry_run, "adapters": adapters}


def _models(client: GradientClient) -> dict[str, BaseModelInfo | ModelAdapterInfo]:
    return {model.id: model for model in client.list_models(capability="any")}
