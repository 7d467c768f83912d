"""Files beside an output under the names that earlier versions gave them.

They were named after the output's stem (``a.manifest.json``), and so ``a.jsonl`` and ``a.parquet`` shared
them. Now they are named after its whole name (``a.jsonl.manifest.json``). What an earlier version left is
renamed when its run is called again, so that a finished run is still finished and a killed one goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any, cast

from airflow_provider_gradient.completions.output import errors_path, manifest_path, success_path
from airflow_provider_gradient.datasets import AppendLog, StoredPath, beside, path_error, remove

log = logging.getLogger(__name__)


def adopt_former_files(output: StoredPath, *, identity: str | None) -> None:
    """Rename what an earlier version left beside ``output``, unless there are files of the present names.

    A manifest says which output it is of. A journal without one is this run's if it names the same work.

    :param identity: the piece of work.
    :raises DatasetError: a file can't be read or renamed.
    """
    manifest, journal = _former(output, ".manifest.json"), _former(output, ".journal.jsonl")
    try:
        if manifest_path(output).exists() or beside(output, ".journal.jsonl").exists():
            return
        if manifest.exists():
            if _output_of(manifest) != output.name:
                return
        elif not journal.exists() or _identity_in(journal) != identity:
            return
        _move(journal, beside(output, ".journal.jsonl"))
        _move(_former(output, ".errors.jsonl"), errors_path(output))
        _move(manifest, manifest_path(output))
        stem = _former(output, "").name
        _move(output.with_name("_SUCCESS." + stem), success_path(output))
        remove(_former(output, ".progress.json"))
    except OSError as error:
        raise path_error(output, "rename the files beside", error) from error
    log.info("%s: the files that an earlier version left beside it were renamed", output)


def adopt_former_shards(output: StoredPath, folder: StoredPath) -> None:
    """Rename the folder in which an earlier version kept the shards of ``output``, unless ``folder``, its
    present name, is taken.

    :raises DatasetError: it can't be renamed.
    """
    try:
        _move(_former(output, ".shards"), folder)
    except OSError as error:
        raise path_error(output, "rename the shards' folder of", error) from error


def _former(output: StoredPath, suffix: str) -> StoredPath:
    stem, dot, _ = output.name.rpartition(".")
    return cast(StoredPath, output.with_name((stem if dot and stem else output.name) + suffix))


def _output_of(manifest: StoredPath) -> str | None:
    """The name of the output that a manifest is of."""
    with contextlib.suppress(ValueError), manifest.open("rb") as file:
        fields = json.loads(file.read())
        if isinstance(fields, dict):
            return str(fields.get("output_path")).rpartition("/")[2]
    return None


def _identity_in(journal: StoredPath) -> Any:
    with AppendLog(journal) as lines, contextlib.suppress(ValueError):
        head = json.loads(next((line for _, line in lines.lines()), b""))
        if isinstance(head, dict) and head.get("schema_version") == 1:
            return head.get("identity")
    return object()  # nobody's


def _move(one: StoredPath, other: StoredPath) -> None:
    if one.exists() and not other.exists():
        one.fs.mv(one.path, other.path, recursive=True)
