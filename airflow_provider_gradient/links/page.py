"""The link from a task to what the Gradient page shows of it.

Airflow's UI reads a link from an XCom, which Airflow itself writes only when the task has ended: operators
store it themselves when they begin (:class:`~airflow_provider_gradient.operators.on_page.OnGradientPage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from airflow.sdk import BaseOperatorLink

from airflow_provider_gradient.provider_info import PAGE_PREFIX

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class GradientPageLink(BaseOperatorLink):
    """To the task's own page: its progress, manifest, tuning curve, evaluation report or promotion."""

    name = "Gradient"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The page's URL under ``[api] base_url``, a path below it included; without one, from the root."""
        from airflow.configuration import conf

        base_url = conf.get("api", "base_url", fallback="") or ""
        task = {
            "dag_id": ti_key.dag_id,
            "run_id": ti_key.run_id,
            "task_id": ti_key.task_id,
            "map_index": -1 if ti_key.map_index is None else ti_key.map_index,
        }
        return f"{base_url.rstrip('/')}{PAGE_PREFIX}/task?{urlencode(task)}"
