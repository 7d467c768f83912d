"""Many tasks that complete a few rows each, and many sensors that wait for one adapter."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_provider_gradient.operators import GradientCompleteDatasetOperator
from airflow_provider_gradient.sensors import GradientModelAdapterSensor


@dag(schedule=None, max_active_tasks=10_000)
def benchmark_completions() -> None:
    """``tasks`` task instances of ``rows`` rows each."""

    @task
    def plan(params: Any) -> list[dict[str, Any]]:
        rows = [{"question": f"What is the capital of country {n}?"} for n in range(params["rows"])]
        return [
            {"dataset": rows, "output_path": f"{params['folder']}/answers-{number}.jsonl"}
            for number in range(params["tasks"])
        ]

    GradientCompleteDatasetOperator.partial(
        task_id="complete",
        model_id="{{ params.model_id }}",
        prompt_template="Question: {question}\n\nAnswer:",
        max_generated_token_count=16,
    ).expand_kwargs(plan())


@dag(schedule=None, max_active_tasks=10_000)
def benchmark_sensors() -> None:
    """``tasks`` sensors that wait in the triggerer for the adapter ``late``."""

    @task
    def names(params: Any) -> list[str]:
        return ["late"] * params["tasks"]

    GradientModelAdapterSensor.partial(task_id="wait", deferrable=True, poke_interval=5, timeout=7200).expand(
        name=names()
    )


benchmark_completions()
benchmark_sensors()
