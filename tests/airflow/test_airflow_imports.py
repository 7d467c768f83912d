"""What importing the package costs: DAG files are read every few seconds, in many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "langchain_core",
    "langchain",
    "pyarrow",
    "pandas",
    "fastapi",
    "sqlalchemy",
}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh process has loaded after ``statement``."""
    names = "sorted({name.partition('.')[0] for name in sys.modules})"
    script = f"import json, sys\n{statement}\nprint(json.dumps({names}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_neither_airflow_nor_torch() -> None:
    assert loaded_by("import airflow_provider_gradient") & (HEAVY | {"airflow", "httpx", "pydantic"}) == set()


def test_reading_the_metadata_loads_nothing_else() -> None:
    loaded = loaded_by("from airflow_provider_gradient.provider_info import get_provider_info as g; g()")
    assert loaded & (HEAVY | {"airflow", "httpx", "pydantic"}) == set()


@pytest.mark.parametrize(
    "modules",
    [
        ["operators"],
        ["hooks.gradient"],
        ["sensors", "decorators.complete", "decorators.evaluate", "notifications", "retry_policy"],
    ],
    ids=lambda modules: modules[0],
)
def test_importing_the_skin_loads_no_more_heavy_packages_than_airflow_itself(modules: list[str]) -> None:
    airflow = loaded_by("import airflow.sdk")
    names = ", ".join(f"airflow_provider_gradient.{module}" for module in modules)
    ours = loaded_by(f"import airflow.sdk, {names}")
    assert "airflow" in ours
    assert ours & HEAVY <= airflow
    assert ours & {"torch", "langchain_core", "pyarrow"} == set()


def test_the_library_works_without_airflow() -> None:
    modules = ", ".join(
        f"airflow_provider_gradient.{layer}"
        for layer in ("api", "client", "datasets", "completions", "tuning", "evaluation")
    )
    assert loaded_by(f"import {modules}") & {"airflow", "torch", "langchain_core"} == set()
