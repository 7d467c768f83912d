"""How a DAG says what each row is asked: templates that Airflow renders before a row is seen, and chains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from airflow_provider_gradient.datasets import read_rows

ROWS = [{"user": {"name": "Ann"}, "tags": ["a", "b"]}, {"user": {"name": "<Bob>"}, "tags": []}]
CHOICES = ['{"known": true}', '{"known": false}']

CHAINS = """
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda

def ask(llm):
    return PromptTemplate.from_template("Who is {user}?") | llm

greet = RunnableLambda(lambda row: f"Hello {row['user']['name']}", name="greet")
"""


class Known(BaseModel):
    known: bool


def test_rows_are_rendered_in_every_format_after_airflow_has_rendered_the_template(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import DAG, literal

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    (tmp_path / "chains_of_a_dag.py").write_text(CHAINS)
    monkeypatch.syspath_prepend(tmp_path)
    answered = {
        "model_id": client.find_base_model("tiny").id,
        "guidance": CHOICES,
        "output_schema": Known,
        "max_output_retries": "{{ 1 }}",
    }
    with DAG("prompts") as dag:
        for task_id, arguments in {
            "f_string": {"prompt_template": "In {{ dag.dag_id }}: {user}", **answered},
            "mustache": {
                "prompt_template": literal("{{user.name}}{{#tags}}, {{.}}{{/tags}}?"),
                "prompt_template_format": "mustache",
                **answered,
            },
            "jinja2": {
                "prompt_template": "{{ dag.dag_id }}: {% raw %}{{ user.name }}{% for t in tags %}, {{ t }}"
                "{% endfor %}?{% endraw %}",
                "prompt_template_format": "jinja2",
                **answered,
            },
            "chain": {"runnable": "{{ 'chains_of_a_dag' }}:ask", **answered},
            "own_model": {"runnable": "chains_of_a_dag:greet"},
        }.items():
            GradientCompleteDatasetOperator(
                task_id=task_id, dataset=ROWS, output_path=str(tmp_path / f"{task_id}.jsonl"), **arguments
            )

    run = run_dag(dag)

    assert run.state == "success"
    for task_id in ("f_string", "mustache", "jinja2", "chain"):
        assert all(
            row["parsed"]["known"] in (True, False) for row in read_rows(tmp_path / f"{task_id}.jsonl")
        )
    assert run.xcom("f_string")["prompt_template"] == "In prompts: {user}"
    assert run.xcom("mustache")["prompt_template"] == "{{user.name}}{{#tags}}, {{.}}{{/tags}}?"
    assert run.xcom("jinja2")["prompt_template"] == (
        "prompts: {{ user.name }}{% for t in tags %}, {{ t }}{% endfor %}?"
    )
    assert run.xcom("chain")["runnable"] == "chains_of_a_dag:ask"
    assert run.xcom("chain")["prompt_tokens"] > 0
    assert [row["output"] for row in read_rows(tmp_path / "own_model.jsonl")] == ["Hello Ann", "Hello <Bob>"]
    for task_id in ("mustache", "chain"):
        assert gradient_default.access_token not in json.dumps(run.rendered(task_id))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of prompt_template, prompt_column and runnable"),
        ({"prompt_template": "{q}", "runnable": "a:b"}, "exactly one of prompt_template, prompt_column and"),
        ({"prompt_template": "{q}", "model_id": None}, "Give the model_id"),
    ],
)
def test_what_makes_no_request_is_refused_when_the_dag_file_is_read(
    airflow_database: Path, arguments: dict[str, Any], message: str
) -> None:
    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    given = {"model_id": "m", "dataset": "in.jsonl", "output_path": "out.jsonl"} | arguments
    with pytest.raises(ValueError, match=message):
        GradientCompleteDatasetOperator(task_id="task", **given)
