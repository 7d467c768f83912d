"""The finished files of a run, and how a later run finds that there is nothing left to do.

The order matters: a stale manifest goes first, then output, errors and the new manifest appear, each whole,
and the journal goes last. So a manifest that is there always speaks of the output beside it, and a run that
was killed in between has its journal still.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from airflow_provider_gradient.completions.job import CompletionJob
from airflow_provider_gradient.completions.journal import Journal, JournalHeader
from airflow_provider_gradient.completions.manifest import CompletionManifest
from airflow_provider_gradient.completions.output_file import output_file, with_row
from airflow_provider_gradient.datasets import (
    DatasetError,
    JournalError,
    StoredPath,
    beside,
    describe_row,
    describe_source,
    path_error,
    read_rows,
    remove,
    replacing,
    row_bytes,
)


def manifest_path(output: StoredPath) -> StoredPath:
    """Where the manifest of ``output`` stands."""
    return beside(output, ".manifest.json")


def errors_path(output: StoredPath) -> StoredPath:
    """Where the rows of ``output`` that are no success stand once more."""
    return beside(output, ".errors.jsonl")


def finished_manifest(output: StoredPath, header: JournalHeader) -> CompletionManifest | None:
    """The manifest of an earlier run that did just this and whose output is still as it left it, else
    ``None``.

    :raises JournalError: there is a manifest that can't be read.
    """
    path = manifest_path(output)
    try:
        with path.open("rb") as file:
            content = file.read()
        manifest = CompletionManifest.from_dict(json.loads(content))
        size = file_size(output)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise path_error(path, "read", error) from error
    except (JournalError, ValueError, AttributeError) as error:
        raise JournalError(f"{path}: {error}. Delete it, or choose another output path") from None
    same = (manifest.identity, manifest.fingerprint) == (header.identity, header.fingerprint)
    if not same or size != manifest.output_bytes or manifest.all_failed:
        return None
    return manifest.model_copy(update={"resumed_rows": manifest.rows})


def file_size(path: StoredPath) -> int:
    """Bytes of the file at ``path``."""
    return int(path.stat().st_size)


def write_finished(
    output: StoredPath, *, job: CompletionJob, journal: Journal, fingerprint: str
) -> Generator[None]:
    """Write output and errors, a row a step; both are there once the last step is taken.

    :param fingerprint: of the dataset when it was checked.
    :raises DatasetError: the dataset has changed since, or a path can't be written.
    """
    failed = journal.totals.failed
    remove(manifest_path(output))
    with contextlib.ExitStack() as files:  # left in reverse: the output appears before the errors
        errors = files.enter_context(replacing(errors_path(output))) if failed else None
        completions = files.enter_context(output_file(output))
        for row, line in _finished_rows(job, journal, fingerprint):
            completions.write(line, job.carried(row))
            if errors and json.loads(line)["status"] != "success":
                errors.write(with_row(line, row))
            yield
    if not failed:
        remove(errors_path(output))


def write_manifest(output: StoredPath, manifest: CompletionManifest) -> None:
    """Write the manifest beside ``output``: from now on the run counts as finished."""
    with replacing(manifest_path(output)) as file:
        file.write(json.dumps(manifest.to_dict(), ensure_ascii=False, indent=2).encode() + b"\n")


def _finished_rows(
    job: CompletionJob, journal: Journal, fingerprint: str
) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    digest = hashlib.sha256()
    for index, row in enumerate(read_rows(job.dataset)):
        digest.update(row_bytes(row, describe_row(job.dataset, index)))
        if index in journal:
            yield row, journal.line(index)
    if digest.hexdigest() != fingerprint:
        raise DatasetError(
            f"{describe_source(job.dataset)} changed while it was completed. Run it again: all rows are then "
            "sent anew, since what is done belongs to the dataset as it was"
        )
