"""What those who run a server see of it: request ids, the log, metrics, probes; and how it stops."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from faults import wait_until

if TYPE_CHECKING:
    from tests.server.conftest import Caller


def root(server: Any) -> str:
    return str(server.url.removesuffix("/api"))


def test_every_answer_has_a_request_id_the_clients_own_if_it_is_sane(
    random_server: Any, caller: Caller
) -> None:
    own = caller.http.get("/models", headers={"X-Request-Id": "job-7.row:12"})
    assert own.headers["x-request-id"] == "job-7.row:12"
    made = [caller.http.get("/models").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for insane in ("a b", "x" * 129, 'a"b', "a\tb"):
        answer = caller.http.get("/models", headers={"X-Request-Id": insane})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    for path in ("/api/nothing", "/health", "/api/models"):
        assert httpx.get(root(random_server) + path).headers["x-request-id"], "refusals have one too"


def test_the_metrics_count_what_was_done(random_server: Any, caller: Caller) -> None:
    def read() -> dict[str, float]:
        text = httpx.get(f"{root(random_server)}/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)}

    before = read()
    adapter = caller.create()
    trained = caller.fine_tune(adapter, "the red hen")
    answer = caller.complete(adapter, "the red hen", maxGeneratedTokenCount=5)
    assert caller.http.post(f"/models/{caller.base_id()}/complete", json={}).status_code == 400
    after = read()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("gradient_generated_tokens_total") == answer["usage"]["completionTokens"]
    assert grown("gradient_trained_tokens_total") == trained["numberOfTrainableTokens"]
    assert grown('gradient_request_seconds_count{operation="complete",status="200"}') == 1
    assert grown('gradient_request_seconds_count{operation="complete",status="400"}') == 1
    assert grown('gradient_request_seconds_count{operation="fine_tune",status="200"}') == 1
    assert grown('gradient_request_seconds_sum{operation="fine_tune",status="200"}') > 0
    assert after["gradient_queue_length"] == 0
    assert after["gradient_slots"] >= 1
    assert after["gradient_adapters_resident"] >= 1
    assert after["process_resident_memory_bytes"] > 1e7
    caller.http.get("/nothing/with-an-id-in-it")
    assert "with-an-id" not in httpx.get(f"{root(random_server)}/metrics").text


def test_a_server_that_can_work_is_ready(random_server: Any) -> None:
    answer = httpx.get(f"{root(random_server)}/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_line_break_in_a_path_makes_no_line_of_its_own(random_server: Any, caller: Caller) -> None:
    caller.http.get("/%0A2026-01-01 INFO forged")
    wait_until(lambda: "\\n2026-01-01 INFO forged" in random_server.log(), seconds=10)
    assert not any(line.startswith("2026-01-01") for line in random_server.log().splitlines())


def test_at_a_signal_it_finishes_what_runs_and_refuses_the_new(
    start_server: Callable[..., Any], make_caller: Callable[[Any], Any], llama_directory: Path, tmp_path: Path
) -> None:
    options = (f"--base-model=llama={llama_directory}", "--grace-seconds", "300")
    server = start_server(*options)
    caller = make_caller(server)
    adapter = caller.create()
    samples = [{"inputs": "the red hen said no to the bread " * 12}] * 300
    with ThreadPoolExecutor(1) as pool:
        tuning = pool.submit(caller.http.post, f"/models/{adapter}/fine-tune", json={"samples": samples})
        while "gradient_requests_running 1.0" not in httpx.get(f"{root(server)}/metrics").text:
            assert not tuning.done()
        server.process.terminate()
        refusals: list[httpx.Response] = []
        while not (tuning.done() or (refusals and refusals[-1].status_code == 503)):
            refusals.append(httpx.post(f"{server.url}/models", headers=server.headers, json={}))
            assert refusals[-1].status_code in (400, 503)
        ready = httpx.get(f"{root(server)}/ready")
        assert tuning.result().status_code == 200, tuning.result().text
    assert refusals[-1].status_code == 503
    assert refusals[-1].headers["retry-after"] == "1"
    assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
    assert server.process.wait(30) == 0
    restarted = make_caller(start_server(*options, data_dir=tmp_path / "data"))
    assert restarted.complete(adapter, "the red hen")["modelVersion"] == 1


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_on_loopback_the_documentation_is_there(path: str, random_server: Any) -> None:
    assert httpx.get(root(random_server) + path).status_code == 200
