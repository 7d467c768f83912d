"""A dataset and an output in a bucket of a real S3-compatible server, killed in the middle and resumed."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import s3fs
from echo_server import HANG, EchoServer, questions
from faults import MODEL_ID, wait_until
from killed_run import start_run
from moto.server import DomainDispatcherApplication, create_backend_app
from upath import UPath
from werkzeug.serving import make_server

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
from airflow_provider_gradient.datasets import write_rows


class Store:
    """An S3-compatible server that carries out one request at a time, as S3 does for one key.

    :ivar together: the first two who write a lock wait here for each other, if they are to.
    """

    def __init__(self) -> None:
        self.together: threading.Barrier | None = None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever).start()

    def close(self) -> None:
        """Let it end."""
        self._server.shutdown()

    def _answer(self, environ: Any, start: Any) -> Any:
        if self.together and environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(".lock"):
            with contextlib.suppress(threading.BrokenBarrierError):
                self.together.wait(20)
            self.together.abort()  # only the first two
        with self._turn:
            return list(self._app(environ, start))


@pytest.fixture
def store() -> Iterator[Store]:
    with contextlib.closing(Store()) as store:
        yield store


@pytest.fixture
def bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> UPath:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    httpx.post(f"{store.url}/moto-api/reset")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = UPath("s3://completions")
    bucket.fs.mkdir("completions")
    return bucket


async def test_a_run_over_a_bucket_is_killed_resumed_and_leaves_its_output_alone(
    server: EchoServer, bucket: UPath
) -> None:
    write_rows(bucket / "in.jsonl", questions(60))
    server.answer = lambda query: HANG if int(query.split()[1]) >= 40 else None
    arguments: dict[str, Any] = {
        "model_id": MODEL_ID,
        "dataset": "s3://completions/in.jsonl",
        "output_path": "s3://completions/runs/out.jsonl",
        "prompt_template": "{q}",
        "identity": "dag/run/task/-1",
        "concurrency": 8,
    }

    def journaled() -> list[str]:
        bucket.fs.invalidate_cache()
        parts = bucket.fs.glob("completions/runs/out.jsonl.journal.jsonl/*.jsonl")
        return [line for part in parts for line in bucket.fs.cat_file(part).decode().splitlines()]

    process = start_run(server.credentials, **arguments)
    wait_until(lambda: len(journaled()) == 2 + 40 or process.exitcode is not None, seconds=60)
    process.kill()
    process.join()
    server.answer = lambda _: None
    async with AsyncGradientClient(**server.credentials) as client:
        manifest = await complete_dataset(client, **arguments)

    assert manifest.resumed_rows == 40
    assert server.queries.total() == 60 + 8
    lines = (bucket / "runs" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == [f"echo {row['q']}" for row in questions(60)]
    bucket.fs.invalidate_cache()
    assert sorted(bucket.fs.find("completions")) == [
        "completions/in.jsonl",
        "completions/runs/_SUCCESS.out.jsonl",
        "completions/runs/out.jsonl",
        "completions/runs/out.jsonl.manifest.json",
    ]


def test_of_two_runs_that_start_together_on_one_output_one_is_refused_before_it_sends_anything(
    server: EchoServer, bucket: UPath, store: Store
) -> None:
    store.together = threading.Barrier(2)
    write_rows(bucket / "in.jsonl", questions(600))
    processes = [
        start_run(
            server.credentials,
            model_id=MODEL_ID,
            dataset="s3://completions/in.jsonl",
            output_path="s3://completions/out.jsonl",
            prompt_template="{q}",
            identity=f"dag/run/{task}/-1",
            concurrency=32,
        )
        for task in ("one", "two")
    ]
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode for process in processes) == [0, 1]
    assert server.queries.total() == 600
    assert len((bucket / "out.jsonl").read_text().splitlines()) == 600
