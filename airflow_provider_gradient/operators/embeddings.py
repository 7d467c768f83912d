"""The operator that embeds a whole dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.lineage import Lineage, Touched, dataset_uri, embeddings_lineage
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    RowsField,
    check_at_least_one,
    located,
    number,
    work_identity,
)
from airflow_provider_gradient.operators.lineage import TellsLineage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.completions import Progress
    from airflow_provider_gradient.datasets import TemplateFormat
    from airflow_provider_gradient.embeddings import EmbeddingManifest


class GradientEmbedDatasetOperator(TellsLineage, GradientOperator):
    """Embeds a text of every row of a dataset; the vectors stand in the dataset's order.

    XCom: the embedding manifest, a dict with the paths, the counts by status, the vectors' dimensions and
    seconds. Vectors never go through XCom. A journal beside the output holds the finished batches while the
    task runs: a retry asks only for the others. The task succeeds when every row has its vector or an error
    of its own, such as a refusal, unless all of them have. Where rows failed for a reason that may pass (no
    answer, 429, 5xx) it fails, with the output written and the journal kept, and its retry, or the task
    cleared, sends just these. An output of another task or map index of the same DAG run is refused.

    :param model: slug of an embeddings model, such as ``bge-large``.
    :param dataset: path or URL of a file, folder or glob: JSONL, CSV or Parquet
        (``s3://conn_id@bucket/key`` uses an Airflow connection); or rows, given inline or by an earlier task;
        or an earlier task's manifest.
    :param output_path: path or URL of the file to write, ``.parquet`` or ``.jsonl``. Failed rows are also in
        ``<output_path>.errors.jsonl`` beside it.
    :param text_column: the column that holds the text.
    :param text_template: a langchain-core template over the row's columns, such as ``"{title}: {body}"``.
        Airflow renders it with Jinja first. Exactly one of these two is given.
    :param text_template_format: ``f-string``, ``mustache`` or ``jinja2`` (sandboxed).
    :param id_column: the column that names a row; its values must be unique.
    :param carry_columns: columns to copy to the output; ``None`` for all.
    :param batch_size: texts a request, 1 to 256.
    :param concurrency: requests in flight at once, at most; the number adapts to what the server bears.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "model",
        "dataset",
        "output_path",
        "text_column",
        "text_template",
        "id_column",
        "carry_columns",
        "batch_size",
        "concurrency",
    )
    dataset = RowsField()

    def __init__(
        self,
        *,
        model: str,
        dataset: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        text_column: str | None = None,
        text_template: str | None = None,
        text_template_format: TemplateFormat = "f-string",
        id_column: str | None = None,
        carry_columns: Sequence[str] | None = None,
        batch_size: int | str = 64,
        concurrency: int | str = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.dataset = dataset
        self.output_path = output_path
        self.text_column = text_column
        self.text_template = text_template
        self.text_template_format = text_template_format
        self.id_column = id_column
        self.carry_columns = carry_columns
        self.batch_size = batch_size
        self.concurrency = concurrency
        if (text_column is None) == (text_template is None):
            raise ValueError("Give exactly one of text_column and text_template")
        check_at_least_one(batch_size=batch_size, concurrency=concurrency)

    def execute(self, context: Context) -> dict[str, Any]:
        """The manifest, as a dict."""
        identity = "/".join(work_identity(context))
        manifest = self.run_async(lambda client: self._embed(client, identity))
        read = [Touched(uri=each.uri, rows=manifest.rows) for each in self.planned_lineage().inputs]
        self.tell_lineage(context, embeddings_lineage(manifest, read=read))
        if manifest.all_failed:
            raise RuntimeError(f"Every one of the {manifest.rows} rows failed; see {manifest.errors_path}")
        self.log.info(
            "Wrote %s: %d vectors, %d errors in %.1f s",
            manifest.output_path,
            manifest.counts.success,
            manifest.counts.error,
            manifest.seconds,
        )
        return manifest.to_dict()

    def planned_lineage(self) -> Lineage:
        """The dataset, and the output."""
        return Lineage.of_uris([dataset_uri(self.dataset)], [dataset_uri(self.output_path)])

    async def _embed(self, client: AsyncGradientClient, identity: str) -> EmbeddingManifest:
        from airflow_provider_gradient.embeddings import embed_dataset

        return await embed_dataset(
            client,
            model=self.model,
            dataset=located(self.dataset),
            output_path=located(self.output_path),
            text_column=self.text_column,
            text_template=self.text_template,
            text_template_format=self.text_template_format,
            id_column=self.id_column,
            carry_columns=self.carry_columns,
            batch_size=number("batch_size", self.batch_size, int),
            concurrency=number("concurrency", self.concurrency, int),
            identity=identity,
            on_progress=self._tell,
        )

    def _tell(self, progress: Progress) -> None:
        self.log.info("%s", progress.describe())
