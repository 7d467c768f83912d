"""Embeddings over datasets, against the real server."""

from __future__ import annotations

import json
import signal
from array import array
from pathlib import Path
from typing import Any

import pytest
from faults import wait_until
from killed_embedding import start_embedding
from typer.testing import CliRunner

from airflow_provider_gradient.api import NotFoundError
from airflow_provider_gradient.cli import app
from airflow_provider_gradient.datasets import JournalError, read_rows, write_rows
from airflow_provider_gradient.embeddings import embed_dataset

KILLS = 4
CONCURRENCY = 3
BATCH = 4


def tickets(count: int) -> list[dict[str, Any]]:
    return [
        {"key": f"t{n}", "title": f"Ticket {n}", "body": f"The {n}th charger is broken"} for n in range(count)
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_row_gets_the_vector_of_its_own_text_in_the_rows_order(
    async_client: Any, client: Any, tmp_path: Path
) -> None:
    rows = tickets(50)
    async with async_client() as own:
        manifest = await embed_dataset(
            own,
            model="bge-large",
            dataset=rows,
            text_template="{title}: {body}",
            id_column="key",
            carry_columns=["title"],
            output_path=tmp_path / "out.jsonl",
            batch_size=8,
        )
    written = read(tmp_path / "out.jsonl")
    expected = client.embed("bge-large", [f"{row['title']}: {row['body']}" for row in rows])
    for index, (line, row, vector) in enumerate(zip(written, rows, expected, strict=True)):
        assert (line["index"], line["id"], line["status"], line["error"]) == (
            index,
            row["key"],
            "success",
            None,
        )
        assert line["row"] == {"title": row["title"]}
        assert line["embedding"] == pytest.approx(vector, rel=1e-6, abs=1e-9)
    assert manifest.counts.model_dump() == {"success": 50, "error": 0}
    assert (manifest.rows, manifest.dimensions, manifest.requests) == (50, 1024, 7)
    assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text()) == manifest.to_dict()
    beside = {path.name for path in tmp_path.iterdir()}
    assert beside == {"out.jsonl", "out.jsonl.manifest.json", "_SUCCESS.out.jsonl"}


def test_the_command_embeds_a_dataset_and_says_what_came_of_it(
    gradient_environment: Any, client: Any, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", tickets(3))
    paths = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    done = CliRunner().invoke(app, ["embed-dataset", "bge-large", *paths, "--text-column", "body"])
    assert done.exit_code == 0, done.output
    assert f"Wrote {paths[1]}: 3 vectors of 1024 dimensions, 0 errors in " in done.stdout
    expected = client.embed("bge-large", [row["body"] for row in tickets(3)])
    for line, vector in zip(read(tmp_path / "out.jsonl"), expected, strict=True):
        assert line["embedding"] == pytest.approx(vector, rel=1e-6, abs=1e-9)
    refused = CliRunner().invoke(app, ["embed-dataset", "bge-large", *paths, "--text-column", "nope"])
    assert refused.exit_code != 0


async def test_parquet_holds_the_same_rows_as_lists_of_32_bit_floats(
    async_client: Any, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "in.csv").write_text("name,text\n" + "".join(f"n{n},the text {n}\n" for n in range(20)))
    async with async_client() as own:
        for name in ("lines.jsonl", "columns.parquet"):
            await embed_dataset(
                own,
                model="bge-large",
                dataset=tmp_path / "in.csv",
                text_column="text",
                id_column="name",
                output_path=tmp_path / name,
            )
    table = pq.read_table(tmp_path / "columns.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    read_back, lines = list(read_rows(tmp_path / "columns.parquet")), read(tmp_path / "lines.jsonl")
    assert [{**row, "embedding": None} for row in read_back] == [{**row, "embedding": None} for row in lines]
    for row, line in zip(read_back, lines, strict=True):
        assert len(row["embedding"]) == 1024
        assert array("f", row["embedding"]) == array("f", line["embedding"])


async def test_a_run_killed_at_four_moments_loses_no_batch_and_asks_for_none_twice(
    gradient_server: Any, async_client: Any, client: Any, tmp_path: Path
) -> None:
    rows = tickets(200)
    write_rows(tmp_path / "in.jsonl", rows)
    arguments = {
        "model": "bge-large",
        "dataset": str(tmp_path / "in.jsonl"),
        "output_path": str(tmp_path / "out.parquet"),
        "text_column": "body",
        "batch_size": BATCH,
        "concurrency": CONCURRENCY,
    }
    credentials = {
        "access_token": gradient_server.access_token,
        "workspace_id": gradient_server.workspace_id,
        "base_url": gradient_server.url,
    }
    journal = tmp_path / "out.parquet.journal.jsonl"

    def batches() -> int:
        return journal.read_bytes().count(b'\n{"first":') if journal.exists() else 0

    done = 0
    for kill in range(KILLS):
        process = start_embedding(credentials, **arguments)
        wait_until(lambda wanted=done + 1 + 2 * kill: batches() >= wanted, seconds=60)  # type: ignore[misc]
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "out.parquet").exists()
        assert batches() > done
        done = batches()
    async with async_client() as own:
        manifest = await embed_dataset(own, **arguments)

    assert manifest.resumed_rows == done * BATCH
    assert 0 < manifest.resumed_rows < manifest.rows == manifest.counts.success == 200
    assert manifest.requests == 200 / BATCH
    assert not journal.exists()
    written = list(read_rows(tmp_path / "out.parquet"))
    assert [line["row"] for line in written] == rows
    expected = client.embed("bge-large", [row["body"] for row in rows])
    for line, vector in zip(written, expected, strict=True):
        assert line["embedding"] == pytest.approx(vector, rel=1e-6, abs=1e-9)


async def test_an_unknown_model_ends_the_run_and_names_those_there_are(
    async_client: Any, tmp_path: Path
) -> None:
    async with async_client() as own:
        with pytest.raises(NotFoundError, match="bge-large"):
            await embed_dataset(
                own,
                model="nosuch",
                dataset=tickets(3),
                text_column="body",
                output_path=tmp_path / "out.jsonl",
            )
    assert not (tmp_path / "out.jsonl").exists()


async def test_the_journal_of_a_run_of_completions_is_not_taken_for_one_of_embeddings(
    async_client: Any, tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl.journal.jsonl").write_text('{"journal":"completions","schema_version":1}\n')
    async with async_client() as own:
        with pytest.raises(JournalError, match="line 1 is not the head"):
            await embed_dataset(
                own,
                model="bge-large",
                dataset=tickets(3),
                text_column="body",
                output_path=tmp_path / "out.jsonl",
            )
