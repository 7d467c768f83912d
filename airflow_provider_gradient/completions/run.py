"""A dataset in, completions out.

Life of a run: check every row; open the journal; send what it lacks; write the output in the rows' order,
then the errors, then the manifest; delete the journal. Whatever interrupts it, the same call later goes on
from what the journal holds, and a run that had finished is not sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from airflow_provider_gradient.api import BadRequestError, InvalidRequestError, NotFoundError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions.job import (
    CompletionJob,
    DatasetCheck,
    Prompts,
    completion_parameters,
)
from airflow_provider_gradient.completions.journal import Journal, JournalHeader, remove_leftover
from airflow_provider_gradient.completions.manifest import CompletionManifest, Progress
from airflow_provider_gradient.completions.output import (
    errors_path,
    file_size,
    finished_manifest,
    write_finished,
    write_manifest,
)
from airflow_provider_gradient.completions.pacing import SendingLimits
from airflow_provider_gradient.completions.sending import Sender, in_slices, in_thread
from airflow_provider_gradient.datasets import (
    JSONL,
    PARQUET,
    Dataset,
    DatasetError,
    OpenDataset,
    PathLike,
    StoredPath,
    StoredRows,
    as_path,
    check_output,
    describe_source,
    format_of,
    import_parquet,
    local_path,
    open_dataset,
)

log = logging.getLogger(__name__)

_COMMIT_SECONDS = 0.5
"""Between two moments at which a local journal is made safe against a power cut."""
_PART_SECONDS = 2.0
"""Between two parts of a journal that is elsewhere: what a lost machine loses at most."""


async def complete_dataset(
    client: AsyncGradientClient,
    *,
    model_id: str,
    dataset: Dataset,
    output_path: PathLike,
    prompt_template: str | None = None,
    prompt_column: str | None = None,
    id_column: str | None = None,
    carry_columns: Sequence[str] | None = None,
    concurrency: int = 16,
    min_concurrency: int = 1,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    max_error_rate: float | None = None,
    identity: str | None = None,
    auto_template: bool | None = None,
    max_generated_token_count: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: Sequence[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> CompletionManifest:
    """Complete every row of ``dataset``, resumably, in memory that does not grow with it.

    The output is JSONL, or Parquet where ``output_path`` ends in ``.parquet``. Each row of it has ``index,
    id, status, output, error, finish_reason, model_id, attempts, latency_ms, usage`` and under ``row`` the
    columns it carries. A row whose request fails for good has the status ``error``; with ``guidance``, an
    answer that is none of the choices is ``invalid_output``; both stand in ``<output stem>.errors.jsonl``
    too. While the run lasts, ``<output stem>.journal.jsonl`` holds what is done (a file on the local disk,
    elsewhere a folder); ``<output stem>.manifest.json`` comes last.

    Called again with the same arguments, it goes on after what the journal holds, but sends the rows again
    that failed for a reason that may pass, and a run that had finished is given back as it is. Another
    dataset, template, model or parameter, and an adapter that was tuned since, begin anew.

    :param model_id: of a base model or an adapter.
    :param dataset: rows, a path or an earlier run's manifest, as
        :func:`~airflow_provider_gradient.datasets.read_rows` takes them.
    :param output_path: ends in ``.jsonl`` or ``.parquet``.
    :param prompt_template: f-string over the row's columns, such as ``"### Question: {question}"``.
    :param prompt_column: the column that holds the prompt; exactly one of the two is needed.
    :param id_column: a column whose values tell the rows apart; ``None`` for the index alone.
    :param carry_columns: the input's columns that the output repeats; ``None`` for all.
    :param concurrency: requests in flight at most. How many there are is found out by sending: the number
        grows while the server answers and is cut where it refuses (429, 503) or leaves requests without an
        answer in time.
    :param min_concurrency: requests in flight that are not cut further.
    :param requests_per_minute: sent at most in any 60 seconds, repeated ones included.
    :param tokens_per_minute: of prompts and completions as the server reports them, on average.
    :param max_error_rate: 0 to 1; a larger share of failed rows among the last 100 ends the run; 1 never
        does. ``None``: it ends where the first 100 rows fail, every one.
    :param identity: names this piece of work, so that another that writes to the same output does not take
        its rows for its own; never with the number of the try in it.
    :param auto_template: this and the further ones are those of a completion; ``None`` for the server's
        default.
    :param on_progress: called every ten seconds and at the end.
    :raises DatasetError: a row or path is wrong; nothing was sent.
    :raises InvalidRequestError: a parameter is out of range; nothing was sent.
    :raises JournalError: an earlier run's journal or manifest can't be read.
    :raises RunStoppedError: too many rows fail, or the server asks for a pause (``Retry-After``) that is
        longer than the client's total time. The journal stays.
    :raises ApiError: an error that concerns every row: token, workspace, model.
    """
    limits = SendingLimits(
        concurrency=concurrency,
        min_concurrency=min_concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_error_rate=max_error_rate,
    )
    if isinstance(carry_columns, str):
        raise InvalidRequestError(
            f"carry_columns: a list of columns is needed, not the text {carry_columns!r}"
        )
    output = as_path(output_path)
    opened = await in_thread(lambda: _open(dataset, output))
    job = CompletionJob(
        dataset=opened,
        model_id=model_id,
        prompt_template=prompt_template,
        prompt_column=prompt_column,
        id_column=id_column,
        carry_columns=carry_columns,
        parameters=completion_parameters(
            auto_template=auto_template,
            max_generated_token_count=max_generated_token_count,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
        ),
    )
    prompts = Prompts(template=prompt_template, column=prompt_column)
    check = DatasetCheck(job, prompts)
    async for _ in in_slices(check.rows_checked()):
        pass
    version = await _model_version(client, model_id)
    header = JournalHeader(
        identity=identity,
        fingerprint=job.fingerprint(dataset=check.fingerprint, model_version=version),
        rows=check.rows,
    )
    if finished := finished_manifest(output, header):
        log.info("%s stands complete since an earlier run; no row is sent", output)
        remove_leftover(output, header)
        return finished
    with await in_thread(lambda: Journal(output, header)) as journal:
        if journal.resumed:
            log.info("%s: %d of %d rows are done already", output, journal.resumed, check.rows)
        if journal.given_up:
            log.info("%s: %d rows that failed are sent again", output, journal.given_up)
        sender = Sender(
            client=client,
            job=job,
            prompts=prompts,
            journal=journal,
            rows=check.rows,
            limits=limits,
            longest_pause=client.timeouts.total,
            commit_seconds=_COMMIT_SECONDS if local_path(output) else _PART_SECONDS,
            on_progress=on_progress,
        )
        started = time.monotonic()
        concurrency_summary = await sender.send()
        sent = time.monotonic()
        files = write_finished(output, job=job, journal=journal, fingerprint=check.fingerprint)
        async for _ in in_slices(files):
            pass
        manifest = CompletionManifest(
            **_of_job(job, output, header, version),
            **_of_journal(journal, output),
            seconds=round(time.monotonic() - started, 3),
            rows_per_second=round((check.rows - journal.resumed) / (sent - started), 3),
            concurrency=concurrency_summary,
        )
        write_manifest(output, manifest)
        journal.remove()
    return manifest


def _of_job(
    job: CompletionJob, output: StoredPath, header: JournalHeader, version: str | None
) -> dict[str, Any]:
    """What a manifest says of what was asked."""
    return {
        "source": describe_source(job.dataset),
        "identity": header.identity,
        "fingerprint": header.fingerprint,
        "output_path": str(output),
        "rows": header.rows,
        "model_id": job.model_id,
        "model_version": version,
        "prompt_template": job.prompt_template,
        "prompt_column": job.prompt_column,
        "parameters": dict(job.parameters),
    }


def _of_journal(journal: Journal, output: StoredPath) -> dict[str, Any]:
    """What a manifest says of what came of it; the output is written."""
    totals = journal.totals
    return {
        "output_bytes": file_size(output),
        "errors_path": str(errors_path(output)) if totals.failed else None,
        "counts": totals.counts,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "attempts": totals.attempts,
        "retries": totals.retries,
        "resumed_rows": journal.resumed,
    }


def _open(dataset: Dataset, output: StoredPath) -> OpenDataset:
    """``dataset`` opened; that the output can be written and would not become a part of it is settled."""
    check_output(output, JSONL, PARQUET)
    if format_of(output.name) is PARQUET:
        import_parquet()
    opened = open_dataset(dataset)
    if isinstance(opened, StoredRows):
        for path in (output, errors_path(output)):
            if opened.is_fed_by(path):
                raise DatasetError(
                    f"{path}, which this run would write, is the dataset or in it: choose another output_path"
                )
    return opened


async def _model_version(client: AsyncGradientClient, model_id: str) -> str | None:
    """When an adapter was last tuned: its answers before and after are not one run's.

    ``None`` for a base model, which the API does not show alone; whether there is such a model at all, the
    first completion will tell.
    """
    try:
        adapter = await client.get_model_adapter(model_id)
    except (NotFoundError, BadRequestError):
        return None
    return adapter.latest_update_time.isoformat()
