"""The example DAGs, run to their end against the real server with its tiny model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

LOOP = "example_gradient_improvement_loop"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_airflow_imports_them_without_a_connection_an_error_or_a_warning(example_dags: Any) -> None:
    assert example_dags.import_errors == {}
    assert not any(example_dags.captured_warnings.values())
    assert set(example_dags.dags) == {
        "example_gradient_notebook",
        "example_gradient_improvement_loop",
        "example_gradient_scheduled_completions",
    }
    assert all(dag.doc_md and "gradient" in dag.tags for dag in example_dags.dags.values())


def test_the_notebooks_adapter_learns_the_right_answer_and_is_deleted(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    run = run_dag(example_dags.dags["example_gradient_notebook"], conf={"output_dir": str(tmp_path)})

    assert run.state == "success"
    answers = read(tmp_path / "answers.json")
    assert "Cowboys" not in answers["before"]
    assert "Dallas Cowboys" in answers["after"]
    assert run.xcom("create_adapter") not in {model.id for model in client.list_models()}


def test_the_loop_lifts_what_was_wrong_and_keeps_what_was_right(
    gradient_default: Any, example_dags: Any, run_dag: Any, client: Any, tmp_path: Path
) -> None:
    started = time.monotonic()
    run = run_dag(example_dags.dags[LOOP], conf={"output_dir": str(tmp_path)})
    print(f"{time.monotonic() - started:.0f} s")

    assert run.state == "success"
    summary = read(tmp_path / "summary.json")
    print(json.dumps(summary, indent=1))
