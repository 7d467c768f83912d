"""The benchmark of tuning runs and reports. What it measures is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_both_ways_over_the_same_calls_and_reports_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "report.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.tuning",
        "--quick",
        "--only",
        "overhead",
        "--output",
        str(path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of a real call" in done.stdout
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    figures = json.loads(path.read_text())["overhead"]
    assert (figures["samples"], figures["calls"]) == (64, 2)
    assert figures["whole_seconds_a_call"] > 0
    assert figures["seconds_a_call"] > 0
