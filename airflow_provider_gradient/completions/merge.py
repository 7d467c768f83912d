"""The outputs of the shards of a dataset, put together into that of the whole.

The merged output is, byte for byte, what one run over the whole dataset would have written (latencies aside):
rows have the index that they have in the whole, failed ones are in one errors file, and the manifest, whose
figures are the shards' added up, comes last. Everything appears whole or not at all, and the shards' files
stay as they are until then; so a merge that fails or is killed is made again, and costs no request.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_gradient.completions.finished_shards import FinishedShard, whole_plan
from airflow_provider_gradient.completions.manifest import CompletionManifest, Counts, MergedFrom
from airflow_provider_gradient.completions.output import (
    errors_path,
    file_size,
    finished_manifest,
    manifest_path,
    mark_success,
    success_path,
    write_manifest,
)
from airflow_provider_gradient.completions.output_file import Digest, DigestedFile, output_file
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.datasets import (
    JSONL,
    PARQUET,
    DatasetError,
    PathLike,
    StoredPath,
    as_path,
    check_output,
    dump_row,
    format_of,
    remove,
    replacing,
)

log = logging.getLogger(__name__)

_PORTIONS = 16
"""In which the ids' hashes are compared."""


def merge_completions(
    shards: Sequence[CompletionManifest | Mapping[str, Any]],
    *,
    output_path: PathLike,
    identity: str | None = None,
    keep_shards: bool = True,
    locate: Callable[[str], PathLike] = as_path,
) -> CompletionManifest:
    """Merge the outputs of runs over all shards of a dataset; the manifest of the whole.

    Called again, it gives back what stands there, unless a shard was completed anew since. Memory holds eight
    bytes a row with an id, and for each shard its manifest.

    :param shards: the manifests of the runs, in any order.
    :param output_path: ends in ``.jsonl`` or ``.parquet``.
    :param identity: as that of :func:`~airflow_provider_gradient.completions.complete_dataset`.
    :param keep_shards: ``False`` deletes the shards' files once the merged manifest is there. A run over one
        of the shards, if it is repeated then, sends all its rows again.
    :param locate: opens the paths in the manifests.
    :raises JournalError: a shard is missing, is not finished, is there twice, is of another plan or job, or
        its files are not as its run left them; the message names it and says what to do.
    :raises DatasetError: an id stands in two shards, a path can't be read or written, or the output is that
        of another task of the same DAG run.
    """
    output = as_path(output_path)
    check_output(output, JSONL, PARQUET)
    parts = [FinishedShard(manifest, locate) for manifest in whole_plan(shards)]
    header = JournalHeader(
        identity=identity, fingerprint=_fingerprint(parts), rows=sum(part.rows for part in parts)
    )
    merged = MergedFrom(shards=len(parts), digest=_digest(parts))
    manifest = finished_manifest(CompletionManifest, output, header)
    if manifest is not None and manifest.merged == merged:
        log.info("%s stands merged since an earlier run", output)
    else:
        started = time.monotonic()
        sha256 = _write(output, parts)
        manifest = _manifest(output, parts, header, merged, sha256, seconds=time.monotonic() - started)
        write_manifest(output, manifest)
        log.info("%s: %d rows of %d shards merged", output, header.rows, len(parts))
    if manifest.is_complete:
        mark_success(output)
    if not keep_shards:
        _remove(parts)
    return manifest


def _fingerprint(parts: Sequence[FinishedShard]) -> str:
    fields = {"shards": [part.manifest.fingerprint for part in parts]}
    return hashlib.sha256(dump_row(fields)).hexdigest()


def _digest(parts: Sequence[FinishedShard]) -> str:
    """Over all that the manifests say but how often they were asked for: a finished run that is found again
    differs in nothing else."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(dump_row(part.manifest.to_dict() | {"resumed_rows": None}))
    return digest.hexdigest()


def _write(output: StoredPath, parts: Sequence[FinishedShard]) -> str:
    """Write output and errors; both appear once all is read and found right. The output's SHA-256."""
    for part in parts:
        part.check()
    failed = any(part.errors for part in parts)
    ids, digest = array("q"), hashlib.sha256()
    remove(success_path(output))
    remove(manifest_path(output))
    with contextlib.ExitStack() as files:  # left in reverse: the output appears before the errors
        errors = files.enter_context(replacing(errors_path(output))) if failed else None
        write = files.enter_context(_merged_file(output, digest))
        first = 0
        for part in parts:
            for line, id_ in part.lines():
                write(_shifted(line, first))
                if id_ != b"null":
                    ids.append(hash(json.loads(id_)))
            for line in part.error_lines():
                assert errors is not None  # noqa: S101 - as there are errors
                errors.write(_shifted(line, first))
            first += part.rows
        _refuse_repeated_ids(parts, ids)
    if not failed:
        remove(errors_path(output))
    return digest.hexdigest()


@contextlib.contextmanager
def _merged_file(path: StoredPath, digest: Digest) -> Iterator[Callable[[bytes], object]]:
    """Takes lines of the output as JSONL has them, whatever the format of ``path``."""
    if format_of(path.name) is not PARQUET:
        with replacing(path) as file:
            yield DigestedFile(file, digest).write
        return
    with output_file(path, digest) as columns:

        def write(line: bytes) -> None:
            record = json.loads(line)
            row = record.pop("row")
            columns.write(dump_row(record), dump_row(row))

        yield write


def _shifted(line: bytes, first: int) -> bytes:
    """A row's line with the index that it has in the whole.

    :param first: index of the shard's first row.
    """
    digits, comma, rest = line[len(b'{"index":') :].partition(b",")
    return b'{"index":%d' % (first + int(digits)) + comma + rest


def _refuse_repeated_ids(parts: Sequence[FinishedShard], hashes: array[int]) -> None:
    """Within a shard its run saw to it. As there, hashes are compared, and where two are alike, the rows are
    read again to make sure."""
    alike: set[int] = set()
    for portion in range(_PORTIONS):  # sorted at once, they would take forty bytes each
        ordered = sorted(one for one in hashes if one % _PORTIONS == portion)
        alike.update(one for one, next_ in itertools.pairwise(ordered) if one == next_)
    if not alike:
        return
    seen: dict[int | str, str] = {}
    first = 0
    for part in parts:
        for index, (_, id_) in enumerate(part.lines()):
            value = json.loads(id_)
            if value is None or hash(value) not in alike:
                continue
            where = f"{part.output}, row {index} (row {first + index} of the whole)"
            if (other := seen.setdefault(value, where)) != where:
                raise DatasetError(
                    f"{where} has the id {value!r} of {other} again; ids must be unique. Nothing is lost, "
                    "the shards' outputs stay. Correct the dataset and plan anew, or leave out id_column"
                )
        first += part.rows


def _manifest(
    output: StoredPath,
    parts: Sequence[FinishedShard],
    header: JournalHeader,
    merged: MergedFrom,
    sha256: str,
    *,
    seconds: float,
) -> CompletionManifest:
    manifests = [part.manifest for part in parts]
    ran = sum(manifest.seconds for manifest in manifests)
    completed = sum(manifest.rows - manifest.resumed_rows for manifest in manifests)
    statuses = {
        name: sum(getattr(manifest.counts, name) for manifest in manifests) for name in Counts.model_fields
    }
    return manifests[0].model_copy(
        update={
            "source": parts[0].shard.source,
            "identity": header.identity,
            "fingerprint": header.fingerprint,
            "output_path": str(output),
            "output_bytes": file_size(output),
            "output_sha256": sha256,
            "errors_path": str(errors_path(output)) if any(part.errors for part in parts) else None,
            "rows": header.rows,
            "counts": Counts(**statuses),
            "prompt_tokens": _sum(manifest.prompt_tokens for manifest in manifests),
            "completion_tokens": _sum(manifest.completion_tokens for manifest in manifests),
            "attempts": sum(manifest.attempts for manifest in manifests),
            "retries": sum(manifest.retries for manifest in manifests),
            "seconds": round(ran + seconds, 3),
            "rows_per_second": round(completed / ran, 3) if ran else 0.0,
            "resumed_rows": sum(manifest.resumed_rows for manifest in manifests),
            "left_over": sum(manifest.left_over for manifest in manifests),
            "concurrency": None,
            "shard": None,
            "merged": merged,
            "ended": next((each.ended for each in manifests if each.ended), None),
        }
    )


def _sum(values: Iterator[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _remove(parts: Sequence[FinishedShard]) -> None:
    """Delete the shards' files, and their folder if nothing else is in it."""
    for part in parts:
        for path_of in (success_path, manifest_path, errors_path):
            remove(path_of(part.output))
        remove(part.output)
    for folder in {str(part.output.parent): part.output.parent for part in parts}.values():
        with contextlib.suppress(OSError, NotImplementedError):  # where folders are no things, or hold others
            folder.fs.rmdir(folder.path)
