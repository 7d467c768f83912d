"""The server's records: which adapters there are, and what was already answered.

An adapter's record names the version of its weights that counts. It moves to a new version in the transaction
that also records the answer of the call that made it, and only after the weights lie on the disk; so whatever
was acknowledged is there after a kill, and a repeated call finds its answer or trains, never both.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_provider_gradient.server.accounts import Accounts
from airflow_provider_gradient.server.database import ADAPTERS, ANSWERS, Database
from airflow_provider_gradient.server.failures import key_reused

_MOST_REMEMBERED = 4096
"""Records of adapters in memory."""


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """One adapter. ``version`` counts its fine-tunes; at 0 it has no weights on disk and equals its base.

    ``base_fingerprint`` stands for the base model's weights that it was made or tuned on, see
    :mod:`.fingerprint`; ``None`` where an older server made it. ``digests`` has the SHA-256 of each file of
    the version, see :mod:`.adapter_files`; ``None`` at version 0 and where an older server wrote them.
    """

    id: str
    workspace_id: str
    name: str
    base_slug: str
    rank: int
    learning_rate: float
    version: int
    created_at: str
    updated_at: str
    base_fingerprint: str | None = None
    digests: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class RepeatableCall:
    """A call that names an ``Idempotency-Key``. ``digest`` stands for the operation and its body."""

    workspace_id: str
    key: str
    digest: str


def _now() -> str:
    return datetime.now(UTC).isoformat()


class _Remembered:
    """Records of adapters as they are on the disk, since every completion by one asks for its own.

    Adapters are changed by one process alone, which holds the data directory. A record that was read while
    another was changed is not remembered: it may be the one that changed.
    """

    def __init__(self) -> None:
        self.records: dict[str, AdapterRecord] = {}
        self.changes = 0
        self._lock = threading.Lock()

    def put(self, record: AdapterRecord, *, read_after: int) -> None:
        with self._lock:
            if self.changes == read_after:
                if len(self.records) >= _MOST_REMEMBERED:
                    self.records.clear()
                self.records[record.id] = record

    def forget(self, id: str | None = None) -> None:
        """One that was changed, or all."""
        with self._lock:
            self.changes += 1
            if id is None:
                self.records.clear()
            else:
                self.records.pop(id, None)


class Store:
    """The records in one SQLite file; safe to use from several threads.

    :param path: the file, made if missing, its schema brought up to date if older.
    :raises StartError: it was written by a newer version of this package.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self.accounts = Accounts(self._database)
        self._remembered = _Remembered()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

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
        base_fingerprint: str | None = None,
        call: RepeatableCall | None = None,
    ) -> str:
        """Record a new adapter.

        :returns: its id, or that of the adapter which an earlier call with the same key made.
        :raises BadRequestError: the key came with another body before.
        """
        with self._database.write() as connection:
            answered = _find_answer(connection, call)
            if answered is not None:
                return str(answered["id"])
            connection.execute(
                ADAPTERS.insert().values(
                    id=id,
                    workspace_id=workspace_id,
                    name=name,
                    base_slug=base_slug,
                    rank=rank,
                    learning_rate=learning_rate,
                    version=0,
                    base_fingerprint=base_fingerprint,
                    created_at=(now := _now()),
                    updated_at=now,
                )
            )
            _record_answer(connection, call, adapter_id=id, answer={"id": id})
        return id

    def adapters(self, *, workspace_id: str) -> list[AdapterRecord]:
        """All adapters of a workspace, oldest first."""
        query = sa.select(ADAPTERS).where(ADAPTERS.c.workspace_id == workspace_id)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(ADAPTERS.c.created_at, ADAPTERS.c.id)).mappings()
            return [AdapterRecord(**row) for row in rows]

    def adapter(self, id: str) -> AdapterRecord | None:
        """The adapter's record, of whichever workspace."""
        known = self._remembered.records.get(id)
        if known is not None:
            return known
        changes = self._remembered.changes
        with self._database.read() as connection:
            row = connection.execute(sa.select(ADAPTERS).where(ADAPTERS.c.id == id)).mappings().first()
        if row is None:
            return None
        record = AdapterRecord(**row)
        self._remembered.put(record, read_after=changes)
        return record

    def versions(self) -> dict[str, int]:
        """The version that counts of every adapter, by id."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(ADAPTERS.c.id, ADAPTERS.c.version))
            return {row.id: row.version for row in rows}

    def delete_adapter(self, id: str, *, workspace_id: str) -> bool:
        """Forget an adapter and the answers about it; false where the workspace has no such adapter."""
        theirs = (ADAPTERS.c.id == id) & (ADAPTERS.c.workspace_id == workspace_id)
        with self._database.write() as connection:
            found = connection.execute(ADAPTERS.delete().where(theirs)).rowcount > 0
        self._remembered.forget(id)
        return found

    def adopt_bases(self, fingerprints: Mapping[str, str]) -> list[AdapterRecord]:
        """Let every adapter that was never tuned, or whose base's weights are not on record, be one of the
        weights served now.

        :param fingerprints: of the base models' weights, by slug.
        :returns: the adapters that were tuned on other weights than those now served under the same slug.
        """
        changed: list[AdapterRecord] = []
        with self._database.write() as connection:
            for slug, fingerprint in fingerprints.items():
                based = ADAPTERS.c.base_slug == slug
                free = sa.or_(ADAPTERS.c.version == 0, ADAPTERS.c.base_fingerprint.is_(None))
                other = ADAPTERS.c.base_fingerprint.is_distinct_from(fingerprint)
                connection.execute(
                    ADAPTERS.update().where(based, free, other).values(base_fingerprint=fingerprint)
                )
                rows = connection.execute(sa.select(ADAPTERS).where(based, other)).mappings()
                changed += [AdapterRecord(**row) for row in rows]
        self._remembered.forget()
        return changed

    # --- fine-tunes ----------------------------------------------------------------------------------------

    def answer(self, call: RepeatableCall | None) -> dict[str, Any] | None:
        """What was answered to this call before.

        :raises BadRequestError: the key came with another body before.
        """
        with self._database.read() as connection:
            return _find_answer(connection, call)

    def advance(
        self,
        id: str,
        *,
        version: int,
        answer: dict[str, Any],
        digests: Mapping[str, str] | None = None,
        call: RepeatableCall | None = None,
    ) -> bool:
        """Make ``version`` the one that counts, with the answer of the call that made it.

        :param digests: of the version's files.
        :returns: false where the adapter is gone; nothing is recorded then.
        """
        moved = (
            ADAPTERS.update()
            .where(ADAPTERS.c.id == id, ADAPTERS.c.version == version - 1)
            .values(version=version, digests=digests, updated_at=_now())
        )
        with self._database.write() as connection:
            if connection.execute(moved).rowcount == 0:
                return False
            _record_answer(connection, call, adapter_id=id, answer=answer)
        self._remembered.forget(id)
        return True

    def forget_answers(self, *, older_than: timedelta, keep: int) -> int:
        """Forget what was answered to calls with keys: what is old, and all but the newest.

        :param keep: the most that are kept, of all workspaces together.
        :returns: how many are gone.
        """
        oldest = (datetime.now(UTC) - older_than).isoformat()
        newest_first = sa.select(ANSWERS.c.created_at).order_by(ANSWERS.c.created_at.desc())
        with self._database.write() as connection:
            beyond = connection.scalar(newest_first.offset(keep).limit(1))
            gone = ANSWERS.c.created_at <= max(oldest, beyond or "")
            return connection.execute(ANSWERS.delete().where(gone)).rowcount


def _find_answer(connection: sa.Connection, call: RepeatableCall | None) -> dict[str, Any] | None:
    if call is None:
        return None
    query = sa.select(ANSWERS.c.digest, ANSWERS.c.answer).where(
        ANSWERS.c.workspace_id == call.workspace_id, ANSWERS.c.key == call.key
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
            ANSWERS.insert().values(
                workspace_id=call.workspace_id,
                key=call.key,
                digest=call.digest,
                adapter_id=adapter_id,
                answer=answer,
                created_at=_now(),
            )
        )
