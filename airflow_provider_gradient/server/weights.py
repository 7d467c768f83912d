"""Where the weights of adapters lie: ``adapters/<id>/v<N>/``, one directory a version.

A version is written aside, synced to the disk and then renamed, so a directory named ``v<N>`` is always
whole. Which version counts is the record's word alone; everything else found here is a leftover of a kill and
is swept at the next start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path


class AdapterWeights:
    """The versions of all adapters under one directory, made if missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, adapter_id: str, *, version: int) -> Path:
        """The directory of one version."""
        return self._directory / adapter_id / f"v{version}"

    def write(self, adapter_id: str, *, version: int, save: Callable[[Path], None]) -> None:
        """Have ``save`` fill a directory and make it the adapter's ``version``, whole or not at all."""
        target = self.path(adapter_id, version=version)
        aside = target.with_name(f"{target.name}.partial")
        for leftover in (aside, target):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            save(aside)
            _sync_tree(aside)
            aside.rename(target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _sync(target.parent)
        _sync(self._directory)

    def remove_version(self, adapter_id: str, *, version: int) -> None:
        """Remove one version; none there is no error."""
        shutil.rmtree(self.path(adapter_id, version=version), ignore_errors=True)

    def remove(self, adapter_id: str) -> None:
        """Remove all versions of an adapter; none there is no error."""
        shutil.rmtree(self._directory / adapter_id, ignore_errors=True)

    def sweep(self, versions: Mapping[str, int]) -> None:
        """Remove whatever isn't the version that counts of an adapter on record."""
        for adapter in self._directory.iterdir():
            if adapter.name not in versions:
                shutil.rmtree(adapter, ignore_errors=True)
                continue
            for version in adapter.iterdir():
                if version.name != f"v{versions[adapter.name]}":
                    shutil.rmtree(version, ignore_errors=True)


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
