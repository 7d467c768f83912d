"""A server that answers every query with its echo, counts them, and fails where a test says so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from faults import MODEL_ID, Act, FaultyServer, Received, completion, error, reply

from airflow_provider_gradient.client import RetryPolicy
from airflow_provider_gradient.completions import CompletionManifest

QUICK = RetryPolicy(attempts=5, base=0.01)


class EchoServer(FaultyServer):
    """Answers ``q`` with ``echo q``, unless ``answer(q)`` gives something else.

    :param port: 0 for any.
    :ivar wait: seconds before an echo.
    :ivar tuned: when the adapter was last tuned.
    """

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(self._act, port=port)
        self.wait = 0.0
        self.tuned = "2026-01-01T00:00:00Z"
        self.answer: Callable[[str], Act | None] = lambda _: None

    def _act(self, request: Received) -> Act:
        if request.method == "GET":
            adapter = {"type": "modelAdapter", "id": MODEL_ID, "name": "a", "baseModelId": "b"}
            return reply(body=adapter | {"latestUpdateTime": self.tuned})
        query = request.json()["query"]
        return self.answer(query) or completion(f"echo {query}", wait=self.wait)

    @property
    def queries(self) -> Counter[str]:
        """How often each query came."""
        return Counter(request.json()["query"] for request in self.requests if request.method == "POST")


Complete = Callable[..., Awaitable[CompletionManifest]]
"""What the fixture ``complete`` is: ``await complete(rows, **arguments)``."""


def questions(count: int) -> list[dict[str, Any]]:
    return [{"q": f"question {number}", "topic": "odd" if number % 2 else "even"} for number in range(count)]


def read(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def journaled(output: Path) -> int:
    """Rows in the journal of an output: its first lines are the head and the rows' keys."""
    journal = output.with_name(f"{output.name}.journal.jsonl")
    return journal.read_bytes().count(b'\n{"index":') if journal.exists() else 0


HANG = Act(wait=60)
"""An answer that does not come while a test lasts."""


def refused(query: str) -> Act:
    return error(400, f"too long: {query}", type="unprocessableContent")
