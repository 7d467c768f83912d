"""Figures as SVG, drawn by matplotlib when a page is written, so that the page needs no code to show them.

Text stays text, and colours are CSS variables of the page, so that a figure is light or dark as the page is.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.evaluation.report import EvaluationError

_INK, _FAINT, _NEW, _OLD = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _NEW: "--new", _OLD: "--old"}
_WIDTH = 5.2
"""In inches of 72 points, narrow enough to be read on a phone."""
_LABEL = 26


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value with its interval.

    :ivar is_old: whether it is the baseline's.
    """

    value: float
    low: float
    high: float
    is_old: bool = False


def chart(rows: Sequence[tuple[str, Sequence[Mark]]], *, title: str, zero: bool = False) -> str:
    """A line a row with its marks and their error bars, as an ``<svg>`` element.

    :param rows: labels with one mark, or two.
    :param zero: whether a line stands at 0.
    :raises EvaluationError: matplotlib isn't installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise EvaluationError(
            "the page's figures need matplotlib: pip install 'airflow-provider-gradient[report]'"
        ) from None
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9}
    # Labels in scripts that matplotlib's own font lacks are drawn by the browser, which has them.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(_WIDTH, 0.6 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        _draw(axes, rows, zero=zero)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(buffer.getvalue(), title)


def _draw(axes: Any, rows: Sequence[tuple[str, Sequence[Mark]]], *, zero: bool) -> None:
    for place, (_, marks) in enumerate(rows):
        for number, mark in enumerate(marks):
            height = place + (0.16 if mark.is_old else -0.16 if len(marks) > 1 else 0.0)
            colour = _OLD if mark.is_old else _NEW
            reach = [[max(0.0, mark.value - mark.low)], [max(0.0, mark.high - mark.value)]]
            axes.errorbar(
                mark.value,
                height,
                xerr=reach,
                fmt="s" if mark.is_old else "o",
                color=colour,
                capsize=3,
                markersize=5,
                zorder=3 + number,
            )
    axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows], color=_INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if zero:
        axes.axvline(0, color=_INK, linewidth=0.9)


def _short(label: str) -> str:
    label = " ".join(label.split())
    label = "".join(character for character in label if character.isprintable())
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _embedded(svg: str, title: str) -> str:
    """The element alone, its colours those of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    width, height = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    view = f'<svg role="img" aria-label="{title}" viewBox="0 0 {width:g} {height:g}"'
    return re.sub(r"<svg[^>]*>", f'{view} xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1)
