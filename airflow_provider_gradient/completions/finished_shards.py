"""The runs over the shards of a dataset, when they have ended: whether they are those of one plan and one
job, and whether their files still are as the runs left them."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_gradient.completions.manifest import CompletionManifest, ShardOf
from airflow_provider_gradient.completions.output import file_size
from airflow_provider_gradient.datasets import (
    JSONL,
    JournalError,
    PathLike,
    StoredPath,
    as_path,
    format_of,
    path_error,
)

_HEAD = re.compile(rb'\{"index":(\d+),"id":(null|-?\d+|"(?:[^"\\]|\\.)*"),')
"""How the line of a row begins."""
_ASKED = ("model_id", "model_version", "prompt_template", "prompt_column", "parameters")


class FinishedShard:
    """A run over a shard that ended, and its files.

    :param locate: opens the paths in the manifest.
    :raises JournalError: the manifest is no shard's.
    """

    def __init__(self, manifest: CompletionManifest, locate: Callable[[str], PathLike]) -> None:
        self.manifest = manifest
        self.shard = _shard(manifest)
        self.rows = manifest.rows
        self.output = as_path(locate(manifest.output_path))
        self.errors = as_path(locate(manifest.errors_path)) if manifest.errors_path else None

    def lines(self) -> Iterator[tuple[bytes, bytes]]:
        """The output's lines, each with the JSON of its id.

        :raises JournalError: the file is not what the run left.
        """
        count, digest = 0, hashlib.sha256()
        for line, index, id_ in self._read(self.output):
            if index != count:
                raise self._changed(self.output)
            count += 1
            digest.update(line)
            yield line, id_
        if count != self.rows or self.manifest.output_sha256 not in (None, digest.hexdigest()):
            raise self._changed(self.output)

    def error_lines(self) -> Iterator[bytes]:
        """The lines of the errors file, if there is one.

        :raises JournalError: the file is not what the run left.
        """
        if self.errors is None:
            return
        count = 0
        for line, _, _ in self._read(self.errors):
            count += 1
            yield line
        if count != self.rows - self.manifest.counts.success:
            raise self._changed(self.errors)

    def check(self) -> None:
        """Refuse an output that is gone, has another size, or is no JSONL.

        :raises JournalError: it is so.
        """
        if format_of(self.output.name) is not JSONL:
            raise JournalError(f"{self.output}: only JSONL can be merged; let a shard's output end in .jsonl")
        try:
            changed = file_size(self.output) != self.manifest.output_bytes
        except FileNotFoundError:
            changed = True
        except OSError as error:
            raise path_error(self.output, "read", error) from error
        if changed:
            raise self._changed(self.output)

    def _read(self, path: StoredPath) -> Iterator[tuple[bytes, int, bytes]]:
        try:
            with path.open("rb") as file:
                for line in file:
                    head = _HEAD.match(line)
                    if head is None or not line.endswith(b"}\n"):
                        raise self._changed(path)
                    yield line, int(head[1]), head[2]
        except OSError as error:
            raise path_error(path, "read", error) from error

    def _changed(self, path: StoredPath) -> JournalError:
        return JournalError(
            f"{path}, of {_name(self.shard)}, is not as its run left it. Put it back, or run this shard "
            "again, which sends its rows again; the other shards keep what they have"
        )


def _shard(manifest: CompletionManifest) -> ShardOf:
    if manifest.shard is None:
        raise JournalError(f"{manifest.output_path} is no shard's output but a whole one; merge shards alone")
    return manifest.shard


def _name(shard: ShardOf) -> str:
    return f"shard {shard.number} of {shard.of}"


def whole_plan(shards: Sequence[CompletionManifest | Mapping[str, Any]]) -> list[CompletionManifest]:
    """The manifests in the order of their shards, all of one plan and one job, none missing or unfinished.

    :raises JournalError: names the shard that is missing, unfinished, there twice or does not belong to the
        others.
    """
    manifests = [
        shard if isinstance(shard, CompletionManifest) else CompletionManifest.from_dict(shard)
        for shard in shards
    ]
    if not manifests:
        raise JournalError("there are no shards to merge")
    manifests.sort(key=lambda manifest: _shard(manifest).number)
    first = _shard(manifests[0])
    numbers = [_shard(manifest).number for manifest in manifests]
    for manifest in manifests:
        shard = _shard(manifest)
        if (shard.plan, shard.of, shard.source) != (first.plan, first.of, first.source):
            raise JournalError(
                f"{_name(shard)} of {shard.source} ({manifest.output_path}) is of another plan than "
                f"{_name(first)} of {first.source} ({manifests[0].output_path}). Run all shards of one "
                "plan"
            )
        _refuse_other_job(manifest, manifests[0])
        if manifest.left_over and manifest.ended is None:
            raise JournalError(
                f"{_name(shard)} ({manifest.output_path}) is not finished: {manifest.left_over} of its rows "
                "failed for a reason that may pass. Run it again, which sends just these rows, then merge"
            )
    if twice := [one for one, next_ in itertools.pairwise(numbers) if one == next_]:
        raise JournalError(f"shard {twice[0]} of {first.of} is there twice")
    if missing := sorted(set(range(first.of)) - set(numbers)):
        names = ", ".join(map(str, missing[:10])) + (" and more" if len(missing) > 10 else "")
        raise JournalError(f"of {first.of} shards these are missing, run them: {names}")
    return manifests


def _refuse_other_job(manifest: CompletionManifest, first: CompletionManifest) -> None:
    for name in _ASKED:
        value, other = getattr(manifest, name), getattr(first, name)
        if value != other:
            what = f"with {name} {value!r}, but {_name(_shard(first))} with {other!r}"
            break
    else:
        if _shard(manifest).job == _shard(first).job:
            return
        what = f"with other columns or settings than {_name(_shard(first))}"
    raise JournalError(
        f"{_name(_shard(manifest))} ({manifest.output_path}) was completed {what}. Run the shards of one of "
        "the two again"
    )
