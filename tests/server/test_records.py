"""The records' file through upgrades, what is thrown away, and base weights that changed under their slug."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from transformers import LlamaConfig, LlamaForCausalLM

from airflow_provider_gradient.server.accounts import hash_token
from airflow_provider_gradient.server.database import METADATA, NEWEST_REVISION, Database
from airflow_provider_gradient.server.fingerprint import fingerprint
from airflow_provider_gradient.server.housekeeping import Housekeeping
from airflow_provider_gradient.server.settings import StartError
from airflow_provider_gradient.server.store import RepeatableCall, Store
from airflow_provider_gradient.server.weights import AdapterWeights
from tests.server.conftest import CONTEXT, VOCABULARY, save_model

BEFORE_REVISIONS = """
CREATE TABLE workspaces (id VARCHAR NOT NULL PRIMARY KEY, created_at VARCHAR NOT NULL);
CREATE TABLE tokens (
    hash VARCHAR NOT NULL PRIMARY KEY,
    workspace_id VARCHAR NOT NULL,
    created_at VARCHAR NOT NULL,
    FOREIGN KEY (workspace_id) REFERENCES workspaces (id)
);
CREATE TABLE adapters (
    id VARCHAR NOT NULL PRIMARY KEY,
    workspace_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL, base_slug VARCHAR NOT NULL, rank INTEGER NOT NULL, learning_rate FLOAT NOT NULL,
    version INTEGER NOT NULL, created_at VARCHAR NOT NULL, updated_at VARCHAR NOT NULL,
    FOREIGN KEY (workspace_id) REFERENCES workspaces (id)
);
CREATE INDEX ix_adapters_workspace_id ON adapters (workspace_id);
CREATE TABLE answers (
    workspace_id VARCHAR NOT NULL, key VARCHAR NOT NULL, digest VARCHAR NOT NULL,
    adapter_id VARCHAR NOT NULL, answer JSON NOT NULL, created_at VARCHAR NOT NULL,
    PRIMARY KEY (workspace_id, key),
    FOREIGN KEY (workspace_id) REFERENCES workspaces (id),
    FOREIGN KEY (adapter_id) REFERENCES adapters (id) ON DELETE CASCADE
);
INSERT INTO workspaces VALUES ('w', '2024-01-01');
INSERT INTO tokens VALUES ('{hash}', 'w', '2024-01-01');
INSERT INTO adapters VALUES ('a', 'w', 'first', 'tiny', 8, 0.001, 3, '2024-01-01', '2024-01-02');
INSERT INTO answers VALUES ('w', 'k', 'd', 'a', '{{"id": "a"}}', '2024-01-01');
"""


def add_adapter(store: Store, id: str, **fields: Any) -> None:
    store.create_adapter(
        id=id, workspace_id="w", name="n", base_slug="llama", rank=2, learning_rate=0.1, **fields
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gradient.db"


def test_a_new_file_has_the_tables_that_the_code_speaks_of(path: Path) -> None:
    database = Database(path)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()


def test_a_file_from_before_revisions_is_brought_up_to_date_with_all_that_is_in_it(path: Path) -> None:
    old = sqlite3.connect(path)
    old.executescript(BEFORE_REVISIONS.format(hash=hash_token("old")))
    old.close()
    store = Store(path)
    assert store.accounts.opening() == {hash_token("old"): "w"}
    token = store.accounts.tokens()[0]
    assert (token.origin, len(token.id)) == ("start", 8)
    record = store.adapter("a")
    assert record is not None
    assert (record.version, record.base_fingerprint) == (3, None)
    assert store.answer(RepeatableCall(workspace_id="w", key="k", digest="d")) == {"id": "a"}
    with store._database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    store.close()
    Store(path).close()


def test_an_upgrade_that_is_cut_off_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sqlite3.connect(path)
    old.executescript(BEFORE_REVISIONS.format(hash="h"))
    before = old.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    upgrade = "airflow_provider_gradient.server.database._migrate"

    def half(connection: Any, revision: Any, path: Path) -> None:
        connection.exec_driver_sql("ALTER TABLE workspaces ADD COLUMN name VARCHAR")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(upgrade, half)
        with pytest.raises(KeyboardInterrupt):
            Store(path)
    assert old.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before
    old.close()
    Store(path).close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Store(path).close()
    newer = sqlite3.connect(path)
    newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.commit()
    newer.close()
    before = path.read_bytes()
    with pytest.raises(StartError, match="newer version of this package") as refusal:
        Store(path)
    assert "9999" in str(refusal.value)
    assert NEWEST_REVISION in str(refusal.value)
    assert path.read_bytes() == before


def test_leftovers_go_by_age_and_answers_by_age_and_count(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    store.accounts.grant(token="t", workspace_id="w")
    calls = [RepeatableCall(workspace_id="w", key=str(number), digest="d") for number in range(5)]
    for call in calls:
        add_adapter(store, f"a{call.key}", call=call)
    weights = AdapterWeights(tmp_path / "adapters")
    for adapter, version in (("a0", 1), ("a0", 2), ("unknown", 1)):
        weights.write(adapter, version=version, save=lambda _directory: None)
    store.advance("a0", version=1, answer={})
    old = time.time() - 7200
    os.utime(tmp_path / "adapters" / "unknown", (old, old))
    Housekeeping(store, weights).tidy()
    assert not (tmp_path / "adapters" / "unknown").exists()
    assert weights.path("a0", version=2).exists(), "it may be about to be recorded"
    Housekeeping(store, weights).tidy(older_than=0)
    assert not weights.path("a0", version=2).exists()
    assert weights.path("a0", version=1).exists(), "the version on record stays, however old"
    assert store.forget_answers(older_than=timedelta(days=1), keep=3) == 2
    assert [store.answer(call) is not None for call in calls] == [False, False, True, True, True]
    assert store.forget_answers(older_than=timedelta(0), keep=3) == 3
    store.close()


def test_the_fingerprint_is_of_the_weights_alone(llama_directory: Path, tmp_path: Path) -> None:
    for file in llama_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert fingerprint(tmp_path) == fingerprint(llama_directory)
    (tmp_path / "gradient.json").write_text("{}")
    assert fingerprint(tmp_path) == fingerprint(llama_directory)
    large = tmp_path / "model.safetensors"
    large.write_bytes(bytes(40 << 20))
    before = fingerprint(tmp_path)
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert fingerprint(tmp_path) != before


def test_base_weights_that_changed_are_noticed_and_the_adapters_named(
    llama_directory: Path,
    start_server: Callable[..., Any],
    make_caller: Callable[[Any], Any],
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in llama_directory.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    server = start_server(f"--base-model=llama={model}", data_dir=tmp_path / "data")
    caller = make_caller(server)
    tuned, fresh = caller.create(), caller.create()
    caller.fine_tune(tuned, "the red hen")
    server.stop()
    config = LlamaConfig.from_pretrained(llama_directory)
    assert (config.vocab_size, config.max_position_embeddings) == (VOCABULARY, CONTEXT)
    save_model(model, LlamaForCausalLM(config))  # other random weights
    server = start_server(f"--base-model=llama={model}", data_dir=tmp_path / "data")
    assert tuned in server.log()
    assert fresh not in server.log()
    caller = make_caller(server)
    for path, body in (("complete", {"query": "q"}), ("fine-tune", {"samples": [{"inputs": "a"}]})):
        answer = caller.http.post(f"/models/{tuned}/{path}", json=body)
        assert (answer.status_code, answer.json()["type"]) == (400, "failed")
        assert tuned in answer.json()["message"]
        assert "other weights" in answer.json()["message"]
    assert caller.fine_tune(fresh, "the red hen")["modelVersion"] == 1, (
        "what was never tuned fits any weights"
    )
    assert caller.http.delete(f"/models/{tuned}").status_code == 200
