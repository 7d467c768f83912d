"""Where the weights of adapters lie: ``adapters/<id>/v<N>/``, one directory a version.

A version is written aside, synced to the disk and then renamed, so a directory named ``v<N>`` is always
whole. Which version counts is the record's word alone; everything else found here is a leftover of a kill and
is swept at the next start, and now and then while the server runs.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from airflow_provider_gradient.server.adapter_files import digests_of
from airflow_provider_gradient.server.failures import disk_full, is_disk_full


class AdapterWeights:
    """The versions of all adapters under one directory, made if missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, adapter_id: str, *, version: int) -> Path:
        """The directory of one version."""
        return self._directory / adapter_id / f"v{version}"

    def write(self, adapter_id: str, *, version: int, save: Callable[[Path], None]) -> dict[str, str]:
        """Have ``save`` fill a directory and make it the adapter's ``version``, whole or not at all.

        :returns: the digests of its files, for the record.
        :raises ServerError: the disk is full.
        """
        target = self.path(adapter_id, version=version)
        aside = target.with_name(f"{target.name}.partial")
        try:
            for leftover in (aside, target):
                shutil.rmtree(leftover, ignore_errors=True)
            aside.mkdir(parents=True)
            save(aside)
            _sync_tree(aside)
            digests = digests_of(aside)
            aside.rename(target)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if is_disk_full(error):
                raise disk_full() from error
            raise
        _sync(target.parent)
        _sync(self._directory)
        return digests

    def check_writable(self) -> None:
        """Write a small file and remove it.

        :raises OSError: the disk takes nothing more.
        """
        probe = self._directory / "probe.partial"
        try:
            with probe.open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    def remove_version(self, adapter_id: str, *, version: int) -> None:
        """Remove one version; none there is no error."""
        shutil.rmtree(self.path(adapter_id, version=version), ignore_errors=True)

    def remove(self, adapter_id: str) -> None:
        """Remove all versions of an adapter; none there is no error."""
        shutil.rmtree(self._directory / adapter_id, ignore_errors=True)

    def sweep(self, versions: Mapping[str, int], *, older_than: float = 0.0) -> int:
        """Remove whatever isn't the version that counts of an adapter on record.

        :param versions: the version that counts, by adapter.
        :param older_than: leave what changed in the last so many seconds: while the server runs, it may be a
            version that is about to be recorded.
        :returns: how many directories are gone.
        """
        before = time.time() - older_than
        removed = 0
        for adapter in self._directory.iterdir():
            with suppress(FileNotFoundError):  # the engine may remove it at this moment
                for leftover in _leftovers(adapter, versions.get(adapter.name)):
                    if leftover.stat().st_mtime <= before:
                        shutil.rmtree(leftover, ignore_errors=True)
                        removed += 1
        return removed


def _leftovers(adapter: Path, version: int | None) -> list[Path]:
    """All versions but the one that counts; the whole directory of an adapter that isn't on record."""
    if version is None:
        return [adapter]
    return [path for path in adapter.iterdir() if path.name != f"v{version}"]


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
