"""A run that is asked to stop with requests in flight ends within seconds, and its journal is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from echo_server import HANG, Complete, EchoServer, questions, read
from faults import ACCESS_TOKEN, MODEL_ID, WORKSPACE_ID, wait_until

from airflow_provider_gradient.datasets import write_rows

COMMAND = Path(sys.executable).with_name("gradient")
ROWS = 300
ANSWERED = 100
IN_FLIGHT = 48
SCRIPT = """
import asyncio, sys
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
async def main(model, dataset, output):
    async with AsyncGradientClient() as client:
        await complete_dataset(
            client, model_id=model, dataset=dataset, output_path=output, prompt_template="{q}", concurrency=48
        )
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def stuck(server: EchoServer, tmp_path: Path) -> Iterator[EchoServer]:
    """A server that answers a hundred rows of ``in.jsonl`` and then no more."""
    write_rows(tmp_path / "in.jsonl", questions(ROWS))
    server.answer = lambda query: None if int(query.split()[1]) < ANSWERED else HANG
    return server


def environment(server: EchoServer) -> dict[str, str]:
    return os.environ | {
        "GRADIENT_API_URL": server.url,
        "GRADIENT_ACCESS_TOKEN": ACCESS_TOKEN,
        "GRADIENT_WORKSPACE_ID": WORKSPACE_ID,
    }


def gradient(server: EchoServer, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """``gradient ...`` to its end."""
    return subprocess.run(
        [COMMAND, *options, MODEL_ID, str(folder / "in.jsonl"), str(folder / "out.jsonl")],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
    )


def start(server: EchoServer, folder: Path, *command: str) -> subprocess.Popen[str]:
    """A process that completes ``in.jsonl``; given back once all it may send is in flight."""
    process = subprocess.Popen(
        [*command, MODEL_ID, str(folder / "in.jsonl"), str(folder / "out.jsonl")],
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sent = ANSWERED + IN_FLIGHT
    wait_until(lambda: server.queries.total() == sent or process.poll() is not None, seconds=60)
    return process


async def check_what_is_left(server: EchoServer, folder: Path, complete: Complete) -> None:
    """The journal has just what was answered, and a run that resumes sends the others."""
    lines = (folder / "out.jsonl.journal.jsonl").read_bytes().splitlines(keepends=True)
    assert sorted(json.loads(line)["index"] for line in lines[2:]) == list(range(ANSWERED))
    assert not (folder / "out.jsonl").exists()
    server.answer = lambda _: None
    manifest = await complete(folder / "in.jsonl")
    assert (manifest.resumed_rows, manifest.counts.success) == (ANSWERED, ROWS)
    assert server.queries.total() == ROWS + IN_FLIGHT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_stops_within_five_seconds_and_says_how_to_go_on(
    stuck: EchoServer, complete: Complete, tmp_path: Path, number: signal.Signals
) -> None:
    options = ["complete-dataset", "--prompt-template", "{q}", "--concurrency", str(IN_FLIGHT)]
    process = start(stuck, tmp_path, str(COMMAND), *options)
    process.send_signal(number)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out) == (128 + number, "")
    assert err == "Stopped. What was answered is kept: the same command goes on from there.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.journal.jsonl"]
    await check_what_is_left(stuck, tmp_path, complete)


async def test_a_script_that_a_signal_ends_at_once_leaves_its_journal_whole(
    stuck: EchoServer, complete: Complete, tmp_path: Path
) -> None:
    process = start(stuck, tmp_path, sys.executable, "-c", SCRIPT)
    process.terminate()
    process.communicate(timeout=5)
    assert process.returncode == -signal.SIGTERM
    await check_what_is_left(stuck, tmp_path, complete)


def test_the_command_completes_a_dataset_and_prints_what_came_of_it(
    server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(3))
    options = ["complete-dataset", "--prompt-column", "q", "--carry-column", "topic", "--max-tokens", "5"]
    process = gradient(server, tmp_path, *options)
    assert process.returncode == 0, process.stderr
    wrote = f"Wrote {tmp_path}/out.jsonl: 3 completions, 0 errors, 0 invalid outputs in "
    assert process.stdout.startswith(wrote)
    assert process.stderr.startswith("3 of 3 rows, 0 errors, ")
    assert [(line["output"], line["row"]) for line in read(tmp_path / "out.jsonl")] == [
        (f"echo {row['q']}", {"topic": row["topic"]}) for row in questions(3)
    ]
    again = gradient(server, tmp_path, *options, "--json")
    manifest = json.loads(again.stdout)
    assert (manifest["resumed_rows"], manifest["parameters"]) == (3, {"max_generated_token_count": 5})
    assert ACCESS_TOKEN not in process.stdout + process.stderr + again.stdout + again.stderr


def test_the_command_refuses_bad_input_before_anything_is_sent(server: EchoServer, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", questions(3))
    process = gradient(server, tmp_path, "complete-dataset", "--prompt-column", "nope")
    assert process.returncode == 2
    assert process.stderr.startswith("Error: ")
    assert "has no column 'nope'" in process.stderr
    assert server.queries.total() == 0


def test_the_command_estimates_ends_at_a_budget_and_goes_on(server: EchoServer, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", questions(5))
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    options = ["complete-dataset", "--prompt-template", "{{q}}", "--prompt-template-format", "mustache"]
    options += ["--output-schema", str(tmp_path / "schema.json")]
    estimate = gradient(server, tmp_path, *options, "--estimate")
    assert json.loads(estimate.stdout)["rows"] == 5
    assert server.queries.total() == 0

    ended = gradient(server, tmp_path, *options, "--max-rows", "3")
    assert "0 completions, 0 errors, 3 invalid outputs" in ended.stdout
    assert "2 rows were not run: max_rows, 3, is reached. The same command goes on" in ended.stdout
    assert gradient(server, tmp_path, *options).returncode == 0
    assert server.queries.total() == 5
