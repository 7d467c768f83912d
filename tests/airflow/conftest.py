"""Airflow for the tests: a home of its own, made before Airflow is imported, and DAGs run by ``dag.test()``.

The metadata database is SQLite and made once. DAGs that a test builds are registered in a bundle of their own
and run in this process; the example DAGs come from their folder.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(tempfile.mkdtemp(prefix="airflow-home-"))
EXAMPLES = ROOT / "example_dags"

assert "airflow" not in sys.modules, "Airflow read its configuration before the tests could give it a home"
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    "AIRFLOW__CORE__FERNET_KEY": "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of the tests alone, and long enough for what it has to sign",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
        [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(path), "refresh_interval": 3600},
            }
            for name, path in {"examples": EXAMPLES, "tests": HOME / "dags"}.items()
        ]
    ),
}
for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
    del os.environ[name]
(HOME / "dags").mkdir()


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_database() -> Path:
    """The metadata database, migrated; the home it is in."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    DagBundlesManager().sync_bundles_to_db()
    return HOME


class FinishedRun:
    """A DAG run that ended: the states of its tasks and what they left in XCom."""

    def __init__(self, dag_run: Any) -> None:
        self.state = str(dag_run.state.value)
        self.run_id = str(dag_run.run_id)
        self._dag_run = dag_run

    @property
    def states(self) -> dict[str, str]:
        """State by task id; a mapped task's instances are ``task[0]`` and so on."""
        return {
            ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(ti.state)
            for ti in self._dag_run.get_task_instances()
        }

    @property
    def tries(self) -> dict[str, int]:
        """Try number by task id."""
        return {ti.task_id: ti.try_number for ti in self._dag_run.get_task_instances()}

    def xcom(self, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """What a task left."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            row = session.scalar(
                XComModel.get_many(
                    key=key,
                    dag_ids=self._dag_run.dag_id,
                    run_id=self.run_id,
                    task_ids=task_id,
                    map_indexes=map_index,
                )
            )
        assert row is not None, f"{task_id} left no {key}"
        return XComModel.deserialize_value(row)

    def rendered(self, task_id: str, *, map_index: int = -1) -> dict[str, Any]:
        """The rendered fields that the UI shows of a task."""
        from airflow.models.renderedtifields import RenderedTaskInstanceFields

        instance = next(
            ti
            for ti in self._dag_run.get_task_instances()
            if ti.task_id == task_id and ti.map_index == map_index
        )
        return RenderedTaskInstanceFields.get_templated_fields(instance) or {}


RunDag = Callable[..., FinishedRun]


@pytest.fixture(scope="module")
def run_dag_once(airflow_database: Path) -> Iterator[RunDag]:
    """:func:`run_dag` for the fixtures of a module."""
    yield from _running_dags()


@pytest.fixture
def run_dag(airflow_database: Path) -> Iterator[RunDag]:
    """Runs a DAG to its end in this process: ``run_dag(dag, conf={...})``."""
    yield from _running_dags()


def _running_dags() -> Iterator[RunDag]:
    bags = dagbag_module()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(dag: Any, *, conf: dict[str, Any] | None = None, **options: Any) -> FinishedRun:
        if dag.dag_id not in _example_ids():
            bag = bags.DagBag(dag_folder=os.devnull)
            bag.bag_dag(dag)
            bags.sync_bag_to_db(bag, "tests", None)
        return FinishedRun(dag.test(run_conf=conf, **options))

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _example_ids() -> set[str]:
    return {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.fixture(scope="session")
def example_dags() -> Any:
    """The DagBag of the example DAGs."""
    return dagbag_module().DagBag(dag_folder=str(EXAMPLES))


@pytest.fixture
def known_example_dags(airflow_database: Path, example_dags: Any) -> Any:
    """The same, known to the metadata database, and so to Airflow's API and scheduler."""
    dagbag_module().sync_bag_to_db(example_dags, "examples", None)
    return example_dags


def dagbag_module() -> Any:
    """Where this version of Airflow has its DagBag."""
    try:
        return importlib.import_module("airflow.dag_processing.dagbag")
    except ImportError:  # Airflow 3.1
        return importlib.import_module("airflow.models.dagbag")


@pytest.fixture(scope="module")
def api(airflow_database: Path) -> Iterator[Any]:
    """Airflow's API, as an administrator."""
    from airflow.api_fastapi import app as airflow_app
    from fastapi.testclient import TestClient

    airflow_app.purge_cached_app()
    with TestClient(airflow_app.create_app()) as http:
        http.headers["Authorization"] = f"Bearer {http.get('/auth/token').json()['access_token']}"
        yield http
    airflow_app.purge_cached_app()


@pytest.fixture
def registry_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of aliases that is the test's own."""
    monkeypatch.setenv("AIRFLOW__GRADIENT__REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The story of the examples, cut down to ten facts and thirty old questions."""
    from airflow_provider_gradient.datasets import read_rows, write_rows

    data = EXAMPLES / "data"
    questions = list(read_rows(data / "support_questions.jsonl"))
    tuned = [row for row in questions if row["set"] == "tuned"][:10]
    old = [row for row in questions if row["set"] == "old"][:30]
    facts = {row["fact"] for row in tuned}
    write_rows(tmp_path / "data" / "support_questions.jsonl", tuned + old)
    wordings = [row for row in read_rows(data / "support_phrasings.jsonl") if row["fact"] in facts]
    write_rows(tmp_path / "data" / "support_phrasings.jsonl", wordings)
    return tmp_path / "data"


@pytest.fixture
def airflow_connection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Defines an Airflow connection for the test: ``airflow_connection("gradient_default", host=...)``."""

    def define(conn_id: str, **fields: Any) -> None:
        value = json.dumps({"conn_type": "gradient", **fields})
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)

    return define


@pytest.fixture
def gradient_default(gradient_server: Any, airflow_connection: Callable[..., None]) -> Any:
    """The connection ``gradient_default``, to the real server; the server."""
    airflow_connection(
        "gradient_default",
        host=gradient_server.url,
        password=gradient_server.access_token,
        extra={"workspace_id": gradient_server.workspace_id},
    )
    return gradient_server
