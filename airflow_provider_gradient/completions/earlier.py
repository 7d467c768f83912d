"""An earlier run whose rows that are no success are run again, and merged with those that are.

Its output, errors file and manifest are read and left as they are. The order of the errors file is that of
the output, so both are read side by side, one row in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.completions.journal import Totals
from airflow_provider_gradient.completions.manifest import CompletionManifest
from airflow_provider_gradient.completions.output import FinishedRow, changed_since, errors_path
from airflow_provider_gradient.datasets import (
    DatasetError,
    JournalError,
    OpenDataset,
    PathLike,
    StoredPath,
    as_path,
    dump_row,
    open_dataset,
    path_error,
    read_rows,
    same_path,
)


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """A run that has ended.

    :ivar output: its completions.
    """

    manifest: CompletionManifest
    output: StoredPath

    def failed_rows(self) -> OpenDataset:
        """The rows that are no success, with all their columns; empty where there are none.

        :raises DatasetError: output or errors file are not, or not any more, those of the manifest.
        """
        self._check_unchanged()
        return () if self.manifest.errors_path is None else open_dataset(errors_path(self.output))

    def refuse_to_replace(self, output: StoredPath) -> None:
        """Refuse an output whose files would be those of this run.

        :raises DatasetError: they would.
        """
        if same_path(output, self.output):
            raise DatasetError(
                f"only_failed_of: {output} would replace the output that it is made from; choose another "
                "output_path"
            )

    def merged(self, rows: Iterator[FinishedRow], totals: Totals) -> Iterator[FinishedRow]:
        """All rows of the earlier output in their order, with what came of those that were run again.

        :param rows: what came of them, in the order of :meth:`failed_rows`.
        :param totals: to which every row is added.
        :raises DatasetError: the earlier output has changed, or doesn't fit its errors file.
        """
        self._check_unchanged()
        count = 0
        for record in read_rows(as_path(self.output)):
            count += 1
            carried = record.pop("row")
            if record["status"] == "success":
                totals.add(record)
                yield FinishedRow(dump_row(record), dump_row(carried), carried)
                continue
            again = next(rows, None)
            if again is None or any(again.columns.get(name) != value for name, value in carried.items()):
                raise self._broken(f"row {record['index']} of it is not the next in its errors file")
            own = {"index": record["index"], "id": record["id"]}
            merged = json.loads(again.line) | own
            merged["attempts"] += record["attempts"]
            totals.add(merged)
            yield FinishedRow(dump_row(merged), dump_row(carried), again.columns)
        if next(rows, None) is not None or count != self.manifest.rows:
            raise self._broken(f"it has {count} rows, and the manifest {self.manifest.rows}")

    def _check_unchanged(self) -> None:
        if changed := changed_since(self.manifest, self.output):
            raise self._broken(changed)

    def _broken(self, what: str) -> DatasetError:
        return DatasetError(
            f"only_failed_of: {self.output} was changed since its manifest was written: {what}. Run the "
            "dataset itself"
        )


def open_earlier(given: CompletionManifest | Mapping[str, Any] | PathLike) -> EarlierRun:
    """The run of a manifest.

    :param given: the manifest, also as a dict, or the path of ``<output>.manifest.json``, beside which
        the run's other files are then looked for.
    :raises JournalError: this is no manifest.
    :raises DatasetError: it can't be read.
    """
    if isinstance(given, CompletionManifest):
        return EarlierRun(manifest=given, output=as_path(given.output_path))
    if isinstance(given, Mapping):
        manifest = CompletionManifest.from_dict(given)
        return EarlierRun(manifest=manifest, output=as_path(manifest.output_path))
    path = as_path(given)
    try:
        with path.open("rb") as file:
            manifest = CompletionManifest.from_dict(json.loads(file.read()))
    except OSError as error:
        raise path_error(path, "read", error) from error
    except (JournalError, ValueError, RecursionError) as error:
        raise JournalError(f"only_failed_of: {path}: {error}") from None
    name = manifest.output_path.rpartition("/")[2]
    return EarlierRun(manifest=manifest, output=path.with_name(name))
