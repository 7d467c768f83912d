"""A dataset completed in shards: planned, run as mapped tasks on whatever executor there is, merged.

Each mapped task is a :class:`~.completions.GradientCompleteDatasetOperator` like any other: its retry goes on
from the journal of its own shard, and the other shards notice nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup

from airflow_provider_gradient.lineage import Lineage, Touched, completions_lineage, dataset_uri, path_uri
from airflow_provider_gradient.operators.base import (
    RowsField,
    TakesPaths,
    check_at_least_one,
    located,
    number,
    optional_number,
    work_identity,
)
from airflow_provider_gradient.operators.completions import GradientCompleteDatasetOperator
from airflow_provider_gradient.operators.lineage import TellsLineage
from airflow_provider_gradient.operators.on_page import OnGradientPage

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

_LIMIT_FIELDS = ("concurrency", "min_concurrency", "requests_per_minute", "tokens_per_minute")


class GradientPlanShardsOperator(TakesPaths):
    """Cuts a dataset into shards of about as many bytes each, without reading all of it.

    XCom: a list with the arguments of
    :class:`~airflow_provider_gradient.operators.completions.GradientCompleteDatasetOperator` for each shard:
    ``dataset``, the shard, which is paths and places and no rows; ``output_path``,
    ``<output>.shards/00003.jsonl`` beside the final output; and its share of the four limits. It is
    made for ``.partial(...).expand_kwargs(plan.output)``.

    :param dataset: path or URL of a file, folder or glob, or an earlier task's manifest; no rows. CSV and
        compressed files are not split but distributed.
    :param output_path: path or URL of the final output, ``.jsonl`` or ``.parquet``.
    :param shards: at most; the dataset may give fewer.
    :param max_parallel_shards: how many of them run at once, as ``max_active_tis_per_dagrun`` of the mapped
        operator says; ``None`` for all.
    :param concurrency: of all shards together that run at once; likewise ``min_concurrency``,
        ``requests_per_minute`` and ``tokens_per_minute``.
    """

    template_fields: Sequence[str] = (
        "dataset",
        "output_path",
        "shards",
        "max_parallel_shards",
        *_LIMIT_FIELDS,
    )
    dataset = RowsField()

    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        dataset: Mapping[str, Any] | str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        shards: int | str,
        max_parallel_shards: int | str | None = None,
        concurrency: int | str = 16,
        min_concurrency: int | str = 1,
        requests_per_minute: float | str | None = None,
        tokens_per_minute: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.output_path = output_path
        self.shards = shards
        self.max_parallel_shards = max_parallel_shards
        self.concurrency = concurrency
        self.min_concurrency = min_concurrency
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        check_at_least_one(
            shards=shards,
            max_parallel_shards=max_parallel_shards,
            concurrency=concurrency,
            min_concurrency=min_concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """The arguments of each shard's run."""
        from airflow_provider_gradient.completions import plan_runs

        runs = plan_runs(
            located(self.dataset),
            output_path=located(self.output_path),
            shards=number("shards", self.shards, int),
            max_parallel_shards=optional_number("max_parallel_shards", self.max_parallel_shards, int),
            concurrency=number("concurrency", self.concurrency, int),
            min_concurrency=number("min_concurrency", self.min_concurrency, int),
            requests_per_minute=optional_number("requests_per_minute", self.requests_per_minute, float),
            tokens_per_minute=optional_number("tokens_per_minute", self.tokens_per_minute, float),
        )
        self.log.info("%d shards of %s", len(runs), runs[0]["dataset"].source)
        return [
            run | {"dataset": run["dataset"].to_dict(), "output_path": str(run["output_path"])}
            for run in runs
        ]


class GradientMergeCompletionsOperator(OnGradientPage, TellsLineage, TakesPaths):
    """Puts the outputs of all shards together into the one that a single run over the dataset would have
    written, latencies aside.

    XCom: the completion manifest of the whole. The task fails if every row of every shard failed, or a shard
    is not finished. Run again, it sends nothing: what it merged it finds, and after a failure the shards'
    outputs are there still.

    :param shards: the manifests of the mapped runs, ``completions.output``.
    :param output_path: path or URL of the file to write, the one that the shards were planned for.
    :param keep_shards: ``False`` deletes the shards' outputs once the merged manifest is written. A shard's
        task that is cleared after that sends all its rows again.
    """

    template_fields: Sequence[str] = ("shards", "output_path")

    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        shards: Sequence[Mapping[str, Any]] | XComArg,
        output_path: str | os.PathLike[str],
        keep_shards: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shards: Any = shards
        self.output_path = output_path
        self.keep_shards = keep_shards

    def execute(self, context: Context) -> dict[str, Any]:
        """The manifest, as a dict."""
        from airflow_provider_gradient.completions import merge_completions

        shards = list(self.shards[:])  # of an XCom: all in one request
        manifest = merge_completions(
            shards,
            output_path=located(self.output_path),
            identity="/".join(work_identity(context)),
            keep_shards=self.keep_shards,
            locate=located,
        )
        read = [
            Touched(uri=path_uri(shard["output_path"]), rows=shard["rows"], size=shard["output_bytes"])
            for shard in shards
        ]
        self.tell_lineage(context, completions_lineage(manifest, read=read))
        if manifest.all_failed:
            raise RuntimeError(f"Every one of the {manifest.rows} rows failed; see {manifest.errors_path}")
        return manifest.to_dict()

    def planned_lineage(self) -> Lineage:
        """The output; of the shards, an XCom would have to be asked."""
        return Lineage.of_uris([], [dataset_uri(self.output_path)])


def complete_dataset_in_shards(
    *,
    group_id: str,
    dataset: Mapping[str, Any] | str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    shards: int = 16,
    max_parallel_shards: int | None = None,
    concurrency: int = 16,
    min_concurrency: int = 1,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    keep_shards: bool = True,
    **operator_arguments: Any,
) -> XComArg:
    """A task group that completes a dataset in shards: ``plan``, a mapped ``complete``, ``merge``.

    :param group_id: of the task group.
    :param dataset: as :class:`GradientPlanShardsOperator` takes it.
    :param output_path: of the merged output; ``.jsonl`` or ``.parquet``.
    :param shards: at most.
    :param max_parallel_shards: run at once at most; ``None`` for all, but no more than leaves each a
        concurrency and rates of at least 1.
    :param concurrency: requests in flight of all shards together, at most; likewise the limits after it.
    :param keep_shards: as :class:`GradientMergeCompletionsOperator` has it.
    :param operator_arguments: of the mapped
        :class:`~airflow_provider_gradient.operators.completions.GradientCompleteDatasetOperator`, such as
        ``model_id``, ``prompt_template``, ``retries`` and ``pool``.
    :return: the manifest of the whole, as the operator without shards gives it by XCom.
    :raises InvalidRequestError: a limit is out of range.
    """
    limits: dict[str, Any] = {
        "concurrency": concurrency,
        "min_concurrency": min_concurrency,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
    }
    check_at_least_one(shards=shards, max_parallel_shards=max_parallel_shards, **limits)
    least = min(total for name, total in limits.items() if total is not None and name != "min_concurrency")
    parallel = int(min(shards, max_parallel_shards or shards, least))
    with TaskGroup(group_id):
        plan = GradientPlanShardsOperator(
            task_id="plan",
            dataset=dataset,
            output_path=output_path,
            shards=shards,
            max_parallel_shards=parallel,
            **limits,
        )
        completions = GradientCompleteDatasetOperator.partial(
            task_id="complete", max_active_tis_per_dagrun=parallel, **operator_arguments
        ).expand_kwargs(plan.output)
        merge = GradientMergeCompletionsOperator(
            task_id="merge", shards=completions.output, output_path=output_path, keep_shards=keep_shards
        )
    return merge.output
