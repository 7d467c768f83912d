"""The command: run the scenarios, print tables, write JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.completions.__main__ import machine
from benchmarks.tuning import scenarios

_ROOT = Path(__file__).resolve().parents[2]
_SCENARIOS = ("overhead", "loop")
_MOST_ADDED = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; shows that it runs, no more")
    parser.add_argument("--only", nargs="+", choices=_SCENARIOS, default=_SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "tuning.json")
    given = parser.parse_args()
    scale = scenarios.QUICK if given.quick else scenarios.FULL
    report: dict[str, Any] = {
        "schema_version": 1,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "machine": machine(),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for scenario in given.only:
        with tempfile.TemporaryDirectory(prefix="work-", dir=given.output.parent) as folder:
            report[scenario] = getattr(scenarios, scenario)(scale, Path(folder), _say)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(show(report))
    print(f"\nWritten to {given.output}")


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines: list[str] = []
    if overhead := report.get("overhead"):
        goal = "" if report["quick"] else _verdict(overhead["added_share"] < _MOST_ADDED)
        lines += [
            f"| {overhead['samples']} samples in {overhead['calls']} calls | |",
            "| --- | --- |",
            f"| bare calls, s | {statistics.median(overhead['bare_seconds']):.2f} |",
            f"| journal and checks as well, s | {statistics.median(overhead['whole_seconds']):.2f} |",
            f"| that is | {overhead['measured_share']:+.1%} |",
            f"| added to a call where the server answers at once, ms | "
            f"{1000 * overhead['added_seconds_a_call']:.2f} |",
            f"| of a real call | {overhead['added_share']:.2%}{goal} |",
            "",
        ]
    if loop := report.get("loop"):
        before, names = loop["before"], list(loop["before"])
        lines += [
            f"| {loop['epochs']} epochs | {' | '.join(names)} | s |",
            "| --- " * (len(names) + 2) + "|",
            f"| before | {' | '.join(f'{before[name]:.1%}' for name in names)} | |",
        ]
        for row in loop["seeds"]:
            cells = " | ".join(f"{row[name]:.1%}" for name in names)
            lines.append(f"| seed {row['seed']} | {cells} | {row['seconds']:.0f} |")
        better = sum(row["tuned"] > loop["before"]["tuned"] for row in loop["seeds"])
        lines += ["", f"Better on the tuned questions in {better} of {len(loop['seeds'])} seeds"]
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return f" ({'met' if met else 'NOT met'}: under {_MOST_ADDED:.0%})"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
