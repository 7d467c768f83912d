"""A run split into runs over shards: what each of them is given, so that together they are the whole.

Each shard has an output of its own beside the final one and thereby a journal of its own: what interrupts one
shard is resumed by it alone. What bounds the sending of the whole is shared out among the shards that may run
at once, so that together they never exceed it.
"""

from __future__ import annotations

from typing import Any, cast

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.completions.former_names import adopt_former_shards
from airflow_provider_gradient.completions.pacing import SendingLimits
from airflow_provider_gradient.completions.preparation import open_for
from airflow_provider_gradient.datasets import (
    Dataset,
    DatasetError,
    PathLike,
    StoredPath,
    StoredRows,
    as_path,
    beside,
    plan_shards,
)


def plan_runs(
    dataset: Dataset,
    *,
    output_path: PathLike,
    shards: int,
    max_parallel_shards: int | None = None,
    concurrency: int = 16,
    min_concurrency: int = 1,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> list[dict[str, Any]]:
    """Arguments of :func:`~airflow_provider_gradient.completions.complete_dataset` for each shard of
    ``dataset``; the manifests go to :func:`~airflow_provider_gradient.completions.merge_completions`.

    They are ``dataset``, ``output_path`` (``<output>.shards/00003.jsonl`` beside the merged output, JSONL
    always) and the four that bound the sending.

    :param dataset: as :func:`~airflow_provider_gradient.datasets.plan_shards` takes it.
    :param output_path: of the merged output, ``.jsonl`` or ``.parquet``.
    :param shards: at most; the dataset may give fewer.
    :param max_parallel_shards: how many of them are run at once; ``None`` for all.
    :param concurrency: of all shards together that run at once, like the ones after it.
    :raises DatasetError: as :func:`~airflow_provider_gradient.datasets.plan_shards`; or the output can't be
        written, or would be a part of the dataset.
    :raises InvalidRequestError: a limit is out of range, or is less than 1 for each shard that runs at once.
    """
    limits = SendingLimits(
        concurrency=concurrency,
        min_concurrency=min_concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    if max_parallel_shards is not None and max_parallel_shards < 1:
        raise InvalidRequestError(f"max_parallel_shards: at least 1 is needed (got {max_parallel_shards})")
    output = as_path(output_path)
    opened = open_for(dataset, output)
    if isinstance(opened, StoredRows) and opened.is_fed_by(shard_path(output, 0)):
        raise DatasetError(
            f"{shard_path(output, 0)}, which a shard would write, is in the dataset: choose another "
            "output_path"
        )
    plan = plan_shards(opened, shards=shards)
    adopt_former_shards(output, shard_path(output, 0).parent)
    parallel = min(len(plan), max_parallel_shards or len(plan))
    return [
        {"dataset": shard, "output_path": shard_path(output, shard.number)}
        | share(limits, number=shard.number, parallel=parallel)
        for shard in plan
    ]


def shard_path(output: StoredPath, number: int) -> StoredPath:
    """Where the output of a shard stands whose merged output is ``output``."""
    return cast(StoredPath, beside(output, ".shards") / f"{number:05}.jsonl")


def most_parallel(limits: SendingLimits) -> int:
    """How many shards may run at once if each is to have at least 1 of everything."""
    rates = [rate for rate in (limits.requests_per_minute, limits.tokens_per_minute) if rate is not None]
    return int(min([limits.concurrency, *rates]))


def share(limits: SendingLimits, *, number: int, parallel: int) -> dict[str, Any]:
    """What of ``limits`` is shard ``number``'s; that of any ``parallel`` shards together is no more than the
    whole, and of the first ``parallel`` just the whole, but for ``min_concurrency``, which is at least 1.

    :raises InvalidRequestError: a shard would have less than 1 of something.
    """
    if parallel > most_parallel(limits):
        raise InvalidRequestError(
            f"max_parallel_shards: at most {most_parallel(limits)}: each of {parallel} shards that run at "
            "once would have less than 1 of concurrency, requests_per_minute or tokens_per_minute"
        )

    def whole(total: int) -> int:
        return total // parallel + (number < total % parallel)

    def rate(total: float | None) -> float | None:
        return None if total is None else total / parallel

    return {
        "concurrency": whole(limits.concurrency),
        "min_concurrency": max(1, whole(limits.min_concurrency)),
        "requests_per_minute": rate(limits.requests_per_minute),
        "tokens_per_minute": rate(limits.tokens_per_minute),
    }
