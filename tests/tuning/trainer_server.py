"""A server that counts what it trains, with idempotency keys or without, and cuts answers when told to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from faults import MODEL_ID, Act, FaultyServer, Received, cut, reply, trained

from airflow_provider_gradient.client import RetryPolicy
from airflow_provider_gradient.tuning import TuningReport

ADAPTER = {
    "type": "modelAdapter",
    "id": MODEL_ID,
    "name": "a",
    "baseModelId": "b",
    "latestUpdateTime": "2026-01-01T00:00:00Z",
}
QUICK = RetryPolicy(attempts=3, base=0.01)
Tune = Callable[..., Awaitable[TuningReport]]
"""What the fixture ``tune`` is: ``await tune(samples, **arguments)``."""


class TrainerServer(FaultyServer):
    """Trains every call that comes, or with ``keys`` every key once.

    :ivar answer: from the count of requests so far to what is answered instead of the result; the call is
        trained all the same.
    :ivar refuse: the same, and the call is not trained.
    :ivar trainings: how often each call (by the text of its samples) was trained.
    """

    def __init__(self, *, keys: bool) -> None:
        super().__init__(self._act)
        self.keys = keys
        self.answer: Callable[[int], Act | None] = lambda _: None
        self.refuse: Callable[[int], Act | None] = lambda _: None
        self.trainings: Counter[str] = Counter()
        self._known: set[str] = set()

    @property
    def calls(self) -> list[Received]:
        """The fine-tune calls that came."""
        return [request for request in self.requests if request.method == "POST"]

    def _act(self, request: Received) -> Act:
        if request.method == "GET":
            return reply(200, ADAPTER, headers={"Gradient-Idempotency-Keys": "honoured"} if self.keys else {})
        number = len(self.calls) - 1
        if refusal := self.refuse(number):
            return refusal
        key = request.headers["idempotency-key"]
        if not self.keys or key not in self._known:
            self._known.add(key)
            self.trainings[json.dumps(request.json()["samples"])] += 1
        result = trained(tokens=10, loss=20.0 / (number + 1), echo_key=self.keys)
        return self.answer(number) or result(request)  # type: ignore[operator]

    def cut_answer(self, *numbers: int) -> None:
        """Train these requests, and cut the connection instead of an answer."""
        self.answer = lambda number: cut() if number in numbers else None


def facts(count: int) -> list[dict[str, Any]]:
    return [{"q": f"question {number}", "a": f" answer {number}"} for number in range(count)]
