"""One run at a time writes to an output.

On local paths the lock is an ``flock`` on ``.<output>.lock``: it ends with its process, however that
ends. Elsewhere it is a lease, an object of that name which its owner writes anew every few seconds. It is
created only where there is none, which object stores do in one step, so that of two runs that start together
one is refused. Whether a lease is alive is judged by seeing it change, never by comparing the clocks of two
machines.

A run with the same identity is a retry of the same piece of work: Airflow starts one only when it holds the
attempt before it for dead. It takes a lease over at once, and an owner that lives on all the same finds that
out when it next renews, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from airflow_provider_gradient.api import GradientError
from airflow_provider_gradient.completions.threads import first_error, in_thread
from airflow_provider_gradient.datasets import (
    DatasetError,
    StoredPath,
    create,
    dump_row,
    has_conditional_writes,
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
    if not has_conditional_writes(path):
        _warn_once(path.protocol)
    await _acquire(path, output, owner)
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


@functools.cache
def _warn_once(protocol: str) -> None:
    log.warning(
        "%s: this file system can't create a file only where there is none: of two runs that start on one "
        "output in the same moment, both may begin, and one of them ends after at most %.0f s",
        protocol,
        RENEWAL,
    )


async def _acquire(path: StoredPath, output: StoredPath, owner: Mapping[str, Any]) -> None:
    """Return once the lease is this owner's.

    :raises OutputLockedError: another run has it, or was first to take it over.
    """
    while not await in_thread(lambda: _created(path, owner)):
        found = await in_thread(lambda: _read(path))
        if not found:
            continue
        if not _is_retry(owner, _parsed(found)):
            await _refuse_if_renewed(path, output, found)
        if await in_thread(lambda found=found: _took_over(path, found, owner)):  # type: ignore[misc]
            return
        await _refuse_if_renewed(path, output, found)
        await in_thread(lambda found=found: remove(_claim(path, found)))  # type: ignore[misc]


def _created(path: StoredPath, owner: Mapping[str, Any]) -> bool:
    """Whether there was no lease, and this owner's is there now."""
    try:
        if create(path, dump_row({**owner, "renewed": 0})):
            return True
    except DatasetError:  # S3 may answer so to both of two that create an object in the same moment
        if not _read(path):
            raise
    found = _parsed(_read(path))  # this owner's own, where the answer to a write was lost and it was repeated
    return bool(found.get("owner") == owner["owner"])


async def _refuse_if_renewed(path: StoredPath, output: StoredPath, found: bytes) -> None:
    """Return once the lease was not renewed for so long that its owner is dead.

    :param found: what it was.
    :raises OutputLockedError: it changed or went, so its owner lives or has just ended its work.
    """
    until = time.monotonic() + RENEWAL * MISSED_RENEWALS
    log.info("%s is there: watching for %.0f s whether its owner lives", path, until - time.monotonic())
    while time.monotonic() < until:
        await asyncio.sleep(RENEWAL / 10)
        seen = await in_thread(lambda: _read(path))
        if seen != found:
            raise _locked(output, _parsed(seen or found))
    log.warning("%s was not renewed: its owner is dead, the lease is taken over", path)


def _took_over(path: StoredPath, found: bytes, owner: Mapping[str, Any]) -> bool:
    """Whether the lease, ``found`` until now, is this owner's.

    Of several who take over from one owner, the one that creates the claim may: an object named after that
    owner. It is there only for as long as the lease is replaced, unless who created it died meanwhile.
    """
    claim = _claim(path, found)
    if not create(claim, dump_row(dict(owner))):
        return False
    try:
        if _parsed(_read(path)).get("owner") != _parsed(found).get("owner"):
            return False
        _write(path, owner, renewed=0)
        return True
    finally:
        remove(claim)


def _claim(path: StoredPath, found: bytes) -> StoredPath:
    return cast(StoredPath, path.with_name(f"{path.name}.{_parsed(found).get('owner')}"))


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
