"""A dataset in, vectors out.

Life of a run: check every row; lock the output; open the journal; send what it lacks in batches; write the
output in the rows' order, then the errors, then the manifest; delete the journal, unless rows are left that
failed for a reason that may pass. Whatever interrupts it, the same call later goes on from what the journal
holds, and a run that left nothing over is not sent again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions.former_names import adopt_former_files
from airflow_provider_gradient.completions.job import DatasetCheck
from airflow_provider_gradient.completions.keeping import Keeper
from airflow_provider_gradient.completions.output import (
    errors_path,
    file_size,
    finished_manifest,
    mark_success,
    success_path,
    write_manifest,
)
from airflow_provider_gradient.completions.output_lock import output_lock
from airflow_provider_gradient.completions.pacing import SendingLimits
from airflow_provider_gradient.completions.preparation import open_for
from airflow_provider_gradient.completions.progress import Progress, ProgressFile, remove_progress
from airflow_provider_gradient.completions.row_keys import RowKeys
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.completions.stopping import unfinished
from airflow_provider_gradient.completions.threads import in_slices, in_thread
from airflow_provider_gradient.datasets import (
    Dataset,
    PathLike,
    StoredPath,
    TemplateFormat,
    as_path,
    describe_source,
    remove,
)
from airflow_provider_gradient.embeddings.job import EmbeddingJob, Texts
from airflow_provider_gradient.embeddings.journal import Journal
from airflow_provider_gradient.embeddings.manifest import EmbeddingManifest
from airflow_provider_gradient.embeddings.output import (
    finished_rows,
    write_finished,
)
from airflow_provider_gradient.embeddings.sending import Sender

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Run:
    output: StoredPath
    job: EmbeddingJob
    texts: Texts
    dataset_fingerprint: str
    header: JournalHeader
    keys: RowKeys


async def embed_dataset(
    client: AsyncGradientClient,
    *,
    model: str,
    dataset: Dataset,
    output_path: PathLike,
    text_column: str | None = None,
    text_template: str | None = None,
    text_template_format: TemplateFormat = "f-string",
    id_column: str | None = None,
    carry_columns: Sequence[str] | None = None,
    batch_size: int = 64,
    concurrency: int = 8,
    identity: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress_seconds: float = 10.0,
) -> EmbeddingManifest:
    """Embed a text of every row of ``dataset``, resumably, in memory that does not grow with it.

    The output is JSONL, or Parquet where ``output_path`` ends in ``.parquet``. Each row of it has ``index,
    id, status, embedding, error`` and under ``row`` the columns it carries. ``embedding`` is the model's
    vector as 32-bit floats. A row whose request fails for good has the status ``error`` and stands in
    ``<output>.errors.jsonl`` too; a batch that is refused is sent again in halves, until the text that
    is the reason stands alone. While the run lasts, ``<output>.journal.jsonl`` holds what is done,
    ``<output>.progress.json`` tells how far it is, and no other run may write to the same output.
    ``<output>.manifest.json`` comes when output and errors are there, and last of all, if the run is
    finished, the empty file ``_SUCCESS.<output>``.

    A run is finished when every row has its vector or an error of its own. Where rows failed for a reason
    that may pass (no answer, 429, 5xx), output, errors and manifest are written, the journal stays, and
    :class:`~airflow_provider_gradient.completions.RunUnfinishedError` says how many they are. Called again
    with the same arguments, it goes on after what the journal holds and sends these rows again; a run that
    had finished is given back as it is. Over a dataset that was changed since, rows whose texts are the same
    keep their vectors. Another model begins anew.

    :param model: slug of an embeddings model, such as ``bge-large``.
    :param dataset: rows, a path or an earlier run's manifest, as
        :func:`~airflow_provider_gradient.datasets.read_rows` takes them.
    :param output_path: ends in ``.jsonl`` or ``.parquet``.
    :param text_column: the column that holds the text.
    :param text_template: a template over the row's columns, such as ``"{title}: {body}"``. Exactly one of
        these two is needed.
    :param text_template_format: langchain-core's name of the template's format: ``f-string``, ``mustache`` or
        ``jinja2`` (sandboxed).
    :param id_column: a column whose values tell the rows apart; ``None`` for the index alone.
    :param carry_columns: the input's columns that the output repeats; ``None`` for all.
    :param batch_size: texts a request, 1 to 256. A killed run sends again what was in flight, whole batches.
    :param concurrency: requests in flight at most; how many there are adapts to what the server bears.
    :param identity: names this piece of work, so that another that writes to the same output does not take
        its rows for its own; never with the number of the try in it. An operator gives ``dag/run/task/map
        index``; another task or map index of that DAG run is refused the output.
    :param on_progress: called while rows are sent and when all are.
    :param progress_seconds: between two calls of it, about.
    :raises DatasetError: a row or path is wrong, or a text is empty; nothing was sent.
    :raises InvalidRequestError: a parameter is out of range; nothing was sent.
    :raises JournalError: an earlier run's journal or manifest can't be read.
    :raises OutputLockedError: another run writes to ``output_path``.
    :raises RunStoppedError: the last 100 rows all failed, and ten requests at least, the server answers
        nothing for the client's total time, or it asks for a longer pause (``Retry-After``). The journal
        stays.
    :raises RunUnfinishedError: rows failed for a reason that may pass. What there is, is written; the journal
        stays.
    :raises ApiError: an error that concerns every row: token, workspace, model.
    """
    SendingLimits(concurrency=concurrency)
    texts = Texts(template=text_template, column=text_column, format=text_template_format)
    output = as_path(output_path)
    job = EmbeddingJob(
        dataset=await in_thread(lambda: open_for(dataset, output)),
        model=model,
        text_template=text_template,
        text_column=text_column,
        text_template_format=text_template_format,
        id_column=id_column,
        carry_columns=carry_columns,
        batch_size=batch_size,
    )
    run = await _checked(output, job, texts, identity)
    async with output_lock(output, identity):
        await in_thread(lambda: adopt_former_files(output, identity=identity))
        if finished := await in_thread(lambda: finished_manifest(EmbeddingManifest, output, run.header)):
            log.info("%s stands complete since an earlier run; no row is sent", output)
            Journal.remove_leftover(output, run.header)
            remove_progress(output)
            mark_success(output)
            return finished
        remove(success_path(output))
        return await _embed(
            client,
            run,
            concurrency=concurrency,
            on_progress=on_progress,
            progress_seconds=progress_seconds,
        )


async def _checked(output: StoredPath, job: EmbeddingJob, texts: Texts, identity: str | None) -> _Run:
    check = DatasetCheck(job, texts)
    async for _ in in_slices(check.rows_checked()):
        pass
    header = JournalHeader(
        identity=identity,
        fingerprint=job.fingerprint(dataset=check.fingerprint),
        rows=check.rows,
        request=job.request(),
    )
    return _Run(
        output=output,
        job=job,
        texts=texts,
        dataset_fingerprint=check.fingerprint,
        header=header,
        keys=check.keys,
    )


async def _embed(
    client: AsyncGradientClient,
    run: _Run,
    *,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None,
    progress_seconds: float,
) -> EmbeddingManifest:
    output, header = run.output, run.header
    with (
        ProgressFile(output) as progress_file,
        await Journal.opened(output, header, keys=run.keys) as journal,
    ):
        run.keys.clear()
        if journal.resumed:
            log.info("%s: %d of %d rows are done already", output, journal.resumed, header.rows)
        started = time.monotonic()
        sender = Sender(
            client=client,
            job=run.job,
            texts=run.texts,
            journal=journal,
            rows=header.rows,
            concurrency=concurrency,
            keeper=Keeper(
                output=output,
                journal=journal,
                progress_file=progress_file,
                on_progress=on_progress,
                progress_seconds=progress_seconds,
            ),
            told={"identity": header.identity, "output_path": str(output)},
        )
        concurrency_summary = await sender.send()
        sent = time.monotonic()
        failed = journal.counts.error > 0
        rows = finished_rows(run.job, journal, fingerprint=run.dataset_fingerprint)
        digest = hashlib.sha256()
        async for _ in in_slices(write_finished(output, rows, failed=failed, digest=digest)):
            pass
        manifest = EmbeddingManifest(
            **_of_job(run),
            output_bytes=file_size(output),
            output_sha256=digest.hexdigest(),
            errors_path=str(errors_path(output)) if failed else None,
            counts=journal.counts,
            left_over=sender.left_over.rows,
            dimensions=journal.dimensions,
            requests=journal.requests,
            seconds=round(time.monotonic() - started, 3),
            rows_per_second=round((journal.done - journal.resumed) / max(sent - started, 1e-9), 3),
            resumed_rows=journal.resumed,
            concurrency=concurrency_summary,
        )
        write_manifest(output, manifest)
        if not manifest.left_over:
            journal.remove()
    if manifest.is_complete:
        mark_success(output)
    if manifest.left_over:
        raise unfinished(sender.left_over, manifest)
    return manifest


def _of_job(run: _Run) -> dict[str, Any]:
    """What a manifest says of what was asked."""
    job, header = run.job, run.header
    return {
        "source": describe_source(job.dataset),
        "identity": header.identity,
        "fingerprint": header.fingerprint,
        "output_path": str(run.output),
        "rows": header.rows,
        "model": job.model,
        "text_template": job.text_template,
        "text_column": job.text_column,
        "text_template_format": job.text_template_format,
    }
