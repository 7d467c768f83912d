"""A run before its first request: all that it needs is found, opened and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from airflow_provider_gradient.api import BadRequestError, InvalidRequestError, NotFoundError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions.chains import Chain
from airflow_provider_gradient.completions.earlier import EarlierRun, open_earlier
from airflow_provider_gradient.completions.job import (
    CompletionJob,
    DatasetCheck,
    Prompts,
    check_one_source,
)
from airflow_provider_gradient.completions.manifest import CompletionManifest
from airflow_provider_gradient.completions.output import errors_path
from airflow_provider_gradient.completions.output_schema import OutputSchema
from airflow_provider_gradient.completions.row_keys import RowKeys
from airflow_provider_gradient.completions.run_journal import JournalHeader
from airflow_provider_gradient.completions.threads import in_slices, in_thread
from airflow_provider_gradient.datasets import (
    JSONL,
    PARQUET,
    Dataset,
    DatasetError,
    OpenDataset,
    PathLike,
    StoredPath,
    StoredRows,
    TemplateFormat,
    as_path,
    check_output,
    describe_source,
    format_of,
    import_parquet,
    open_dataset,
)

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run of which everything is known but the answers."""

    output: StoredPath
    job: CompletionJob
    prompts: Prompts | Chain
    earlier: EarlierRun | None
    dataset_fingerprint: str
    model_version: str | None
    header: JournalHeader
    keys: RowKeys

    @property
    def source(self) -> str:
        """Where the rows come from."""
        return describe_source(self.job.dataset) if self.earlier is None else self.earlier.manifest.source

    async def aclose(self) -> None:
        """Close what was opened for it."""
        if isinstance(self.prompts, Chain):
            await self.prompts.aclose()


async def prepare(
    client: AsyncGradientClient,
    *,
    model_id: str | None,
    dataset: Dataset | None,
    only_failed_of: CompletionManifest | Mapping[str, Any] | PathLike | None,
    output_path: PathLike,
    prompt_template: str | None,
    prompt_column: str | None,
    prompt_template_format: TemplateFormat,
    runnable: Runnable[Any, Any] | str | None,
    output_schema: type[BaseModel] | Mapping[str, Any] | str | None,
    max_output_retries: int,
    parameters: Mapping[str, Any],
    id_column: str | None,
    carry_columns: Sequence[str] | None,
    identity: str | None,
    on_prompt: Callable[[str], None] = lambda _: None,
) -> PreparedRun:
    """Check everything that can be checked before a request is sent; see
    :func:`~airflow_provider_gradient.completions.complete_dataset`.

    :param on_prompt: called with the prompt of each row, in the rows' order; never where a runnable makes
        them.
    """
    if isinstance(carry_columns, str):
        raise InvalidRequestError(
            f"carry_columns: a list of columns is needed, not the text {carry_columns!r}"
        )
    if (dataset is None) == (only_failed_of is None):
        raise InvalidRequestError("give exactly one of dataset and only_failed_of")
    if only_failed_of is not None and (id_column, carry_columns) != (None, None):
        raise InvalidRequestError(
            "only_failed_of: ids and carried columns are those of the earlier run; leave out id_column and "
            "carry_columns"
        )
    check_one_source(prompt_template=prompt_template, prompt_column=prompt_column, runnable=runnable)
    if model_id is None and runnable is None:
        raise InvalidRequestError("model_id: is needed")
    schema = OutputSchema(output_schema) if output_schema is not None else None
    prompts = Prompts(template=prompt_template, column=prompt_column, format=prompt_template_format)
    chain = None
    if runnable is not None:
        chain = Chain(runnable, client=client, model_id=model_id, parameters=parameters)
    try:
        return await _prepare(
            client,
            prompts=chain or prompts,
            on_prompt=on_prompt,
            dataset=dataset,
            only_failed_of=only_failed_of,
            output=as_path(output_path),
            identity=identity,
            model_id=model_id,
            prompt_template=prompt_template,
            prompt_column=prompt_column,
            prompt_template_format=prompt_template_format,
            chain=chain,
            output_schema=schema,
            max_output_retries=max_output_retries,
            id_column=id_column,
            carry_columns=carry_columns,
            parameters=parameters,
        )
    except BaseException:
        if chain is not None:
            await chain.aclose()
        raise


async def _prepare(
    client: AsyncGradientClient,
    *,
    prompts: Prompts | Chain,
    on_prompt: Callable[[str], None],
    dataset: Dataset | None,
    only_failed_of: CompletionManifest | Mapping[str, Any] | PathLike | None,
    output: StoredPath,
    identity: str | None,
    **job_fields: Any,
) -> PreparedRun:
    earlier = None if only_failed_of is None else await in_thread(lambda: open_earlier(only_failed_of))
    if earlier is not None:
        earlier.refuse_to_replace(output)
        dataset = await in_thread(earlier.failed_rows)
    opened = await in_thread(lambda: open_for(cast(Dataset, dataset), output))
    job = CompletionJob(dataset=opened, **job_fields)
    check = DatasetCheck(job, prompts, on_prompt)
    if opened or earlier is None:  # where nothing failed earlier there are no rows
        async for _ in in_slices(check.rows_checked()):
            pass
    version = await _model_version(client, job.model_id)
    rows = check.fingerprint
    if earlier is not None:
        rows += f" of {earlier.manifest.fingerprint} ({earlier.manifest.output_bytes} bytes)"
    return PreparedRun(
        output=output,
        job=job,
        prompts=prompts,
        earlier=earlier,
        dataset_fingerprint=check.fingerprint,
        model_version=version,
        header=JournalHeader(
            identity=identity,
            fingerprint=job.fingerprint(dataset=rows, model_version=version),
            rows=check.rows,
            request=job.request(model_version=version),
        ),
        keys=check.keys,
    )


def open_for(dataset: Dataset, output: StoredPath) -> OpenDataset:
    """``dataset`` opened; that the output can be written and would not become a part of it is settled.

    :raises DatasetError: it can't, or it would.
    """
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


async def _model_version(client: AsyncGradientClient, model_id: str | None) -> str | None:
    """When an adapter was last tuned: its answers before and after are not one run's.

    ``None`` for a base model, which the API does not show alone; whether there is such a model at all, the
    first completion will tell. ``None`` without a model of the run's, too.
    """
    if model_id is None:
        return None
    try:
        adapter = await client.get_model_adapter(model_id)
    except (NotFoundError, BadRequestError):
        return None
    return adapter.latest_update_time.isoformat()
