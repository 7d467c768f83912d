"""The operators at work: against the real server, in DAGs that run to their end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow_version import OLD_AIRFLOW
from faults import FaultyServer, completion, error

from airflow_provider_gradient.api import ModelAdapterInfo
from airflow_provider_gradient.datasets import read_rows, write_rows

QUESTIONS = [
    {"key": "fr", "question": "What is the capital of France?", "answer": "Paris"},
    {"key": "it", "question": "What is the capital of Italy?", "answer": "Rome"},
    {"key": "jp", "question": "What is the capital of Japan?", "answer": "Tokyo"},
]
SAMPLES = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(6)]
PROMPT = "Question: {question}\n\nAnswer:"


@pytest.fixture
def faulty_default(airflow_connection: Callable[..., None]) -> Callable[[FaultyServer], None]:
    """Makes ``gradient_default`` point to a server of :mod:`faults`."""

    def point_to(server: FaultyServer) -> None:
        airflow_connection(
            "gradient_default",
            host=server.url,
            password=server.credentials["access_token"],
            extra={"workspace_id": server.credentials["workspace_id"]},
        )

    return point_to


def adapters(client: Any, name: str) -> list[ModelAdapterInfo]:
    return [m for m in client.list_models() if isinstance(m, ModelAdapterInfo) and m.name == name]


def test_every_operator_in_one_dag(gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    with DAG("every_operator") as dag:
        models = op.GradientListModelsOperator(task_id="models", only_base=True)
        adapter = op.GradientCreateModelAdapterOperator(
            task_id="adapter",
            base_model="tiny",
            name="every operator {{ run_id }}",
            rank=4,
            learning_rate=1e-3,
        )
        answer = op.GradientCompleteOperator(
            task_id="answer",
            model_id=adapter.output,
            query="Question: What is the capital of France?\n\nAnswer:",
            max_generated_token_count=8,
            temperature=0,
        )
        choice = op.GradientCompleteOperator(
            task_id="choice",
            model_id=adapter.output,
            query=answer.output["generated_output"],
            guidance=["yes", "no"],
        )
        answers = op.GradientCompleteDatasetOperator(
            task_id="answers",
            model_id=adapter.output,
            dataset=QUESTIONS,
            prompt_template=PROMPT,
            id_column="key",
            output_path=tmp_path / "answers.jsonl",
            max_generated_token_count=8,
            temperature=0,
        )
        report = op.GradientEvaluateOperator(
            task_id="report",
            completions=answers.output,
            reference_column="answer",
            metrics=["exact_match", "token_f1"],
            slice_columns=["key"],
            output_path=tmp_path / "scores.jsonl",
        )
        tuning = op.GradientFineTuneOperator(
            task_id="tuning",
            model_id=adapter.output,
            samples=SAMPLES,
            prompt_template=PROMPT,
            completion_template=" {answer}",
            batch_size=6,
        )
        delete = op.GradientDeleteModelAdapterOperator(task_id="delete", model_id=adapter.output)
        models >> adapter
        [choice, report] >> tuning >> delete

    run = run_dag(dag)

    assert run.state == "success"
    assert [model["slug"] for model in run.xcom("models")] == ["tiny"]
    assert len(run.xcom("adapter")) == 50
    assert run.xcom("answer").keys() == {"model_id", "generated_output", "finish_reason", "usage"}
    assert run.xcom("choice")["generated_output"] in {"yes", "no"}
    manifest = run.xcom("answers")
    assert manifest["rows"] == 3
    assert manifest["counts"] == {"success": 3, "error": 0, "invalid_output": 0, "not_run": 0}
    assert [row["id"] for row in read_rows(manifest["output_path"])] == ["fr", "it", "jp"]
    evaluation = run.xcom("report")
    assert evaluation["metrics"].keys() == {"exact_match", "token_f1"}
    assert evaluation["slices"]["key"].keys() == {"fr", "it", "jp"}
    assert len(list(read_rows(evaluation["scores_path"]))) == 3
    tuned = run.xcom("tuning")
    assert (tuned["samples"], tuned["calls"], len(tuned["epoch_losses"])) == (6, 1, 1)
    assert run.xcom("adapter") not in {model.id for model in client.list_models()}


def test_no_row_goes_through_xcom_or_into_the_rendered_fields(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG, task

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    base = client.find_base_model("tiny")
    with DAG("inline_rows") as dag:

        @task
        def make_rows() -> list[dict[str, str]]:
            return [{"prompt": "{{ 6 * 7 }} from a task"}]

        shared = {"prompt_column": "prompt", "model_id": base.id, "max_generated_token_count": 1}
        GradientCompleteDatasetOperator(
            task_id="literal",
            dataset=[{"prompt": "{{ 6 * 7 }} in the file"}],
            output_path=str(tmp_path / "{{ task.task_id }}.jsonl"),
            **shared,
        )
        GradientCompleteDatasetOperator(
            task_id="earlier", dataset=make_rows(), output_path=str(tmp_path / "earlier.jsonl"), **shared
        )
        GradientCompleteDatasetOperator.partial(
            task_id="mapped", output_path=str(tmp_path / "mapped{{ ti.map_index }}.jsonl"), **shared
        ).expand(dataset=[[{"prompt": "{{ 6 * 7 }} mapped"}], str(tmp_path / "rows.jsonl")])

    (tmp_path / "rows.jsonl").write_text('{"prompt": "from a file"}\n')
    run = run_dag(dag)

    assert run.state == "success"
    prompts = {
        name: next(iter(read_rows(tmp_path / f"{name}.jsonl")))["row"]["prompt"]
        for name in ("literal", "earlier", "mapped0")
    }
    assert prompts == {
        "literal": "{{ 6 * 7 }} in the file",
        "earlier": "{{ 6 * 7 }} from a task",
        "mapped0": "{{ 6 * 7 }} mapped",
    }
    for task_id, map_index in (("literal", -1), ("earlier", -1), ("mapped", 0)):
        assert run.rendered(task_id, map_index=map_index)["dataset"] == "<rows given inline: 1>"
    assert run.rendered("mapped", map_index=1)["dataset"] == str(tmp_path / "rows.jsonl")
    assert "6 * 7" not in json.dumps([run.xcom("literal"), run.xcom("earlier")])


def test_jinja_reaches_paths_numbers_and_prompts(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import (
        GradientCompleteDatasetOperator,
        GradientCreateModelAdapterOperator,
        GradientEvaluateOperator,
        GradientFineTuneOperator,
    )

    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    params = {"folder": str(tmp_path), "tokens": 2, "epochs": 2, "rate": 0.001, "style": "short"}
    with DAG("templates", params=params) as dag:
        adapter = GradientCreateModelAdapterOperator(
            task_id="adapter",
            base_model="tiny",
            name="templates",
            rank="{{ 2 * 2 }}",
            learning_rate="{{ params.rate }}",
        )
        answers = GradientCompleteDatasetOperator(
            task_id="answers",
            model_id=adapter.output,
            dataset="{{ params.folder }}/questions.jsonl",
            prompt_template="A {{ params.style }} answer to {question}",
            output_path="{{ params.folder }}/answers.jsonl",
            concurrency="{{ params.tokens }}",
            min_concurrency="{{ params.tokens }}",
            requests_per_minute="{{ 60 * 1000 }}",
            tokens_per_minute="{{ 1000 * 1000 }}",
            max_error_rate="{{ 1 / 2 }}",
            max_generated_token_count="{{ params.tokens }}",
            temperature="{{ 0 }}",
        )
        GradientEvaluateOperator(
            task_id="report", completions="{{ params.folder }}/answers.jsonl", reference_column="answer"
        ).set_upstream(answers)
        GradientFineTuneOperator(
            task_id="tuning",
            model_id=adapter.output,
            samples="{{ params.folder }}/questions.jsonl",
            prompt_template="{question}",
            completion_template="{answer}",
            epochs="{{ params.epochs }}",
            batch_size="{{ 3 }}",
        )
    run = run_dag(dag)

    assert run.state == "success"
    assert run.xcom("answers")["prompt_template"] == "A short answer to {question}"
    assert run.xcom("answers")["parameters"]["max_generated_token_count"] == 2
    assert run.xcom("report")["rows"] == 3
    assert run.xcom("tuning")["calls"] == 2
    client.delete_model(run.xcom("adapter"))


def test_a_taken_name_is_reused_made_twice_or_refused_as_asked(
    gradient_default: Any, client: Any, run_dag: Any
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCreateModelAdapterOperator

    def create(dag_id: str, if_exists: str) -> Any:
        with DAG(dag_id) as dag:
            GradientCreateModelAdapterOperator(
                task_id="adapter", base_model="tiny", name="taken", if_exists=if_exists
            )
        return run_dag(dag)

    first = create("reuse", "reuse").xcom("adapter")
    assert create("reuse", "reuse").xcom("adapter") == first
    second = create("create", "create").xcom("adapter")
    assert second != first
    assert create("reuse", "reuse").xcom("adapter") == second
    assert create("fail", "fail").state == "failed"
    assert {model.id for model in adapters(client, "taken")} == {first, second}
    for model_id in (first, second):
        client.delete_model(model_id)


def test_a_deletion_of_what_is_gone_succeeds_unless_asked_otherwise(
    gradient_default: Any, adapter: str, client: Any, run_dag: Any
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientDeleteModelAdapterOperator

    with DAG("delete_twice") as dag:
        first = GradientDeleteModelAdapterOperator(task_id="first", model_id=adapter)
        again = GradientDeleteModelAdapterOperator(task_id="again", model_id=adapter)
        strict = GradientDeleteModelAdapterOperator(task_id="strict", model_id=adapter, ignore_missing=False)
        first >> again >> strict

    assert run_dag(dag).states == {"first": "success", "again": "success", "strict": "failed"}


@pytest.mark.parametrize(
    ("operator", "arguments", "words"),
    [
        (
            "GradientCreateModelAdapterOperator",
            {"rank": 64},
            "rank: Input should be less than or equal to 32",
        ),
        ("GradientCreateModelAdapterOperator", {"rank": "many"}, "rank: must be a whole number (got 'many')"),
        ("GradientCreateModelAdapterOperator", {"rank": 2.5}, "rank: must be a whole number (got 2.5)"),
        ("GradientCreateModelAdapterOperator", {"learning_rate": 1.0}, "learning_rate: Input should be less"),
        ("GradientCreateModelAdapterOperator", {"if_exists": "replace"}, "if_exists: must be one of reuse"),
        ("GradientListModelsOperator", {"capability": "embed"}, "capability: must be one of complete"),
        ("GradientCompleteOperator", {"max_generated_token_count": 512}, "max_generated_token_count: Input"),
        ("GradientCompleteOperator", {"temperature": -1}, "temperature: Input should be greater"),
        (
            "GradientCompleteOperator",
            {"guidance": ["x" * 33]},
            "guidance.value[0]: String should have at most 32",
        ),
        ("GradientCompleteDatasetOperator", {"concurrency": 0}, "concurrency: must be at least 1"),
        ("GradientCompleteDatasetOperator", {"min_concurrency": 0}, "min_concurrency: must be at least 1"),
        ("GradientCompleteDatasetOperator", {"requests_per_minute": 0}, "requests_per_minute: must be at"),
        ("GradientCompleteDatasetOperator", {"tokens_per_minute": 0.5}, "tokens_per_minute: must be at"),
        ("GradientCompleteDatasetOperator", {"max_error_rate": 5}, "max_error_rate: must be a share from 0"),
        (
            "GradientCompleteDatasetOperator",
            {"prompt_column": "q"},
            "exactly one of prompt_template, prompt_column and runnable",
        ),
        ("GradientFineTuneOperator", {"epochs": 0}, "epochs: must be at least 1"),
        (
            "GradientFineTuneOperator",
            {"prompt_template": "{q}"},
            "both prompt_template and completion_template",
        ),
        (
            "GradientFineTuneOperator",
            {"on_ambiguous": "hope"},
            "on_ambiguous: must be one of fail, skip, resend",
        ),
    ],
)
def test_a_wrong_literal_fails_when_the_dag_file_is_read(
    operator: str, arguments: dict[str, Any], words: str
) -> None:
    from airflow_provider_gradient import operators

    required: dict[str, dict[str, Any]] = {
        "GradientCreateModelAdapterOperator": {"base_model": "tiny", "name": "x"},
        "GradientListModelsOperator": {},
        "GradientCompleteOperator": {"model_id": "m", "query": "q"},
        "GradientCompleteDatasetOperator": {
            "model_id": "m",
            "dataset": [],
            "output_path": "o",
            "prompt_template": "{q}",
        },
        "GradientFineTuneOperator": {"model_id": "m", "samples": []},
    }
    with pytest.raises(ValueError) as caught:
        getattr(operators, operator)(task_id="wrong", **required[operator], **arguments)
    assert words in str(caught.value)


def test_a_template_that_renders_to_a_wrong_number_fails_before_anything_is_sent(
    run_dag: Any, faulty_default: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCreateModelAdapterOperator

    with FaultyServer() as server:
        faulty_default(server)
        with DAG("wrong_rank") as dag:
            GradientCreateModelAdapterOperator(
                task_id="adapter", base_model="tiny", name="x", rank="{{ 8 * 8 }}"
            )
        assert run_dag(dag).state == "failed"
        assert server.requests == []


def failing_operators(folder: Path) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Bad input by what is wrong with it: operator, arguments, words of the message."""
    complete, tune = "GradientCompleteDatasetOperator", "GradientFineTuneOperator"
    answers = {"model_id": "m" * 50, "prompt_template": PROMPT, "output_path": folder / "out.jsonl"}
    (folder / "list.jsonl").write_text('{"question": "one"}\n["two"]\n')
    (folder / "empty.jsonl").write_text("")
    return {
        "empty dataset": (
            complete,
            {**answers, "dataset": folder / "empty.jsonl"},
            "the dataset has no rows",
        ),
        "line that is no object": (complete, {**answers, "dataset": folder / "list.jsonl"}, "line 2"),
        "template with a missing column": (complete, {**answers, "dataset": [{"query": "x"}]}, "question"),
        "missing file": (complete, {**answers, "dataset": folder / "none.jsonl"}, "none.jsonl"),
        "sample with unknown keys": (
            tune,
            {"model_id": "m" * 50, "samples": [{"inputs": "a", "response": "b"}]},
            "response",
        ),
        "sample with empty text": (tune, {"model_id": "m" * 50, "samples": [{"inputs": ""}]}, "inputs"),
        "sample with nothing trainable": (
            tune,
            {"model_id": "m" * 50, "samples": [{"inputs": [{"value": "a", "trainable": False}]}]},
            "trainable",
        ),
        "completions that are no manifest": (
            "GradientEvaluateOperator",
            {"completions": {"path": "x"}, "reference_column": "answer"},
            "manifest",
        ),
    }


def test_bad_input_fails_the_task_with_its_reason_before_anything_is_sent(
    run_dag: Any, faulty_default: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators

    reasons: dict[str, str] = {}
    cases = failing_operators(tmp_path)
    with FaultyServer() as server:
        faulty_default(server)
        with DAG("bad_input") as dag:
            for name, (operator, arguments, _) in cases.items():
                getattr(operators, operator)(
                    task_id=name.replace(" ", "_"),
                    on_failure_callback=lambda context: reasons.update(
                        {context["ti"].task_id.replace("_", " "): str(context.get("exception"))}
                    ),
                    **arguments,
                )
        run = run_dag(dag)
        assert server.requests == []
    assert set(run.states.values()) == {"failed"}
    if not OLD_AIRFLOW:  # which does not tell callbacks the exception
        assert {name for name, (_, _, words) in cases.items() if words not in reasons[name]} == set(), reasons


def test_an_unknown_slug_fails_with_the_slugs_there_are(gradient_default: Any, run_dag: Any) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCreateModelAdapterOperator

    reasons: list[str] = []
    with DAG("unknown_slug") as dag:
        GradientCreateModelAdapterOperator(
            task_id="adapter",
            base_model="gpt-9",
            name="x",
            on_failure_callback=lambda context: reasons.append(str(context.get("exception"))),
        )
    assert run_dag(dag).state == "failed"
    if not OLD_AIRFLOW:  # which does not tell callbacks the exception
        assert "'gpt-9'" in reasons[0]
        assert "tiny" in reasons[0]


def test_a_dataset_of_which_every_row_fails_fails_the_task_and_its_retry_asks_again(
    run_dag: Any, faulty_default: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator

    def by_path(request: Any) -> Any:
        if request.path.endswith("/complete"):
            answered.append(request)
            return (
                error(400, "refused", type="unprocessableContent")
                if len(answered) <= 2
                else completion("fine")
            )
        return error(404, "no such adapter", type="unknownModelAdapter")

    answered: list[Any] = []
    with FaultyServer(by_path) as server:
        faulty_default(server)
        with DAG("all_fail") as dag:
            GradientCompleteDatasetOperator(
                task_id="answers",
                model_id="m" * 50,
                dataset=QUESTIONS[:2],
                prompt_template=PROMPT,
                output_path=tmp_path / "answers.jsonl",
                retries=1,
                retry_delay=0.0,
            )
        run = run_dag(dag)
    assert run.state == "success"
    assert run.tries == {"answers": 2}
    assert run.xcom("answers")["counts"]["success"] == 2


def test_a_dataset_is_read_and_written_through_an_object_storage_url(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator, GradientEvaluateOperator

    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    with DAG("storage") as dag:
        answers = GradientCompleteDatasetOperator(
            task_id="answers",
            model_id=client.find_base_model("tiny").id,
            dataset=f"file://{tmp_path}/questions.jsonl",
            prompt_template=PROMPT,
            output_path=f"file://{tmp_path}/answers.jsonl",
            max_generated_token_count=2,
        )
        GradientEvaluateOperator(
            task_id="report",
            completions=answers.output,
            reference_column="answer",
            output_path=f"file://{tmp_path}/scores.jsonl",
        )
    run = run_dag(dag)
    assert run.state == "success"
    assert len(list(read_rows(tmp_path / "answers.jsonl"))) == 3
    assert len(list(read_rows(tmp_path / "scores.jsonl"))) == 3


def test_a_glob_is_read_parquet_written_and_its_manifest_is_the_next_tasks_dataset(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient.operators import GradientCompleteDatasetOperator, GradientEvaluateOperator

    for row in QUESTIONS:
        text = ",".join(row) + "\n" + ",".join(row.values()) + "\n"
        (tmp_path / f"{row['key']}.csv").write_text(text)
    asked: dict[str, Any] = {"model_id": client.find_base_model("tiny").id, "max_generated_token_count": 2}
    with DAG("formats") as dag:
        answers = GradientCompleteDatasetOperator(
            task_id="answers",
            dataset=f"file://{tmp_path}/*.csv",
            prompt_template=PROMPT,
            output_path=f"file://{tmp_path}/answers.parquet",
            **asked,
        )
        GradientCompleteDatasetOperator(
            task_id="further",
            dataset=answers.output,
            prompt_template="Say it again: {output}",
            output_path=tmp_path / "further.jsonl",
            **asked,
        )
        GradientEvaluateOperator(task_id="report", completions=answers.output, reference_column="answer")
    run = run_dag(dag)
    assert run.state == "success"
    rows = list(read_rows(run.xcom("answers")))
    assert [row["row"] for row in rows] == QUESTIONS
    assert run.xcom("further")["source"] == run.xcom("answers")["output_path"]
    assert [row["row"] for row in read_rows(tmp_path / "further.jsonl")] == rows
    assert run.xcom("report")["rows"] == 3
