"""What tasks tell of the data they touched: to OpenLineage, by its file transport, and by asset events."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_gradient.datasets import write_rows
from airflow_provider_gradient.lineage import asset_uri, dataset_uri, path_uri

QUESTIONS = [{"q": "Hello", "a": "x"}, {"q": "Bye", "a": "y"}, {"q": "Yes", "a": "z"}]
SECRET = "s3cret-of-a-url"


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/data/a.jsonl", "file:///data/a.jsonl"),
        ("/data/b/../a.jsonl", "file:///data/a.jsonl"),
        ("file:///data/a.jsonl", "file:///data/a.jsonl"),
        (Path("/data/2026-*/*.parquet"), "file:///data/2026-*/*.parquet"),
        ("s3://conn@bucket/a/b.jsonl", "s3://bucket/a/b.jsonl"),
        (f"https://me:{SECRET}@host/a.csv?token={SECRET}", "https://host/a.csv"),
    ],
)
def test_a_dataset_has_one_uri_without_connections_and_secrets(path: Any, uri: str) -> None:
    assert path_uri(path) == uri


def test_a_manifest_is_its_output_a_shard_its_whole_dataset_and_rows_are_nowhere() -> None:
    assert dataset_uri({"output_path": "s3://b/out.jsonl", "source": "inline"}) == "s3://b/out.jsonl"
    assert dataset_uri({"pieces": [], "source": "/data/in.jsonl"}) == "file:///data/in.jsonl"
    assert dataset_uri([{"q": "a"}]) is dataset_uri(None) is dataset_uri({"source": "inline"}) is None
    assert asset_uri("file:///data/ä b.jsonl") == "file:///data/%C3%A4 b.jsonl"


@pytest.mark.parametrize("uri", ["gradient://workspace", "gradient:///bot", "gradient://workspace/a/b"])
def test_an_asset_that_names_no_model_of_a_workspace_is_refused(uri: str) -> None:
    from airflow_provider_gradient.assets.gradient import sanitize_uri

    assert sanitize_uri(urlsplit("gradient://workspace/bot/")).geturl() == "gradient://workspace/bot"
    with pytest.raises(ValueError, match="<workspace>/<model id or alias>"):
        sanitize_uri(urlsplit(uri))


class Told:
    """What the tasks of a run told OpenLineage."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        self._events = [json.loads(line) for line in self.text.splitlines()]

    def event(self, task: str, kind: str) -> dict[str, Any]:
        """The last event of a kind, of a task or its last map index."""
        return [e for e in self._events if (e["job"]["name"], e["eventType"]) == (f"lineage.{task}", kind)][
            -1
        ]

    def graph(self, task: str, kind: str) -> tuple[list[str], list[str]]:
        """The last parts of the names of what a task read and wrote."""
        event = self.event(task, kind)
        read, wrote = (
            [each["name"].rpartition("/")[2] for each in event[side]] for side in ("inputs", "outputs")
        )
        return read, wrote

    def figures(self, task: str, kind: str = "COMPLETE") -> dict[str, Any]:
        """The facet of our own."""
        return dict(self.event(task, kind)["run"]["facets"]["gradient"]["figures"])


@pytest.fixture(scope="module")
def told(airflow_database: Path, gradient_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A run by Airflow's own command, which loads OpenLineage's listener as a worker does."""
    pytest.importorskip("airflow.providers.openlineage")
    folder = tmp_path_factory.mktemp("lineage")
    write_rows(folder / "questions.jsonl", QUESTIONS)
    write_rows(folder / "samples.jsonl", [{"inputs": "One two"}, {"inputs": "Three"}])
    dag_file = airflow_database / "dags" / "lineage_dag.py"
    shutil.copy(Path(__file__).with_name("lineage_dag.py"), dag_file)
    connection = {
        "conn_type": "gradient",
        "host": gradient_server.url,
        "password": gradient_server.access_token,
        "extra": {"workspace_id": gradient_server.workspace_id},
    }
    transport = {"type": "file", "log_file_path": str(folder / "events.jsonl"), "append": True}
    given = {
        "AIRFLOW_CONN_GRADIENT_DEFAULT": json.dumps(connection),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "300",
        "AIRFLOW__GRADIENT__REGISTRY": str(folder / "registry"),
        "LINEAGE_FOLDER": str(folder),
    }
    command = [sys.executable, "-m", "airflow", "dags", "test", "lineage"]
    done = subprocess.run(command, env=dict(os.environ) | given, capture_output=True, text=True, check=False)
    dag_file.unlink()
    assert (folder / "again.jsonl").exists(), done.stdout + done.stderr
    return Told(folder / "events.jsonl")


def test_openlineage_hears_of_the_way_from_samples_to_adapter_to_completions_to_report_to_alias(
    told: Told,
) -> None:
    adapter = told.figures("tune")["model_id"]
    [answers] = told.graph("answers", "COMPLETE")[1]
    assert told.graph("tune", "COMPLETE") == (["samples.jsonl"], [adapter])
    assert told.graph("answers", "COMPLETE")[0] == ["questions.jsonl", adapter]
    assert told.graph("report", "COMPLETE") == ([answers], ["report.json", "scores.jsonl"])
    assert told.graph("promote", "COMPLETE") == ([adapter, "report.json"], ["lineage-bot"])
    assert told.graph("again", "COMPLETE")[0] == [answers, "lineage-bot", adapter]
    assert told.graph("sharded.merge", "COMPLETE") == (["00000.jsonl"], ["merged.jsonl"])
    assert told.graph("vectors", "COMPLETE") == (["questions.jsonl"], ["vectors.jsonl"])


def test_datasets_and_models_stand_under_the_names_that_openlineage_wants(
    told: Told, gradient_server: Any
) -> None:
    dataset, model = told.event("answers", "COMPLETE")["inputs"]
    assert (dataset["namespace"], dataset["name"][0]) == ("file", "/")
    assert model["namespace"] == f"gradient://{gradient_server.workspace_id}"


def test_openlineage_has_the_figures_in_standard_facets_and_the_rest_in_ours(told: Told) -> None:
    event = told.event("answers", "COMPLETE")
    assert event["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == len(QUESTIONS)
    written = event["outputs"][0]["outputFacets"]["outputStatistics"]
    assert written["rowCount"] == len(QUESTIONS)
    assert written["size"] == Path(event["outputs"][0]["name"]).stat().st_size
    parameters = event["run"]["facets"]["executionParameters"]["parameters"]
    assert {"key": "max_generated_token_count", "value": "1"} in parameters
    figures = told.figures("answers")
    assert (figures["success"], figures["completion_tokens"]) == (3, 3)
    assert figures["prompt_tokens"] > 3
    assert told.figures("tune")["trainable_tokens"] > 2
    assert told.figures("vectors")["dimensions"] == 1024
    assert event["run"]["facets"]["gradient"]["_schemaURL"].endswith("OpenLineage.json#/$defs/RunFacet")


def test_openlineage_has_the_metrics_and_what_the_gate_asked_also_where_it_failed_the_task(
    told: Told,
) -> None:
    for task, kind, passed in (("report", "COMPLETE", True), ("refused", "FAIL", False)):
        event = told.event(task, kind)
        facets = event["inputs"][0]["inputFacets"]
        [assertion] = facets["dataQualityAssertions"]["assertions"]
        assert (assertion["assertion"], assertion["column"]) == ("at_least", "exact_match")
        assert assertion["success"] is passed
        columns = event["outputs"][-1]["facets"]["dataQualityMetrics"]["columnMetrics"]
        assert columns["exact_match"]["count"] == len(QUESTIONS)
        assert told.figures(task, kind)["metrics"]["exact_match"]["n"] == len(QUESTIONS)


def test_a_task_that_failed_before_it_wrote_names_what_it_was_to_read_alone(told: Told) -> None:
    assert told.graph("missing", "START") == (["missing.jsonl"], ["never.jsonl"])
    assert told.graph("missing", "FAIL") == (["missing.jsonl"], [])


def test_no_token_of_the_connection_is_told(told: Told, gradient_server: Any) -> None:
    assert gradient_server.access_token not in told.text


def test_outlets_have_events_with_figures_and_an_alias_that_of_what_was_written(
    told: Told, gradient_server: Any
) -> None:
    [declared] = asset_events("lineage answers")
    assert (declared["kind"], declared["rows"], declared["success"]) == ("completions", 3, 3)
    [answers] = told.graph("answers", "COMPLETE")[1]
    [written] = [extra for uri, extra in all_asset_events() if uri.endswith(f"/{answers}")]
    assert written == declared
    adapter = told.figures("tune")["model_id"]
    [tuned] = asset_events(f"gradient://{gradient_server.workspace_id}/{adapter}")
    assert tuned["epoch_losses"] == told.figures("tune")["epoch_losses"]


def asset_events(uri: str) -> list[dict[str, Any]]:
    return [extra for found, extra in all_asset_events() if found == uri]


def all_asset_events() -> list[tuple[str, dict[str, Any]]]:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        joined = select(AssetEvent, AssetModel).join(AssetModel, AssetEvent.asset_id == AssetModel.id)
        return [(asset.uri, dict(event.extra)) for event, asset in session.execute(joined)]
