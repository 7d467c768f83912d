"""A dataset in, completions out: the files, the failures, and what is refused before the first request."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_server import QUICK, Complete, EchoServer, questions, read, refused
from faults import ACCESS_TOKEN, MODEL_ID, completion, cut, error, free_port, reply

from airflow_provider_gradient.api import (
    AuthenticationError,
    GradientConnectionError,
    GuidanceNotSupportedError,
    InvalidRequestError,
    PermissionDeniedError,
    UnknownModelError,
)
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import (
    CompletionManifest,
    Progress,
    RunUnfinishedError,
    complete_dataset,
)
from airflow_provider_gradient.completions.job import CompletionJob, DatasetCheck, Prompts
from airflow_provider_gradient.datasets import DatasetError, JournalError, write_rows


async def test_every_row_is_completed_by_the_real_server_in_the_inputs_order(
    async_client: Callable[[], AsyncGradientClient], tmp_path: Path
) -> None:
    rows = [{"id": f"q{number}", "year": 1990 + number} for number in range(20)]
    write_rows(tmp_path / "in.jsonl", rows)
    seen: list[Progress] = []
    async with async_client() as client:
        model = await client.find_base_model("tiny")
        manifest = await complete_dataset(
            client,
            model_id=model.id,
            dataset=tmp_path / "in.jsonl",
            output_path=tmp_path / "new folder" / "out.jsonl",
            prompt_template="Which team won the Super Bowl in {year}?",
            id_column="id",
            max_generated_token_count=8,
            temperature=0,
            on_progress=seen.append,
        )
    completions = read(tmp_path / "new folder" / "out.jsonl")
    assert [(line["index"], line["id"], line["row"]) for line in completions] == [
        (index, row["id"], row) for index, row in enumerate(rows)
    ]
    for line in completions:
        assert list(line) == [
            *("index", "id", "status", "output", "parsed", "error", "finish_reason", "model_id"),
            *("attempts", "latency_ms", "usage", "row"),
        ]
        assert line["status"] == "success"
        assert line["output"]
        assert line["finish_reason"] in ("stop", "length")
        assert line["latency_ms"] > 0
    assert sorted(path.name for path in (tmp_path / "new folder").iterdir()) == [
        "_SUCCESS.out.jsonl",
        "out.jsonl",
        "out.jsonl.manifest.json",
    ]
    stored = json.loads((tmp_path / "new folder" / "out.jsonl.manifest.json").read_text())
    assert CompletionManifest.from_dict(stored) == manifest
    assert manifest.counts.model_dump() == {"success": 20, "error": 0, "invalid_output": 0, "not_run": 0}
    assert manifest.completion_tokens == sum(line["usage"]["completion_tokens"] for line in completions)
    assert manifest.prompt_tokens == sum(line["usage"]["prompt_tokens"] for line in completions)
    assert manifest.parameters == {"max_generated_token_count": 8, "temperature": 0}
    assert (manifest.attempts, manifest.retries, manifest.resumed_rows) == (20, 0, 0)
    assert (seen[-1].done, seen[-1].rows, seen[-1].seconds_left) == (20, 20, 0.0)


async def test_a_server_without_usage_leaves_the_tokens_open(complete: Complete) -> None:
    manifest = await complete(questions(3))
    assert manifest.prompt_tokens is manifest.completion_tokens is None


async def test_a_row_that_fails_is_an_error_of_its_own_and_stands_in_the_errors_file_with_all_its_columns(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: refused(query) if query in ("question 1", "question 4") else None
    manifest = await complete(questions(6), carry_columns=["topic"])
    completions = read(tmp_path / "out.jsonl")
    assert [line["status"] for line in completions] == [
        *("success", "error", "success", "success", "error", "success")
    ]
    assert completions[1]["error"] == {
        "type": "unprocessableContent",
        "message": "too long: question 1 (HTTP 400, unprocessableContent)",
        "transient": False,
    }
    assert completions[1]["output"] is None
    assert all(list(line["row"]) == ["topic"] for line in completions)
    assert manifest.errors_path == str(tmp_path / "out.jsonl.errors.jsonl")
    failed = read(tmp_path / "out.jsonl.errors.jsonl")
    assert [(line["index"], line["row"]["q"]) for line in failed] == [(1, "question 1"), (4, "question 4")]
    assert manifest.counts.model_dump() == {"success": 4, "error": 2, "invalid_output": 0, "not_run": 0}
    assert not manifest.all_failed
    assert server.queries.total() == 6


async def test_an_earlier_runs_errors_file_does_not_outlive_a_run_without_errors(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = refused
    first = await complete(questions(2))
    assert first.all_failed
    assert (tmp_path / "out.jsonl.errors.jsonl").exists()
    server.answer = lambda _: None
    second = await complete(questions(3))
    assert second.errors_path is None
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


async def test_retries_of_a_row_are_counted_in_the_row_and_in_the_manifest(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    trouble = iter([reply(503, headers={"Retry-After": "0"}), cut(), error(429, "slow down")])
    server.answer = lambda query: next(trouble, None) if query == "question 0" else None
    manifest = await complete(questions(3))
    assert [line["attempts"] for line in read(tmp_path / "out.jsonl")] == [4, 1, 1]
    assert (manifest.attempts, manifest.retries) == (6, 3)
    assert manifest.counts.success == 3


async def test_a_row_whose_answer_never_comes_is_an_error_after_the_clients_attempts(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: cut() if query == "question 1" else None
    with pytest.raises(RunUnfinishedError):
        await complete(questions(3))
    failed = read(tmp_path / "out.jsonl")[1]
    assert (failed["status"], failed["attempts"]) == ("error", QUICK.attempts)
    assert failed["error"]["type"] == "GradientConnectionError"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (error(401, "bad token"), AuthenticationError),
        (error(403, "not your workspace"), PermissionDeniedError),
        (error(404, "no such adapter", type="unknownModelAdapter"), UnknownModelError),
        (error(400, "no guidance", type="modelDoesNotSupportGuidance"), GuidanceNotSupportedError),
    ],
    ids=["token", "workspace", "model", "guidance"],
)
async def test_an_error_that_concerns_every_row_stops_the_run_at_once_and_keeps_what_is_done(
    complete: Complete, server: EchoServer, tmp_path: Path, failure: Any, expected: type[Exception]
) -> None:
    sent = itertools.count()
    server.answer = lambda _: failure if next(sent) >= 50 else None
    with pytest.raises(expected):
        await complete(questions(1000), concurrency=4)
    assert server.queries.total() <= 60
    assert not (tmp_path / "out.jsonl").exists()
    server.answer = lambda _: None
    manifest = await complete(questions(1000), concurrency=4)
    assert 46 <= manifest.resumed_rows <= 50
    assert manifest.counts.success == 1000


async def test_a_server_that_is_down_is_an_error_before_any_row(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with AsyncGradientClient(access_token="t", workspace_id="w", base_url=url, retries=QUICK) as client:
        with pytest.raises(GradientConnectionError):
            await complete_dataset(
                client,
                model_id=MODEL_ID,
                dataset=questions(2),
                output_path=tmp_path / "out.jsonl",
                prompt_column="q",
            )
    assert list(tmp_path.iterdir()) == []


async def test_an_answer_that_is_none_of_the_choices_is_invalid_output_with_its_text_kept(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: completion(" yes\n" if query == "question 0" else "maybe")
    manifest = await complete(questions(2), guidance=("yes", "no"))
    first, second = read(tmp_path / "out.jsonl")
    assert (first["status"], first["output"]) == ("success", " yes\n")
    assert (second["status"], second["output"]) == ("invalid_output", "maybe")
    assert second["error"]["type"] == "invalidOutput"
    assert manifest.counts.model_dump() == {"success": 1, "error": 0, "invalid_output": 1, "not_run": 0}
    assert [line["index"] for line in read(tmp_path / "out.jsonl.errors.jsonl")] == [1]
    assert server.requests[-1].json()["guidance"] == {"type": "choice", "value": ["yes", "no"]}


async def test_no_more_requests_are_in_flight_than_asked_for(complete: Complete, server: EchoServer) -> None:
    server.wait = 0.02
    await complete(questions(60), concurrency=7)
    assert server.most_in_flight == 7


async def test_a_column_may_hold_the_prompt(complete: Complete, server: EchoServer) -> None:
    await complete([{"q": "a {brace} stays"}], prompt_template=None, prompt_column="q")
    assert list(server.queries) == ["a {brace} stays"]


BAD_ROWS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "missing column": (
        [{"q": "a"}, {"x": 1}],
        {},
        "row 1 of the inline dataset has no column 'q', which prompt_template names; its columns: 'x'",
    ),
    "null": ([{"q": "a"}, {"q": None}], {}, "row 1 of the inline dataset: column 'q'"),
    "empty prompt": ([{"q": "a"}, {"q": "  \n"}], {}, "row 1 of the inline dataset: the prompt is empty"),
    "prompt is no text": (
        [{"q": 1}],
        {"prompt_template": None, "prompt_column": "q"},
        "row 0 of the inline dataset: column 'q', the prompt, is no string but 1",
    ),
    "duplicate id": (
        [{"q": "a", "id": "x"}, {"q": "b", "id": "y"}, {"q": "c", "id": "x"}],
        {"id_column": "id"},
        "row 2 of the inline dataset has the id 'x' of row 0 again",
    ),
    "missing id": ([{"q": "a"}], {"id_column": "id"}, "row 0 of the inline dataset has no column 'id'"),
    "list as id": ([{"q": "a", "id": []}], {"id_column": "id"}, "must be a string or a number, not []"),
    "missing carried column": (
        [{"q": "a"}],
        {"carry_columns": ["topic"]},
        "row 0 of the inline dataset has no column 'topic', which carry_columns names",
    ),
    "not JSON": (
        [{"q": "a", "when": {1}}],
        {},
        "row 0 of the inline dataset: column 'when' can't be written",
    ),
    "no rows": ([], {}, "the inline dataset has no rows"),
    "no template": ([{"q": "a"}], {"prompt_template": "{q"}, "prompt_template is no template"),
}


@pytest.mark.parametrize(("rows", "arguments", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
async def test_a_bad_dataset_is_refused_before_the_first_request(
    complete: Complete, server: EchoServer, tmp_path: Path, rows: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(DatasetError) as raised:
        await complete(rows, **arguments)
    assert message in str(raised.value)
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


async def test_a_bad_line_at_the_end_of_a_file_is_found_before_the_first_request(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(2000))
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("[1]\n")
    with pytest.raises(DatasetError, match=r"in\.jsonl, line 2001 is no JSON object but a list"):
        await complete(tmp_path / "in.jsonl")
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_generated_token_count": 512}, "max_generated_token_count"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"guidance": []}, "guidance"),
        ({"guidance": "yes"}, "guidance: a list of choices is needed"),
        ({"guidance": ["x" * 33]}, "guidance"),
        ({"concurrency": 0}, "concurrency"),
        ({"carry_columns": "topic"}, "carry_columns: a list of columns is needed"),
        ({"model_id": " "}, "model_id"),
        ({"prompt_column": "q"}, "exactly one of prompt_template, prompt_column and runnable"),
        ({"prompt_template": None}, "exactly one of prompt_template, prompt_column and runnable"),
    ],
)
async def test_a_parameter_out_of_range_is_refused_by_name_before_the_first_request(
    complete: Complete, server: EchoServer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await complete(questions(2), **arguments)
    assert server.requests == []


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.errors.jsonl"])
async def test_a_run_that_would_replace_its_dataset_is_refused(
    complete: Complete, server: EchoServer, tmp_path: Path, name: str
) -> None:
    write_rows(tmp_path / name, questions(2))
    with pytest.raises(DatasetError, match=r"is the dataset or in it: choose another output_path"):
        await complete(f"file://{tmp_path}/{name}")
    assert read(tmp_path / name) == questions(2)
    assert server.requests == []


async def test_a_dataset_that_changes_while_it_is_completed_is_an_error_and_no_output(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(3))

    def answer(query: str) -> None:
        write_rows(tmp_path / "in.jsonl", [*questions(2), {"q": "another", "topic": "none"}])

    server.answer = answer
    with pytest.raises(DatasetError, match=r"in\.jsonl changed while it was completed"):
        await complete(tmp_path / "in.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    server.answer = lambda _: None
    server.requests.clear()
    assert (await complete(tmp_path / "in.jsonl")).resumed_rows == 2
    assert server.queries == {"another": 1}
    assert [line["output"] for line in read(tmp_path / "out.jsonl")][-1] == "echo another"


async def test_a_finished_output_that_is_replaced_for_another_dataset_is_told_in_the_log(
    complete: Complete, server: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    await complete(questions(2))
    await complete(questions(2))
    assert "stands finished, for another" not in caplog.text
    await complete(questions(3))
    assert "stands finished, for another dataset, template, model or parameters" in caplog.text
    assert server.queries == {"question 0": 2, "question 1": 2, "question 2": 1}


async def test_a_folder_where_the_output_should_be_is_refused_before_anything_is_sent(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(DatasetError, match=r"out\.jsonl: a folder is there"):
        await complete(questions(2))
    assert server.requests == []


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null"])
async def test_a_manifest_that_is_no_object_is_refused_in_words(
    complete: Complete, server: EchoServer, tmp_path: Path, content: str
) -> None:
    (tmp_path / "out.jsonl.manifest.json").write_text(content)
    with pytest.raises(
        JournalError, match=r"out\.jsonl\.manifest\.json: .*Delete it, or choose another"
    ) as raised:
        await complete(questions(2))
    assert "attribute" not in str(raised.value)
    assert server.queries == {}


async def test_neither_files_nor_errors_hold_the_token(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: refused(query) if query == "question 0" else None
    await complete(questions(3))
    for path in tmp_path.iterdir():
        assert ACCESS_TOKEN not in path.read_text()


def test_equal_hashes_of_different_ids_are_no_duplicates() -> None:
    rows = [{"q": "a", "id": -1}, {"q": "b", "id": -2}]
    assert hash(-1) == hash(-2)
    assert list(_check(rows).rows_checked()) == [None, None]


def _check(rows: Any) -> DatasetCheck:
    job = CompletionJob(
        dataset=rows,
        model_id=MODEL_ID,
        prompt_template="{q}",
        prompt_column=None,
        id_column="id",
        carry_columns=None,
        parameters={},
    )
    return DatasetCheck(job, Prompts(template="{q}", column=None))


def test_a_check_keeps_a_few_bytes_a_row(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number in range(20_000):
            yield {"q": "x" * 1000, "id": number}

    write_rows(tmp_path / "in.jsonl", rows())
    check = _check(tmp_path / "in.jsonl")
    tracemalloc.start()
    try:
        for _ in check.rows_checked():
            pass
        assert tracemalloc.get_traced_memory()[1] < 20_000 * 80
    finally:
        tracemalloc.stop()
    assert check.rows == 20_000
