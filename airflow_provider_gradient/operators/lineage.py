"""What operators tell of the data they touched: by asset events, and to OpenLineage where it is installed.

A task's event has figures for each asset among its ``outlets``. An ``AssetAlias`` among them gets an event of
the asset that the task in fact wrote, which a template or a run's adapter may name only then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.definitions.asset import AssetRef

from airflow_provider_gradient.lineage import Lineage, asset_uri

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context


class TellsLineage(BaseOperator):
    """An operator that tells what its tasks read and wrote."""

    _lineage: Lineage | None = None

    def planned_lineage(self) -> Lineage:
        """What the task will read and write, as far as its fields say it; asks nobody."""
        return Lineage()

    def tell_lineage(self, context: Context, lineage: Lineage) -> None:
        """Put the figures into the outlets' events, and keep the lineage for OpenLineage."""
        self._lineage = lineage
        events = context["outlet_events"]
        for outlet in self.outlets:
            if isinstance(outlet, AssetAlias) and lineage.outputs:
                events[outlet].add(Asset(uri=asset_uri(lineage.outputs[0].uri)), extra=dict(lineage.figures))
            elif isinstance(outlet, Asset | AssetRef):
                events[outlet].extra.update(lineage.figures)

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """What it will read and write."""
        return _for_openlineage(self.planned_lineage())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What it read and wrote."""
        return _for_openlineage(self._lineage_so_far())

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What it was to read; and what it wrote, where it failed for what it found, such as a gate's
        verdict."""
        return _for_openlineage(self._lineage_so_far())

    def _lineage_so_far(self) -> Lineage:
        return self._lineage or replace(self.planned_lineage(), outputs=())


def _for_openlineage(lineage: Lineage) -> OperatorLineage[Any, Any]:
    from airflow_provider_gradient.lineage.openlineage import operator_lineage

    return operator_lineage(lineage)
