"""A dataset and an output in a bucket of a real S3-compatible server, killed in the middle and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from echo_server import HANG, EchoServer, questions
from faults import MODEL_ID, wait_until
from killed_run import start_run
from moto.server import ThreadedMotoServer
from upath import UPath

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
from airflow_provider_gradient.datasets import write_rows


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[UPath]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    bucket = UPath("s3://completions")
    bucket.fs.mkdir("completions")
    yield bucket
    server.stop()


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
    wait_until(lambda: len(journaled()) == 1 + 40 or process.exitcode is not None, seconds=60)
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
