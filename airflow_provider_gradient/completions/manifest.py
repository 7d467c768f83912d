"""What a run over a dataset says of itself: the manifest, small enough for an XCom, and the progress before
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_gradient.api import describe_validation_error
from airflow_provider_gradient.datasets import JournalError

SCHEMA_VERSION = 1
"""Version of the manifest, the output's rows and the journal."""


class Counts(BaseModel):
    """Rows by status; they add up to the rows of the dataset."""

    model_config = ConfigDict(frozen=True)

    success: int = 0
    error: int = 0
    invalid_output: int = 0


class ConcurrencySummary(BaseModel):
    """How many requests the run that finished let be in flight: it adapts to what the server bears.

    :ivar min: the lowest the limit was; likewise ``mean`` over time, and ``max``.
    :ivar cuts: how often the limit was lowered for refusals and time-outs.
    :ivar pauses: how often all sending stopped because the server asked for it (``Retry-After``).
    :ivar paused_seconds: how long that was in all.
    """

    model_config = ConfigDict(frozen=True)

    min: int
    mean: float
    max: int
    cuts: int
    pauses: int
    paused_seconds: float


class CompletionManifest(BaseModel):
    """A finished run: what was asked of which model, where the answers are, and what it took.

    :ivar source: path of the dataset as it was given, or ``inline``.
    :ivar identity: the piece of work that the caller said this is, or ``None``.
    :ivar fingerprint: SHA-256 over all that determines the requests and the output.
    :ivar output_path: JSONL or Parquet, one completion a row of the dataset, in its order.
    :ivar output_bytes: size of the output, by which a later change is noticed.
    :ivar errors_path: JSONL of the rows that are no success, with all their columns; ``None`` if there are
        none.
    :ivar model_version: when an adapter was last tuned, as the server told; ``None`` for a base model.
    :ivar parameters: those of the completion that were given; the server's defaults hold for the others.
    :ivar prompt_tokens: over all rows; ``None`` where the server reports no usage.
    :ivar attempts: requests sent for the rows of the output, over all the runs that it took.
    :ivar retries: those among them that repeated one.
    :ivar seconds: wall-clock time of the run that finished, without those it resumed.
    :ivar rows_per_second: of the rows that this run completed itself.
    :ivar resumed_rows: rows whose completion an earlier run had left.
    :ivar concurrency: ``None`` where the run that finished had nothing left to send.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    source: str
    identity: str | None
    fingerprint: str
    output_path: str
    output_bytes: int
    errors_path: str | None
    rows: int
    counts: Counts
    model_id: str
    model_version: str | None
    prompt_template: str | None
    prompt_column: str | None
    parameters: dict[str, Any]
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int
    retries: int
    seconds: float
    rows_per_second: float
    resumed_rows: int
    concurrency: ConcurrencySummary | None = None

    @property
    def all_failed(self) -> bool:
        """Whether no row at all has a completion."""
        return self.counts.error == self.rows

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON has it."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CompletionManifest:
        """The manifest that :meth:`to_dict` gave.

        :raises JournalError: names what is missing or wrong.
        """
        version = fields.get("schema_version")
        if version != SCHEMA_VERSION:
            raise JournalError(
                f"a manifest of schema version {version!r}; this package reads {SCHEMA_VERSION}"
            )
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise JournalError(f"no manifest of a run: {describe_validation_error(error)}") from None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    :ivar rows: of the dataset.
    :ivar done: rows that have a completion or an error, the resumed ones among them.
    :ivar seconds: since the run began to send.
    :ivar in_flight: requests sent and not yet answered.
    :ivar failures: requests that failed, by the type of their error, those among them that are repeated.
    """

    rows: int
    done: int
    counts: Counts
    resumed_rows: int
    seconds: float
    in_flight: int
    failures: Mapping[str, int]

    @property
    def rows_per_second(self) -> float:
        """Of the rows that this run completed itself."""
        return (self.done - self.resumed_rows) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far, or ``None`` while there is none."""
        rate = self.rows_per_second
        return (self.rows - self.done) / rate if rate else None
