"""One fact, asked, taught and asked again.

Lists the base models, creates an adapter of one, asks it a question through a LangChain prompt template,
tunes it on the right answer and asks again. The adapter is deleted at the end. ``answers.json`` in
``output_dir`` has both answers.

Needs a Gradient connection (``gradient_default``); the tasks that ask use LangChain, which the provider
brings.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.operators import (
    GradientCreateModelAdapterOperator,
    GradientDeleteModelAdapterOperator,
    GradientFineTuneOperator,
    GradientListModelsOperator,
)

QUESTION = "What NFL team won the Super Bowl in 1994?"
ANSWER = "The Dallas Cowboys!"
HOME = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))  # noqa: PTH111


@task
def ask(model_id: str) -> str:
    """The model's answer to the question."""
    from langchain_core.prompts import PromptTemplate

    prompt = PromptTemplate.from_template("Question: {question}\n\nAnswer: ")
    llm = GradientHook().get_llm(model_id, max_generated_token_count=32, temperature=0)
    return (prompt | llm).invoke({"question": QUESTION}).strip()


@task(multiple_outputs=False)
def compare(before: str, after: str, params: dict[str, Any]) -> dict[str, str]:
    """Both answers, also written to ``answers.json``."""
    from airflow_provider_gradient.datasets import write_rows

    answers = {"question": QUESTION, "before": before, "after": after}
    write_rows(f"{params['output_dir']}/answers.json", [answers])
    return answers


@dag(
    schedule=None,
    catchup=False,
    tags=["gradient", "example"],
    doc_md=__doc__,
    params={
        "base_model": Param("tiny", description="Slug or id of the base model."),
        "output_dir": Param(f"{HOME}/gradient_notebook", description="Folder for answers.json."),
    },
)
def example_gradient_notebook() -> None:
    """The notebook's story."""
    models = GradientListModelsOperator(task_id="list_base_models", only_base=True)
    adapter = GradientCreateModelAdapterOperator(
        task_id="create_adapter",
        base_model="{{ params.base_model }}",
        name="notebook {{ run_id }}",
        if_exists="create",
    )
    before = ask.override(task_id="ask_before")(adapter.output)
    tune = GradientFineTuneOperator(
        task_id="fine_tune",
        model_id=adapter.output,
        samples=[{"inputs": f"Question: {QUESTION}\n\nAnswer: {ANSWER}"}],
    )
    after = ask.override(task_id="ask_after")(adapter.output)
    answers = compare(before, after)
    delete = GradientDeleteModelAdapterOperator(task_id="delete_adapter", model_id=adapter.output)

    models >> adapter
    before >> tune >> after
    answers >> delete.as_teardown(setups=adapter)


example_gradient_notebook()
