"""The operator that embeds a dataset, in DAGs that run to their end against the real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.datasets import read_rows, write_rows
from airflow_provider_gradient.embeddings import EmbeddingManifest

TICKETS = [{"key": f"t{n}", "title": f"Ticket {n}", "body": f"charger {n} broke"} for n in range(30)]


def test_a_dag_embeds_a_file_and_the_rows_of_an_earlier_task(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, task

    from airflow_provider_gradient import operators as op

    write_rows(tmp_path / "in.jsonl", TICKETS)
    with DAG("embeds_a_file") as dag:

        @task
        def titles() -> list[dict[str, Any]]:
            return [{"title": row["title"]} for row in TICKETS]

        op.GradientEmbedDatasetOperator(
            task_id="file",
            model="{{ dag_run.conf['model'] }}",
            dataset=str(tmp_path / "{{ dag_run.conf['name'] }}.jsonl"),
            text_template="{title}: {body}",
            id_column="key",
            carry_columns=["title"],
            output_path=str(tmp_path / "{{ task.task_id }}.parquet"),
            batch_size="{{ 4 + 4 }}",
        )
        op.GradientEmbedDatasetOperator(
            task_id="rows",
            model="bge-large",
            dataset=titles(),
            text_column="title",
            output_path=tmp_path / "rows.jsonl",
        )
    run = run_dag(dag, conf={"name": "in", "model": "bge-large"})
    assert run.state == "success"

    manifest = EmbeddingManifest.from_dict(run.xcom("file"))
    assert manifest.identity == f"embeds_a_file/{run.run_id}/file/-1"
    assert (manifest.rows, manifest.counts.success, manifest.requests) == (30, 30, 4)
    written = list(read_rows(manifest.output_path))
    expected = client.embed("bge-large", [f"{row['title']}: {row['body']}" for row in TICKETS])
    for row, ticket, vector in zip(written, TICKETS, expected, strict=True):
        assert (row["id"], row["row"]) == (ticket["key"], {"title": ticket["title"]})
        assert row["embedding"] == pytest.approx(vector, rel=1e-6, abs=1e-9)

    assert run.xcom("rows")["counts"] == {"success": 30, "error": 0}
    assert "Ticket 3" not in json.dumps([run.rendered("rows"), run.xcom("rows"), run.xcom("file")])


def test_a_row_without_a_text_fails_the_task(gradient_default: Any, run_dag: Any, tmp_path: Path) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    with DAG("embeds_an_empty_text") as dag:
        op.GradientEmbedDatasetOperator(
            task_id="vectors",
            model="bge-large",
            dataset=[{"text": "a"}, {"text": ""}],
            text_column="text",
            output_path=tmp_path / "out.parquet",
        )
    assert run_dag(dag).states == {"vectors": "failed"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of text_column and text_template"),
        ({"text_column": "a", "text_template": "{a}"}, "exactly one of text_column and text_template"),
        ({"text_column": "a", "batch_size": 0}, "batch_size: must be at least 1"),
    ],
)
def test_what_is_wrong_in_the_dag_file_is_found_when_it_is_read(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from airflow_provider_gradient import operators as op

    with pytest.raises(ValueError, match=message):
        op.GradientEmbedDatasetOperator(
            task_id="vectors", model="m", dataset="in.jsonl", output_path="out.jsonl", **arguments
        )
