"""A report as one page of HTML that needs nothing but itself: no network, and no script to be read.

All that comes from data goes through Jinja's escaping; what is not escaped are the charts, whose text
matplotlib escapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow_provider_gradient.datasets import PathLike, replacing
from airflow_provider_gradient.evaluation.charts import Mark, chart
from airflow_provider_gradient.evaluation.report import Difference, EvaluationReport, MetricValue
from airflow_provider_gradient.evaluation.shown_rows import SHOWN_ROWS, ShownRow

_CHARTED_SLICES = 30
"""Slices of a column in its picture; the table has all."""


def write_page(
    path: PathLike, report: EvaluationReport, rows: Sequence[ShownRow], *, higher_is_better: bool | None
) -> None:
    """Write the page to ``path``.

    :param rows: to show; with a baseline those whose first metric's score changed.
    :param higher_is_better: of the first metric.
    :raises EvaluationError: matplotlib isn't installed.
    :raises DatasetError: the path can't be written.
    """
    page = render_page(report, rows, higher_is_better=higher_is_better)
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))


def render_page(
    report: EvaluationReport, rows: Sequence[ShownRow], *, higher_is_better: bool | None = True
) -> str:
    """The page's HTML; parameters as in :func:`write_page`."""
    first = next(iter(report.metrics), None)
    comparison = report.comparison
    changed = comparison.metrics.get(first) if comparison and first else None
    shares = _are_shares(report)
    columns = report.slices if first else ()
    page: str = _template().render(
        report=report,
        first=first,
        changed=changed,
        rows=rows,
        shown_rows=SHOWN_ROWS,
        sign=-1 if higher_is_better is False else 1,
        direction="" if higher_is_better is None else "better",
        metrics_chart=_metrics_chart(report, shares),
        slice_charts={column: _slice_chart(report, column, str(first)) for column in columns},
        difference_chart=_difference_chart(report, shares),
        scores_link=_scores_link(report),
    )
    return page


def _are_shares(report: EvaluationReport) -> list[str]:
    """The metrics that fit one axis: those from -1 to 1."""
    return [name for name, value in report.metrics.items() if value.low >= -1 and value.high <= 1]


def _changes(report: EvaluationReport) -> Mapping[str, Difference]:
    return report.comparison.metrics if report.comparison else {}


def _marks(found: MetricValue, change: Difference | None) -> list[Mark]:
    """This run's value with its interval, and the baseline's."""
    marks = [Mark(value=found.value, low=found.low, high=found.high)]
    if change is not None:
        marks.append(Mark(value=change.baseline, low=change.baseline, high=change.baseline, is_old=True))
    return marks


def _metrics_chart(report: EvaluationReport, names: Sequence[str]) -> str | None:
    rows = [(name, _marks(report.metrics[name], _changes(report).get(name))) for name in names]
    return chart(rows, title="Metrics with their intervals") if rows else None


def _slice_chart(report: EvaluationReport, column: str, first: str) -> str | None:
    parts = list(report.slices[column].items())[:_CHARTED_SLICES]
    comparison = report.comparison
    changes = comparison.slices[column] if comparison else {}
    rows = [(name, _marks(found[first], changes.get(name, {}).get(first))) for name, found in parts]
    title = f"{first} by slice column {list(report.slices).index(column) + 1}"
    return chart(rows, title=title) if rows else None


def _difference_chart(report: EvaluationReport, names: Sequence[str]) -> str | None:
    if report.comparison is None:
        return None
    found: list[tuple[str, Difference]] = [
        (name, each) for name, each in report.comparison.metrics.items() if name in names
    ]
    rows = [(name, [Mark(value=each.difference, low=each.low, high=each.high)]) for name, each in found]
    return chart(rows, title="Differences from the baseline", zero=True) if rows else None


@cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["figure"] = _figure
    environment.filters["chance"] = _chance
    environment.filters["signed"] = lambda value: _figure(value, sign="+")
    return environment.get_template("page.html")


def _figure(value: float | None, sign: str = "") -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:{sign}.4g}" if abs(value) > 10 else f"{value:{sign}.3f}"


def _chance(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _scores_link(report: EvaluationReport) -> str | None:
    """The per-row scores as the page links to them, where both are in one folder."""
    if report.scores_path is None or report.page_path is None:
        return None
    folder, _, name = report.scores_path.rpartition("/")
    return quote(name) if report.page_path.rpartition("/")[0] == folder else None
