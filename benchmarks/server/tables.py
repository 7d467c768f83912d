"""The report as tables, and beside the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.completions.tables import table


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals that the report speaks of, with what was measured and whether it is met."""
    if report["quick"]:
        return []
    return [
        {"goal": goal, "limit": limit, "measured": round(measured, 3), "met": met}
        for goal, limit, measured, met in _goals(report)
    ]


def _goals(report: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    if http := report.get("http"):
        ours = statistics.mean(r["requests_per_second"] for r in http if r["server"] == "gradient")
        for peer, limit in (("one_at_a_time", 12), ("adapter_names", 4)):
            factor = ours / next(r["requests_per_second"] for r in http if r["server"] == peer)
            yield f"requests a second, times {peer}, at least", limit, factor, factor >= limit
        p95 = statistics.mean(r["p95"] / r["unloaded"] for r in http if r["server"] == "gradient")
        yield "p95, times the unloaded latency, at most", 4, p95, p95 <= 4
    for row in report.get("decode", []):
        for adapters, limit in ((0, 0.8), (16, 0.55)):
            if row["rows"] == 32 and adapters in row["adapters"]:
                share = row["adapters"][adapters] / row["generate"]
                yield (
                    f"32 rows, {adapters} adapters: share of generate, at least",
                    limit,
                    share,
                    share >= limit,
                )
    if tune := report.get("tune"):
        share = tune["trainable_tokens_per_second"] / tune["bare_loop_tokens_per_second"]
        yield "fine-tune: share of a bare loop, at least", 0.9, share, share >= 0.9
    if start := report.get("start"):
        seconds, memory = start["seconds_to_first_completion"], start["resident_megabytes_idle"]
        yield "seconds from start to first completion, at most", 5, seconds, seconds <= 5
        yield "resident megabytes, idle, at most", 450, memory, memory <= 450
    if soak := report.get("soak"):
        growth = soak["growth_megabytes"]
        yield "soak: growth from the second third to the last, in MB, at most", 20, growth, growth <= 20


def show(report: dict[str, Any]) -> str:
    """All of ``report`` as Markdown."""
    machine = report["machine"]
    parts = [
        f"{machine['cores']} cores, {machine['cpu']}; Python {machine['python']}, {machine['system']}; "
        f"load before {machine['load_before']}"
    ]
    if http := report.get("http"):
        head = ("server", "requests/s", "p50 s", "p95 s", "unloaded s", "p95 / unloaded")
        parts.append(table(head, [_http_row(row) for row in http]))
    if decode := report.get("decode"):
        counts = list(decode[0]["adapters"])
        head = ("rows", "generate, base", *(f"{count} adapters" if count else "base" for count in counts))
        rows = [
            (row["rows"], f"{row['generate']:.0f}", *(f"{row['adapters'][c]:.0f}" for c in counts))
            for row in decode
        ]
        parts.append(table(tuple(f"{name}, tokens/s" if name != "rows" else name for name in head), rows))
    for name in ("tune", "retain", "start", "soak"):
        if name in report:
            values = [
                (key.replace("_", " "), f"{value:.2f}")
                for key, value in report[name].items()
                if not isinstance(value, list)
            ]
            parts.append(table((name, ""), values))
    if report["goals"]:
        met = [
            (g["goal"], g["limit"], g["measured"], "met" if g["met"] else "NOT met") for g in report["goals"]
        ]
        parts.append(table(("goal", "limit", "measured", ""), met))
    return "\n\n".join(parts)


def _http_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["server"],
        f"{row['requests_per_second']:.1f}",
        f"{row['p50']:.3f}",
        f"{row['p95']:.3f}",
        f"{row['unloaded']:.3f}",
        f"{row['p95'] / row['unloaded']:.1f}",
    )
