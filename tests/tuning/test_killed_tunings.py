"""Kill -9 in the middle of a run, and what the run after it does."""

from __future__ import annotations

import http.client
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import killed_tuning
import pytest
from faults import MODEL_ID, Act, wait_until
from trainer_server import TrainerServer, Tune, facts

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.tuning import AmbiguousCallError, fine_tune

if TYPE_CHECKING:
    from conftest import ServerProcess

TEMPLATES = {"prompt_template": "{q}?", "completion_template": "{a}"}


async def test_a_run_killed_at_ten_moments_trains_every_call_once_on_the_real_server(
    gradient_server: ServerProcess,
    async_client: Callable[[], AsyncGradientClient],
    adapter: str,
    tmp_path: Path,
) -> None:
    journal = tmp_path / "journal.jsonl"
    arguments: dict[str, Any] = {
        "model_id": adapter,
        "samples": facts(66),
        "batch_size": 6,
        "journal_path": str(journal),
        **TEMPLATES,
    }
    credentials = {
        "base_url": gradient_server.url,
        "access_token": gradient_server.access_token,
        "workspace_id": gradient_server.workspace_id,
    }
    chance = random.Random(10)
    moments = sorted(chance.sample(range(11), 10))
    for done in moments:
        process = killed_tuning.start(credentials, arguments)
        wait_until(lambda wanted=done: _events(journal, "acknowledged") >= wanted, seconds=60)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
    async with async_client() as client:
        report = await fine_tune(client, **arguments)
    assert report.resumed_calls >= max(moments)
    assert [result.call for result in report.call_results] == list(range(11))
    assert report.skipped_calls == []
    assert _times_tuned(gradient_server, adapter) == 11
    versions = [result.model_version for result in report.call_results]
    assert versions == list(range(1, 12))


@pytest.mark.parametrize(("on_ambiguous", "trainings"), [("skip", [1, 1, 1]), ("resend", [1, 1, 2])])
async def test_a_call_in_flight_at_the_kill_is_the_users_choice_where_no_keys_count(
    keyless: TrainerServer, tune: Tune, tmp_path: Path, on_ambiguous: str, trainings: list[int]
) -> None:
    keyless.answer = lambda number: Act(wait=60) if number == 1 else None
    journal = tmp_path / "tuning.journal.jsonl"
    arguments = {
        "model_id": MODEL_ID,
        "samples": facts(6),
        "prompt_template": "{q}",
        "completion_template": "{a}",
        "batch_size": 2,
        "journal_path": str(journal),
    }
    process = killed_tuning.start(keyless.credentials, arguments)
    wait_until(lambda: len(keyless.calls) == 2, seconds=60)
    process.kill()
    process.join()
    assert (_events(journal, "sent"), _events(journal, "acknowledged")) == (2, 1)
    keyless.answer = lambda _: None
    with pytest.raises(AmbiguousCallError, match="call 2 of 3"):
        await tune(keyless, facts(6))
    assert len(keyless.calls) == 2
    report = await tune(keyless, facts(6), on_ambiguous=on_ambiguous)
    assert report.skipped_calls == ([1] if on_ambiguous == "skip" else [])
    assert sorted(keyless.trainings.values()) == trainings


def _events(journal: Path, kind: str) -> int:
    return journal.read_text().count(f'"event":"{kind}"') if journal.exists() else 0


def _times_tuned(server: ServerProcess, model_id: str) -> int:
    """The server's own count, an extra field of its completions."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(parts.netloc))
    body = json.dumps({"query": "?", "maxGeneratedTokenCount": 1})
    headers = server.headers | {"Content-Type": "application/json"}
    connection.request("POST", f"{parts.path}/models/{model_id}/complete", body, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return int(answer["modelVersion"])
