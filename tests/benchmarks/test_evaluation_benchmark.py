"""The benchmark of evaluation runs and reports. What it measures in time is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_gives_the_peers_figures_and_a_gate_that_noise_seldom_passes(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "report.json"
    command = [sys.executable, "-m", "benchmarks.evaluation", "--quick", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| times as fast |" in done.stdout
    report = json.loads(path.read_text())
    assert report["quick"] is True
    assert report["speed"]["largest_difference"] < 1e-9
    for row in report["gate"]:
        assert row["noise_passed"] <= 0.05
        assert row["gains_passed"] >= 0.8
