"""``kill -9`` at twenty moments of one run over the real server, behind a proxy that counts."""

from __future__ import annotations

import http.client
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from echo_server import journaled, questions, read
from faults import Act, FaultyServer, Received, reply, wait_until
from killed_run import start_run

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
from airflow_provider_gradient.datasets import write_rows

KILLS = 20
ROWS = 500
CONCURRENCY = 8


class CountingProxy(FaultyServer):
    """Hands every request on to a real server, and its answer back.

    :ivar completed: the queries that were answered, how often each.
    """

    def __init__(self, server: Any) -> None:
        super().__init__(self._hand_on)
        self.completed: Counter[str] = Counter()
        self._server = server
        self._kept = threading.local()

    @property
    def credentials(self) -> dict[str, str]:
        """Arguments of a client of the real server that goes by here."""
        server = self._server
        return {
            "access_token": server.access_token,
            "workspace_id": server.workspace_id,
            "base_url": self.url,
        }

    @property
    def asked(self) -> Counter[str]:
        """The queries that came, how often each."""
        return Counter(request.json()["query"] for request in self.requests if request.method == "POST")

    def _hand_on(self, request: Received) -> Act:
        if not hasattr(self._kept, "connection"):
            self._kept.connection = http.client.HTTPConnection(urlsplit(self._server.url).netloc)
        headers = {**self._server.headers, "Content-Type": "application/json"}
        self._kept.connection.request(request.method, request.path, request.body or None, headers)
        answer = self._kept.connection.getresponse()
        body = answer.read()
        if request.method == "POST" and answer.status == 200:
            self.completed[request.json()["query"]] += 1
        return reply(answer.status, body)


@pytest.fixture
def proxy(gradient_server: Any) -> Iterator[CountingProxy]:
    with CountingProxy(gradient_server) as proxy:
        yield proxy


async def test_a_run_killed_at_twenty_moments_loses_no_row_and_repeats_only_what_was_in_flight(
    proxy: CountingProxy, client: Any, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(ROWS))
    chance = random.Random(3)
    arguments = {
        "model_id": client.find_base_model("tiny").id,
        "dataset": str(tmp_path / "in.jsonl"),
        "output_path": str(tmp_path / "out.jsonl"),
        "prompt_template": "{q}",
        "concurrency": CONCURRENCY,
        "max_generated_token_count": 1,
    }
    done = 0
    for _ in range(KILLS):
        process = start_run(proxy.credentials, **arguments)
        wanted = len(proxy.requests) + chance.choice([0, chance.randrange(1, 40)])
        wait_until(lambda wanted=wanted: len(proxy.requests) >= wanted, seconds=60)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "out.jsonl").exists()
        assert journaled(tmp_path / "out.jsonl") >= done
        done = journaled(tmp_path / "out.jsonl")
    async with AsyncGradientClient(**proxy.credentials) as resuming:
        manifest = await complete_dataset(resuming, **arguments)  # type: ignore[arg-type]

    assert manifest.resumed_rows == done > KILLS
    assert manifest.counts.model_dump() == {"success": ROWS, "error": 0, "invalid_output": 0, "not_run": 0}
    written = read(tmp_path / "out.jsonl")
    assert [line["index"] for line in written] == list(range(ROWS))
    assert [line["row"] for line in written] == questions(ROWS)
    asked = proxy.asked
    assert set(asked) == set(proxy.completed) == {row["q"] for row in questions(ROWS)}
    assert asked.total() - ROWS <= KILLS * CONCURRENCY
    assert manifest.attempts == ROWS
