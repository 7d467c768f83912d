"""A task's report in a few words, for whatever channel there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

if TYPE_CHECKING:
    from airflow.sdk import Context


class GradientReportNotifier(BaseNotifier):
    """Tells what a task found or promoted, through another notifier or a function.

    For ``on_success_callback``, ``on_failure_callback`` and the like of a task (those of a DAG run where no
    XComs can be read). The other notifier's templates have the text as ``{{ gradient_report }}``; a function
    is given it.

    :param notify: another notifier, such as ``SlackNotifier(text="{{ gradient_report }}")``, or a function of
        one text.
    :param task_id: of the task whose XCom is told; ``None`` for the one that the callback belongs to.
    """

    template_fields: Sequence[str] = ("task_id",)

    def __init__(self, notify: BaseNotifier | Callable[[str], object], *, task_id: str | None = None) -> None:
        super().__init__()
        self._channel = notify
        self.task_id = task_id

    def notify(self, context: Context) -> None:
        """Tell it. A task that left nothing is told as such."""
        instance = context["ti"]
        task_id = self.task_id or instance.task_id
        text = f"{instance.dag_id}, {task_id}: {describe(instance.xcom_pull(task_ids=task_id))}"
        if isinstance(self._channel, BaseNotifier):
            self._channel({**context, "gradient_report": text})
        else:
            self._channel(text)


def describe(fields: Any) -> str:
    """An evaluation's report, a promotion, a completion's manifest or a tuning's report in one line; of
    anything else, that it is none."""
    if not isinstance(fields, Mapping):
        return "no report"
    return "; ".join(_parts(fields)) or "no report"


def _parts(fields: Mapping[str, Any]) -> Iterator[str]:
    if "alias" in fields:
        yield f"alias:{fields['alias']} is {fields.get('model_id')} now (version {fields.get('version')})"
        yield from _metrics(fields.get("evaluation") or {})
    elif "metrics" in fields:
        yield from _metrics(fields)
        if gate := fields.get("gate"):
            yield ", ".join([f"gate: {gate.get('verdict')}", *map(str, gate.get("reasons") or ())])
    elif "counts" in fields:
        counts = ", ".join(f"{count} {status}" for status, count in fields["counts"].items() if count)
        yield f"{fields.get('rows')} rows: {counts}"
    elif "epoch_losses" in fields:
        losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in fields["epoch_losses"])
        yield f"{fields.get('model_id')} tuned in {fields.get('calls')} calls, mean loss by epoch: {losses}"


def _metrics(report: Mapping[str, Any]) -> Iterator[str]:
    for name, metric in (report.get("metrics") or {}).items():
        yield f"{name} {metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"
