"""A tuned adapter asked about rows that were held out, and scored: what tuning does between its epochs.

It stands above tuning, completions and evaluation, none of which knows another: the answers are a run of
completions, the score is a metric of evaluation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_gradient.api import MAX_GENERATED_TOKENS, GradientError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import RunUnfinishedError, complete_dataset
from airflow_provider_gradient.evaluation import evaluate
from airflow_provider_gradient.tuning import Validate


def generated_score(
    client: AsyncGradientClient, *, model_id: str, metric: str = "exact_match", concurrency: int = 32
) -> Validate:
    """What :func:`~airflow_provider_gradient.tuning.fine_tune` takes as ``validate``.

    The prompts are sent as they are, without the base model's template, and answered with the likeliest
    tokens, as many as the longest reference has bytes and some more.

    :param metric: of ``exact_match``, ``token_f1``, ``contains`` and what else
        :func:`~airflow_provider_gradient.evaluation.evaluate` knows; its mean is the score.
    :param concurrency: requests in flight at most.
    :raises EvaluationError: when it is called, if there is no such metric.
    :raises GradientError: when it is called, if rows were not answered: a score without them would be of
        other rows than the last.
    """

    async def validate(rows: Sequence[Mapping[str, Any]]) -> float:
        longest = max(len(str(row["reference"]).encode()) for row in rows)
        with tempfile.TemporaryDirectory(prefix="gradient-validation-") as folder:
            try:
                manifest = await complete_dataset(
                    client,
                    model_id=model_id,
                    dataset=rows,
                    prompt_column="prompt",
                    output_path=Path(folder) / "answers.jsonl",
                    concurrency=concurrency,
                    auto_template=False,
                    max_generated_token_count=min(MAX_GENERATED_TOKENS, longest + 8),
                    temperature=0,
                )
            except RunUnfinishedError as error:  # its remedy, the same call again, is not this one's
                raise _unanswered(error.manifest.left_over, error.manifest.rows) from error
            if manifest.counts.error:
                raise _unanswered(manifest.counts.error, manifest.rows)
            report = evaluate(manifest, reference_column="reference", metrics=[metric])
            return next(iter(report.metrics.values())).value

    return validate


def _unanswered(count: int, rows: int) -> GradientError:
    return GradientError(
        f"{count} of {rows} held-out rows were not answered; the run goes on from here when it is tried again"
    )
