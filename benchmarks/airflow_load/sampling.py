"""What Airflow says of its health, and what memory it takes, again and again while it works."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from scripts.airflow_deployment import Deployment, memory_of

_HEALTH_SECONDS, _MEMORY_SECONDS = 2.0, 10.0


@dataclass(kw_only=True)
class Samples:
    """While the context lasts.

    :ivar health: how often each component was in each state; a health route that did not answer within ten
        seconds counts as ``no answer``.
    :ivar slowest_answer: seconds that the health route took at most.
    :ivar peak_bytes: of each component with all that it started, and of their sum.
    """

    airflow: Deployment
    health: dict[str, Counter[str]] = field(default_factory=dict)
    slowest_answer: float = 0.0
    peak_bytes: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        works = ((self._ask_health, _HEALTH_SECONDS), (self._weigh, _MEMORY_SECONDS))
        self._threads = [threading.Thread(target=self._again, args=work) for work in works]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _again(self, work: Any, seconds: float) -> None:
        while not self._ended.wait(seconds):
            work()

    def _ask_health(self) -> None:
        begun = time.perf_counter()
        try:
            found = self.airflow.health(within=10)
        except httpx.HTTPError:
            found = {"api-server": "no answer"}
        else:
            found["api-server"] = "healthy"
        self.slowest_answer = max(self.slowest_answer, time.perf_counter() - begun)
        for name, state in found.items():
            self.health.setdefault(name, Counter())[str(state)] += 1

    def _weigh(self) -> None:
        taken = {name: memory_of(process) for name, process in self.airflow.processes.items()}
        for name, size in (taken | {"all": sum(taken.values())}).items():
            self.peak_bytes[name] = max(self.peak_bytes[name], size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "health": {name: dict(states) for name, states in self.health.items()},
            "slowest_health_answer_seconds": self.slowest_answer,
            "peak_megabytes": {name: size / 1e6 for name, size in self.peak_bytes.items()},
        }
