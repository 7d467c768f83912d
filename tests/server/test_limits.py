"""Clients that send too much, too often or too slowly: each is told or cut off, and the others are served."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from airflow_provider_gradient.api import RateLimitError
from airflow_provider_gradient.server.admission import RequestRates

if TYPE_CHECKING:
    from tests.server.conftest import Caller

READ_SECONDS = 2
PER_MINUTE = 300
QUEUE = 6


@pytest.fixture(scope="module", autouse=True)
def _many_sockets() -> Iterator[None]:
    """A process may open more than it is given at first; the server does so by itself."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def limited(
    tmp_path_factory: pytest.TempPathFactory, server_process: Any, random_models: tuple[str, ...]
) -> Iterator[Any]:
    """A server that bears little, and logs JSON."""
    limits = {
        "max-body-mb": 1,
        "max-samples": 3,
        "max-queue": QUEUE,
        "requests-per-minute": PER_MINUTE,
        "read-seconds": READ_SECONDS,
    }
    options = [f"--{name}={value}" for name, value in limits.items()]
    server = server_process(
        tmp_path_factory.mktemp("limited") / "data", random_models[0], "--log-format=json", *options
    )
    yield server
    assert server.stop() == 0, server.log()
    for line in server.log().splitlines():
        assert "exception" not in json.loads(line), line


@pytest.fixture
def caller(limited: Any, make_caller: Callable[[Any], Any]) -> Caller:
    return make_caller(limited)


def connect(server: Any) -> socket.socket:
    address = urlsplit(server.url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=30)


def head(server: Any, path: str, *, length: int) -> bytes:
    lines = [f"POST /api{path} HTTP/1.1", f"Host: {urlsplit(server.url).netloc}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in server.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_that_is_too_large_is_413_whether_or_not_it_says_so(caller: Caller) -> None:
    body = json.dumps({"query": "a" * (1 << 20)}).encode()
    path = f"/models/{caller.base_id()}/complete"
    chunked = (body[start : start + 65536] for start in range(0, len(body), 65536))
    for content in (body, chunked):
        answer = caller.http.post(path, content=content)
        assert (answer.status_code, answer.json()["type"]) == (413, "unprocessableContent")
        assert "1 MiB" in answer.json()["message"]
    embeddings = caller.http.post("/embeddings/bge-large", content=body)
    assert embeddings.status_code == 413


def test_a_call_with_too_many_samples_is_refused_before_it_trains(caller: Caller) -> None:
    adapter = caller.create()
    answer = caller.http.post(f"/models/{adapter}/fine-tune", json={"samples": [{"inputs": "a"}] * 4})
    assert (answer.status_code, answer.json()["type"]) == (400, "unprocessableContent")
    assert answer.json()["message"].startswith("samples: 4 are more than the 3")
    assert caller.fine_tune(adapter, "a", "b", "c")["modelVersion"] == 1


def test_a_token_that_asks_too_often_is_told_when_to_come_again(limited: Any, caller: Caller) -> None:
    path = limited.data_dir / "gradient.db"
    from airflow_provider_gradient.server.store import Store

    store = Store(path)
    workspace = store.accounts.create_workspace("busy")
    token = store.accounts.create_token(workspace_id=workspace)
    store.close()
    time.sleep(1.1)
    headers = {"Authorization": f"Bearer {token}", "x-gradient-workspace-id": workspace}
    with httpx.Client(base_url=limited.url, headers=headers) as busy:
        answers = [busy.get("/embeddings") for _ in range(PER_MINUTE + 50)]
        statuses = [answer.status_code for answer in answers]
        assert statuses[:PER_MINUTE] == [200] * PER_MINUTE
        assert 429 in statuses
        refusal = next(answer for answer in answers if answer.status_code == 429)
        assert refusal.headers["retry-after"] == "1"
        assert str(PER_MINUTE) in refusal.json()["message"]
        assert caller.http.get("/models").status_code == 200, "other tokens have their own"
        time.sleep(1)
        assert busy.get("/embeddings").status_code == 200


def test_requests_come_back_evenly() -> None:
    now = 0.0
    rates = RequestRates(60, clock=lambda: now)
    for _ in range(60):
        rates.spend("t")
    with pytest.raises(RateLimitError) as refusal:
        rates.spend("t")
    assert refusal.value.retry_after == 1
    now = 10.0
    for _ in range(10):
        rates.spend("t")
    with pytest.raises(RateLimitError):
        rates.spend("t")
    rates.spend("another")
    now = 1e6
    for _ in range(60):
        rates.spend("t")
    with pytest.raises(RateLimitError):
        rates.spend("t")


def test_a_full_queue_is_503_with_retry_after_and_nobody_goes_without_an_answer(caller: Caller) -> None:
    base, asked = caller.base_id(), {"query": "the red hen", "maxGeneratedTokenCount": 100}
    with ThreadPoolExecutor(40) as pool:
        answers = list(
            pool.map(lambda _: caller.http.post(f"/models/{base}/complete", json=asked), range(40))
        )
    counted = Counter(answer.status_code for answer in answers)
    assert counted.keys() <= {200, 503}
    assert counted[200] >= QUEUE
    assert counted[503] >= 1
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["type"] == "failed"


def test_clients_that_stall_are_cut_off_and_hold_up_nobody(limited: Any, caller: Caller) -> None:
    whole = head(limited, f"/models/{caller.base_id()}/complete", length=100)
    silent = [connect(limited) for _ in range(100)]
    half_heads = [connect(limited) for _ in range(100)]
    half_bodies = [connect(limited) for _ in range(100)]
    for each in half_heads:
        each.sendall(whole[:40])
    for each in half_bodies:
        each.sendall(whole + b'{"query": "the')
    for _ in range(2 * QUEUE):
        assert caller.complete(caller.base_id(), "the red hen", maxGeneratedTokenCount=3)
    for each in (*silent, *half_heads):
        assert each.recv(100) == b"", "cut off"
    for each in half_bodies:
        assert each.recv(100).startswith(b"HTTP/1.1 408")
    for each in (*silent, *half_heads, *half_bodies):
        each.close()


def test_a_head_that_dribbles_in_is_cut_off_too(limited: Any) -> None:
    dribbling = connect(limited)
    sent = 0
    with pytest.raises(OSError):  # noqa: PT012 - the cut comes at some byte
        for byte in head(limited, "/models", length=0) * 10:
            dribbling.sendall(bytes([byte]))
            sent += 1
            time.sleep(0.1)
    assert sent <= READ_SECONDS / 0.1 + 10
    dribbling.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux's kernel cuts these off")
def test_a_client_that_does_not_read_its_answer_is_cut_off(limited: Any) -> None:
    def open_files() -> float:
        text = httpx.get(f"{limited.url.removesuffix('/api')}/metrics").text
        return float(text.partition("\nprocess_open_fds ")[2].split()[0])

    before = open_files()
    address = urlsplit(limited.url)
    body = json.dumps({"inputs": [{"input": f"text {number}"} for number in range(256)]}).encode()
    deaf = [socket.socket() for _ in range(3)]
    for each in deaf:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.connect((address.hostname, address.port))
        each.sendall(head(limited, "/embeddings/bge-large", length=len(body)) + body)
    assert open_files() >= before + len(deaf)
    until = time.monotonic() + 90
    while open_files() > before:
        assert time.monotonic() < until
        time.sleep(0.2)
    for each in deaf:
        each.close()


def test_the_log_is_json_where_asked_for_and_says_nothing_private(limited: Any, caller: Caller) -> None:
    path = f"/models/{caller.base_id()}/complete"
    caller.http.post(path, json={"query": "very private"}, headers={"X-Request-Id": "mine-1"})
    caller.http.post(path, json={"query": "very private", "guidance": "very private"})
    caller.fine_tune(caller.create(name="very private"), "very private")
    caller.http.get("/models?capability=very+private")
    httpx.get(f"{limited.url.removesuffix('/api')}/health")
    assert "private" not in limited.log()
    assert limited.access_token not in limited.log() + limited.ready_line
    lines = [json.loads(line) for line in limited.log().splitlines()]
    mine = next(line for line in lines if line.get("requestId") == "mine-1" and "status" in line)
    assert mine["path"] == f"/api{path}"
    assert (mine["method"], mine["operation"], mine["status"]) == ("POST", "complete", 200)
    assert mine["workspace"] == limited.workspace_id
    assert 0 < mine["seconds"] < 60
    assert {"time", "level", "logger", "message"} <= mine.keys()
    assert not any(line.get("operation") == "health" for line in lines), "probes make no noise"


def test_a_client_that_leaves_is_not_worked_for_any_longer(limited: Any, caller: Caller) -> None:
    body = json.dumps({"query": "the red hen", "maxGeneratedTokenCount": 100}).encode()
    request = head(limited, f"/models/{caller.base_id()}/complete", length=len(body)) + body
    for _ in range(QUEUE):
        with connect(limited) as leaving:
            leaving.sendall(request)
    until = time.monotonic() + 20
    while caller.http.post(f"/models/{caller.base_id()}/complete", json={"query": "q"}).status_code == 503:
        assert time.monotonic() < until
    statuses = Counter(json.loads(line).get("status") for line in limited.log().splitlines())
    assert statuses[499] >= 1


async def test_a_thousand_connections_at_once_are_all_answered(random_server: Any, make_caller: Any) -> None:
    base = make_caller(random_server).base_id()
    body = json.dumps({"query": "the red hen", "maxGeneratedTokenCount": 1}).encode()
    request = head(random_server, f"/models/{base}/complete", length=len(body)) + body
    address = urlsplit(random_server.url)
    all_connected = asyncio.Barrier(1000)

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        await all_connected.wait()
        writer.write(request)
        status = await reader.readline()
        writer.close()
        return status

    statuses = Counter(await asyncio.gather(*(ask() for _ in range(1000))))
    assert statuses == {b"HTTP/1.1 200 OK\r\n": 1000}
