"""Operators that ask a model: one query, or a whole dataset of prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.api import CompleteRequest, build_request
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    RowsField,
    check_at_least_one,
    literals,
    located,
    number,
    optional_number,
    work_identity,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.completions import CompletionManifest, Progress

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

    :param model_id: of a base model or an adapter.
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
        with self.hook.get_conn() as client:
            completion = client.complete(self.model_id, self.query, **self.parameters())
        return {"model_id": self.model_id, **completion.model_dump(mode="json")}


class GradientCompleteDatasetOperator(_CompletionOperator):
    """Completes every row of a dataset and writes a row for each, in the dataset's order.

    XCom: the completion manifest, a dict with the paths, the counts by status, tokens and seconds, which
    :class:`~airflow_provider_gradient.operators.evaluation.GradientEvaluateOperator` takes as it is. Rows
    never go through XCom. A journal beside the output holds the finished rows while the task runs: a retry
    asks only for the others. Rows that failed for good are counted, and the task fails only if all of them
    did.

    :param model_id: of a base model or an adapter.
    :param dataset: path or URL of a file, folder or glob: JSONL, CSV or Parquet
        (``s3://conn_id@bucket/key`` uses an Airflow connection); or rows, given inline or by an earlier task;
        or an earlier task's manifest.
    :param output_path: path or URL of the file to write, ``.jsonl`` or ``.parquet``. Failed rows are also in
        ``<stem>.errors.jsonl`` beside it.
    :param prompt_template: a langchain-core f-string template over the row's columns, such as
        ``"Question: {question}"``. It is rendered with Jinja first; write ``{% raw %}{{{% endraw %}`` for a
        brace that neither should touch.
    :param prompt_column: the column that holds the prompt; exactly one of the two is given.
    :param id_column: the column that names a row; its values must be unique.
    :param carry_columns: columns to copy to the output; ``None`` for all.
    :param concurrency: requests in flight at once, at most. The number adapts to what the server bears: it
        grows while the server answers and is cut where it refuses (429, 503) or doesn't answer in time.
    :param min_concurrency: requests in flight that are not cut further.
    :param requests_per_minute: requests sent in any minute at most; ``None`` for no limit.
    :param tokens_per_minute: tokens of prompts and completions a minute, on average, as the server reports
        them; ``None`` for no limit.
    :param max_error_rate: 0 to 1; the task fails early where a larger share of the last 100 rows has failed,
        and its retry goes on from the journal. ``None`` ends it only where the first 100 rows all fail; 1
        never does.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "model_id",
        "dataset",
        "output_path",
        "prompt_template",
        "prompt_column",
        "id_column",
        "carry_columns",
        "concurrency",
        "min_concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "max_error_rate",
        *_PARAMETER_FIELDS,
    )
    dataset = RowsField()

    def __init__(
        self,
        *,
        model_id: str,
        dataset: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        prompt_template: str | None = None,
        prompt_column: str | None = None,
        id_column: str | None = None,
        carry_columns: Sequence[str] | None = None,
        concurrency: int | str = 16,
        min_concurrency: int | str = 1,
        requests_per_minute: float | str | None = None,
        tokens_per_minute: float | str | None = None,
        max_error_rate: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_id = model_id
        self.dataset = dataset
        self.output_path = output_path
        self.prompt_template = prompt_template
        self.prompt_column = prompt_column
        self.id_column = id_column
        self.carry_columns = carry_columns
        self.concurrency = concurrency
        self.min_concurrency = min_concurrency
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.max_error_rate = max_error_rate
        if (prompt_template is None) == (prompt_column is None):
            raise ValueError("Give exactly one of prompt_template and prompt_column")
        check_at_least_one(
            concurrency=concurrency,
            min_concurrency=min_concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        if isinstance(max_error_rate, int | float) and not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate: must be a share from 0 to 1 (got {max_error_rate!r})")

    def execute(self, context: Context) -> dict[str, Any]:
        """The manifest, as a dict."""
        manifest = self.run_async(lambda client: self._complete(client, "/".join(work_identity(context))))
        counts = manifest.counts
        if manifest.all_failed:
            raise RuntimeError(f"Every one of the {manifest.rows} rows failed; see {manifest.errors_path}")
        self.log.info(
            "Wrote %s: %d completions, %d errors, %d invalid outputs in %.1f s",
            manifest.output_path,
            counts.success,
            counts.error,
            counts.invalid_output,
            manifest.seconds,
        )
        return manifest.to_dict()

    async def _complete(self, client: AsyncGradientClient, identity: str) -> CompletionManifest:
        from airflow_provider_gradient.completions import complete_dataset

        return await complete_dataset(
            client,
            model_id=self.model_id,
            dataset=located(self.dataset),
            output_path=located(self.output_path),
            prompt_template=self.prompt_template,
            prompt_column=self.prompt_column,
            id_column=self.id_column,
            carry_columns=self.carry_columns,
            concurrency=number("concurrency", self.concurrency, int),
            min_concurrency=number("min_concurrency", self.min_concurrency, int),
            requests_per_minute=optional_number("requests_per_minute", self.requests_per_minute, float),
            tokens_per_minute=optional_number("tokens_per_minute", self.tokens_per_minute, float),
            max_error_rate=optional_number("max_error_rate", self.max_error_rate, float),
            identity=identity,
            on_progress=self._tell,
            **self.parameters(),
        )

    def _tell(self, progress: Progress) -> None:
        left = progress.seconds_left
        failures = ", ".join(f"{type_} {count}" for type_, count in sorted(progress.failures.items()))
        self.log.info(
            "%d of %d rows, %d errors, %.1f rows/s, %d in flight, %s left%s",
            progress.done,
            progress.rows,
            progress.counts.error,
            progress.rows_per_second,
            progress.in_flight,
            "?" if left is None else timedelta(seconds=round(left)),
            f"; failed requests: {failures}" if failures else "",
        )


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
