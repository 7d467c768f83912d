"""The report as tables, and beside the goals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.completions.scenarios import OURS

_SHARES = {64: 0.95, 256: 0.92, 1000: 0.80}
_BARE = "asyncio_protocol"
"""The peer that does the least that can be done: what others are measured by."""


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals that the report speaks of, with what was measured and whether it is met."""
    found = [
        {"goal": goal, "limit": limit, "measured": measured, "met": met}
        for goal, limit, measured, met in _goals(report)
    ]
    return [] if report["quick"] else found


def _goals(report: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    yield from _throughput_goals(report)
    if faults := report.get("faults"):
        share = faults["share_of_clean"]
        yield "20 % faults: share of clean, at least", 0.60, share, share >= 0.60
        unanswered = faults["unanswered"]
        yield "20 % faults: rows without an answer", 0, unanswered, unanswered == 0
    if overload := report.get("overload"):
        share = overload["share_of_what_it_bears"]
        yield "overload: share of what the server bears, at least", 0.85, share, share >= 0.85
        unanswered = overload["unanswered"]
        yield "overload: rows without an answer", 0, unanswered, unanswered == 0
    for row in report.get("journaling", []):
        cost = row["cost"]
        yield f"journaling at {row['latency'] * 1000:.0f} ms costs, at most", 0.10, cost, cost <= 0.10
    if memory := report.get("memory"):
        growth = memory["growth"]
        yield "resident memory, last tenth over second, at most", 0.05, growth, growth <= 0.05
    if resume := report.get("resume"):
        seconds = resume["seconds_until_first_request"]
        yield "resume: seconds until the first request, at most", 15, seconds, seconds <= 15


def _throughput_goals(report: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    for row in report.get("throughput", []):
        if row["peer"] == OURS and (limit := _SHARES.get(row["in_flight"])):
            share = row["share_of_ideal"]
            yield f"share of ideal at {row['in_flight']}, at least", limit, share, share >= limit
            if row["in_flight"] == 256:
                cpu = row["cpu_seconds_per_1000_rows"]
                yield "CPU seconds a 1000 rows at 256, at most", 0.30, cpu, cpu <= 0.30
            if beside := _peer(report, "aiohttp", row["in_flight"]):
                ratio = round(row["share_of_ideal"] / beside["share_of_ideal"], 3)
                yield f"rows a second beside aiohttp's at {row['in_flight']}, at least", 1, ratio, ratio >= 1
            if beside := _peer(report, _BARE, row["in_flight"]):
                times = round(_cpu_times(row, beside), 2)
                yield f"CPU a row, times the bare protocol's at {row['in_flight']}", 2, times, times <= 2


def _peer(report: dict[str, Any], peer: str, in_flight: int) -> dict[str, Any] | None:
    """What a peer did in the same run; ``None`` where it was left out."""
    for row in report["throughput"]:
        if (row["peer"], row["in_flight"]) == (peer, in_flight) and "skipped" not in row:
            return dict(row)
    return None


def _cpu_times(row: dict[str, Any], beside: dict[str, Any]) -> float:
    return float(row["cpu_seconds_per_1000_rows"] / beside["cpu_seconds_per_1000_rows"])


def show(report: dict[str, Any]) -> str:
    """All of ``report`` as Markdown."""
    machine = report["machine"]
    parts = [
        f"{machine['cores']} cores, {machine['cpu']}; Python {machine['python']}, {machine['system']}; "
        f"load before {machine['load_before']}"
    ]
    if "throughput" in report:
        parts.append(table(_THROUGHPUT, [_throughput_row(row, report) for row in report["throughput"]]))
    for scenario in ("faults", "overload", "memory", "resume"):
        if scenario in report:
            values = [
                (name.replace("_", " "), value)
                for name, value in report[scenario].items()
                if not isinstance(value, dict)
            ]
            parts.append(table((scenario, ""), values))
    if "journaling" in report:
        parts.append(table(_JOURNALING, [_journaling_row(row) for row in report["journaling"]]))
    if report["goals"]:
        rows = [
            (each["goal"], each["limit"], each["measured"], "met" if each["met"] else "NOT met")
            for each in report["goals"]
        ]
        parts.append(table(("goal", "limit", "measured", ""), rows))
    return "\n\n".join(parts)


_THROUGHPUT = (
    "in flight",
    "client",
    "share of ideal",
    "CPU s / 1000 rows",
    "times the bare protocol's",
    "with start and imports",
    "CPU s / 1000 rows",
    "seconds",
    "runs",
    "others' cores",
)
_JOURNALING = ("server answers after", "rows", "journal on disk", "in memory", "cost")


def _throughput_row(row: dict[str, Any], report: dict[str, Any]) -> tuple[object, ...]:
    if "skipped" in row:
        return (row["in_flight"], row["peer"], row["skipped"], *[""] * (len(_THROUGHPUT) - 3))
    bare = _peer(report, _BARE, row["in_flight"])
    return (
        row["in_flight"],
        row["peer"],
        f"{row['share_of_ideal']:.3f}",
        f"{row['cpu_seconds_per_1000_rows']:.3f}",
        "" if bare is None else f"{_cpu_times(row, bare):.2f}",
        f"{row['process_share_of_ideal']:.3f}",
        f"{row['process_cpu_seconds_per_1000_rows']:.3f}",
        f"{row['seconds']:.2f}",
        row["runs"],
        f"{row['others_cores']:.1f}",
    )


def _journaling_row(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"{row['latency'] * 1000:.0f} ms",
        row["rows"],
        f"{row['on_disk']['seconds']:.2f} s",
        f"{row['in_memory']['seconds']:.2f} s",
        f"{row['cost']:+.1%}",
    )


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown, with columns as wide as what is in them."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
