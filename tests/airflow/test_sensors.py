"""Sensors: what they wait for, in a worker and in the triggerer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from faults import Act, FaultyServer, error, reply

from airflow_provider_gradient.api import InvalidRequestError

BASE = {"type": "baseModel", "id": "b", "name": "Tiny", "slug": "tiny", "capabilities": ["complete"]}
ADAPTER = {
    "type": "modelAdapter",
    "id": "0" * 36 + "_model_adapter",
    "name": "wanted",
    "baseModelId": "b",
    "latestUpdateTime": "2026-03-01T12:00:00Z",
}
NOTHING = reply(body={"models": [BASE]})
THERE = reply(body={"models": [BASE, ADAPTER]})


@pytest.fixture
def serve(airflow_connection: Callable[..., None]) -> Iterator[Callable[..., FaultyServer]]:
    """Starts a server of a script, where ``gradient_default`` points to."""
    with contextlib.ExitStack() as servers:

        def start(*script: Act) -> FaultyServer:
            server = servers.enter_context(FaultyServer(*script))
            airflow_connection(
                "gradient_default",
                host=server.url,
                password=server.credentials["access_token"],
                extra={"workspace_id": server.credentials["workspace_id"]},
            )
            return server

        yield start


def dag_of(dag_id: str, sensor: str, **options: Any) -> Any:
    from airflow.sdk import DAG

    from airflow_provider_gradient import sensors

    with DAG(dag_id, params={"name": "wanted"}) as dag:
        getattr(sensors, sensor)(task_id="wait", poke_interval=0.01, **options)
    return dag


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_server_is_waited_for_until_it_answers(serve: Any, run_dag: Any, deferrable: bool) -> None:
    server = serve(error(503, "loading"), error(429, "later"), THERE)
    run = run_dag(dag_of(f"server_{deferrable}", "GradientServerReadySensor", deferrable=deferrable))
    assert run.states == {"wait": "success"}
    assert run.xcom("wait") == {"models": 2}
    assert len(server.requests) == 3


@pytest.mark.parametrize("deferrable", [False, True])
def test_an_adapter_is_waited_for_by_its_name(serve: Any, run_dag: Any, deferrable: bool) -> None:
    server = serve(NOTHING, error(500, "a moment"), NOTHING, THERE)
    options = {"name": "{{ params.name }}", "deferrable": deferrable}
    run = run_dag(dag_of(f"adapter_{deferrable}", "GradientModelAdapterSensor", **options))
    assert run.xcom("wait")["id"] == ADAPTER["id"]
    assert len(server.requests) == 4


def test_an_adapter_is_waited_for_until_it_was_tuned(
    gradient_default: Any, client: Any, adapter: str, run_dag: Any, airflow_connection: Any
) -> None:
    before = client.get_model_adapter(adapter).latest_update_time
    options = {"model_id": adapter, "changed_since": before.isoformat()}
    late = dag_of("changed_late", "GradientModelAdapterSensor", timeout=0.1, **options)
    assert run_dag(late).state == "failed"
    client.fine_tune(adapter, [{"inputs": "One two three"}])
    run = run_dag(dag_of("changed", "GradientModelAdapterSensor", deferrable=True, **options))
    assert run.xcom("wait")["id"] == adapter
    assert run.xcom("wait")["latest_update_time"] > before.isoformat()


def test_a_wait_that_takes_too_long_is_skipped_if_that_is_wanted(serve: Any, run_dag: Any) -> None:
    serve(NOTHING)
    dag = dag_of("late", "GradientModelAdapterSensor", name="wanted", timeout=0.05, soft_fail=True)
    assert run_dag(dag).states == {"wait": "skipped"}


def test_the_triggerer_is_told_how_long_to_wait(serve: Any) -> None:
    from airflow.providers.common.compat.sdk import TaskDeferred

    from airflow_provider_gradient.sensors import GradientServerReadySensor

    serve(error(503, "loading"))
    sensor = GradientServerReadySensor(task_id="wait", deferrable=True, timeout=90, poke_interval=7)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute({})
    assert deferred.value.timeout == timedelta(seconds=90)
    assert deferred.value.trigger.poll_interval == 7


@pytest.mark.parametrize("script", [(error(401, "no"),), (NOTHING, error(401, "no"))])
def test_a_wrong_token_is_not_waited_for(serve: Any, run_dag: Any, script: Any, caplog: Any) -> None:
    server = serve(*script)
    options = {"name": "wanted", "timeout": 30, "deferrable": True}
    run = run_dag(dag_of(f"refused_{len(script)}", "GradientModelAdapterSensor", **options))
    assert run.states == {"wait": "failed"}
    assert len(server.requests) == len(script)


async def test_a_trigger_that_is_begun_again_elsewhere_goes_on(
    gradient_default: Any, client: Any, airflow_database: Any
) -> None:
    from airflow_provider_gradient.triggers import GradientTrigger

    trigger = GradientTrigger(
        gradient_conn_id="gradient_default", awaited={"name": "appears"}, poll_interval=0.01
    )
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    assert gradient_default.access_token not in json.dumps(arguments)
    first = asyncio.ensure_future(anext(trigger.run()))
    await asyncio.sleep(0.1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**arguments)
    second = asyncio.ensure_future(anext(again.run()))
    await asyncio.sleep(0.1)
    assert not second.done()
    base = await asyncio.to_thread(client.find_base_model, "tiny")
    made = await asyncio.to_thread(client.create_model_adapter, base_model_id=base.id, name="appears")
    event = await asyncio.wait_for(second, 30)
    assert event.payload["found"]["id"] == made
    await asyncio.to_thread(client.delete_model, made)


def test_sensors_defer_where_airflow_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_gradient.sensors import GradientServerReadySensor

    assert not GradientServerReadySensor(task_id="a").deferrable
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
    assert GradientServerReadySensor(task_id="a").deferrable
    assert not GradientServerReadySensor(task_id="a", deferrable=False).deferrable


def test_what_makes_no_sense_is_refused_before_anything_is_sent(serve: Any, run_dag: Any) -> None:
    from airflow_provider_gradient.sensors import GradientModelAdapterSensor

    for options in ({}, {"model_id": "a", "name": "b"}):
        with pytest.raises(InvalidRequestError, match="exactly one of model_id and name"):
            GradientModelAdapterSensor(task_id="a", **options)
    server = serve(NOTHING)
    dag = dag_of("no_moment", "GradientModelAdapterSensor", name="wanted", changed_since="last week")
    assert run_dag(dag).state == "failed"
    assert server.requests == []
