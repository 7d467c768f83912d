"""The server's records: whose token it is, which adapters there are, and what was already answered.

An adapter's record names the version of its weights that counts. It moves to a new version in the transaction
that also records the answer of the call that made it, and only after the weights lie on the disk; so whatever
was acknowledged is there after a kill, and a repeated call finds its answer or trains, never both.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_provider_gradient.server.failures import key_reused

_METADATA = sa.MetaData()
_WORKSPACES = sa.Table(
    "workspaces",
    _METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("created_at", sa.String, nullable=False),
)
_TOKENS = sa.Table(
    "tokens",
    _METADATA,
    sa.Column("hash", sa.String, primary_key=True),
    sa.Column("workspace_id", sa.ForeignKey("workspaces.id"), nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
)
_ADAPTERS = sa.Table(
    "adapters",
    _METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("workspace_id", sa.ForeignKey("workspaces.id"), nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("base_slug", sa.String, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("learning_rate", sa.Float, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("updated_at", sa.String, nullable=False),
)
_ANSWERS = sa.Table(
    "answers",
    _METADATA,
    sa.Column("workspace_id", sa.ForeignKey("workspaces.id"), primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("adapter_id", sa.ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """One adapter. ``version`` counts its fine-tunes; at 0 it has no weights on disk and equals its base."""

    id: str
    workspace_id: str
    name: str
    base_slug: str
    rank: int
    learning_rate: float
    version: int
    created_at: str
    updated_at: str


@dataclass(frozen=True, kw_only=True)
class RepeatableCall:
    """A call that names an ``Idempotency-Key``. ``digest`` stands for the operation and its body."""

    workspace_id: str
    key: str
    digest: str


def hash_token(token: str) -> str:
    """How a token is kept: its SHA-256, hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat()


class Store:
    """The records in one SQLite file; safe to use from several threads of one process.

    :param path: the file, made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
        sa.event.listen(self._engine, "connect", _prepare_connection)
        self._writing = threading.Lock()
        _METADATA.create_all(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer interleaves with, so that what it reads stays true."""
        with self._writing, self._engine.begin() as connection:
            yield connection

    # --- who may come in -----------------------------------------------------------------------------------

    def sole_workspace(self) -> str | None:
        """The id of the only workspace there is, ``None`` where there is none or more than one."""
        with self._engine.connect() as connection:
            ids = connection.scalars(sa.select(_WORKSPACES.c.id)).all()
        return ids[0] if len(ids) == 1 else None

    def grant(self, *, token: str, workspace_id: str) -> None:
        """Make ``token`` the one that opens the workspace; an earlier one opens nothing any more."""
        with self._write() as connection:
            known = sa.select(_WORKSPACES.c.id).where(_WORKSPACES.c.id == workspace_id)
            if connection.scalar(known) is None:
                connection.execute(_WORKSPACES.insert().values(id=workspace_id, created_at=_now()))
            connection.execute(_TOKENS.delete())
            connection.execute(
                _TOKENS.insert().values(hash=hash_token(token), workspace_id=workspace_id, created_at=_now())
            )

    def tokens(self) -> dict[str, str]:
        """The workspace that each token opens, by the token's hash."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_TOKENS.c.hash, _TOKENS.c.workspace_id))
            return {row.hash: row.workspace_id for row in rows}

    # --- adapters ------------------------------------------------------------------------------------------

    def create_adapter(
        self,
        *,
        id: str,
        workspace_id: str,
        name: str,
        base_slug: str,
        rank: int,
        learning_rate: float,
        call: RepeatableCall | None = None,
    ) -> str:
        """Record a new adapter.

        :returns: its id, or that of the adapter which an earlier call with the same key made.
        :raises BadRequestError: the key came with another body before.
        """
        with self._write() as connection:
            answered = _find_answer(connection, call)
            if answered is not None:
                return str(answered["id"])
            connection.execute(
                _ADAPTERS.insert().values(
                    id=id,
                    workspace_id=workspace_id,
                    name=name,
                    base_slug=base_slug,
                    rank=rank,
                    learning_rate=learning_rate,
                    version=0,
                    created_at=(now := _now()),
                    updated_at=now,
                )
            )
            _record_answer(connection, call, adapter_id=id, answer={"id": id})
        return id

    def adapters(self, *, workspace_id: str) -> list[AdapterRecord]:
        """All adapters of a workspace, oldest first."""
        query = sa.select(_ADAPTERS).where(_ADAPTERS.c.workspace_id == workspace_id)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_ADAPTERS.c.created_at, _ADAPTERS.c.id)).mappings()
            return [AdapterRecord(**row) for row in rows]

    def adapter(self, id: str) -> AdapterRecord | None:
        """The adapter's record, of whichever workspace."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_ADAPTERS).where(_ADAPTERS.c.id == id)).mappings().first()
        return AdapterRecord(**row) if row is not None else None

    def versions(self) -> dict[str, int]:
        """The version that counts of every adapter, by id."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_ADAPTERS.c.id, _ADAPTERS.c.version))
            return {row.id: row.version for row in rows}

    def delete_adapter(self, id: str, *, workspace_id: str) -> bool:
        """Forget an adapter and the answers about it; false where the workspace has no such adapter."""
        theirs = (_ADAPTERS.c.id == id) & (_ADAPTERS.c.workspace_id == workspace_id)
        with self._write() as connection:
            return connection.execute(_ADAPTERS.delete().where(theirs)).rowcount > 0

    # --- fine-tunes ----------------------------------------------------------------------------------------

    def answer(self, call: RepeatableCall | None) -> dict[str, Any] | None:
        """What was answered to this call before.

        :raises BadRequestError: the key came with another body before.
        """
        with self._engine.connect() as connection:
            return _find_answer(connection, call)

    def advance(
        self, id: str, *, version: int, answer: dict[str, Any], call: RepeatableCall | None = None
    ) -> bool:
        """Make ``version`` the one that counts, with the answer of the call that made it.

        :returns: false where the adapter is gone; nothing is recorded then.
        """
        moved = (
            _ADAPTERS.update()
            .where(_ADAPTERS.c.id == id, _ADAPTERS.c.version == version - 1)
            .values(version=version, updated_at=_now())
        )
        with self._write() as connection:
            if connection.execute(moved).rowcount == 0:
                return False
            _record_answer(connection, call, adapter_id=id, answer=answer)
        return True


def _prepare_connection(connection: Any, _record: Any) -> None:
    """Wait for locks, keep references whole, and let a commit mean that it is on the disk."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _find_answer(connection: sa.Connection, call: RepeatableCall | None) -> dict[str, Any] | None:
    if call is None:
        return None
    query = sa.select(_ANSWERS.c.digest, _ANSWERS.c.answer).where(
        _ANSWERS.c.workspace_id == call.workspace_id, _ANSWERS.c.key == call.key
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.digest != call.digest:
        raise key_reused(call.key)
    return dict(row.answer)


def _record_answer(
    connection: sa.Connection, call: RepeatableCall | None, *, adapter_id: str, answer: dict[str, Any]
) -> None:
    if call is not None:
        connection.execute(
            _ANSWERS.insert().values(
                workspace_id=call.workspace_id,
                key=call.key,
                digest=call.digest,
                adapter_id=adapter_id,
                answer=answer,
                created_at=_now(),
            )
        )
