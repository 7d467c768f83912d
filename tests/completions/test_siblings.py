"""Two tasks of one DAG run, or two instances of a mapped one, that were given one output_path."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from echo_server import HANG, Complete, EchoServer, questions
from upath import UPath

from airflow_provider_gradient.completions import merge_completions, plan_runs
from airflow_provider_gradient.completions.siblings import refuse_sibling
from airflow_provider_gradient.datasets import DatasetError, write_rows

FIRST = "dag/manual__2026-01-01T00:00:00+00:00/each/0"


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ("dag/run/each/1", True),
        ("dag/run/each/-1", True),
        ("dag/run/group.other/0", True),
        ("dag/run/each/1/cleared after 2", True),
        ("dag/run/each/0", False),
        ("dag/run/each/0/cleared after 2", False),
        ("dag/next run/each/1", False),
        ("another dag/run/each/1", False),
        ("dag/run/with/slashes/each/1", False),
        ("nightly answers", False),
        ("dag/run/each/last", False),
        (None, False),
        (["dag/run/each/1"], False),
    ],
)
def test_another_task_or_instance_of_the_same_run_is_refused_and_no_other_work(
    other: object, refused: bool
) -> None:
    def check() -> None:
        refuse_sibling(UPath("out.jsonl"), "dag/run/each/0", owner=other, has="the output")

    if refused:
        with pytest.raises(DatasetError, match="of the same DAG run"):
            check()
    else:
        check()


def test_a_run_whose_id_has_slashes_is_one_run() -> None:
    with pytest.raises(DatasetError):
        refuse_sibling(UPath("o"), "dag/a/b/each/0", owner="dag/a/b/each/1", has="the output")
    refuse_sibling(UPath("o"), "dag/a/b/each/0", owner="dag/a/c/each/1", has="the output")


async def test_a_mapped_instance_does_not_replace_what_another_of_its_run_was_paid_for(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    await complete(questions(3), identity=FIRST)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    server.requests.clear()
    with pytest.raises(DatasetError) as raised:
        await complete(questions(5), identity=FIRST[:-1] + "1")
    message = str(raised.value)
    assert f"{tmp_path / 'out.jsonl'} has the output of {FIRST!r}" in message
    assert repr(FIRST[:-1] + "1") in message
    assert "{{ ti.map_index }}" in message
    assert server.queries.total() == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    assert (await complete(questions(3), identity=FIRST)).resumed_rows == 3
    await complete(questions(5), identity=FIRST.replace("-01-01", "-01-02"))
    assert server.queries.total() == 5


async def test_the_journal_of_a_killed_instance_is_not_dropped_by_another_of_its_run(
    complete: Complete, server: EchoServer, tmp_path: Path
) -> None:
    server.answer = lambda query: HANG if query == "question 2" else None
    task = asyncio.create_task(complete(questions(5), identity=FIRST, concurrency=1))  # type: ignore[arg-type]
    while not server.queries["question 2"]:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.answer = lambda _: None
    with pytest.raises(DatasetError, match="has the journal of"):
        await complete(questions(5), identity=FIRST[:-1] + "1")
    assert (await complete(questions(5), identity=FIRST)).resumed_rows == 2


async def test_a_merge_does_not_replace_the_output_of_another_task_of_its_run(
    complete: Complete, tmp_path: Path
) -> None:
    write_rows(tmp_path / "in.jsonl", questions(6))
    await complete(questions(3), identity=FIRST)
    runs = plan_runs(tmp_path / "in.jsonl", output_path=tmp_path / "out.jsonl", shards=2)
    shards = [await complete(**run) for run in runs]
    with pytest.raises(DatasetError, match="has the output of"):
        merge_completions(
            shards, output_path=tmp_path / "out.jsonl", identity=FIRST.replace("each/0", "merge/-1")
        )
