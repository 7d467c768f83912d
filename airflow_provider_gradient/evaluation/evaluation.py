"""Completions in, a report out: metrics, comparison with a baseline, the gate's verdict, and the files."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from airflow_provider_gradient.datasets import (
    JSONL,
    PARQUET,
    Dataset,
    PathLike,
    StoredRows,
    as_path,
    check_output,
    dump_row,
    format_of,
    import_parquet,
    replacing,
)
from airflow_provider_gradient.evaluation.comparison import Pairs
from airflow_provider_gradient.evaluation.figures import ReportFigures
from airflow_provider_gradient.evaluation.gate import Rule, check_gate, judge, read_gate
from airflow_provider_gradient.evaluation.metrics import (
    MetricLike,
    PairwiseJudge,
    ServedMetric,
    read_metrics,
)
from airflow_provider_gradient.evaluation.metrics.served import Answers
from airflow_provider_gradient.evaluation.reading import Completions, Reasoning
from airflow_provider_gradient.evaluation.report import (
    EvaluationError,
    EvaluationReport,
)
from airflow_provider_gradient.evaluation.scores_file import scores_file
from airflow_provider_gradient.evaluation.scoring import Method, score

if TYPE_CHECKING:
    from airflow_provider_gradient.client import AsyncGradientClient

Baseline = Dataset | EvaluationReport
Served = Mapping[str, Sequence[float]]
"""Of each metric that a server was asked about, the score of each row."""


def evaluate(
    completions: Dataset,
    *,
    reference_column: str | None = None,
    metrics: Sequence[MetricLike] = ("exact_match",),
    output_path: PathLike | None = None,
    report_path: PathLike | None = None,
    page_path: PathLike | None = None,
    slice_columns: Sequence[str] = (),
    cluster_column: str | None = None,
    baseline: Baseline | None = None,
    gate: Sequence[Mapping[str, Any]] | None = None,
    reasoning: Reasoning = "auto",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> EvaluationReport:
    """Score every completion, and compare it with a baseline's if there is one.

    A row whose completion failed (status ``error`` or ``invalid_output``) has the worst score and is counted,
    so that a model gains nothing by failing on what is hard; one that was never asked (``not_run``) is
    counted and left out.

    :param completions: a run's manifest (also as a dict), or its rows or their path. Each row has ``output``
        and under ``row`` the columns of the input; where it has no ``row``, its own columns are taken.
    :param reference_column: holds the right answer, or a list of right answers of which the best match
        counts; needed by the metrics that compare with it.
    :param metrics: names, ``module:function``, or dicts with ``metric`` and settings; the first is the one
        that the page's headline and changed rows go by.
    :param output_path: where to write ``index, id, status, output, reference``, each metric and ``row`` of
        every row, as JSONL, or Parquet where it ends in ``.parquet``; ``None`` for nowhere.
    :param report_path: where to write the report as JSON; ``page_path``: as a page of HTML.
    :param slice_columns: by whose values the metrics are also given.
    :param cluster_column: rows with the same value in it belong together, such as questions on one text, and
        are drawn together in the bootstrap.
    :param baseline: another run over the same rows, paired by ``id``, or else by ``index``: its manifest,
        rows or path, or a report with per-row scores (also as a dict, or the path of its JSON).
    :param gate: rules, as :func:`~airflow_provider_gradient.evaluation.gate.read_gate` takes them.
    :param reasoning: what to do with reasoning such as ``<think>...</think>`` in front of an answer, in the
        completions and in the baseline. ``auto`` takes it off, and where a block is not closed, the answer is
        empty. ``opened`` is for a model whose template opens the block: an output that does not close it is
        empty, too. ``keep`` scores the whole output.
    :param confidence: of the intervals, between 0 and 1.
    :param resamples: of the bootstrap, at least 100.
    :param seed: of the bootstrap.
    :raises EvaluationError: a parameter is wrong, or a row has no usable reference, output or slice; or a
        metric asks a server, which is for :func:`evaluate_with_server`.
    :raises DatasetError: the rows can't be read, or a file can't be written.
    """
    plan = _plan(
        completions,
        baseline,
        reference_column=reference_column,
        metrics=metrics,
        output_path=output_path,
        report_path=report_path,
        page_path=page_path,
        slice_columns=slice_columns,
        cluster_column=cluster_column,
        gate=gate,
        reasoning=reasoning,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    if served := [metric.name for metric in plan.method.metrics if isinstance(metric, ServedMetric)]:
        raise EvaluationError(f"{served[0]}: asks a server; use evaluate_with_server")
    return _evaluate(plan, {}, {})


async def evaluate_with_server(
    client: AsyncGradientClient, completions: Dataset, *, baseline: Baseline | None = None, **settings: Any
) -> EvaluationReport:
    """:func:`evaluate`, with metrics that ask a server: ``embedding_similarity``, ``judge``,
    ``pairwise_judge``.

    :param settings: those of :func:`evaluate`.
    :raises ApiError: the server refuses what concerns every row: token, workspace, model.
    """
    import asyncio

    plan = await asyncio.to_thread(_plan, completions, baseline, **settings)
    served, served_baseline = await _ask(client, plan)
    return await asyncio.to_thread(_evaluate, plan, served, served_baseline)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for, checked."""

    completions: Completions
    baseline: Completions | None
    method: Method
    rules: Sequence[Rule]
    reference_column: str | None
    reasoning: Reasoning
    output_path: PathLike | None
    report_path: PathLike | None
    page_path: PathLike | None


def _plan(
    completions: Any,
    baseline: Any,
    *,
    reference_column: str | None = None,
    metrics: Sequence[MetricLike] = ("exact_match",),
    output_path: PathLike | None = None,
    report_path: PathLike | None = None,
    page_path: PathLike | None = None,
    slice_columns: Sequence[str] = (),
    cluster_column: str | None = None,
    gate: Sequence[Mapping[str, Any]] | None = None,
    reasoning: Reasoning = "auto",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Plan:
    if reasoning not in get_args(Reasoning):
        known = ", ".join(get_args(Reasoning))
        raise EvaluationError(f"reasoning: must be one of {known} (got {reasoning!r})")
    method = Method(
        metrics=read_metrics(metrics),
        slice_columns=_columns(slice_columns),
        cluster_column=cluster_column,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    _check(method, reference_column)
    rules = read_gate(gate) if gate is not None else []
    check_gate(
        rules,
        metrics={metric.name: metric.higher_is_better for metric in method.metrics},
        columns=method.slice_columns,
        has_baseline=baseline is not None,
    )
    how: dict[str, Any] = {"reference_column": reference_column, "reasoning": reasoning}
    rows = Completions(completions, name="completions", **how)
    other = None if baseline is None else Completions(baseline, name="baseline", **how)
    _check_outputs((rows, other), output_path=output_path, report_path=report_path, page_path=page_path)
    return Plan(
        completions=rows,
        baseline=other,
        method=method,
        rules=rules,
        reference_column=reference_column,
        reasoning=reasoning,
        output_path=output_path,
        report_path=report_path,
        page_path=page_path,
    )


async def _ask(client: AsyncGradientClient, plan: Plan) -> tuple[Served, Served]:
    """The scores of the metrics that ask a server, of the completions and of the baseline."""
    served: dict[str, Sequence[float]] = {}
    served_baseline: dict[str, Sequence[float]] = {}
    path = None if plan.output_path is None else as_path(plan.output_path)
    other = plan.baseline
    mine = Answers(
        read=plan.completions.examples,
        opponent=None if other is None else other.examples,
        output_path=path,
        part="",
    )
    for metric in plan.method.metrics:
        if isinstance(metric, PairwiseJudge):
            if other is not None:
                _check_same_order(plan.completions, other)
            served[metric.name] = await metric.ask(client, mine)
            served_baseline[metric.name] = [1.0 - score for score in served[metric.name]]
        elif isinstance(metric, ServedMetric):
            served[metric.name] = await metric.ask(client, mine)
            if other is not None:
                theirs = Answers(read=other.examples, opponent=None, output_path=path, part=".baseline")
                served_baseline[metric.name] = await metric.ask(client, theirs)
    return served, served_baseline


def _evaluate(plan: Plan, served: Served, served_baseline: Served) -> EvaluationReport:
    method = plan.method
    with _scores(plan) as file:
        scored = score(
            plan.completions,
            method,
            served=served,
            keyed=plan.baseline is not None or plan.page_path is not None,
            on_row=file and file.write,
        )
        pairs = comparison = None
        if plan.baseline is not None:
            # The completions' own rows say which slice and cluster a row is in.
            plain = replace(method, slice_columns=(), cluster_column=None)
            pairs = Pairs(scored, score(plan.baseline, plain, served=served_baseline), method)
            comparison = pairs.compare(plan.baseline.source)
        figures = ReportFigures(scored, method, pairs, comparison)
        report = EvaluationReport(
            source=plan.completions.source,
            model_id=scored.model_id,
            reference_column=plan.reference_column,
            confidence=method.confidence,
            resamples=method.resamples,
            seed=method.seed,
            cluster_column=method.cluster_column,
            settings={
                metric.name: metric.model_dump(mode="json", by_alias=True) for metric in method.metrics
            },
            rows=len(scored.scores),
            counts=scored.counts,
            reasoning=plan.reasoning,
            reasoned=scored.reasoned,
            unanswered=scored.unanswered,
            metrics=figures.metrics,
            slices=figures.by_slice,
            confusion=scored.confusion,
            comparison=comparison,
            gate=judge(plan.rules, figures) if plan.rules else None,
            scores_path=None if plan.output_path is None else str(plan.output_path),
            report_path=None if plan.report_path is None else str(plan.report_path),
            page_path=None if plan.page_path is None else str(plan.page_path),
        )
    if plan.page_path is not None:
        from airflow_provider_gradient.evaluation.page import write_page
        from airflow_provider_gradient.evaluation.shown_rows import SHOWN_ROWS, rows_to_show

        changed = {} if pairs is None else pairs.most_changed(method.metrics[0], most=SHOWN_ROWS)
        shown = changed if pairs is not None else scored.lowest(method, method.metrics[0], most=SHOWN_ROWS)
        write_page(
            plan.page_path,
            report,
            rows_to_show(plan.completions, plan.baseline, shown, method.slice_columns),
            higher_is_better=method.metrics[0].higher_is_better,
        )
    if plan.report_path is not None:
        with replacing(plan.report_path) as target:
            target.write(dump_row(report.to_dict()))
    return report


@contextlib.contextmanager
def _scores(plan: Plan) -> Iterator[Any]:
    if plan.output_path is None:
        yield None
    else:
        with scores_file(plan.output_path, plan.method.metrics) as file:
            yield file


def _columns(columns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str):
        raise EvaluationError(f"slice_columns: a list of columns is needed, not the text {columns!r}")
    return tuple(dict.fromkeys(columns))


def _check(method: Method, reference_column: str | None) -> None:
    if not 0 < method.confidence < 1:
        raise EvaluationError(f"confidence must be between 0 and 1 (got {method.confidence!r})")
    if method.resamples < 100:
        raise EvaluationError(f"resamples must be at least 100 (got {method.resamples!r})")
    if method.seed < 0:
        raise EvaluationError(f"seed must be 0 or more (got {method.seed!r})")
    for metric in method.metrics:
        if metric.needs_reference and reference_column is None:
            raise EvaluationError(f"reference_column: the metric {metric.name} compares with it; give one")


def _check_outputs(
    read: tuple[Completions, Completions | None],
    *,
    output_path: PathLike | None,
    report_path: PathLike | None,
    page_path: PathLike | None,
) -> None:
    """Refuse names by which a file would be read as what it is not, and to write over what is read."""
    if output_path is not None:
        check_output(as_path(output_path), JSONL, PARQUET)
        if format_of(as_path(output_path).name) is PARQUET:
            import_parquet()
    for name, path, ending in (("report_path", report_path, ".json"), ("page_path", page_path, ".html")):
        if path is not None and not as_path(path).name.endswith(ending):
            raise EvaluationError(f"{name}: let the name end in {ending} (got {path})")
    if output_path is None:
        return
    for name, rows in zip(("completions", "baseline"), read, strict=True):
        if (
            rows is not None
            and isinstance(rows.rows, StoredRows)
            and rows.rows.is_fed_by(as_path(output_path))
        ):
            raise EvaluationError(f"output_path {output_path} holds the {name}, which it would replace")


def _check_same_order(completions: Completions, baseline: Completions) -> None:
    """Questions on pairs are made in one pass over both runs."""
    keys = ((row.key for row in run) for run in (completions, baseline))
    if any(mine != theirs for mine, theirs in itertools.zip_longest(*keys)):
        raise EvaluationError("baseline: pairwise judging needs the same rows in the same order")
