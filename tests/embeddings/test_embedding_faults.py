"""Embeddings over datasets where rows are wrong, or the server goes wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Act, cut, error, reply
from vectors_server import VectorsServer, vectors

from airflow_provider_gradient.api import GradientError, InvalidRequestError, InvalidResponseError
from airflow_provider_gradient.client import AsyncGradientClient, RetryPolicy, Timeouts
from airflow_provider_gradient.completions import RunStoppedError, RunUnfinishedError
from airflow_provider_gradient.datasets import DatasetError, JournalError, sealed, unsealed
from airflow_provider_gradient.embeddings import EmbeddingManifest, embed_dataset

QUICK = RetryPolicy(attempts=3, base=0.01)
ROWS = [{"text": f"text {n}", "topic": n % 3} for n in range(40)]


@pytest.fixture
def server() -> Iterator[VectorsServer]:
    with VectorsServer() as server:
        yield server


@pytest.fixture
def embed(server: VectorsServer, tmp_path: Path) -> Any:
    async def run(dataset: Any = ROWS, **arguments: Any) -> EmbeddingManifest:
        given = {"model": "m", "text_column": "text", "output_path": tmp_path / "out.jsonl", "batch_size": 8}
        async with AsyncGradientClient(**server.credentials, retries=QUICK) as client:
            return await embed_dataset(client, dataset=dataset, **given | arguments)

    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ""}, "row 40 of the inline dataset: the text is empty"),
        ({"text": " \n"}, "row 40 of the inline dataset: the text is empty"),
        ({"text": None}, "row 40 of the inline dataset.*'text'"),
        ({"other": "x"}, "row 40 of the inline dataset.*text_column"),
        ({"text": 5}, "row 40 of the inline dataset: column 'text', the text, is no string but 5"),
        ({"text": "half \ud83d"}, "row 40 of the inline dataset: the text holds half a surrogate pair"),
    ],
)
async def test_a_row_without_a_text_is_named_before_anything_is_sent(
    row: dict[str, Any], message: str, server: VectorsServer, embed: Any
) -> None:
    with pytest.raises(DatasetError, match=message):
        await embed([*ROWS, row])
    assert not server.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 257}, "batch_size: from 1 to 256"),
        ({"batch_size": 0}, "batch_size: from 1 to 256"),
        ({"concurrency": 0}, "concurrency: at least 1"),
        ({"model": " "}, "model: the slug"),
        ({"model": ".."}, "slug: the slug"),
        ({"text_template": "{text}"}, "exactly one of text_column and text_template"),
        ({"carry_columns": "text"}, "carry_columns: a list"),
        ({"output_path": "out.csv"}, "out.csv"),
    ],
)
async def test_a_wrong_parameter_is_named_before_anything_is_sent(
    arguments: dict[str, Any], message: str, server: VectorsServer, embed: Any
) -> None:
    with pytest.raises((InvalidRequestError, DatasetError), match=message):
        await embed(**arguments)
    assert not server.requests


async def test_a_text_that_the_server_refuses_costs_no_other_its_vector(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    def refuse(texts: list[str]) -> Act | None:
        return error(400, "too long", type="bodyParsingError") if "text 13" in texts else None

    server.answer = refuse
    manifest = await embed()
    assert manifest.counts.model_dump() == {"success": 39, "error": 1}
    assert manifest.left_over == 0
    assert manifest.requests == len(server.requests) == 5 + 6
    written = read(tmp_path / "out.jsonl")
    assert [line["index"] for line in written if line["status"] == "error"] == [13]
    assert [line["embedding"] for line in written if line["index"] != 13] == [
        [len(row["text"]), int(row["text"][-1])] for n, row in enumerate(ROWS) if n != 13
    ]
    [failed] = read(tmp_path / "out.jsonl.errors.jsonl")
    message = "too long (HTTP 400, bodyParsingError)"
    assert failed["error"] == {"type": "bodyParsingError", "message": message, "transient": False}
    assert (failed["embedding"], failed["row"]) == (None, ROWS[13])

    server.answer = lambda _: None
    again = await embed(tmp_path / "out.jsonl.errors.jsonl", output_path=tmp_path / "again.jsonl")
    assert (again.rows, again.counts.success) == (1, 1)
    assert read(tmp_path / "again.jsonl")[0]["row"] == ROWS[13]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
async def test_rows_that_failed_for_a_reason_that_may_pass_are_sent_again_by_the_same_call(
    ending: str, server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    output = tmp_path / f"out.{ending}"
    server.answer = lambda texts: error(502, "broken") if "text 20" in texts else None
    reason = r"8 of 40 rows failed for a reason that may pass \(8 ServerError\).*just these 8 rows are sent"
    with pytest.raises(RunUnfinishedError, match=reason) as raised:
        await embed(output_path=output)
    first = raised.value.manifest
    assert isinstance(first, EmbeddingManifest)
    assert first.counts.model_dump() == {"success": 32, "error": 8}
    assert first.left_over == 8
    assert not (tmp_path / f"_SUCCESS.out.{ending}").exists()
    assert [row["row"] for row in read(tmp_path / f"out.{ending}.errors.jsonl")] == ROWS[16:24]
    if ending == "parquet":
        column = pq.read_table(output)["embedding"].to_pylist()
        assert [n for n, vector in enumerate(column) if vector is None] == list(range(16, 24))
        assert column[24] == [7.0, 4.0]

    server.answer = lambda _: None
    server.requests.clear()
    second = await embed(output_path=output)
    assert set(server.texts) == {row["text"] for row in ROWS[16:24]}
    assert second.counts.model_dump() == {"success": 40, "error": 0}
    assert (second.resumed_rows, second.left_over, second.errors_path) == (32, 0, None)
    assert second.requests == first.requests + 1
    beside = {path.name for path in tmp_path.iterdir()}
    assert beside == {f"out.{ending}", f"out.{ending}.manifest.json", f"_SUCCESS.out.{ending}"}

    server.requests.clear()
    third = await embed(output_path=output)
    assert not server.requests
    assert third.resumed_rows == 40


async def test_an_overloaded_server_gets_fewer_requests_and_answers_all_in_the_end(
    server: VectorsServer, embed: Any
) -> None:
    refusals = [reply(503, {"message": "busy"}, headers={"Retry-After": "0"})] * 12
    server.answer = lambda _: refusals.pop() if refusals else None
    manifest = await embed(batch_size=2, concurrency=16)
    assert manifest.counts.success == 40
    assert manifest.requests == len(server.requests) == 20 + 12
    assert server.most_in_flight <= 16


async def test_a_run_that_meets_failures_alone_ends_early(server: VectorsServer, embed: Any) -> None:
    server.answer = lambda _: error(500, "broken")
    with pytest.raises(RunStoppedError, match=r"100 of the last 100 rows failed .* and none was answered"):
        await embed([{"text": f"text {n}"} for n in range(2000)], concurrency=2)
    assert len(server.requests) < 13 * 3 + 6


async def test_batches_that_fail_one_after_another_end_a_run_at_any_time_but_not_two_of_them(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"text {n}"} for n in range(2000)]
    server.answer = lambda texts: error(502, "gone") if rows.index({"text": texts[0]}) >= 800 else None
    with pytest.raises(RunStoppedError, match="none was answered"):
        await embed(rows, concurrency=1, batch_size=80)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.journal.jsonl"]
    server.answer = lambda texts: error(502, "gone") if "text 900" in texts or "text 990" in texts else None
    with pytest.raises(RunUnfinishedError, match="160 of 2000 rows") as raised:
        await embed(rows, concurrency=1, batch_size=80)
    assert raised.value.manifest.resumed_rows == 800


async def test_a_text_that_the_server_always_fails_on_while_it_answers_others_has_an_error_of_its_own(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"text {n}"} for n in range(400)]

    def answer(texts: list[str]) -> Act | None:
        if "text 13" in texts:
            return reply(500, {"message": "oops"}, wait=0.05)
        return vectors([[1.0, 2.0]] * len(texts), wait=0.03)

    server.answer = answer
    manifest = await embed(rows, batch_size=4, concurrency=2)
    assert (manifest.counts.success, manifest.counts.error, manifest.left_over) == (399, 1, 0)
    [failed] = read(tmp_path / "out.jsonl.errors.jsonl")
    assert failed["row"] == rows[13]
    assert failed["error"] == {
        "type": "ServerError",
        "message": "oops (HTTP 500); 3 times, while other requests were answered",
        "transient": False,
    }


async def test_a_text_whose_answer_cannot_be_read_costs_no_other_its_vector(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    wrong = vectors([[1e300, 1.0]]).send
    server.answer = lambda texts: (
        None if "text 13" not in texts else Act(send=wrong) if len(texts) == 1 else reply(200, b"[" * 200_000)
    )
    manifest = await embed()
    assert manifest.counts.model_dump() == {"success": 39, "error": 1}
    [failed] = read(tmp_path / "out.jsonl.errors.jsonl")
    assert (failed["row"], failed["error"]["type"]) == (ROWS[13], "InvalidResponseError")


async def test_a_server_that_answers_nothing_for_a_total_time_out_ends_the_run_and_loses_nothing(
    server: VectorsServer, tmp_path: Path
) -> None:
    came = itertools.count()
    server.answer = lambda _: cut() if next(came) >= 10 else None

    async def run() -> EmbeddingManifest:
        retries, timeouts = RetryPolicy(attempts=100, base=0.1, longest=0.2), Timeouts(total=1.0)
        async with AsyncGradientClient(**server.credentials, retries=retries, timeouts=timeouts) as client:
            return await embed_dataset(
                client,
                model="m",
                dataset=ROWS,
                text_column="text",
                output_path=tmp_path / "out.jsonl",
                batch_size=1,
                concurrency=4,
            )

    with pytest.raises(RunStoppedError, match="answered no request for 1 s") as raised:
        await run()
    assert not isinstance(raised.value, RunUnfinishedError)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.journal.jsonl"]
    server.answer = lambda _: None
    server.requests.clear()
    manifest = await run()
    assert (manifest.counts.success, manifest.resumed_rows) == (40, 10)
    assert set(server.texts.values()) == {1}


async def test_an_embedding_task_does_not_replace_what_another_of_its_run_was_paid_for(
    server: VectorsServer, embed: Any
) -> None:
    await embed(identity="dag/run/each/0")
    server.requests.clear()
    with pytest.raises(
        DatasetError, match="has the output of 'dag/run/each/0', and this is 'dag/run/each/1'"
    ):
        await embed(identity="dag/run/each/1")
    assert not server.requests
    assert (await embed(identity="dag/run/each/0")).resumed_rows == 40


async def test_a_pause_longer_than_the_clients_total_time_ends_the_run(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    server.answer = lambda texts: (
        error(429, "tomorrow", headers={"Retry-After": "9000"}) if "text 20" in texts else None
    )
    with pytest.raises(RunStoppedError, match="a pause of 9000 s"):
        await embed(concurrency=1)
    server.answer = lambda _: None
    assert (await embed()).resumed_rows == 16


async def test_another_text_begins_anew_and_another_batch_size_does_not(
    server: VectorsServer, embed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(texts: list[str]) -> Act | None:
        return error(401, "who?") if "text 30" in texts else None

    server.answer = stop
    with pytest.raises(GradientError, match="who"):
        await embed(concurrency=1)
    server.requests.clear()
    with pytest.raises(GradientError, match="who"):
        await embed(concurrency=1, batch_size=5)
    assert not set(server.texts) & {row["text"] for row in ROWS[:24]}
    server.answer = lambda _: None
    manifest = await embed(text_column=None, text_template="{topic} {text}")
    assert manifest.resumed_rows == 0
    assert "the run starts anew" in caplog.text


async def test_a_model_whose_vectors_change_their_length_meanwhile_ends_the_run(
    server: VectorsServer, embed: Any
) -> None:
    server.answer = lambda texts: vectors([[1.0]] * len(texts)) if "text 20" in texts else None
    with pytest.raises(InvalidResponseError, match="had 2 dimensions and have 1 now"):
        await embed(concurrency=1)


async def test_rows_whose_text_did_not_change_keep_their_vectors_wherever_they_stand_now(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    whole = await embed(output_path=tmp_path / "whole.jsonl")
    expected = {row["row"]["text"]: row["embedding"] for row in read(tmp_path / "whole.jsonl")}
    server.answer = lambda texts: error(401, "who?") if "text 24" in texts else None
    with pytest.raises(GradientError, match="who"):
        await embed(concurrency=1)
    server.answer = lambda _: None
    server.requests.clear()
    rows = [{"text": "new"}, *ROWS[10:], *(row | {"topic": "edited"} for row in ROWS[:9]), {"text": "text 3"}]
    manifest = await embed(rows)
    assert set(server.texts) == {"new", "text 3", *(f"text {number}" for number in range(24, 40))}
    assert (manifest.resumed_rows, manifest.counts.success, manifest.rows) == (23, 41, 41)
    written = read(tmp_path / "out.jsonl")
    assert [row["row"] for row in written] == rows
    assert [row["embedding"] for row in written[1:]] == [expected[row["text"]] for row in rows[1:]]
    assert whole.dimensions == manifest.dimensions


async def test_a_damaged_journal_is_an_error_that_names_the_line(
    server: VectorsServer, embed: Any, tmp_path: Path
) -> None:
    server.answer = lambda texts: error(401, "who?") if "text 20" in texts else None
    with pytest.raises(GradientError, match="who"):
        await embed(concurrency=1)
    journal = tmp_path / "out.jsonl.journal.jsonl"
    head, keys, first, *_ = journal.read_bytes().splitlines(keepends=True)
    for damaged, message in [
        (
            sealed(b'{"first":38,"rows":8,"requests":1,"dimensions":2,"vectors":""}\n'),
            "line 4 is no batch of the dataset",
        ),
        (
            sealed(b'{"first":8,"rows":8,"requests":1,"error":[1]}\n'),
            "line 4 has neither vectors",
        ),
        (first, "line 4 has rows that were done before"),
        (first.replace(b"A", b"B", 1), "line 4 was changed since it was written"),
        (b"{}\n", "line 4 was changed since it was written"),
    ]:
        journal.write_bytes(head + keys + first + damaged)
        with pytest.raises(JournalError, match=message):
            await embed()
    cut = unsealed(first).replace(b'"vectors":"', b'"vectors":"AAAA')
    journal.write_bytes(head + keys + sealed(cut))
    server.answer = lambda _: None
    with pytest.raises(JournalError, match="vectors can't be read"):
        await embed()
