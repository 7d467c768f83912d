"""The SQLite file that the records are in: its tables, its transactions, and how an older one is brought
up to date.

Every change of the schema is an Alembic revision in ``migrations/``. All that a file lacks run at its opening
in one transaction that no other process can interleave with, so a file has either its old schema or the
newest; a file of a newer version of this package is refused, never guessed at. A file that is up to date is
opened without Alembic.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_provider_gradient.server.failures import disk_full, is_disk_full
from airflow_provider_gradient.server.settings import StartError

DATABASE_FILE = "gradient.db"
NEWEST_REVISION = "0003"
"""The last revision in ``migrations/versions``."""
_FIRST_REVISION = "0001"
_BUSY_MILLISECONDS = 10_000

METADATA = sa.MetaData()
WORKSPACES = sa.Table(
    "workspaces",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False, server_default=""),
)
TOKENS = sa.Table(
    "tokens",
    METADATA,
    sa.Column("hash", sa.String, primary_key=True),
    sa.Column("workspace_id", sa.ForeignKey("workspaces.id"), nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("id", sa.String, nullable=False, server_default=""),
    sa.Column("name", sa.String, nullable=False, server_default=""),
    sa.Column("origin", sa.String, nullable=False, server_default="start"),
    sa.Column("revoked_at", sa.String),
)
ADAPTERS = sa.Table(
    "adapters",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("workspace_id", sa.ForeignKey("workspaces.id"), nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("base_slug", sa.String, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("learning_rate", sa.Float, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("updated_at", sa.String, nullable=False),
    sa.Column("base_fingerprint", sa.String),
    sa.Column("digests", sa.JSON(none_as_null=True)),
)
ANSWERS = sa.Table(
    "answers",
    METADATA,
    sa.Column("workspace_id", sa.ForeignKey("workspaces.id"), primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("adapter_id", sa.ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("created_at", sa.String, nullable=False, index=True),
)


class Database:
    """The records' file, with the newest schema; safe to use from several threads and processes.

    :param path: the file, made if missing.
    :raises StartError: it was written by a newer version of this package.
    """

    def __init__(self, path: Path) -> None:
        url = sa.URL.create("sqlite", database=str(path))
        self._engine = sa.create_engine(url, hide_parameters=True)  # an error's text may reach a log
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        sa.event.listen(self._engine, "connect", _prepare_connection)
        sa.event.listen(self._engine, "begin", _begin)
        self._writing = threading.Lock()
        try:
            self._bring_up_to_date(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection to read from; waits for no writer."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer, of this process or another, interleaves with, so that what it
        reads stays true.

        :raises ServerError: the disk is full; nothing was written then.
        """
        try:
            with self._writing, self._writer.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if is_disk_full(error):
                raise disk_full() from error
            raise

    def _bring_up_to_date(self, path: Path) -> None:
        with self.read() as connection:
            if _revision(connection) == NEWEST_REVISION:
                return
        with self.write() as connection:
            revision = _revision(connection)  # another process may just have done it
            if revision != NEWEST_REVISION:
                _migrate(connection, revision, path)


def _prepare_connection(connection: Any, _record: Any) -> None:
    """Leave transactions to us, wait for locks, keep references whole, and let a commit mean that it is on
    the disk."""
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={_BUSY_MILLISECONDS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _revision(connection: sa.Connection) -> str | None:
    """The file's revision: ``None`` for one that is new, the first for one that is older than revisions."""
    tables = set(connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")))
    if "alembic_version" in tables:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))
    return _FIRST_REVISION if ADAPTERS.name in tables else None


def _migrate(connection: sa.Connection, revision: str | None, path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "airflow_provider_gradient.server:migrations")
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if revision is not None and revision not in known:
        raise StartError(
            f"{path} was written by a newer version of this package (its revision is {revision}, the newest "
            f"known here {NEWEST_REVISION}). Install that version again, or use a backup made before it."
        )
    if revision == _FIRST_REVISION:
        command.stamp(config, _FIRST_REVISION)  # a file older than revisions doesn't say so
    command.upgrade(config, "head")
