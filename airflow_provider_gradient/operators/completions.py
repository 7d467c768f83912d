"""Operators that ask a model: one query, or a whole dataset of prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.api import CompleteRequest, build_request
from airflow_provider_gradient.lineage import Lineage, Touched, completions_lineage, dataset_uri
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    RowsField,
    boolean,
    check_at_least_one,
    literals,
    located,
    located_manifest,
    number,
    optional_number,
)
from airflow_provider_gradient.operators.clearing import OnClear, work_name
from airflow_provider_gradient.operators.lineage import TellsLineage
from airflow_provider_gradient.operators.on_page import OnGradientPage

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import BaseModel

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.completions import CompletionEstimate, CompletionManifest, Progress
    from airflow_provider_gradient.datasets import TemplateFormat

_PARAMETER_FIELDS = ("max_generated_token_count", "temperature", "top_k", "top_p", "guidance")


class _CompletionOperator(GradientOperator):
    """The completion parameters, under the names of the API.

    :param auto_template: wrap the prompt in the base model's recommended template; the server's default is
        yes.
    :param max_generated_token_count: 1 to 511.
    :param temperature: 0 or more.
    :param top_k: 1 or more.
    :param top_p: above 0, up to 1; applies to what ``top_k`` leaves.
    :param guidance: 1 to 10 choices of 1 to 32 characters, of which the completion is one.
    """

    def __init__(
        self,
        *,
        auto_template: bool | None = None,
        max_generated_token_count: int | str | None = None,
        temperature: float | str | None = None,
        top_k: int | str | None = None,
        top_p: float | str | None = None,
        guidance: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.auto_template = auto_template
        self.max_generated_token_count = max_generated_token_count
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.guidance = guidance
        _check_parameters(literals({name: getattr(self, name) for name in _PARAMETER_FIELDS}))

    def parameters(self) -> dict[str, Any]:
        """The parameters that are set, as numbers, checked.

        :raises InvalidRequestError: names the field that breaks a limit of the API.
        """
        given = {name: getattr(self, name) for name in _PARAMETER_FIELDS}
        return {"auto_template": self.auto_template, **_check_parameters(given)}


class GradientCompleteOperator(_CompletionOperator):
    """Asks a model one query.

    XCom: a dict with ``generated_output``, ``finish_reason``, ``model_id`` and ``usage`` (token counts,
    ``None`` where the server reports none); each is also an XCom of its own, so that
    ``query=earlier.output["generated_output"]`` works.

    :param model_id: of a base model or an adapter, or ``alias:<name>``.
    :param query: the prompt.
    """

    template_fields: Sequence[str] = ("gradient_conn_id", "model_id", "query", *_PARAMETER_FIELDS)

    def __init__(self, *, model_id: str, query: str, **kwargs: Any) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.model_id = model_id
        self.query = query

    def execute(self, context: Context) -> dict[str, Any]:
        """The completion."""
        model_id = self.hook.resolve(self.model_id)
        with self.hook.get_conn() as client:
            completion = client.complete(model_id, self.query, **self.parameters())
        return {"model_id": model_id, **completion.model_dump(mode="json")}


class GradientCompleteDatasetOperator(OnGradientPage, TellsLineage, _CompletionOperator):
    """Completes every row of a dataset and writes a row for each, in the dataset's order.

    XCom: the completion manifest, a dict with the paths, the counts by status, tokens and seconds, which
    :class:`~airflow_provider_gradient.operators.evaluation.GradientEvaluateOperator` takes as it is. Rows
    never go through XCom. A journal beside the output holds the finished rows while the task runs: a retry
    asks only for the others. The task succeeds when every row has its answer or an error of its own, such as
    a refusal, unless all of them have; or at the end of a budget. Where rows failed for a reason that may
    pass (no answer, 429, 5xx) it fails, with the output written and the journal kept, and its retry, or the
    task cleared, sends just these. An output of another task or map index of the same DAG run is refused.

    :param model_id: of a base model or an adapter, or ``alias:<name>``; ``None`` where ``runnable`` brings
        its own model.
    :param dataset: path or URL of a file, folder or glob: JSONL, CSV or Parquet
        (``s3://conn_id@bucket/key`` uses an Airflow connection); or rows, given inline or by an earlier task;
        or an earlier task's manifest; or a shard
        (:class:`~airflow_provider_gradient.operators.shards.GradientPlanShardsOperator`), whose task does not
        fail where all its rows were refused: that of the merge does if those of every shard were.
    :param output_path: path or URL of the file to write, ``.jsonl`` or ``.parquet``. Failed rows are also in
        ``<output_path>.errors.jsonl`` beside it.
    :param prompt_template: a langchain-core template over the row's columns, such as
        ``"Question: {question}"``. Airflow renders it with Jinja first; what that must not touch stands
        between ``{% raw %}`` and ``{% endraw %}``, or the whole in ``airflow.sdk.literal(...)``
        (from Airflow 3.2 on).
    :param prompt_template_format: ``f-string``, ``mustache`` or ``jinja2`` (sandboxed). In the latter two the
        row's fields look like Airflow's own, so the template is wrapped as above.
    :param prompt_column: the column that holds the prompt.
    :param runnable: dotted path, ``package.module:name``, of a LangChain Runnable that takes a row and gives
        the output, or of a function that makes one: without arguments, or of a ``GradientLLM`` with this
        operator's connection, model and parameters. Exactly one of ``prompt_template``, ``prompt_column`` and
        ``runnable`` is given.
    :param output_schema: a pydantic model, a JSON schema (a dict), or the dotted path of either. Each answer
        is parsed as JSON and validated, and stands as ``parsed`` in the output; one that isn't what the
        schema asks for is ``invalid_output``.
    :param max_output_retries: how often a row whose answer is invalid is asked again at most.
    :param id_column: the column that names a row; its values must be unique.
    :param carry_columns: columns to copy to the output; ``None`` for all.
    :param concurrency: requests in flight at once, at most. The number adapts to what the server bears: it
        grows while the server answers and is cut where it refuses (429, 503) or doesn't answer in time.
    :param min_concurrency: requests in flight that are not cut further.
    :param requests_per_minute: requests sent in any minute at most; ``None`` for no limit.
    :param tokens_per_minute: tokens of prompts and completions a minute, on average, as the server reports
        them; ``None`` for no limit.
    :param max_error_rate: 0 to 1; the task fails early where a larger share of the last 100 rows has failed,
        and its retry goes on from the journal. ``None`` ends it only where the last 100 rows all failed; 1
        never does, but rows that failed for a reason that may pass fail the task in the end all the same.
    :param row_deadline: seconds that a row may take with all its attempts and the waits between them;
        ``None`` for the connection's total time-out.
    :param deduplicate: send rows of equal prompts once; needs ``temperature=0``, ``top_k=1`` or
        ``guidance``.
    :param max_rows: rows sent at most. At the end of this or another budget the task succeeds, the rows that
        are left have the status ``not_run``, and the task, cleared, goes on with the whole budget again.
    :param max_seconds: after which nothing more is sent; what is in flight is awaited.
    :param max_tokens: tokens of prompts and completions at most, on average, as the server reports them.
    :param only_failed_of: an earlier task's manifest, or the path or URL of one: only its rows that are no
        success are run, and merged with those that are. Takes the place of ``dataset``.
    :param on_clear: what the task does when it was cleared: ``resume`` keeps what is done, so that a task
        that had succeeded sends nothing; ``restart`` sends every row again. Retries always go on.
    :param estimate: send nothing: the XCom is then the estimate, a dict with rows, characters and tokens.
    :param tokenizer: for the estimate's tokens, the path of the model's ``tokenizer.json`` or of its folder.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "model_id",
        "dataset",
        "output_path",
        "prompt_template",
        "prompt_column",
        "runnable",
        "max_output_retries",
        "id_column",
        "carry_columns",
        "concurrency",
        "min_concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "max_error_rate",
        "row_deadline",
        "deduplicate",
        "max_rows",
        "max_seconds",
        "max_tokens",
        "only_failed_of",
        "on_clear",
        "estimate",
        "tokenizer",
        *_PARAMETER_FIELDS,
    )
    dataset = RowsField()

    def __init__(
        self,
        *,
        model_id: str | None = None,
        dataset: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str] | None = None,
        output_path: str | os.PathLike[str],
        prompt_template: str | None = None,
        prompt_template_format: TemplateFormat = "f-string",
        prompt_column: str | None = None,
        runnable: str | None = None,
        output_schema: type[BaseModel] | Mapping[str, Any] | str | None = None,
        max_output_retries: int | str = 0,
        id_column: str | None = None,
        carry_columns: Sequence[str] | None = None,
        concurrency: int | str = 16,
        min_concurrency: int | str = 1,
        requests_per_minute: float | str | None = None,
        tokens_per_minute: float | str | None = None,
        max_error_rate: float | str | None = None,
        row_deadline: float | str | None = None,
        deduplicate: bool | str = False,
        max_rows: int | str | None = None,
        max_seconds: float | str | None = None,
        max_tokens: int | str | None = None,
        only_failed_of: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        on_clear: OnClear | str = "resume",
        estimate: bool | str = False,
        tokenizer: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_id = model_id
        self.dataset = dataset
        self.output_path = output_path
        self.prompt_template = prompt_template
        self.prompt_template_format = prompt_template_format
        self.prompt_column = prompt_column
        self.runnable = runnable
        self.output_schema = output_schema
        self.max_output_retries = max_output_retries
        self.id_column = id_column
        self.carry_columns = carry_columns
        self.concurrency = concurrency
        self.min_concurrency = min_concurrency
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.max_error_rate = max_error_rate
        self.row_deadline = row_deadline
        self.deduplicate = deduplicate
        self.max_rows = max_rows
        self.max_seconds = max_seconds
        self.max_tokens = max_tokens
        self.only_failed_of = only_failed_of
        self.on_clear = on_clear
        self.estimate = estimate
        self.tokenizer = tokenizer
        if [prompt_template, prompt_column, runnable].count(None) != 2:
            raise ValueError("Give exactly one of prompt_template, prompt_column and runnable")
        if model_id is None and runnable is None:
            raise ValueError("Give the model_id, or a runnable that brings its own model")
        check_at_least_one(
            concurrency=concurrency,
            min_concurrency=min_concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_rows=max_rows,
            max_tokens=max_tokens,
        )
        if isinstance(max_error_rate, int | float) and not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate: must be a share from 0 to 1 (got {max_error_rate!r})")

    def execute(self, context: Context) -> dict[str, Any]:
        """The manifest, or the estimate, as a dict."""
        asked = {"identity": work_name(context, on_clear=self.on_clear), **self._asked()}
        if boolean("estimate", self.estimate):
            estimate = self.run_async(lambda client: self._estimate(client, asked))
            self.log.info("Nothing was sent: %s", estimate)
            return estimate.to_dict()
        with self.progress_stored(context):
            manifest = self.run_async(lambda client: self._complete(client, asked))
        self.tell_lineage(context, self._lineage_of(manifest, asked["model_id"]))
        counts = manifest.counts
        if manifest.all_failed and manifest.shard is None:
            raise RuntimeError(f"Every one of the {counts.error} rows failed; see {manifest.errors_path}")
        self.log.info(
            "Wrote %s: %d completions, %d errors, %d invalid outputs in %.1f s",
            manifest.output_path,
            counts.success,
            counts.error,
            counts.invalid_output,
            manifest.seconds,
        )
        if manifest.ended is not None:
            self.log.info(
                "%s: %d rows not run, %d failed for a reason that may pass; a clear goes on with them",
                manifest.ended,
                counts.not_run,
                manifest.left_over,
            )
        return manifest.to_dict()

    def planned_lineage(self) -> Lineage:
        """The dataset, and the output."""
        read = dataset_uri(self.only_failed_of or self.dataset)
        return Lineage.of_uris([read], [dataset_uri(self.output_path)])

    def _lineage_of(self, manifest: CompletionManifest, model_id: str | None) -> Lineage:
        read = [Touched(uri=each.uri, rows=manifest.rows) for each in self.planned_lineage().inputs]
        return completions_lineage(manifest, read=read, models=self.model_uris(self.model_id, model_id))

    def _asked(self) -> dict[str, Any]:
        """What determines the requests."""
        return {
            "model_id": None if self.model_id is None else self.hook.resolve(self.model_id),
            "dataset": located(self.dataset),
            "only_failed_of": located_manifest(self.only_failed_of),
            "output_path": located(self.output_path),
            "prompt_template": self.prompt_template,
            "prompt_column": self.prompt_column,
            "prompt_template_format": self.prompt_template_format,
            "runnable": self.runnable,
            "output_schema": self.output_schema,
            "max_output_retries": number("max_output_retries", self.max_output_retries, int),
            "id_column": self.id_column,
            "carry_columns": self.carry_columns,
            "deduplicate": boolean("deduplicate", self.deduplicate),
            **self.parameters(),
        }

    async def _estimate(self, client: AsyncGradientClient, asked: dict[str, Any]) -> CompletionEstimate:
        from airflow_provider_gradient.completions import estimate_completions

        return await estimate_completions(client, tokenizer=located(self.tokenizer), **asked)

    async def _complete(self, client: AsyncGradientClient, asked: dict[str, Any]) -> CompletionManifest:
        from airflow_provider_gradient.completions import complete_dataset

        return await complete_dataset(
            client,
            concurrency=number("concurrency", self.concurrency, int),
            min_concurrency=number("min_concurrency", self.min_concurrency, int),
            requests_per_minute=optional_number("requests_per_minute", self.requests_per_minute, float),
            tokens_per_minute=optional_number("tokens_per_minute", self.tokens_per_minute, float),
            max_error_rate=optional_number("max_error_rate", self.max_error_rate, float),
            row_deadline=optional_number("row_deadline", self.row_deadline, float),
            max_rows=optional_number("max_rows", self.max_rows, int),
            max_seconds=optional_number("max_seconds", self.max_seconds, float),
            max_tokens=optional_number("max_tokens", self.max_tokens, int),
            on_progress=self._tell,
            **asked,
        )

    def _tell(self, progress: Progress) -> None:
        self.log.info("%s", progress.describe())
        self.store_progress(progress.model_dump(mode="json"))


def _check_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    choices = given.get("guidance")
    parameters = {
        "max_generated_token_count": optional_number(
            "max_generated_token_count", given.get("max_generated_token_count"), int
        ),
        "temperature": optional_number("temperature", given.get("temperature"), float),
        "top_k": optional_number("top_k", given.get("top_k"), int),
        "top_p": optional_number("top_p", given.get("top_p"), float),
    }
    guidance = None if choices is None else {"type": "choice", "value": list(choices)}
    build_request(CompleteRequest, query="-", guidance=guidance, **parameters)
    return {**parameters, "guidance": choices}
