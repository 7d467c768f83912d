"""One run at a time writes to an output.

On local paths the lock is an ``flock`` on ``.<output>.lock``: it ends with its process, however that
ends. Elsewhere it is a lease, an object of that name which its owner writes anew every few seconds. Whether a
lease is alive is judged by seeing it change, never by comparing the clocks of two machines.

A run with the same identity is a retry of the same piece of work: Airflow starts one only when it holds the
attempt before it for dead. It takes a lease over at once, and an owner that lives on all the same finds that
out when it next renews, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_provider_gradient.api import GradientError
from airflow_provider_gradient.completions.threads import first_error, in_thread
from airflow_provider_gradient.datasets import (
    DatasetError,
    StoredPath,
    dump_row,
    local_path,
    path_error,
    remove,
    replacing,
)

log = logging.getLogger(__name__)

RENEWAL = 10.0
"""Seconds between two renewals of a lease."""
MISSED_RENEWALS = 3
"""A lease that stays as it is for as many renewals is a dead owner's."""
PATIENCE = 15.0
"""Seconds for which a retry on the same machine waits for the attempt before it to end."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class OutputLockedError(GradientError, RuntimeError):
    """Another run writes to the same output; the message says which, where, and what to do."""


@contextlib.asynccontextmanager
async def output_lock(output: StoredPath, identity: str | None) -> AsyncIterator[None]:
    """Within the block, no other run writes to ``output``.

    :param identity: of the piece of work; ``None`` is nobody's retry.
    :raises OutputLockedError: another run does, or, at any moment, another has taken the lease over.
    :raises DatasetError: the lock can't be written.
    """
    path = output.with_name(f".{output.name}.lock")
    owner = _this_owner(identity)
    local = local_path(path)
    lock = _flock(local, output, owner) if local is not None else _lease(path, output, owner)
    async with lock:
        yield


def _this_owner(identity: str | None) -> dict[str, Any]:
    return {
        "owner": secrets.token_hex(8),
        "identity": identity,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _is_retry(owner: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return owner["identity"] is not None and owner["identity"] == other.get("identity")


def _locked(output: StoredPath, other: Mapping[str, Any]) -> OutputLockedError:
    return OutputLockedError(
        f"{output} is being written by another run: {_describe(other)}. Nothing was sent. Give each its own "
        "output_path, or let that one end first"
    )


def _taken_over(output: StoredPath, other: Mapping[str, Any]) -> OutputLockedError:
    by = _describe(other) if other else "a run that has ended since, or its lease was deleted"
    return OutputLockedError(
        f"{output} was taken over by another run: {by}. This one ends, to leave the output to that; what it "
        "did until then is in the journal"
    )


def _describe(owner: Mapping[str, Any]) -> str:
    work = "a run without an identity" if owner.get("identity") is None else repr(owner["identity"])
    host, process, since = (owner.get(name, "?") for name in ("host", "pid", "since"))
    return f"{work} on {host}, process {process}, since {since}"


@contextlib.asynccontextmanager
async def _flock(path: Path, output: StoredPath, owner: Mapping[str, Any]) -> AsyncIterator[None]:
    until = time.monotonic() + PATIENCE
    try:
        while (file := _locked_file(path)) is None:
            other = _parsed(_local_content(path))
            if (other and not _is_retry(owner, other)) or time.monotonic() >= until:
                raise _locked(output, other)
            await asyncio.sleep(0.1)
    except OSError as error:
        raise path_error(path, "lock", error) from error
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, dump_row(owner), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock ends: who waits for it then makes a new file
        os.close(file)


def _local_content(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _locked_file(path: Path) -> int | None:
    """The lock's descriptor, or ``None`` where another process or run has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            log.warning("%s: this file system has no locks; keep two runs off one output yourself", path)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file)):
                return file
        os.close(file)  # its owner deleted it between our opening and our locking it


@contextlib.asynccontextmanager
async def _lease(path: StoredPath, output: StoredPath, owner: dict[str, Any]) -> AsyncIterator[None]:
    await _await_turn(path, output, owner)
    await in_thread(lambda: _write(path, owner, renewed=0))
    try:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(_keep(path, output, owner))
            yield
            keeper.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    finally:
        with contextlib.suppress(DatasetError):  # what it protects is written; it ends by itself
            if _parsed(_read(path)).get("owner") == owner["owner"]:
                remove(path)


async def _await_turn(path: StoredPath, output: StoredPath, owner: Mapping[str, Any]) -> None:
    """Return once there is no lease, or a dead one, or that of an earlier attempt."""
    found = await in_thread(lambda: _read(path))
    until = time.monotonic() + RENEWAL * MISSED_RENEWALS
    if found and not _is_retry(owner, _parsed(found)):
        log.info("%s is there: watching for %.0f s whether its owner lives", path, until - time.monotonic())
        while time.monotonic() < until:
            await asyncio.sleep(RENEWAL / 10)
            seen = await in_thread(lambda: _read(path))
            if not seen:
                return
            if seen != found:
                raise _locked(output, _parsed(seen))
        log.warning("%s was not renewed: its owner is dead, the lease is taken over", path)


async def _keep(path: StoredPath, output: StoredPath, owner: Mapping[str, Any]) -> None:
    """Renew the lease until cancelled.

    :raises OutputLockedError: another run took it over.
    """
    renewed = 0
    while True:
        await asyncio.sleep(RENEWAL)
        try:
            found = _parsed(await in_thread(lambda: _read(path)))
            if found.get("owner") != owner["owner"]:
                raise _taken_over(output, found)
            renewed += 1
            await in_thread(lambda number=renewed: _write(path, owner, renewed=number))  # type: ignore[misc]
        except DatasetError as error:
            log.warning("%s could not be renewed, which is tried again: %s", path, error)


def _write(path: StoredPath, owner: Mapping[str, Any], *, renewed: int) -> None:
    with replacing(path) as file:
        file.write(dump_row({**owner, "renewed": renewed}))


def _read(path: StoredPath) -> bytes:
    """The lease's content; empty where there is none."""
    path.fs.invalidate_cache()
    try:
        with path.open("rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise path_error(path, "read", error) from error


def _parsed(content: bytes) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError):
        fields = json.loads(content)
        if isinstance(fields, dict):
            return fields
    return {}
