"""Every operator and sensor as Airflow's users combine them: mapped, in task groups, templated, fed by XComs,
after a failure, torn down. The classes are found, not listed: a new one that the matrix lacks fails it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.datasets import write_rows
from airflow_provider_gradient.provider_info import get_provider_info

TWO_ROWS = [{"q": "Hello", "a": "x"}, {"q": "Bye", "a": "y"}]
PASSES = [{"rule": "at_least", "metric": "exact_match", "value": 0.0}]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__GRADIENT__REGISTRY", str(tmp_path / "registry"))


def public_operators() -> set[str]:
    """Names of the operators and sensors in the modules that the provider's metadata names."""
    from airflow.sdk import BaseOperator

    info = get_provider_info()
    modules = {
        module
        for kind in ("operators", "sensors")
        for each in info[kind]
        for module in each["python-modules"]
    }
    modules |= {each["class-name"].rpartition(".")[0] for each in info["task-decorators"]}
    return {
        name
        for module in modules
        for name, found in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(found, BaseOperator) and found.__module__ == module and not name.startswith("_")
    }


def matrix(folder: Path, base: str) -> Any:
    """A DAG with each operator mapped over values of an earlier task, in a task group, after a failure."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG, TaskGroup, task

    from airflow_provider_gradient import operators as op
    from airflow_provider_gradient import sensors
    from airflow_provider_gradient.decorators.complete import gradient_complete_task
    from airflow_provider_gradient.decorators.evaluate import gradient_evaluate_task

    anyway: dict[str, Any] = {"trigger_rule": "all_done"}
    ask: dict[str, Any] = {"max_generated_token_count": "{{ params.one }}", **anyway}
    to_file: dict[str, Any] = {"output_path": "{{ params.folder }}/{{ ti.task_id }}-{{ ti.map_index }}.jsonl"}
    params = {"folder": str(folder), "one": 1, "conn": "gradient_default"}
    with DAG("matrix", params=params) as dag:

        @task
        def value(values: list[Any]) -> list[Any]:
            return values

        @task
        def broken() -> None:
            raise RuntimeError("on purpose")

        @task(trigger_rule="all_done")
        def to_merge(shards: Any) -> list[dict[str, Any]]:
            return [{"shards": list(shards), "output_path": str(folder / "merged.jsonl")}]

        def given(name: str, *values: Any) -> Any:
            return value.override(task_id=name)(list(values))

        names, aliases = given("names", "matrix a", "matrix b"), given("aliases", "matrix-0", "matrix-1")
        bases, datasets, flags = given("bases", base, base), given("datasets", TWO_ROWS), given("flags", True)
        outputs = given("outputs", str(folder / "planned.jsonl"))
        failure = broken()
        with TaskGroup("all") as group:
            conn = {"gradient_conn_id": "{{ params.conn }}", **anyway}
            sensors.GradientServerReadySensor.partial(task_id="ready", **conn).expand(soft_fail=flags)
            op.GradientListModelsOperator.partial(task_id="models", **conn).expand(only_base=flags)
            adapter = op.GradientCreateModelAdapterOperator.partial(
                task_id="adapter", base_model="tiny", rank="{{ params.one + 1 }}", **anyway
            ).expand(name=names)
            each = {"model_id": adapter.output}
            sensors.GradientModelAdapterSensor.partial(
                task_id="there", changed_since="{{ '2026-01-01' }}", **anyway
            ).expand(**each)
            tuning = op.GradientFineTuneOperator.partial(
                task_id="tune", samples=[{"inputs": "One two"}], epochs="{{ params.one }}", **anyway
            ).expand(**each)
            op.GradientCompleteOperator.partial(
                task_id="ask", query="About {{ ti.map_index }}", **ask
            ).expand(**each)
            answers = op.GradientCompleteDatasetOperator.partial(
                task_id="answers", dataset=TWO_ROWS, prompt_column="q", **to_file, **ask
            ).expand(**each)
            op.GradientEmbedDatasetOperator.partial(
                task_id="vectors", model="bge-large", text_column="q", **to_file, **anyway
            ).expand(dataset=datasets)
            report = op.GradientEvaluateOperator.partial(
                task_id="report",
                reference_column="{{ 'a' }}",
                gate=PASSES,
                on_gate_failure="continue",
                **anyway,
            ).expand(completions=answers.output)
            gate = op.GradientGateOperator.partial(
                task_id="gate", on_pass="all.promote", on_fail="all.nowhere", **anyway
            ).expand(report=report.output)
            alias = {"alias": "matrix-{{ ti.map_index }}", **anyway}
            first = op.GradientPromoteModelAdapterOperator.partial(task_id="first", **alias).expand(
                model_id=bases
            )
            promote = op.GradientPromoteModelAdapterOperator.partial(task_id="promote", **alias).expand(
                **each
            )
            back = op.GradientRollBackAliasOperator.partial(
                task_id="back", reason="{{ run_id }}", **anyway
            ).expand(alias=aliases)
            op.GradientPlanShardsOperator.partial(
                task_id="plans", dataset="{{ params.folder }}/in.jsonl", shards=2, concurrency=2, **anyway
            ).expand(output_path=outputs)
            plan = op.GradientPlanShardsOperator(
                task_id="plan",
                dataset=str(folder / "in.jsonl"),
                output_path=str(folder / "merged.jsonl"),
                shards=2,
                concurrency=2,
                **anyway,
            )
            shards = op.GradientCompleteDatasetOperator.partial(
                task_id="shards", model_id=base, prompt_column="q", **ask
            ).expand_kwargs(plan.output)
            op.GradientMergeCompletionsOperator.partial(task_id="merge", **anyway).expand_kwargs(
                to_merge(shards.output)
            )
            op.GradientCleanUpModelAdaptersOperator.partial(
                task_id="clean_up", gradient_conn_id="{{ params.conn }}", **anyway
            ).expand(name_prefix=names)

            @gradient_complete_task(model_id=base, **ask)
            def decorated_ask(question: str) -> str:
                return question

            @gradient_complete_task(model_id=base, prompt_column="q", **to_file, **ask)
            def decorated_answers(rows: list[dict[str, str]]) -> list[dict[str, str]]:
                return rows

            @gradient_evaluate_task(reference_column="{{ 'a' }}", **anyway)
            def decorated_report(output: str, reference: Any, row: Any) -> bool:
                return bool(output)

            decorated_ask.expand(question=names)
            decorated_report.expand(completions=decorated_answers.expand(rows=datasets))
            delete = op.GradientDeleteModelAdapterOperator.partial(
                task_id="delete", gradient_conn_id="{{ params.conn }}"
            ).expand(**each)
            nowhere = EmptyOperator(task_id="nowhere")
            tuning >> answers
            gate >> [promote, nowhere]
            first >> promote >> back >> delete.as_teardown()
        failure >> group
    return dag


def ways_of(task: Any) -> set[str]:
    """Which of Airflow's ways to combine tasks hold of a mapped task."""
    expanded = task._get_specified_expand_input()
    mapped = set(expanded.value) if isinstance(expanded.value, dict) else set(task.template_fields)
    given = task.partial_kwargs | task.partial_kwargs.get("op_kwargs", {})
    templates = [str(given.get(name)) for name in task.template_fields if name not in mapped]
    ways = {
        "in a task group": task.task_group is not None and not task.task_group.is_root,
        "templated": not templates or any("{{" in text for text in templates),
        "fed by an XCom": any(True for _ in expanded.iter_references()),
        "by a trigger rule": str(getattr(task.trigger_rule, "value", task.trigger_rule)) != "all_success",
    }
    return {way for way, holds in ways.items() if not holds}


def test_every_operator_is_mapped_in_groups_with_templates_xcoms_and_trigger_rules(
    gradient_default: Any, client: Any, run_dag: Any, tmp_path: Path, registry: None
) -> None:
    write_rows(tmp_path / "in.jsonl", TWO_ROWS)
    dag = matrix(tmp_path, client.find_base_model("tiny").id)
    mapped = [task for task in dag.tasks if task.is_mapped]
    lacking = {(task.operator_class.__name__, way) for task in mapped for way in ways_of(task)}
    assert lacking == set()
    assert public_operators() <= {task.operator_class.__name__ for task in mapped}

    run = run_dag(dag)
    states = run.states
    assert states.pop("broken") == "failed"
    # "all.nowhere" among them: a gate that is mapped by itself skips no task that isn't mapped with it.
    assert set(states.values()) == {"success"}, states
    for task in mapped:
        assert f"{task.task_id}[0]" in states
    for index in range(2):
        assert run.xcom("all.report", map_index=index)["rows"] == 2
        promoted = run.xcom("all.promote", map_index=index)
        assert (promoted["alias"], promoted["version"]) == (f"matrix-{index}", 2)
        assert promoted["model_id"] == run.xcom("all.adapter", map_index=index)
        assert run.xcom("all.back", map_index=index)["rollback_to"] == 1
        shown = run.rendered("all.answers", map_index=index)["output_path"]
        assert shown == str(tmp_path / f"all.answers-{index}.jsonl")
    assert run.xcom("all.merge", map_index=0)["rows"] == 2
    assert not [model for model in client.list_models() if model.name.startswith("matrix")]


def test_what_mapped_groups_made_is_torn_down_where_their_work_failed(
    gradient_default: Any, client: Any, run_dag: Any
) -> None:
    from airflow.sdk import DAG, task_group

    from airflow_provider_gradient import operators as op

    with DAG("torn_down") as dag:

        @task_group
        def each(name: str) -> None:
            adapter = op.GradientCreateModelAdapterOperator(
                task_id="adapter", base_model="tiny", name=name
            ).as_setup()
            work = op.GradientFineTuneOperator(
                task_id="tune", model_id=adapter.output, samples=[{"inputs": ""}]
            )
            delete = op.GradientDeleteModelAdapterOperator(task_id="delete", model_id=adapter.output)
            adapter >> work >> delete.as_teardown(setups=adapter)

        each.expand(name=["torn down a", "torn down b"])
    run = run_dag(dag)
    states = {"each.adapter": "success", "each.tune": "failed", "each.delete": "success"}
    assert run.states == {f"{task}[{n}]": state for task, state in states.items() for n in range(2)}
    assert not [model for model in client.list_models() if model.name.startswith("torn down")]
