"""The command: run the scenarios, print tables, write JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.completions.__main__ import machine
from benchmarks.evaluation import scenarios

_ROOT = Path(__file__).resolve().parents[2]
_SCENARIOS = ("speed", "memory", "gate")
_PACKAGES = ("numpy", "rapidfuzz", "rouge-score", "scipy")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; shows that it runs, no more")
    parser.add_argument("--only", nargs="+", choices=_SCENARIOS, default=_SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "evaluation.json")
    given = parser.parse_args()
    scale = scenarios.QUICK if given.quick else scenarios.FULL
    report: dict[str, Any] = {
        "schema_version": 1,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "machine": machine(),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "scale": asdict(scale),
    }
    for scenario in given.only:
        report[scenario] = getattr(scenarios, scenario)(scale, _say)
    report["goals"] = [] if given.quick else goals(report)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(show(report))
    print(f"\nWritten to {given.output}")


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals that the report speaks of, with what was measured and whether it is met."""
    found = []
    if speed := report.get("speed"):
        found.append(("times as fast as the peers, at least", 5, speed["times_as_fast"], 1))
        found.append(("largest difference from the peers, at most", 1e-9, speed["largest_difference"], -1))
    if memory := report.get("memory"):
        found.append(("memory for ten times the resamples: growth, at most", 0.05, memory["growth"], -1))
    for row in report.get("gate", []):
        found.append((f"{row['metric']}: noise passed, at most", 0.05, row["noise_passed"], -1))
        found.append((f"{row['metric']}: gains passed, at least", 0.9, row["gains_passed"], 1))
    return [
        {"goal": goal, "limit": limit, "measured": measured, "met": sign * (measured - limit) >= 0}
        for goal, limit, measured, sign in found
    ]


def show(report: dict[str, Any]) -> str:
    """All of ``report`` as Markdown."""
    where = report["machine"]
    lines = [f"{where['cores']} cores, {where['cpu']}; Python {where['python']}; load {where['load_before']}"]
    if speed := report.get("speed"):
        lines += ["", "| | seconds | CPU seconds |", "| --- | --- | --- |"]
        lines.append(f"| evaluate | {speed['seconds']:.1f} | {speed['cpu_seconds']:.1f} |")
        for part in ("squad", "rouge", "bootstrap"):
            lines.append(f"| peers: {part} | {speed[f'peer_{part}_seconds']:.1f} | |")
        lines.append(f"| peers, all | {speed['peer_seconds']:.1f} | {speed['peer_cpu_seconds']:.1f} |")
        in_cpu = speed["peer_cpu_seconds"] / speed["cpu_seconds"]
        lines.append(f"| times as fast | {speed['times_as_fast']:.1f} | {in_cpu:.1f} |")
    if memory := report.get("memory"):
        lines += ["", "| resamples | peak MiB |", "| --- | --- |"]
        lines.append(f"| a tenth | {memory['peak_mib_a_tenth']:.1f} |")
        lines.append(f"| all | {memory['peak_mib']:.1f} |")
    if gate := report.get("gate"):
        lines += ["", "| gate on | runs | noise passed | gains passed |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row['metric']} | {row['runs']} | {row['noise_passed']:.1%} | {row['gains_passed']:.1%} |"
            for row in gate
        ]
    if report["goals"]:
        lines += ["", "| goal | limit | measured | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {each['goal']} | {each['limit']:g} | {each['measured']:.3g} | "
            f"{'met' if each['met'] else 'NOT met'} |"
            for each in report["goals"]
        ]
    return "\n".join(lines)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
