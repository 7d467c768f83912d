"""What a task shows in Airflow's UI while it runs: the link to its page, and how far it is.

It is there to be looked at: nothing of it that can't be stored fails a task, and nothing waits for it, since
each value is a request to Airflow's API server that the event loop has no time for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_provider_gradient.links import GradientPageLink
from airflow_provider_gradient.provider_info import PROGRESS_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context

_STATE_KEY = "progress"
"""In the task state store, which Airflow's UI shows as the task's storage."""


class OnGradientPage(BaseOperator):
    """An operator whose tasks the Gradient page shows."""

    operator_extra_links = (GradientPageLink(),)

    _progress: _StoredProgress | None = None

    def pre_execute(self, context: Context) -> None:
        """Store the link, which Airflow would do only when the task has ended."""
        super().pre_execute(context)
        instance = context["ti"]
        with self._harmless("the link to the Gradient page"):
            for link in self.operator_extra_links:
                instance.xcom_push(link.xcom_key, link.get_link(self, ti_key=instance))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def progress_stored(self, context: Context) -> Iterator[None]:
        """While this lasts, :meth:`store_progress` stores; begins with a word on what an earlier try did."""
        store = context.get("task_state_store")  # from Airflow 3.3 on
        with self._harmless("an earlier try's progress"):
            if store is not None and isinstance(earlier := store.get(_STATE_KEY), Mapping):
                total = earlier.get("rows", earlier.get("calls"))
                self.log.info("An earlier try told of %s of %s done", earlier.get("done"), total)
        with ThreadPoolExecutor(1, thread_name_prefix="gradient-progress") as thread:
            self._progress = _StoredProgress(self, context, thread)
            try:
                yield
            finally:
                self._progress = None

    def store_progress(self, fields: Mapping[str, Any]) -> None:
        """Store how far the task is, without waiting for it: ``done``, and ``rows`` or ``calls``, of how
        many."""
        if self._progress is not None:
            self._progress.store(dict(fields))

    @contextlib.contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.log.warning("Airflow did not keep %s: %s", what, error)


class _StoredProgress:
    """Stores values one after the other in a thread; of those that come meanwhile, the last."""

    def __init__(self, operator: OnGradientPage, context: Context, thread: ThreadPoolExecutor) -> None:
        self._operator = operator
        self._context = context
        self._thread = thread
        self._waiting: Future[None] | None = None

    def store(self, fields: dict[str, Any]) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self._thread.submit(self._store, fields)

    def _store(self, fields: dict[str, Any]) -> None:
        with self._operator._harmless("the progress"):
            self._context["ti"].xcom_push(PROGRESS_KEY, fields)
            if (store := self._context.get("task_state_store")) is not None:
                store.set(_STATE_KEY, fields)
