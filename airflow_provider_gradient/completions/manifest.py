"""What a finished run over a dataset says of itself: the manifest, small enough for an XCom."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pydantic import BaseModel, ConfigDict

from airflow_provider_gradient.datasets import KeptRecord, TemplateFormat

SCHEMA_VERSION = 1
"""Version of the manifest and of the output's rows."""


class Counts(BaseModel):
    """Rows by status; they add up to the rows of the dataset.

    :ivar not_run: rows that were left when a budget ended the run.
    """

    model_config = ConfigDict(frozen=True)

    success: int = 0
    error: int = 0
    invalid_output: int = 0
    not_run: int = 0


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


class ShardOf(BaseModel):
    """Which shard a run was over, and what all shards of one dataset have in common.

    :ivar number: counted from 0.
    :ivar of: how many there are.
    :ivar source: the path of the whole dataset.
    :ivar plan: SHA-256 over how it was cut.
    :ivar job: SHA-256 over all that determines requests and output, but for the dataset.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    of: int
    source: str
    plan: str
    job: str


class MergedFrom(BaseModel):
    """The runs that a merged output is put together from.

    :ivar shards: how many.
    :ivar digest: SHA-256 over their manifests, by which a shard that was completed anew since is noticed.
    """

    model_config = ConfigDict(frozen=True)

    shards: int
    digest: str


class RunManifest(KeptRecord):
    """What the manifests of all runs over datasets have.

    :ivar source: path of the dataset as it was given, or ``inline``.
    :ivar identity: the piece of work that the caller said this is, or ``None``.
    :ivar fingerprint: SHA-256 over all that determines the requests and the output.
    :ivar output_path: JSONL or Parquet, one row a row of the dataset, in its order.
    :ivar output_bytes: size of the output, by which, and by ``output_sha256``, a later change is noticed.
    :ivar output_sha256: over the output's bytes; ``None`` in manifests of earlier versions.
    :ivar errors_path: JSONL of the rows that are no success, with all their columns; ``None`` if there are
        none.
    :ivar seconds: wall-clock time of the run that finished, without those it resumed.
    :ivar rows_per_second: of the rows that this run sent itself.
    :ivar resumed_rows: rows that an earlier run had done.
    :ivar left_over: rows with the status ``error`` that failed for a reason that may pass: the run is not
        finished, and the same call sends them again.
    :ivar concurrency: ``None`` where the run that finished had nothing left to send.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    identity: str | None
    fingerprint: str
    output_path: str
    output_bytes: int
    output_sha256: str | None = None
    errors_path: str | None
    rows: int
    seconds: float
    rows_per_second: float
    resumed_rows: int
    left_over: int = 0
    concurrency: ConcurrencySummary | None = None

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing is left that another run could do."""


class CompletionManifest(RunManifest):
    """A finished run: what was asked of which model, where the answers are, and what it took.

    :ivar model_id: ``None`` where a runnable brought its own.
    :ivar ended: the budget that ended the run before its last row, in words; ``None`` where all were run.
    :ivar only_failed_of: the output of the earlier run whose rows these are: those that had succeeded are
        copied, the others were run again.
    :ivar model_version: when an adapter was last tuned, as the server told; ``None`` for a base model.
    :ivar runnable: the dotted path of the runnable that took the place of a prompt, or its name.
    :ivar parameters: those of the completion that were given; the server's defaults hold for the others.
    :ivar prompt_tokens: over all rows; ``None`` where the server reports no usage.
    :ivar attempts: requests sent for the rows of the output, over all the runs that it took.
    :ivar retries: those among them that repeated one.
    :ivar shard: ``None`` but for a run over a shard.
    :ivar merged: ``None`` but where shards were merged. Then ``seconds`` are the shards' added up, though
        they ran side by side, there is no ``concurrency``, and the fingerprint is taken over theirs.
    """

    kind = "manifest of completions"

    counts: Counts
    model_id: str | None
    model_version: str | None
    prompt_template: str | None
    prompt_column: str | None
    prompt_template_format: TemplateFormat = "f-string"
    runnable: str | None = None
    parameters: dict[str, Any]
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int
    retries: int
    shard: ShardOf | None = None
    merged: MergedFrom | None = None
    ended: str | None = None
    only_failed_of: str | None = None

    @property
    def all_failed(self) -> bool:
        """Whether no row at all has a completion, though some were run."""
        return 0 < self.counts.error == self.rows - self.counts.not_run

    @property
    def is_complete(self) -> bool:
        """Whether every row was run, and not in vain: nothing is left to do."""
        return not self.counts.not_run and not self.left_over and not self.all_failed
