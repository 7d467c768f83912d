"""A run of a DAG, followed through Airflow's REST API."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from scripts.airflow_deployment import Deployment

_STATES = ("scheduled", "queued", "running", "deferred", "success", "failed", "up_for_retry")
_LONGEST = 3600.0
_EVERY = 5.0
"""Seconds between two counts, each of which costs the API server work."""


class Run:
    """A run of ``dag_id``, triggered when this is made.

    :param task_id: the mapped task whose instances are counted.
    :ivar most: of its instances, the most that were seen in each state at once.
    """

    def __init__(self, airflow: Deployment, dag_id: str, task_id: str, conf: dict[str, Any]) -> None:
        self.most: Counter[str] = Counter()
        self._airflow = airflow
        self._api = airflow.client()
        self._task_id = task_id
        dag = f"/api/v2/dags/{dag_id}"
        airflow.wait_until(f"the DAG {dag_id}", lambda: self._api.get(dag).raise_for_status())
        answer = self._api.post(f"{dag}/dagRuns", json={"logical_date": None, "conf": conf})
        self._path = f"{dag}/dagRuns/{answer.raise_for_status().json()['dag_run_id']}"
        self._told = time.monotonic()

    def counts(self) -> dict[str, int]:
        """The task's instances by state."""
        found = {}
        for state in _STATES:
            query: dict[str, Any] = {"state": state, "task_id": self._task_id, "limit": 1}
            answer = self._api.get(f"{self._path}/taskInstances", params=query).raise_for_status().json()
            if answer["total_entries"]:
                found[state] = int(answer["total_entries"])
        return found

    def follow(self, until: Callable[[dict[str, int]], bool]) -> float:
        """Until the counts are so; the seconds that took.

        :raises DeploymentError: a component of Airflow ended, or an hour is over.
        """
        begun = time.perf_counter()

        def is_so() -> bool:
            counts = self.counts()
            for state, count in counts.items():
                self.most[state] = max(self.most[state], count)
            if time.monotonic() - self._told > 30:
                self._told = time.monotonic()
                print(counts, file=sys.stderr, flush=True)
            time.sleep(_EVERY)
            return until(counts)

        self._airflow.wait_until("the tasks", is_so, seconds=_LONGEST)
        return time.perf_counter() - begun

    def follow_to_the_end(self) -> float:
        """Until the run has ended; the seconds that took."""
        return self.follow(lambda _: self._state() in ("success", "failed"))

    def _state(self) -> str:
        return str(self._api.get(self._path).raise_for_status().json()["state"])
