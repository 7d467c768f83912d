"""Samples and rows on disk, by their index.

A training set may be larger than memory, and its plan asks for samples in any order. So they are written, one
JSON line each, to a nameless file in the temporary folder that goes with the process; in memory is where each
begins.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_gradient.api import Sample
from airflow_provider_gradient.datasets import dump_row


class RowStore(Sequence[Mapping[str, Any]]):
    """Rows in the order in which they were added, 8 bytes of memory each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the store
        self._starts = array("Q", [0])
        self._digest = hashlib.sha256()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row."""
        line = dump_row(row)
        self._file.write(line)
        self._digest.update(line)
        self._starts.append(self._starts[-1] + len(line))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the rows, in hexadecimal."""
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        start, end = self._starts[index], self._starts[index + 1]
        self._file.flush()
        return json.loads(os.pread(self._file.fileno(), end - start, start))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self)))


class SampleStore:
    """Samples in the order in which they were added, 16 bytes of memory each.

    :ivar rows: the row of the dataset that gave each sample.
    :ivar tokens: of each sample.
    """

    def __init__(self) -> None:
        self._lines = RowStore()
        self.rows = array("I")
        self.tokens = array("I")

    def add(self, sample: Sample, *, row: int, tokens: int) -> None:
        """Take a sample."""
        self._lines.add(sample.to_wire())
        self.rows.append(row)
        self.tokens.append(tokens)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the samples, in hexadecimal."""
        return self._lines.fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return Sample.model_validate(self._lines[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))
