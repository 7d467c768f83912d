"""Pictures of the page as SVG: few shapes, coloured by its style, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

from airflow_provider_gradient.plugins.records import Record

WIDTH, HEIGHT, _EDGE = 360, 130, 16
"""Of a picture, in its own units; the page scales it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A metric's value with its interval, 0 or more, and the evaluation it is of."""

    when: datetime
    value: float
    low: float
    high: float
    record: Record


@dataclass(kw_only=True)
class Series:
    """One metric of one task over time, oldest first."""

    dag_id: str
    task_id: str
    metric: str
    points: list[Point] = field(default_factory=list)


def evaluation_series(evaluations: Iterable[Record]) -> list[Series]:
    """The metrics of ``evaluations``, the latest first, by DAG, task and metric."""
    found: dict[tuple[str, str, str], Series] = {}
    for record in evaluations:
        for metric, about in _metrics(record.fields).items():
            key = (record.dag_id, record.task_id, metric)
            series = found.setdefault(key, Series(dag_id=key[0], task_id=key[1], metric=key[2]))
            value, low, high = (about.get(name) for name in ("value", "low", "high"))
            if not record.start or not all(isinstance(each, int | float) for each in (value, low, high)):
                continue
            point = Point(when=record.start, value=value, low=low, high=high, record=record)  # type: ignore[arg-type]
            series.points.insert(0, point)
    return [series for series in found.values() if series.points]


def error_bars(points: Sequence[Point]) -> Markup:
    """The values from left to right, each with its interval; the axis goes from 0 to 1, or to the highest."""
    top = max([1.0, *(point.high for point in points)])
    shapes = [_axis(top)]
    for number, point in enumerate(points):
        x = _across(number, len(points))
        low, high, value = (_up(each / top) for each in (point.low, point.high, point.value))
        label = escape(f"{point.record.run_id}: {point.value:.3f} ({point.low:.3f} to {point.high:.3f})")
        shapes.append(
            Markup(
                '<g><title>{}</title><line class="bar" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<circle cx="{:.1f}" cy="{:.1f}" r="3"/></g>'
            ).format(label, x, x, low, high, x, value)
        )
    return _picture(shapes, "values with their intervals")


def loss_curve(losses: Sequence[float]) -> Markup:
    """The losses of a run's calls, in their order; the axis goes from 0 to the largest."""
    top = max(losses, default=0.0) or 1.0
    at = [(_across(n, len(losses)), _up(loss / top)) for n, loss in enumerate(losses)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return _picture([_axis(top), Markup('<polyline points="{}"/>').format(line)], "loss by call")


def losses_of(report: Mapping[str, Any]) -> list[float]:
    """The mean losses of the calls of a tuning report."""
    calls = report.get("call_results")
    found = (
        [call.get("mean_loss") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    return [loss for loss in found if isinstance(loss, int | float)]


def _metrics(report: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    metrics = (report or {}).get("metrics")
    if not isinstance(metrics, dict):
        return {}
    return {name: about for name, about in metrics.items() if isinstance(about, dict)}


def _across(number: int, count: int) -> float:
    return _EDGE * 2 + (WIDTH - 3 * _EDGE) * ((number + 0.5) / max(1, count))


def _up(share: float) -> float:
    return HEIGHT - _EDGE - (HEIGHT - 2 * _EDGE) * min(1.0, max(0.0, share))


def _axis(top: float) -> Markup:
    digits = 2 if top < 10 else 0  # the labels have room for four characters
    lines = ((f"{top:.{digits}f}", 1.0), (f"{top / 2:.{digits}f}", 0.5), ("0", 0.0))
    return Markup("").join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}">{}</text>'
        ).format(_EDGE * 2, WIDTH - _EDGE, _up(at), _up(at), _EDGE * 2 - 6, _up(at) + 4, label)
        for label, at in lines
    )


def _picture(shapes: Sequence[Markup], description: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, description, Markup("").join(shapes)
    )
