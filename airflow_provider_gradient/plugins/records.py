"""What Gradient's operators left in Airflow: manifests, reports, promotions, and progress while they run.

There is no database of the page's own. A task counts by the name of its operator; what it says is its return
value, and while it runs, what it stored as its progress.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, func, select
from sqlalchemy.orm import aliased

from airflow_provider_gradient.provider_info import PROGRESS_KEY

if TYPE_CHECKING:
    from sqlalchemy import Select
    from sqlalchemy.orm import Session

Kind = Literal["completions", "evaluations", "tunings", "promotions"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_OPERATORS: dict[Kind, tuple[str, ...]] = {
    "completions": (
        "GradientCompleteDatasetOperator",
        "GradientMergeCompletionsOperator",
        "DecoratedCompleteDatasetOperator",  # @task.gradient_complete with output_path
    ),
    "evaluations": ("GradientEvaluateOperator", "DecoratedEvaluateOperator"),
    "tunings": ("GradientFineTuneOperator",),
    "promotions": ("GradientPromoteModelAdapterOperator", "GradientRollBackAliasOperator"),
}
_KIND_OF = {operator: kind for kind, operators in _OPERATORS.items() for operator in operators}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A task instance of a Gradient operator.

    :ivar fields: what it returned, or ``None``: it has not, or an XCom backend keeps it elsewhere.
    :ivar progress: how far it is, while it runs.
    """

    kind: Kind
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    start: datetime | None
    end: datetime | None
    fields: dict[str, Any] | None
    progress: dict[str, Any] | None

    @property
    def airflow_path(self) -> str:
        """Of the task instance in Airflow's UI, relative to its root."""
        dag, run, task = (quote(part, safe="") for part in (self.dag_id, self.run_id, self.task_id))
        mapped = f"/mapped/{self.map_index}" if self.map_index >= 0 else ""
        return f"dags/{dag}/runs/{run}/tasks/{task}{mapped}"


def records(
    session: Session,
    kind: Kind,
    *,
    dag_ids: Collection[str],
    limit: int,
    offset: int = 0,
) -> list[Record]:
    """Task instances of this kind that have begun, the latest first.

    :param dag_ids: the DAGs that may be seen.
    """
    chosen = _of_kind(select(TaskInstance.id), kind, dag_ids)
    latest = chosen.order_by(TaskInstance.start_date.desc()).limit(limit).offset(offset).subquery()
    rows = session.execute(
        _with_values().join(latest, latest.c.id == TaskInstance.id).order_by(TaskInstance.start_date.desc())
    )
    return [_record(row) for row in rows]


def count(session: Session, kind: Kind, *, dag_ids: Collection[str]) -> int:
    """How many such task instances there are."""
    return session.scalar(_of_kind(select(func.count()).select_from(TaskInstance), kind, dag_ids)) or 0


def record(session: Session, *, dag_id: str, run_id: str, task_id: str, map_index: int) -> Record | None:
    """One task instance, or ``None`` if it is no Gradient operator's."""
    found = session.execute(
        _with_values().where(
            TaskInstance.dag_id == dag_id,
            TaskInstance.run_id == run_id,
            TaskInstance.task_id == task_id,
            TaskInstance.map_index == map_index,
            TaskInstance.operator.in_(list(_KIND_OF)),
        )
    ).first()
    return None if found is None else _record(found)


def _of_kind(query: Select[Any], kind: Kind, dag_ids: Collection[str]) -> Select[Any]:
    return query.where(
        TaskInstance.operator.in_(_OPERATORS[kind]),
        TaskInstance.dag_id.in_(dag_ids),
        TaskInstance.start_date.is_not(None),
    )


def _with_values() -> Select[Any]:
    values, progress = aliased(XComModel), aliased(XComModel)
    return (
        select(
            TaskInstance.dag_id,
            TaskInstance.run_id,
            TaskInstance.task_id,
            TaskInstance.map_index,
            TaskInstance.state,
            TaskInstance.start_date,
            TaskInstance.end_date,
            TaskInstance.operator,
            values.value.label("fields"),
            progress.value.label("progress"),
        )
        .outerjoin(values, _xcom_of_instance(values, "return_value"))
        .outerjoin(progress, _xcom_of_instance(progress, PROGRESS_KEY))
    )


def _xcom_of_instance(xcom: Any, key: str) -> Any:
    return and_(
        xcom.dag_id == TaskInstance.dag_id,
        xcom.run_id == TaskInstance.run_id,
        xcom.task_id == TaskInstance.task_id,
        xcom.map_index == TaskInstance.map_index,
        xcom.key == key,
    )


def _record(row: Any) -> Record:
    return Record(
        kind=_KIND_OF[row.operator],
        dag_id=row.dag_id,
        run_id=row.run_id,
        task_id=row.task_id,
        map_index=row.map_index,
        state=None if row.state is None else str(row.state),
        start=row.start_date,
        end=row.end_date,
        fields=_value(row.fields),
        progress=_value(row.progress),
    )


def _value(stored: Any) -> dict[str, Any] | None:
    if stored is None:
        return None
    value = XComModel.deserialize_value(_Stored(stored))
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class _Stored:
    """What XComModel deserializes."""

    value: Any
