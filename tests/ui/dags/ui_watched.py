"""Tasks that a browser watches while a server holds them."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_gradient import operators as op
from airflow_provider_gradient.hooks.gradient import GradientHook

_MODEL = "0" * 36 + "_model_adapter"


@dag(schedule=None, params={"folder": ""})
def ui_watched() -> None:
    """A tuning of three calls, and a dataset of six rows."""
    op.GradientFineTuneOperator(
        task_id="tune",
        gradient_conn_id="held",
        model_id=_MODEL,
        samples=[{"inputs": f"sample {number}"} for number in range(3)],
        batch_size=1,
        journal_path="{{ params.folder }}/tuning.jsonl",
    )
    op.GradientCompleteDatasetOperator.partial(
        task_id="answers",
        gradient_conn_id="held",
        model_id=_MODEL,
        prompt_column="q",
        concurrency=1,
        min_concurrency=1,
    ).expand_kwargs(
        [
            {
                "dataset": [{"q": f"row {n}"} for n in range(6)],
                "output_path": "{{ params.folder }}/answers.jsonl",
            }
        ]
    )


@dag(schedule=None, params={"conn_id": "", "careless": False})
def ui_told() -> None:
    """A task uses its connection, and prints the token if it is careless."""

    @task
    def asks(params: Any) -> int:
        hook = GradientHook(params["conn_id"])
        if params["careless"]:
            print(f"the token is {hook.stored_connection().password}")
            logging.getLogger(__name__).info("the logged token is %s", hook.stored_connection().password)
        with hook.get_conn() as client:
            return len(client.list_models(capability="any"))

    asks()


ui_watched()
ui_told()
