"""The benchmark of completions runs and reports. What it measures is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "peer",
    "in_flight",
    "rows",
    "answered",
    "ideal_seconds",
    "seconds",
    "share_of_ideal",
    "cpu_seconds_per_1000_rows",
    "process_share_of_ideal",
    "process_cpu_seconds_per_1000_rows",
    "others_cores",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "deeper" / "report.json"
    command = [sys.executable, "-m", "benchmarks.completions", "--quick", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| complete_dataset" in done.stdout
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    return dict(json.loads(path.read_text()))


def test_it_says_where_it_ran_and_with_what(report: dict[str, Any]) -> None:
    assert report["quick"] is True
    assert {"cpu", "cores", "python", "system"} <= set(report["machine"])
    assert report["versions"]["httptools"]


def test_every_peer_answers_every_row_with_no_more_in_flight_than_allowed(
    report: dict[str, Any],
) -> None:
    peers = {row["peer"]: row for row in report["throughput"]}
    assert {"complete_dataset", "asyncio_protocol", "abatch", "aiohttp", "gradientai", "httpx"} <= set(peers)
    for peer, row in peers.items():
        if row.get("skipped") == "not installed":
            assert peer != "complete_dataset"
            continue
        assert set(row) >= FIGURES
        assert row["answered"] == row["rows"]
        assert 1 < row["most_in_flight"] <= row["in_flight"]


def test_faults_were_made_and_reported(report: dict[str, Any]) -> None:
    assert report["faults"]["faulty"]["faults"] > 0
    assert report["faults"]["clean"]["answered"] == report["faults"]["rows"]
    assert {"share_of_clean", "unanswered"} <= set(report["faults"])


def test_an_overloaded_server_refused_what_it_could_not_bear(report: dict[str, Any]) -> None:
    assert report["overload"]["requests_refused"] > 0
    assert report["overload"]["run"]["most_in_flight"] == report["overload"]["bears"]


def test_the_journal_is_measured_at_both_latencies(report: dict[str, Any]) -> None:
    assert [row["latency"] for row in report["journaling"]] == [report["scale"]["latency"], 0.0]
    for row in report["journaling"]:
        assert row["on_disk"]["answered"] == row["in_memory"]["answered"] == row["rows"]


def test_memory_is_measured_over_all_rows(report: dict[str, Any]) -> None:
    assert report["memory"]["answered"] == report["memory"]["rows"]
    assert report["memory"]["resident_mib_last_tenth"] > 0


def test_a_killed_run_goes_on_and_sends_again_no_more_than_was_in_flight(report: dict[str, Any]) -> None:
    resume = report["resume"]
    assert resume["answered"] == resume["rows"]
    assert resume["completed_before"] == resume["rows"] * 9 // 10
    assert 0 <= resume["sent_again"] <= resume["in_flight"]
    assert resume["seconds_until_first_request"] > 0
