"""What the tests must know of the Airflow they run under."""

from __future__ import annotations

from importlib.metadata import version

import pytest

OLD_AIRFLOW = version("apache-airflow").startswith("3.1.")
"""Whether it is the oldest that is supported, which lacks some of what the tests look at."""
WAITS_FOR_PEOPLE = pytest.mark.skipif(
    OLD_AIRFLOW, reason="dag.test of Airflow 3.1 can't wait for a person's answer"
)
