"""Workspaces, and the tokens that open them.

A token is kept as its hash alone, so nobody can read it from the disk, and a revoked one stays on record, so
that it never opens anything again. The server's start has one token of its own, which the next start may
replace; all others are made by command and stay until they are revoked.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

import sqlalchemy as sa

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.server.database import ADAPTERS, TOKENS, WORKSPACES, Database

Origin = Literal["start", "command"]


@dataclass(frozen=True, kw_only=True)
class WorkspaceRecord:
    """One workspace; ``name`` may be empty. ``tokens`` counts those that open it, ``adapters`` its
    adapters."""

    id: str
    name: str
    created_at: str
    tokens: int
    adapters: int


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """One token, without itself. ``id`` is what it is revoked by and tells nothing about it."""

    id: str
    name: str
    workspace_id: str
    origin: Origin
    created_at: str
    revoked_at: str | None


def hash_token(token: str) -> str:
    """How a token is kept: its SHA-256, hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_workspace_id() -> str:
    """An id that no workspace had before, of the hosted service's shape."""
    return f"{uuid.uuid4()}_workspace"


class Accounts:
    """The workspaces and tokens in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- workspaces ----------------------------------------------------------------------------------------

    def workspaces(self) -> list[WorkspaceRecord]:
        """All workspaces, oldest first."""
        tokens = (
            sa.select(sa.func.count())
            .where(TOKENS.c.workspace_id == WORKSPACES.c.id, TOKENS.c.revoked_at.is_(None))
            .scalar_subquery()
        )
        adapters = (
            sa.select(sa.func.count()).where(ADAPTERS.c.workspace_id == WORKSPACES.c.id).scalar_subquery()
        )
        query = sa.select(WORKSPACES, tokens.label("tokens"), adapters.label("adapters"))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(WORKSPACES.c.created_at, WORKSPACES.c.id)).mappings()
            return [WorkspaceRecord(**row) for row in rows]

    def create_workspace(self, name: str) -> str:
        """Record a new workspace.

        :returns: its id.
        :raises InvalidRequestError: the name is empty or another workspace has it.
        """
        if not name.strip():
            raise InvalidRequestError("a workspace needs a name that is not blank")
        workspace_id = new_workspace_id()
        with self._database.write() as connection:
            taken = sa.or_(WORKSPACES.c.name == name, WORKSPACES.c.id == name)
            if connection.scalar(sa.select(WORKSPACES.c.id).where(taken)) is not None:
                raise InvalidRequestError(f"there is a workspace {name!r} already; take another name")
            connection.execute(WORKSPACES.insert().values(id=workspace_id, name=name, created_at=_now()))
        return workspace_id

    def find_workspace(self, id_or_name: str | None) -> str:
        """The id of the workspace with this id or name; of the only one there is for ``None``.

        :raises InvalidRequestError: there is none such; names those there are.
        """
        known = self.workspaces()
        found = [
            workspace.id
            for workspace in known
            if id_or_name is None or id_or_name in (workspace.id, workspace.name)
        ]
        if len(found) == 1:
            return found[0]
        there = ", ".join(workspace.name or workspace.id for workspace in known) or "none yet"
        asked = f"there is no workspace {id_or_name!r}" if id_or_name else "name one of the workspaces"
        raise InvalidRequestError(f"{asked}; there are: {there}")

    def start_workspace(self) -> str | None:
        """The workspace of the last start's token, else the only one there is, else ``None``."""
        own = sa.select(TOKENS.c.workspace_id).where(TOKENS.c.origin == "start")
        with self._database.read() as connection:
            ids = connection.scalars(own.order_by(TOKENS.c.created_at.desc())).all()
            if not ids:
                ids = connection.scalars(sa.select(WORKSPACES.c.id).limit(2)).all()
                return ids[0] if len(ids) == 1 else None
        return cast(str, ids[0])

    # --- tokens --------------------------------------------------------------------------------------------

    def tokens(self) -> list[TokenRecord]:
        """All tokens, revoked ones too, oldest first."""
        query = sa.select(*(TOKENS.c[name] for name in TokenRecord.__dataclass_fields__))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(TOKENS.c.created_at, TOKENS.c.id)).mappings()
            return [TokenRecord(**row) for row in rows]

    def opening(self) -> dict[str, str]:
        """The workspace that each token opens, by the token's hash."""
        query = sa.select(TOKENS.c.hash, TOKENS.c.workspace_id).where(TOKENS.c.revoked_at.is_(None))
        with self._database.read() as connection:
            return {row.hash: row.workspace_id for row in connection.execute(query)}

    def create_token(self, *, workspace_id: str, name: str = "") -> str:
        """Make a token that opens a workspace.

        :param workspace_id: of a workspace on record.
        :param name: says to people what it is for.
        :returns: the token, which can't be read again.
        """
        token = secrets.token_urlsafe(32)
        with self._database.write() as connection:
            _add_token(connection, token, workspace_id=workspace_id, name=name, origin="command")
        return token

    def revoke(self, id: str) -> None:
        """Let a token open nothing any more.

        :raises InvalidRequestError: no token has this id, or it was revoked before.
        """
        valid = (TOKENS.c.id == id) & TOKENS.c.revoked_at.is_(None)
        with self._database.write() as connection:
            if connection.execute(TOKENS.update().where(valid).values(revoked_at=_now())).rowcount == 0:
                raise InvalidRequestError(
                    f"no valid token has the id {id!r}: 'gradient token list' shows them"
                )

    def is_revoked(self, token: str) -> bool:
        """Whether this token opened a workspace once and was revoked."""
        query = sa.select(TOKENS.c.revoked_at).where(TOKENS.c.hash == hash_token(token))
        with self._database.read() as connection:
            return connection.scalar(query) is not None

    def grant(self, *, token: str, workspace_id: str) -> None:
        """Make ``token`` the start's own, unless it is on record; the one of an earlier start opens nothing
        any more.

        :param workspace_id: put on record if it is not.
        """
        with self._database.write() as connection:
            if connection.scalar(sa.select(WORKSPACES.c.id).where(WORKSPACES.c.id == workspace_id)) is None:
                connection.execute(WORKSPACES.insert().values(id=workspace_id, created_at=_now()))
            _withdraw(connection)
            if connection.scalar(sa.select(TOKENS.c.id).where(TOKENS.c.hash == hash_token(token))) is None:
                _add_token(connection, token, workspace_id=workspace_id, name="", origin="start")

    def withdraw(self) -> None:
        """Let an earlier start's own token open nothing any more."""
        with self._database.write() as connection:
            _withdraw(connection)


def _withdraw(connection: sa.Connection) -> None:
    earlier = (TOKENS.c.origin == "start") & TOKENS.c.revoked_at.is_(None)
    connection.execute(TOKENS.delete().where(earlier))


def _add_token(
    connection: sa.Connection, token: str, *, workspace_id: str, name: str, origin: Origin
) -> None:
    connection.execute(
        TOKENS.insert().values(
            hash=hash_token(token),
            id=secrets.token_hex(4),
            workspace_id=workspace_id,
            name=name,
            origin=origin,
            created_at=_now(),
        )
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
