"""Promotion, rollback and cleaning up, in DAGs that run to their end against the real server."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.api import UnknownModelError


def events(uri: str) -> list[dict[str, Any]]:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = session.scalars(
            select(AssetEvent)
            .join(AssetModel, AssetEvent.asset_id == AssetModel.id)
            .where(AssetModel.uri == uri)
            .order_by(AssetEvent.id)
        )
        return [dict(event.extra) for event in found]


def test_an_alias_moves_answers_and_goes_back(
    gradient_default: Any, client: Any, run_dag: Any, registry_folder: Path, tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op
    from airflow_provider_gradient.hooks.gradient import GradientHook

    with DAG("promotion") as dag:
        base = client.find_base_model("tiny").id
        first = op.GradientPromoteModelAdapterOperator(task_id="first", alias="mover", model_id=base)
        adapter = op.GradientCreateModelAdapterOperator(
            task_id="adapter", base_model="tiny", name="bot {{ run_id }}"
        )
        second = op.GradientPromoteModelAdapterOperator(
            task_id="second",
            alias="mover",
            model_id=adapter.output,
            evaluation={"model_id": None, "metrics": {"exact_match": {"value": 0.9}}, "scores_path": "s"},
            replaces=base,
        )
        answer = op.GradientCompleteOperator(
            task_id="answer", model_id="alias:mover", query="Hello", max_generated_token_count=1
        )
        table = op.GradientCompleteDatasetOperator(
            task_id="table",
            model_id="alias:mover",
            dataset=[{"q": "Hello"}],
            prompt_column="q",
            output_path=str(tmp_path / "out.jsonl"),
            max_generated_token_count=1,
        )
        back = op.GradientRollBackAliasOperator(task_id="back", alias="mover", reason="a test")
        first >> adapter >> second >> [answer, table] >> back
    run = run_dag(dag)

    assert run.state == "success"
    adapter_id = run.xcom("adapter")
    assert run.xcom("answer")["model_id"] == run.xcom("table")["model_id"] == adapter_id
    assert [run.xcom(task)["model_id"] for task in ("first", "second", "back")] == [base, adapter_id, base]
    hook = GradientHook()
    assert hook.resolve("alias:mover") == base
    assert (registry_folder / client.workspace_id / "mover").is_dir()
    history = hook.get_registry().history("mover")
    assert [each.promoted_by for each in history] == [
        f"promotion/{run.run_id}/{task}/-1" for task in ("first", "second", "back")
    ]
    told = events(f"gradient://{client.workspace_id}/mover")
    assert [(each["version"], each["model_id"]) for each in told] == [(1, base), (2, adapter_id), (3, base)]
    assert told[1]["metrics"] == {"exact_match": {"value": 0.9}}


def test_an_adapter_that_failed_its_gate_is_not_promoted(
    gradient_default: Any, client: Any, run_dag: Any, registry_folder: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    report = {"model_id": None, "metrics": {}, "gate": {"verdict": "fail", "reasons": ["worse"]}}
    with DAG("failed_gate") as dag:
        base = client.find_base_model("tiny").id
        op.GradientPromoteModelAdapterOperator(
            task_id="promote", alias="bot", model_id=base, evaluation=report
        )
    assert run_dag(dag).states == {"promote": "failed"}
    assert not registry_folder.exists()


def test_a_champion_found_before_another_was_promoted_is_not_replaced(
    gradient_default: Any, client: Any, run_dag: Any, registry_folder: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    with DAG("replaced") as dag:
        base = client.find_base_model("tiny").id
        same: dict[str, Any] = {"alias": "bot", "model_id": base}
        first = op.GradientPromoteModelAdapterOperator(task_id="first", replaces="", **same)
        late = op.GradientPromoteModelAdapterOperator(task_id="late", replaces="", **same)
        blind = op.GradientPromoteModelAdapterOperator(task_id="blind", replaces="alias:bot", **same)
        first >> [late, blind]
    assert run_dag(dag).states == {"first": "success", "late": "failed", "blind": "failed"}


def test_a_model_that_is_not_there_is_not_promoted(
    gradient_default: Any, run_dag: Any, registry_folder: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    with DAG("missing_model") as dag:
        op.GradientPromoteModelAdapterOperator(task_id="promote", alias="bot", model_id="m" * 50)
    assert run_dag(dag).states == {"promote": "failed"}
    assert not registry_folder.exists()


def test_cleaning_up_deletes_what_no_alias_needs_once_it_is_no_dry_run(
    gradient_default: Any, client: Any, run_dag: Any, registry_folder: Path
) -> None:
    from airflow.sdk import DAG

    from airflow_provider_gradient import operators as op

    base = client.find_base_model("tiny").id
    kept, dropped = (client.create_model_adapter(base_model_id=base, name=f"clean {n}") for n in range(2))
    with DAG("clean_up") as dag:
        promote = op.GradientPromoteModelAdapterOperator(task_id="promote", alias="bot", model_id=kept)
        options: dict[str, Any] = {"unused_for": timedelta(0), "name_prefix": "clean "}
        dry = op.GradientCleanUpModelAdaptersOperator(task_id="dry", **options)
        wet = op.GradientCleanUpModelAdaptersOperator(task_id="wet", dry_run=False, **options)
        promote >> dry >> wet
    run = run_dag(dag)

    found = [[each["id"] for each in run.xcom(task)["adapters"]] for task in ("dry", "wet")]
    assert found == [[dropped], [dropped]]
    assert client.get_model_adapter(kept).id == kept
    with pytest.raises(UnknownModelError):
        client.get_model_adapter(dropped)
