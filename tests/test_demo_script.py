"""The parts of the demo that a whole run would not show: its verdict, its environment, its end."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from scripts import demo, demo_server


def scored(tuned: float) -> dict[str, Any]:
    return {"exact_match": {"tuned": {"value": tuned}}}


@pytest.mark.parametrize(
    ("first", "last", "better"), [(0.1, 0.9, True), (0.5, 0.5, False), (0.5, 0.4, False)]
)
def test_only_a_last_round_that_answers_more_is_better(first: float, last: float, better: bool) -> None:
    assert demo.is_better(scored(last), scored(first)) is better


def test_the_users_airflow_and_gradient_settings_do_not_reach_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW_CONN_GRADIENT_DEFAULT"):
        monkeypatch.setenv(name, "the user's")
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", "the user's")
    monkeypatch.setenv("PATH", "/kept")
    environment = demo_server.clean_environment()
    assert "the user's" not in environment.values()
    assert environment["PATH"] == "/kept"


def test_a_process_that_will_not_end_is_ended() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", f"{deaf}; time.sleep(300)"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"deaf\n"
    demo_server.stop(process)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
