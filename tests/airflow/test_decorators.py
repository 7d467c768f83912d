"""The task decorators, alone and mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL_ID as MODEL
from faults import Act, FaultyServer, Received, completion, reply

ADAPTER = {
    "type": "modelAdapter",
    "id": MODEL,
    "name": "a",
    "baseModelId": "b",
    "latestUpdateTime": "2026-01-01T00:00:00Z",
}


@pytest.fixture
def echo(airflow_connection: Callable[..., None]) -> Iterator[FaultyServer]:
    """A server that answers every prompt with the prompt itself, at ``gradient_default``."""

    def answer(request: Received) -> Act:
        return reply(body=ADAPTER) if request.method == "GET" else completion(request.json()["query"])

    with FaultyServer(answer) as server:
        airflow_connection(
            "gradient_default",
            host=server.url,
            password=server.credentials["access_token"],
            extra={"workspace_id": server.credentials["workspace_id"]},
        )
        yield server


def rows_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(manifest["output_path"]).read_text().splitlines()]


def test_a_function_that_returns_a_prompt_is_one_completion(echo: FaultyServer, run_dag: Any) -> None:
    from airflow.sdk import dag, task

    @dag(params={"tokens": 3})
    def one_prompt() -> None:
        @task.gradient_complete(model_id=MODEL, max_generated_token_count="{{ params.tokens }}")
        def ask(city: str, params: Any = None) -> str:
            """Asked as it is."""
            return f"Where is {city}? {{{{ braces }}}} {params['tokens']}"

        @task
        def upper(text: str) -> str:
            return text.upper()

        upper(ask("Paris")["generated_output"])

    run = run_dag(one_prompt())
    assert run.state == "success"
    prompt = "Where is Paris? {{ braces }} 3"
    [request] = echo.requests
    assert request.json()["query"] == prompt
    assert request.json()["maxGeneratedTokenCount"] == 3
    assert run.xcom("upper") == prompt.upper()
    assert run.rendered("ask")["query"] == prompt


def test_prompts_are_mapped(echo: FaultyServer, run_dag: Any) -> None:
    from airflow.sdk import dag, task

    @dag
    def mapped_prompts() -> None:
        @task.gradient_complete(model_id=MODEL)
        def ask(city: str, country: str) -> str:
            return f"{city}, {country}"

        @task
        def cities() -> list[str]:
            return ["Paris", "Lyon"]

        ask.partial(country="France").expand(city=cities())

    run = run_dag(mapped_prompts())
    answers = [run.xcom("ask", map_index=index)["generated_output"] for index in range(2)]
    assert answers == ["Paris, France", "Lyon, France"]


def test_a_function_that_returns_rows_is_a_dataset_completed(
    echo: FaultyServer, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import dag, task

    @dag
    def decorated_rows() -> None:
        @task.gradient_complete(
            model_id=MODEL,
            prompt_template="About {topic}",
            output_path=str(tmp_path / "{{ ti.task_id }}{{ ti.map_index }}.jsonl"),
        )
        def ask(topics: list[str]) -> list[dict[str, str]]:
            return [{"topic": "{{ " + topic + " }}"} for topic in topics]

        ask.expand(topics=[["a", "b"], ["c"]])

    run = run_dag(decorated_rows())
    assert run.state == "success"
    outputs = [[row["output"] for row in rows_of(run.xcom("ask", map_index=index))] for index in range(2)]
    assert outputs == [["About {{ a }}", "About {{ b }}"], ["About {{ c }}"]]
    assert run.xcom("ask", key="gradient_progress", map_index=0)["done"] == 2
    assert "rows given inline" in str(run.rendered("ask", map_index=0)["dataset"])


@pytest.mark.parametrize("returned", [None, "", 3, [{"topic": "a"}]])
def test_what_is_no_prompt_is_refused_and_nothing_is_sent(
    echo: FaultyServer, run_dag: Any, returned: Any
) -> None:
    from airflow.sdk import dag, task

    @dag(dag_id="no_prompt")
    def no_prompt() -> None:
        @task.gradient_complete(model_id=MODEL)
        def ask() -> Any:
            return returned

        ask()

    assert run_dag(no_prompt()).state == "failed"
    assert echo.requests == []


def test_the_page_shows_a_decorated_task(echo: FaultyServer, run_dag: Any, tmp_path: Path) -> None:
    from airflow.sdk import dag, task
    from airflow.utils.session import create_session

    from airflow_provider_gradient.plugins.records import record

    @dag
    def decorated_page() -> None:
        @task.gradient_complete(model_id=MODEL, prompt_column="q", output_path=str(tmp_path / "page.jsonl"))
        def ask() -> list[dict[str, str]]:
            return [{"q": "a"}]

        ask()

    run = run_dag(decorated_page())
    with create_session() as session:
        found = record(session, dag_id="decorated_page", run_id=run.run_id, task_id="ask", map_index=-1)
    assert found is not None
    assert found.kind == "completions"
    assert found.fields["rows"] == 1


COMPLETIONS = [
    {"output": "Paris", "row": {"answer": "Paris", "weight": 1}},
    {"output": "I think it is Rome", "row": {"answer": "Rome", "weight": 2}},
]


def test_a_function_is_a_metric(run_dag: Any) -> None:
    from airflow.sdk import dag, task

    @dag
    def own_metric() -> None:
        @task.gradient_evaluate(reference_column="answer", metrics=["exact_match"])
        def short(output: str, reference: str, row: dict[str, Any]) -> bool:
            """Whether the answer is no longer than it must be."""
            return len(output) <= len(reference) * row["weight"]

        short(COMPLETIONS)

    run = run_dag(own_metric())
    report = run.xcom("short")
    values = {name: metric["value"] for name, metric in report["metrics"].items()}
    assert values == {"short": 0.5, "exact_match": 0.5}
    assert run.xcom("short", key="_link_GradientPageLink")


def test_a_metric_is_mapped_over_completions(echo: FaultyServer, run_dag: Any, tmp_path: Path) -> None:
    from airflow.sdk import dag, task

    @dag
    def mapped_metric() -> None:
        @task.gradient_complete(
            model_id=MODEL, prompt_column="q", output_path=str(tmp_path / "{{ ti.map_index }}.jsonl")
        )
        def ask(questions: list[str]) -> list[dict[str, str]]:
            return [{"q": question} for question in questions]

        @task.gradient_evaluate
        def length(output: str, reference: None, row: dict[str, Any]) -> int:
            assert reference is None
            return len(output) * (row["q"] == output)

        length.expand(completions=ask.expand(questions=[["a", "bbb"], ["cccc"]]))

    run = run_dag(mapped_metric())
    assert run.state == "success"
    values = [run.xcom("length", map_index=index)["metrics"]["length"]["value"] for index in range(2)]
    assert values == [2.0, 4.0]


def test_a_metric_that_gives_no_number_fails_the_task(run_dag: Any) -> None:
    from airflow.sdk import dag, task

    @dag
    def no_number() -> None:
        @task.gradient_evaluate
        def nothing(output: str, reference: Any, row: Any) -> None:
            return None

        nothing(COMPLETIONS)

    assert run_dag(no_number()).state == "failed"
