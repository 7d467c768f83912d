"""The finished files of a run, and how a later run finds that there is nothing left to do.

The order matters: a stale manifest goes first, then output, errors and the new manifest appear, each whole,
and the journal goes last. So a manifest that is there always speaks of the output beside it, and a run that
was killed in between has its journal still. Last of all comes an empty file whose name begins with
``_SUCCESS``; it is deleted before the first of these files is touched, so who waits for it finds all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from airflow_provider_gradient.completions.job import CompletionJob
from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.manifest import RunManifest
from airflow_provider_gradient.completions.output_file import Digest, output_file, with_row
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.completions.siblings import refuse_sibling
from airflow_provider_gradient.datasets import (
    DatasetError,
    JournalError,
    StoredPath,
    beside,
    describe_source,
    dump_row,
    path_error,
    read_rows,
    remove,
    replacing,
    row_bytes,
)

log = logging.getLogger(__name__)

_STEP = 1 << 20
"""Bytes read at once."""

ManifestT = TypeVar("ManifestT", bound=RunManifest)


def manifest_path(output: StoredPath) -> StoredPath:
    """Where the manifest of ``output`` stands."""
    return beside(output, ".manifest.json")


def errors_path(output: StoredPath) -> StoredPath:
    """Where the rows of ``output`` that are no success stand once more."""
    return beside(output, ".errors.jsonl")


def success_path(output: StoredPath) -> StoredPath:
    """Where an empty file says that every row of ``output`` was run and all files beside it are there."""
    return cast(StoredPath, output.with_name("_SUCCESS." + output.name))


def mark_success(output: StoredPath) -> None:
    """Write that file, unless it is there."""
    path = success_path(output)
    if not path.exists():
        with replacing(path):
            pass


def finished_manifest(kind: type[ManifestT], output: StoredPath, header: JournalHeader) -> ManifestT | None:
    """The manifest of an earlier run that did just this, left nothing to do, and whose output is still as it
    left it, else ``None``.

    :raises JournalError: there is a manifest that can't be read.
    :raises DatasetError: it is that of another task of the same DAG run.
    """
    path = manifest_path(output)
    try:
        with path.open("rb") as file:
            content = file.read()
        manifest = kind.from_dict(json.loads(content))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise path_error(path, "read", error) from error
    except (JournalError, ValueError, RecursionError) as error:
        raise JournalError(f"{path}: {error}. Delete it, or choose another output path") from None
    refuse_sibling(output, header.identity, owner=manifest.identity, has="the output")
    if manifest.identity != header.identity or not manifest.is_complete:
        return None
    if manifest.fingerprint != header.fingerprint:
        log.warning(
            "%s stands finished, for another dataset, template, model or parameters: it is replaced, and all "
            "rows are sent and paid for again",
            output,
        )
        return None
    if changed := changed_since(manifest, output):
        log.warning(
            "%s is not as the run that finished it left it: %s. It is not taken for finished: its rows are "
            "sent and paid for again",
            *(output, changed),
        )
        return None
    errors = None if manifest.errors_path is None else str(errors_path(output))
    return manifest.model_copy(
        update={"resumed_rows": manifest.rows, "output_path": str(output), "errors_path": errors}
    )


def changed_since(manifest: RunManifest, output: StoredPath) -> str | None:
    """In what the output is not any more what its manifest says, in words; ``None`` if it is the same.

    :raises DatasetError: it can't be read.
    """
    try:
        size = file_size(output)
        if size != manifest.output_bytes:
            return f"it has {size} bytes, and its manifest says {manifest.output_bytes}"
        if manifest.output_sha256 not in (None, _sha256(output)):
            return "its bytes have another SHA-256 than its manifest says"
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        raise path_error(output, "read", error) from error
    return None


def _sha256(path: StoredPath) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_STEP):
            digest.update(part)
    return digest.hexdigest()


def file_size(path: StoredPath) -> int:
    """Bytes of the file at ``path``."""
    return int(path.stat().st_size)


class FinishedRow(NamedTuple):
    """A row of the output.

    :ivar line: its record, a line of the journal.
    :ivar carried: the columns that go into the output, as a line of JSON.
    :ivar columns: all of the dataset's.
    """

    line: bytes
    carried: bytes
    columns: Mapping[str, Any]


def write_finished(
    output: StoredPath, rows: Iterator[FinishedRow], *, failed: bool, digest: Digest
) -> Generator[None]:
    """Write output and errors, a row a step; both are there once the last step is taken.

    :param failed: whether any of the rows is no success.
    :param digest: takes the output's bytes.
    :raises DatasetError: a path can't be written, or what ``rows`` raises.
    """
    remove(manifest_path(output))
    with contextlib.ExitStack() as files:  # left in reverse: the output appears before the errors
        errors = files.enter_context(replacing(errors_path(output))) if failed else None
        completions = files.enter_context(output_file(output, digest))
        for line, carried, columns in rows:
            completions.write(line, carried)
            if errors and json.loads(line)["status"] != "success":
                errors.write(with_row(line, dump_row(columns)))
            yield
    if not failed:
        remove(errors_path(output))


def write_manifest(output: StoredPath, manifest: RunManifest) -> None:
    """Write the manifest beside ``output``: from now on the run counts as finished."""
    with replacing(manifest_path(output)) as file:
        file.write(json.dumps(manifest.to_dict(), ensure_ascii=False, indent=2).encode() + b"\n")


def finished_rows(
    job: CompletionJob, journal: Journal, *, fingerprint: str, ended: str | None
) -> Iterator[FinishedRow]:
    """Every row of the dataset; those that the journal lacks are entered in its totals as ``not_run``.

    :param fingerprint: of the dataset when it was checked.
    :param ended: why rows were not run.
    :raises DatasetError: the dataset has changed since.
    """
    digest = hashlib.sha256()
    for index, row in enumerate(read_rows(job.dataset)):
        columns = row_bytes(row, f"row {index}")
        digest.update(columns)
        carried = columns if job.carry_columns is None else dump_row(job.carried(row))
        id_ = None if job.id_column is None else row.get(job.id_column)
        if index in journal:
            line = journal.line(index)
            if not line.startswith(b'{"index":%d,"id":%b,' % (index, dump_row(id_)[:-1])):
                raise _changed(job)
            yield FinishedRow(line, carried, row)
        elif ended is not None:
            record = _not_run(index, id_, job.model_id, attempts=journal.spent(index), ended=ended)
            journal.totals.add(record)
            yield FinishedRow(dump_row(record), carried, row)
    if digest.hexdigest() != fingerprint:
        raise _changed(job)


def _changed(job: CompletionJob) -> DatasetError:
    return DatasetError(
        f"{describe_source(job.dataset)} changed while it was completed. Run it again: rows that are as they "
        "were keep their answers, and the others are sent"
    )


def _not_run(
    index: int, id_: int | str | None, model_id: str | None, *, attempts: int, ended: str
) -> dict[str, Any]:
    return {
        "index": index,
        "id": id_,
        "status": "not_run",
        "output": None,
        "parsed": None,
        "error": {"type": "notRun", "message": f"the run ended before this row: {ended}", "transient": True},
        "finish_reason": None,
        "model_id": model_id,
        "attempts": attempts,
        "latency_ms": 0.0,
        "usage": None,
    }
