"""The lineage of each kind of run, made of the manifest, report or promotion that it left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_gradient.lineage.touched import Assertion, Lineage, Touched
from airflow_provider_gradient.lineage.uris import model_uri, path_uri

if TYPE_CHECKING:
    from airflow_provider_gradient.completions import CompletionManifest
    from airflow_provider_gradient.embeddings import EmbeddingManifest
    from airflow_provider_gradient.evaluation import EvaluationReport
    from airflow_provider_gradient.registry import Promotion
    from airflow_provider_gradient.tuning import TuningReport


def completions_lineage(
    manifest: CompletionManifest, *, read: Sequence[Touched], models: Sequence[str] = ()
) -> Lineage:
    """Of completions over a dataset, or of their merge.

    :param read: the dataset, or the outputs that were merged.
    :param models: URIs of the model, and of the alias that named it.
    """
    counts = manifest.counts
    return Lineage(
        inputs=[*read, *(Touched(uri=uri) for uri in models)],
        outputs=[
            Touched(
                uri=path_uri(manifest.output_path), rows=manifest.rows, size=manifest.output_bytes or None
            ),
            *_written(manifest.errors_path, rows=manifest.rows - counts.success),
        ],
        figures={
            "kind": "completions",
            "model_id": manifest.model_id,
            "model_version": manifest.model_version,
            "rows": manifest.rows,
            **counts.model_dump(),
            "prompt_tokens": manifest.prompt_tokens,
            "completion_tokens": manifest.completion_tokens,
            "attempts": manifest.attempts,
            "seconds": round(manifest.seconds, 3),
            "fingerprint": manifest.fingerprint,
        },
        parameters=manifest.parameters,
    )


def embeddings_lineage(manifest: EmbeddingManifest, *, read: Sequence[Touched]) -> Lineage:
    """Of the embeddings of a dataset."""
    return Lineage(
        inputs=read,
        outputs=[
            Touched(uri=path_uri(manifest.output_path), rows=manifest.rows, size=manifest.output_bytes),
            *_written(manifest.errors_path, rows=manifest.counts.error),
        ],
        figures={
            "kind": "embeddings",
            "model": manifest.model,
            "dimensions": manifest.dimensions,
            "rows": manifest.rows,
            **manifest.counts.model_dump(),
            "requests": manifest.requests,
            "seconds": round(manifest.seconds, 3),
            "fingerprint": manifest.fingerprint,
        },
    )


def evaluation_lineage(report: EvaluationReport, *, completions: str | None, baseline: str | None) -> Lineage:
    """Of an evaluation.

    :param completions: URI of what was scored, if it has one.
    :param baseline: URI of what it was compared with.
    """
    rows = report.rows + report.excluded
    gate = report.gate
    assertions = [
        Assertion(
            rule=str(result.rule.get("rule")),
            column=result.rule.get("metric"),
            success=result.verdict == "pass",
            reason=result.reason,
        )
        for result in (gate.rules if gate is not None else ())
    ]
    scored = [] if completions is None else [Touched(uri=completions, rows=rows, assertions=assertions)]
    compared = [] if baseline is None else [Touched(uri=baseline)]
    columns = {name: metric.n for name, metric in report.metrics.items()}
    return Lineage(
        inputs=[*scored, *compared],
        outputs=[
            *_written(report.report_path),
            *_written(report.scores_path, rows=report.rows, column_counts=columns),
            *_written(report.page_path),
        ],
        figures={
            "kind": "evaluation",
            "model_id": report.model_id,
            "rows": report.rows,
            "metrics": {
                name: metric.model_dump(include={"value", "standard_error", "low", "high", "n"})
                for name, metric in report.metrics.items()
            },
            "verdict": None if gate is None else gate.verdict,
        },
        parameters={"confidence": report.confidence, "resamples": report.resamples, "seed": report.seed},
    )


def tuning_lineage(report: TuningReport, *, read: Sequence[str | None], workspace_id: str) -> Lineage:
    """Of a fine-tune: from its samples to its adapter.

    :param read: URIs of the samples, and of the other rows it was given; ``None`` of those without one.
    """
    samples, *others = read
    adapter = [] if report.status == "estimated" else [Touched(uri=model_uri(workspace_id, report.model_id))]
    return Lineage(
        inputs=[
            *([] if samples is None else [Touched(uri=samples, rows=report.rows.rows)]),
            *(Touched(uri=uri) for uri in others if uri is not None),
        ],
        outputs=adapter,
        figures={
            "kind": "tuning",
            "model_id": report.model_id,
            "status": report.status,
            "samples": report.samples,
            "calls": len(report.call_results),
            "trainable_tokens": report.trainable_tokens,
            "epoch_losses": report.epoch_losses,
            "epoch_scores": [each.score for each in report.epoch_scores],
            "seconds": round(report.seconds, 3),
            "fingerprint": report.fingerprint,
        },
        parameters={"epochs": report.epochs, "batch_size": report.batch_size, "seed": report.seed},
    )


def promotion_lineage(promotion: Promotion, *, workspace_id: str) -> Lineage:
    """Of a promotion or a rollback: from the adapter, and the report that spoke for it, to the alias."""
    evaluation = promotion.evaluation or {}
    report = evaluation.get("report_path") or evaluation.get("scores_path")
    return Lineage(
        inputs=[Touched(uri=model_uri(workspace_id, promotion.model_id)), *_written(report)],
        outputs=[Touched(uri=model_uri(workspace_id, promotion.alias))],
        figures={
            "kind": "promotion",
            "alias": promotion.alias,
            "version": promotion.version,
            "model_id": promotion.model_id,
            "rollback_to": promotion.rollback_to,
            "metrics": evaluation.get("metrics"),
            "report": report,
        },
    )


def _written(path: str | None, **figures: Any) -> list[Touched]:
    return [] if path is None else [Touched(uri=path_uri(path), **figures)]
