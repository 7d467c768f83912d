"""The command: run the scenarios, print tables, write JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.completions.__main__ import machine
from benchmarks.server import scenarios
from benchmarks.server.soak import soak
from benchmarks.server.tables import goals, show

_ROOT = Path(__file__).resolve().parents[2]
_RUN = {
    "start": scenarios.start,
    "http": scenarios.http,
    "decode": scenarios.decode,
    "tune": scenarios.tune,
    "retain": scenarios.retain,
    "soak": soak,
}
_PACKAGES = ("torch", "transformers", "peft", "uvicorn", "starlette")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or two; shows that it runs, no more")
    parser.add_argument("--only", nargs="+", choices=_RUN, default=tuple(_RUN), metavar="SCENARIO")
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "server.json")
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
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=given.output.parent) as folder:
        for scenario in given.only:
            path = Path(folder) / scenario
            path.mkdir()
            report[scenario] = _RUN[scenario](scale, path, _say)
            report["goals"] = goals(report)
            given.output.write_text(json.dumps(report, indent=2) + "\n")  # a stop loses no more than one
    print(show(report))
    print(f"\nWritten to {given.output}")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
