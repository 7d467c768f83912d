"""A dataset in, completions out.

Life of a run: check every row; lock the output; open the journal; send what it lacks; write the output in
the rows' order, then the errors, then the manifest; delete the journal, unless a budget ended the run or
rows failed for a reason that may pass. Whatever interrupts it, the same call later goes on from what the
journal holds, and a run that had finished is not sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions.budgets import Budgets
from airflow_provider_gradient.completions.duplicates import check_deterministic
from airflow_provider_gradient.completions.former_names import adopt_former_files
from airflow_provider_gradient.completions.job import (
    completion_parameters,
)
from airflow_provider_gradient.completions.journal import (
    Journal,
    Totals,
)
from airflow_provider_gradient.completions.keeping import Keeper
from airflow_provider_gradient.completions.manifest import CompletionManifest
from airflow_provider_gradient.completions.output import (
    FinishedRow,
    errors_path,
    file_size,
    finished_manifest,
    finished_rows,
    mark_success,
    success_path,
    write_finished,
    write_manifest,
)
from airflow_provider_gradient.completions.output_lock import output_lock
from airflow_provider_gradient.completions.pacing import SendingLimits
from airflow_provider_gradient.completions.preparation import PreparedRun, prepare
from airflow_provider_gradient.completions.progress import Progress, ProgressFile, remove_progress
from airflow_provider_gradient.completions.sending import Sender
from airflow_provider_gradient.completions.stopping import unfinished
from airflow_provider_gradient.completions.threads import in_slices, in_thread
from airflow_provider_gradient.datasets import (
    Dataset,
    PathLike,
    TemplateFormat,
    remove,
)

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

log = logging.getLogger(__name__)


async def complete_dataset(
    client: AsyncGradientClient,
    *,
    model_id: str | None = None,
    dataset: Dataset | None = None,
    output_path: PathLike,
    prompt_template: str | None = None,
    prompt_column: str | None = None,
    prompt_template_format: TemplateFormat = "f-string",
    runnable: Runnable[Any, Any] | str | None = None,
    output_schema: type[BaseModel] | Mapping[str, Any] | str | None = None,
    max_output_retries: int = 0,
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
    row_deadline: float | None = None,
    deduplicate: bool = False,
    max_rows: int | None = None,
    max_seconds: float | None = None,
    max_tokens: int | None = None,
    only_failed_of: CompletionManifest | Mapping[str, Any] | PathLike | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress_seconds: float = 10.0,
) -> CompletionManifest:
    """Complete every row of ``dataset``, resumably, in memory that does not grow with it.

    The output is JSONL, or Parquet where ``output_path`` ends in ``.parquet``. Each row of it has ``index,
    id, status, output, parsed, error, finish_reason, model_id, attempts, latency_ms, usage`` and under
    ``row`` the columns it carries. A row whose request fails for good has the status ``error``; an answer
    that is none of the choices of ``guidance``, or not what ``output_schema`` asks for, is
    ``invalid_output``; both stand in ``<output>.errors.jsonl`` too. While the run lasts,
    ``<output>.journal.jsonl`` holds what is done (a file on the local disk, elsewhere a folder),
    ``<output>.progress.json`` tells how far it is, as :class:`Progress` in JSON, and no other run may
    write to the same output. ``<output>.manifest.json`` comes when output and errors are there, and last
    of all, if the run is finished, the empty file ``_SUCCESS.<output>``.

    A run is finished when every row has its answer or an error of its own. Where rows failed for a reason
    that may pass (no answer, 429, 5xx), output, errors and manifest are written, the journal stays, and
    :class:`RunUnfinishedError` says how many they are. Called again with the same arguments, it goes on after
    what the journal holds and sends these rows again; a run that had finished is given back as it is.
    Over a dataset that was changed since, rows whose prompts are the same keep their answers. Another model
    or parameter, and an adapter that was tuned since, begin anew.

    A budget (``max_rows``, ``max_seconds``, ``max_tokens``) ends a run in good order: the rows that are left
    have the status ``not_run`` in the output and stand in the errors file, the journal stays, and the same
    call goes on from there with the whole budget again.

    :param model_id: of a base model or an adapter; ``None`` where ``runnable`` brings its own model.
    :param dataset: rows, a path or an earlier run's manifest, as
        :func:`~airflow_provider_gradient.datasets.read_rows` takes them. An errors file stands for the rows
        in it, as they were in the dataset. Exactly one of this and ``only_failed_of`` is needed.
    :param output_path: ends in ``.jsonl`` or ``.parquet``.
    :param prompt_template: a template over the row's columns, such as ``"### Question: {question}"``.
    :param prompt_column: the column that holds the prompt.
    :param prompt_template_format: langchain-core's name of the template's format: ``f-string``, ``mustache``
        or ``jinja2`` (sandboxed).
    :param runnable: a LangChain Runnable that takes a row, a dict, and gives the output: text, or anything
        that JSON can hold. Or the dotted path (``package.module:name``) of one, of a function without
        arguments that makes one, or of a function of one argument that makes one of a ``GradientLLM`` for
        ``model_id`` and the completion's parameters. Exactly one of ``prompt_template``, ``prompt_column``
        and ``runnable`` is needed.
    :param output_schema: a pydantic model, a JSON schema, or the dotted path of either: each answer is parsed
        as JSON and validated, and stands as ``parsed`` in the output.
    :param max_output_retries: how often a row whose answer is invalid is asked again at most; each is a
        request like the first.
    :param id_column: a column whose values tell the rows apart; ``None`` for the index alone.
    :param carry_columns: the input's columns that the output repeats; ``None`` for all.
    :param concurrency: requests in flight at most. How many there are is found out by sending: the number
        grows while the server answers and is cut where it refuses (429, 503) or leaves requests without an
        answer in time.
    :param min_concurrency: requests in flight that are not cut further.
    :param requests_per_minute: sent at most in any 60 seconds, repeated ones included.
    :param tokens_per_minute: of prompts and completions as the server reports them, on average.
    :param max_error_rate: 0 to 1; a larger share of failed rows among the last 100 ends the run; 1 never
        does. ``None``: it ends where the last 100 rows all failed.
    :param identity: names this piece of work, so that another that writes to the same output does not take
        its rows for its own; never with the number of the try in it. An operator gives ``dag/run/task/map
        index``; another task or map index of that DAG run is refused the output.
    :param auto_template: this and the further ones are those of a completion; ``None`` for the server's
        default.
    :param row_deadline: seconds that a row may take, from its first attempt on and with all waits between
        attempts; then it has failed for a reason that may pass. ``None`` for the client's total time-out,
        which leaves the last attempt the time for an answer.
    :param deduplicate: send rows of equal prompts once. The others have the same answer, with 0 attempts and
        no ``usage``, so that tokens add up to what was paid. Needs temperature 0, top_k 1 or guidance.
    :param max_rows: rows that this run sends at most; copies of a row don't count.
    :param max_seconds: after which this run sends nothing more; what is in flight is awaited.
    :param max_tokens: that this run takes at most, of prompts and completions as the server reports them,
        reckoned at the mean of those before.
    :param only_failed_of: the manifest of an earlier run, also as a dict or as its path: only the rows that
        are no success there are run. The output has all rows: those that had succeeded as they are, the
        others anew, with the ids and carried columns of the earlier output and the attempts added up.
    :param on_progress: called while rows are sent and when all are, such as a
        :class:`~airflow_provider_gradient.completions.progress_bar.ProgressBar`.
    :param progress_seconds: between two calls of it, about.
    :raises DatasetError: a row or path is wrong; nothing was sent.
    :raises InvalidRequestError: a parameter is out of range; nothing was sent.
    :raises JournalError: an earlier run's journal or manifest can't be read.
    :raises OutputLockedError: another run writes to ``output_path``.
    :raises RunStoppedError: too many rows fail, the server answers nothing for the client's total time (or
        ``row_deadline``, if that is longer), or it asks for a pause (``Retry-After``) that is longer than the
        client's total time. The journal stays.
    :raises RunUnfinishedError: rows failed for a reason that may pass, and no budget ended the run. What
        there is, is written; the journal stays.
    :raises ApiError: an error that concerns every row: token, workspace, model.
    """
    limits = SendingLimits(
        concurrency=concurrency,
        min_concurrency=min_concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_error_rate=max_error_rate,
        row_deadline=row_deadline,
    )
    budgets = Budgets(max_rows=max_rows, max_seconds=max_seconds, max_tokens=max_tokens)
    parameters = completion_parameters(
        auto_template=auto_template,
        max_generated_token_count=max_generated_token_count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
    )
    if deduplicate:
        check_deterministic(parameters, runnable)
    run = await prepare(
        client,
        model_id=model_id,
        dataset=dataset,
        only_failed_of=only_failed_of,
        output_path=output_path,
        prompt_template=prompt_template,
        prompt_column=prompt_column,
        prompt_template_format=prompt_template_format,
        runnable=runnable,
        output_schema=output_schema,
        max_output_retries=max_output_retries,
        id_column=id_column,
        carry_columns=carry_columns,
        parameters=parameters,
        identity=identity,
    )
    async with contextlib.aclosing(run), output_lock(run.output, identity):
        await in_thread(lambda: adopt_former_files(run.output, identity=identity))
        if finished := await in_thread(lambda: finished_manifest(CompletionManifest, run.output, run.header)):
            log.info("%s stands complete since an earlier run; no row is sent", run.output)
            Journal.remove_leftover(run.output, run.header)
            remove_progress(run.output)
            mark_success(run.output)
            return finished
        remove(success_path(run.output))
        return await _complete(
            client,
            run,
            limits=limits,
            budgets=budgets,
            leaders=await in_thread(run.keys.leaders) if deduplicate else None,
            on_progress=on_progress,
            progress_seconds=progress_seconds,
        )


async def _complete(
    client: AsyncGradientClient,
    run: PreparedRun,
    *,
    limits: SendingLimits,
    budgets: Budgets,
    leaders: array[int] | None,
    on_progress: Callable[[Progress], None] | None,
    progress_seconds: float,
) -> CompletionManifest:
    output, header = run.output, run.header
    with (
        ProgressFile(output) as progress_file,
        await Journal.opened(output, header, keys=run.keys, ids=run.job.ids) as journal,
    ):
        run.keys.clear()
        if journal.resumed:
            log.info("%s: %d of %d rows are done already", output, journal.resumed, header.rows)
        if journal.given_up:
            log.info("%s: %d rows that failed are sent again", output, journal.given_up)
        sender = Sender(
            client=client,
            job=run.job,
            prompts=run.prompts,
            journal=journal,
            rows=header.rows,
            limits=limits,
            budgets=budgets,
            leaders=leaders,
            keeper=Keeper(
                output=output,
                journal=journal,
                progress_file=progress_file,
                on_progress=on_progress,
                progress_seconds=progress_seconds,
            ),
            told={"identity": header.identity, "output_path": str(output)},
        )
        started = time.monotonic()
        concurrency_summary = await sender.send() if header.rows else None
        sent = time.monotonic()
        rows, totals = _result(run, journal, sender.ended)
        failed = journal.totals.failed or sender.ended is not None
        digest = hashlib.sha256()
        async for _ in in_slices(write_finished(output, rows, failed=failed, digest=digest)):
            pass
        manifest = CompletionManifest(
            **_of_job(run),
            **_of_rows(run, journal, totals),
            output_sha256=digest.hexdigest(),
            seconds=round(time.monotonic() - started, 3),
            rows_per_second=round((journal.done - journal.resumed) / max(sent - started, 1e-9), 3),
            concurrency=concurrency_summary,
            ended=sender.ended,
            left_over=sender.left_over.rows,
        )
        write_manifest(output, manifest)
        if sender.ended is None and not manifest.left_over:
            journal.remove()
    if manifest.is_complete:
        mark_success(output)
    if manifest.left_over and manifest.ended is None:
        raise unfinished(sender.left_over, manifest)
    return manifest


def _result(run: PreparedRun, journal: Journal, ended: str | None) -> tuple[Iterator[FinishedRow], Totals]:
    """The rows of the output, and the sums over them, which hold once the last is taken."""
    rows: Iterator[FinishedRow] = iter(())
    if run.header.rows:
        rows = finished_rows(run.job, journal, fingerprint=run.dataset_fingerprint, ended=ended)
    if run.earlier is None:
        return rows, journal.totals
    totals = Totals()
    return run.earlier.merged(rows, totals), totals


def _of_job(run: PreparedRun) -> dict[str, Any]:
    """What a manifest says of what was asked."""
    job, header, earlier = run.job, run.header, run.earlier
    return {
        "source": run.source,
        "only_failed_of": None if earlier is None else str(earlier.output),
        "identity": header.identity,
        "fingerprint": header.fingerprint,
        "output_path": str(run.output),
        "rows": header.rows if earlier is None else earlier.manifest.rows,
        "model_id": job.model_id,
        "model_version": run.model_version,
        "prompt_template": job.prompt_template,
        "prompt_column": job.prompt_column,
        "prompt_template_format": job.prompt_template_format,
        "runnable": job.chain and job.chain.name,
        "parameters": dict(job.parameters),
        "shard": job.shard(run.model_version),
    }


def _of_rows(run: PreparedRun, journal: Journal, totals: Totals) -> dict[str, Any]:
    """What a manifest says of what came of it; the output is written."""
    copied = 0 if run.earlier is None else run.earlier.manifest.counts.success
    return {
        "output_bytes": file_size(run.output),
        "errors_path": str(errors_path(run.output)) if totals.failed else None,
        "counts": totals.counts,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "attempts": totals.attempts,
        "retries": totals.retries,
        "resumed_rows": journal.resumed + copied,
    }
