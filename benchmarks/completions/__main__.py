"""The command: run the scenarios, print tables, write JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.completions import scenarios
from benchmarks.completions.peers import PEERS
from benchmarks.completions.tables import goals, show

_ROOT = Path(__file__).resolve().parents[2]
_SCENARIOS = ("throughput", "faults", "overload", "journaling", "memory", "resume")
_PACKAGES = ("httptools", "uvloop", "httpx", "aiohttp", "gradientai", "langchain-core", "langchain-community")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.completions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; shows that it runs, no more")
    parser.add_argument("--only", nargs="+", choices=_SCENARIOS, default=_SCENARIOS, metavar="SCENARIO")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER", help="of the throughput; default: all"
    )
    parser.add_argument(
        "--in-flight", type=int, nargs="+", metavar="N", help="of the throughput: 64, 256, 1000"
    )
    parser.add_argument("--rows", type=int, help="of the memory and resume scenarios; default: 200000")
    parser.add_argument("--repeats", type=int, help="of which the median counts; default: 3")
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "completions.json")
    given = parser.parse_args()
    scale = scenarios.QUICK if given.quick else scenarios.FULL
    asked = {"memory_rows": given.rows, "repeats": given.repeats, "peers": given.peers}
    scale = replace(scale, **{name: value for name, value in asked.items() if value is not None})
    if given.in_flight:
        rounds = {count: scale.rounds.get(count, 25) for count in given.in_flight}
        scale = replace(scale, rounds=rounds)
    report: dict[str, Any] = {
        "schema_version": 1,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "machine": machine(),
        "versions": versions(),
        "scale": asdict(scale),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=given.output.parent) as folder:
        for scenario in given.only:
            report[scenario] = getattr(scenarios, scenario)(scale, Path(folder), _say)
    report["goals"] = goals(report)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(show(report))
    print(f"\nWritten to {given.output}")


def machine() -> dict[str, Any]:
    """Where this runs."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str | None]:
    """Of the packages that carry the requests; ``None`` where one isn't installed."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
