"""How far a run is, for its log, its caller and whoever looks from outside.

:class:`ProgressFile` keeps it beside the output while the run lasts, replaced whole each time. The file goes
when the run ends, however it does; only a killed process leaves it, so its age tells whether anything runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, computed_field

from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION, Counts
from airflow_provider_gradient.datasets import DatasetError, StoredPath, beside, local_path, remove, replacing

_LOCAL_SECONDS = 2.0
_REMOTE_SECONDS = 10.0
"""Between two writes: each is a request, of which a bucket's owner pays every one."""


def _now() -> datetime:
    return datetime.now(UTC)


class Progress(BaseModel):
    """How far a run is; ``<output>.progress.json`` is this model's JSON.

    :ivar identity: the piece of work that the caller said this is, or ``None``; an operator's is
        ``dag/run/task/map index``.
    :ivar output_path: the output that is being made.
    :ivar rows: of the dataset.
    :ivar done: rows that have a completion or an error, the resumed ones among them.
    :ivar counts: those rows by status.
    :ivar resumed_rows: rows whose completion an earlier run had left.
    :ivar seconds: since the run began to send.
    :ivar in_flight: requests sent and not yet answered.
    :ivar failures: requests that failed, by the type of their error, those among them that are repeated.
    :ivar prompt_tokens: of all rows done; ``None`` where the server reports none.
    :ivar completion_tokens: likewise.
    :ivar updated_at: when this was so, in UTC.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    identity: str | None = None
    output_path: str = ""
    rows: int
    done: int
    counts: Counts
    resumed_rows: int
    seconds: float
    in_flight: int
    failures: Mapping[str, int]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    updated_at: datetime = Field(default_factory=_now)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rows_per_second(self) -> float:
        """Of the rows that this run completed itself."""
        return (self.done - self.resumed_rows) / self.seconds if self.seconds > 0 else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds_left(self) -> float | None:
        """At the rate so far, or ``None`` while there is none."""
        rate = self.rows_per_second
        return (self.rows - self.done) / rate if rate else None

    def describe(self) -> str:
        """A line for a log."""
        seconds = self.seconds_left
        left = "?" if seconds is None else timedelta(seconds=round(seconds))
        tokens = failures = ""
        if self.prompt_tokens is not None:
            tokens = f", {self.prompt_tokens} + {self.completion_tokens} tokens"
        if self.failures:
            listed = ", ".join(f"{type_} {count}" for type_, count in sorted(self.failures.items()))
            failures = f"; failed requests: {listed}"
        return (
            f"{self.done} of {self.rows} rows, {self.counts.error} errors, "
            f"{self.rows_per_second:.1f} rows/s, {self.in_flight} in flight{tokens}, {left} left{failures}"
        )


def remove_progress(output: StoredPath) -> None:
    """Delete what tells of a run that is over."""
    with contextlib.suppress(OSError):
        remove(beside(output, ".progress.json"))


class ProgressFile:
    """The file of a run's progress; a context manager that removes it, one of a killed run too.

    It is there to be looked at: one that can't be written stops no run.
    """

    def __init__(self, output: StoredPath) -> None:
        self._output = output
        self._interval = _LOCAL_SECONDS if local_path(output) else _REMOTE_SECONDS
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        remove_progress(self._output)

    @property
    def is_due(self) -> bool:
        """Whether it is time to write: every two seconds, ten where the output is elsewhere."""
        return time.monotonic() - self._last >= self._interval

    def write(self, progress: Progress) -> None:
        """Replace the file."""
        self._last = time.monotonic()
        path = beside(self._output, ".progress.json")
        with contextlib.suppress(DatasetError), replacing(path) as file:
            file.write(progress.model_dump_json(indent=2).encode() + b"\n")
