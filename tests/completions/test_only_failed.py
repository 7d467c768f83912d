"""The rows of an earlier run that are no success, run again and merged with those that are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from echo_server import HANG, Complete, EchoServer, journaled, questions, read, refused
from faults import Act, reply, wait_until
from upath import UPath

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.completions import CompletionManifest
from airflow_provider_gradient.datasets import DatasetError, JournalError, read_rows, write_rows

FAILED = (2, 3, 17)
OTHER_MODEL = "1" * 36 + "_model_adapter"


def with_usage(query: str, tokens: int) -> Act:
    usage = {"promptTokens": tokens, "completionTokens": 1}
    return reply(body={"finishReason": "stop", "generatedOutput": f"echo {query}", "usage": usage})


@pytest.fixture
def fail(server: EchoServer) -> None:
    """Some questions are refused, the others cost ten tokens each."""
    numbers = {f"question {number}" for number in FAILED}
    server.answer = lambda query: refused(query) if query in numbers else with_usage(query, 9)


def mend(server: EchoServer) -> None:
    server.requests.clear()
    server.answer = lambda query: with_usage(query, 99)


@pytest.mark.parametrize("given", ["manifest", "dict", "path"])
@pytest.mark.parametrize("names", [("out.jsonl", "all.jsonl"), ("out.parquet", "all.parquet")])
@pytest.mark.usefixtures("fail")
async def test_only_the_failed_rows_are_sent_and_the_output_has_all_in_order(
    complete: Complete, server: EchoServer, tmp_path: Path, given: str, names: tuple[str, str]
) -> None:
    rows = [row | {"key": f"k{index}"} for index, row in enumerate(questions(20))]
    arguments = {"id_column": "key", "carry_columns": ["topic"], "output_path": tmp_path / names[0]}
    earlier = await complete(rows, **arguments)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    mend(server)
    forms: dict[str, Any] = {
        "manifest": earlier,
        "dict": earlier.to_dict(),
        "path": tmp_path / f"{names[0]}.manifest.json",
    }
    output = tmp_path / "new" / names[1]
    manifest = await complete(None, only_failed_of=forms[given], output_path=output, model_id=OTHER_MODEL)
    assert sorted(server.queries) == sorted(f"question {number}" for number in FAILED)
    records = list(read_rows(output))
    assert [(row["index"], row["id"], row["output"], row["row"]) for row in records] == [
        (index, f"k{index}", f"echo {row['q']}", {"topic": row["topic"]}) for index, row in enumerate(rows)
    ]
    assert [index for index, row in enumerate(records) if row["model_id"] == OTHER_MODEL] == list(FAILED)
    assert [records[index]["attempts"] for index in (1, 2)] == [1, 2]
    assert manifest.counts.model_dump() == {"success": 20, "error": 0, "invalid_output": 0, "not_run": 0}
    assert (manifest.rows, manifest.resumed_rows, manifest.attempts) == (20, 17, 23)
    assert manifest.prompt_tokens == 17 * 9 + 3 * 99
    assert (manifest.only_failed_of, manifest.errors_path) == (str(tmp_path / names[0]), None)
    assert (output.parent / f"_SUCCESS.{names[1]}").exists()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.usefixtures("fail")
async def test_an_errors_file_is_a_dataset_for_the_same_template(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    await complete(questions(20), carry_columns=["topic"])
    errors = tmp_path / "out.jsonl.errors.jsonl"
    assert list(read_rows(errors)) == [questions(20)[number] for number in FAILED]
    mend(server)
    await complete(errors, output_path=tmp_path / "again.jsonl")
    assert [row["output"] for row in read(tmp_path / "again.jsonl")] == [
        f"echo question {number}" for number in FAILED
    ]


def test_a_file_of_that_name_whose_rows_are_no_records_is_read_as_it_stands(tmp_path: Path) -> None:
    rows = [{"row": {"a": 1}, "status": "new"}, {"q": "x"}]
    (tmp_path / "my.errors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_rows(tmp_path / "my.errors.jsonl")) == rows


async def test_what_a_budget_left_and_what_fails_again_are_left_for_the_next(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    first = await complete(questions(20), max_rows=5)
    server.answer = lambda query: refused(query) if query == "question 7" else None
    second = await complete(None, only_failed_of=first, output_path=tmp_path / "b.jsonl", max_rows=6)
    assert second.counts.model_dump() == {"success": 10, "error": 1, "invalid_output": 0, "not_run": 9}
    assert [row["index"] for row in read(tmp_path / "b.jsonl.errors.jsonl")] == [7, *range(11, 20)]
    assert not (tmp_path / "_SUCCESS.b.jsonl").exists()
    server.answer = lambda _: None
    third = await complete(None, only_failed_of=second, output_path=tmp_path / "c.jsonl")
    assert third.counts.success == 20
    assert [row["output"] for row in read(tmp_path / "c.jsonl")] == [
        f"echo question {number}" for number in range(20)
    ]
    assert server.queries == {f"question {number}": 1 + (number == 7) for number in range(20)}


async def test_where_nothing_failed_the_output_is_a_copy_and_nothing_is_sent(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    first = await complete(questions(5))
    again = await complete(None, only_failed_of=first, output_path=tmp_path / "all.jsonl")
    assert (tmp_path / "all.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert (again.counts.success, again.resumed_rows, again.concurrency) == (5, 5, None)
    assert server.queries.total() == 5


@pytest.mark.usefixtures("fail")
async def test_a_merge_that_was_killed_goes_on_and_the_earlier_files_stand(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    await complete(questions(20))
    mend(server)
    server.answer = lambda query: HANG if query == "question 17" else None
    program = """
import asyncio, json, sys
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
async def main(credentials, arguments):
    async with AsyncGradientClient(**credentials) as client:
        await complete_dataset(client, **arguments)
asyncio.run(main(*map(json.loads, sys.argv[1:])))
"""
    arguments = {
        "model_id": OTHER_MODEL,
        "only_failed_of": str(tmp_path / "out.jsonl.manifest.json"),
        "output_path": str(tmp_path / "all.jsonl"),
        "prompt_template": "{q}",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(server.credentials), json.dumps(arguments)]
    )
    wait_until(lambda: server.queries.total() == 3, seconds=60)
    wait_until(lambda: journaled(tmp_path / "all.jsonl") == 2)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    server.answer = lambda _: None
    manifest = await complete(None, **{name: arguments[name] for name in list(arguments)[:3]})
    assert (manifest.counts.success, manifest.resumed_rows) == (20, 19)
    assert server.queries == {"question 2": 1, "question 3": 1, "question 17": 2}


@pytest.mark.usefixtures("fail")
async def test_a_merge_on_a_file_system_that_cannot_append(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    bucket = UPath(f"memory://{tmp_path.name}")
    await complete(questions(20), output_path=bucket / "out.jsonl")
    mend(server)
    manifest = await complete(
        None, only_failed_of=bucket / "out.jsonl.manifest.json", output_path=bucket / "all.jsonl"
    )
    assert manifest.counts.success == 20
    assert server.queries.total() == 3


@pytest.mark.usefixtures("fail")
async def test_what_cannot_be_merged_is_refused_before_anything_is_sent(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    earlier = await complete(questions(20))
    mend(server)

    async def refused_as(error: type[Exception], match: str, **arguments: Any) -> None:
        given: dict[str, Any] = {
            "dataset": None,
            "only_failed_of": earlier,
            "output_path": tmp_path / "b.jsonl",
        }
        with pytest.raises(error, match=match):
            await complete(**(given | arguments))

    await refused_as(DatasetError, "would replace the output", output_path=tmp_path / "out.jsonl")
    await refused_as(InvalidRequestError, "exactly one of dataset and only_failed_of", dataset=questions(1))
    await refused_as(InvalidRequestError, "exactly one of dataset", only_failed_of=None)
    await refused_as(InvalidRequestError, "only_failed_of: ids and carried", id_column="q")
    await refused_as(JournalError, "no manifest|schema version", only_failed_of={"output_path": "x"})
    await refused_as(JournalError, "only_failed_of: .*out.jsonl", only_failed_of=tmp_path / "out.jsonl")
    await refused_as(DatasetError, "there is no such file", only_failed_of=tmp_path / "none.json")
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(b"\n")
    await refused_as(DatasetError, "was changed since its manifest")
    assert not server.queries


@pytest.mark.usefixtures("fail")
async def test_an_errors_file_that_is_not_the_outputs_is_noticed(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    earlier: CompletionManifest = await complete(questions(20))
    errors = tmp_path / "out.jsonl.errors.jsonl"
    lines = errors.read_bytes().splitlines(keepends=True)
    mend(server)
    errors.write_bytes(b"".join(lines[1:]))
    with pytest.raises(DatasetError, match="row 2 of it is not the next in its errors file"):
        await complete(None, only_failed_of=earlier, output_path=tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


async def test_a_finished_merge_is_not_made_again(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(4))
    first = await complete(tmp_path / "in.jsonl", max_rows=2)
    arguments: dict[str, Any] = {"only_failed_of": first, "output_path": tmp_path / "all.jsonl"}
    second = await complete(None, **arguments)
    assert second.source == str(tmp_path / "in.jsonl")
    assert await complete(None, **arguments) == second.model_copy(update={"resumed_rows": 4})
    assert server.queries.total() == 4
