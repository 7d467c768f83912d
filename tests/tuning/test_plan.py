"""Which samples go into which call."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.tuning import plan_training

GROUPS = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def grouped(sizes: list[int]) -> list[tuple[int, ...]]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


@given(sizes=GROUPS, epochs=st.integers(1, 6), batch_size=st.integers(1, 5), seed=st.integers())
def test_every_epoch_has_one_sample_of_each_group_and_none_again_before_all_have_come(
    sizes: list[int], epochs: int, batch_size: int, seed: int
) -> None:
    groups = grouped(sizes)
    plan = plan_training(groups, epochs=epochs, batch_size=batch_size, seed=seed)
    assert [call.number for call in plan.calls] == list(range(len(plan.calls)))
    taken: Counter[int] = Counter()
    for epoch in range(epochs):
        calls = [call for call in plan.calls if call.epoch == epoch]
        assert all(len(call.indices) == batch_size for call in calls[:-1])
        assert 1 <= len(calls[-1].indices) <= batch_size
        indices = [index for call in calls for index in call.indices]
        assert len(indices) == len(groups)
        assert all(len(set(group) & set(indices)) == 1 for group in groups)
        taken.update(indices)
    for group in groups:
        counts = [taken[index] for index in group]
        assert max(counts) - min(counts) <= 1


def test_the_plan_follows_from_the_seed_in_any_process() -> None:
    code = """
from airflow_provider_gradient.tuning import plan_training
print(plan_training([(0, 1), (2,), (3,), (4,)], epochs=2, batch_size=3, seed=7))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plan = plan_training([(0, 1), (2,), (3,), (4,)], epochs=2, batch_size=3, seed=7)
    assert run.stdout.strip() == str(plan)
    assert str(plan) == EXPECTED
    assert plan_training([(0, 1), (2,), (3,), (4,)], epochs=2, batch_size=3, seed=8) != plan


def test_the_orders_of_two_epochs_differ() -> None:
    plan = plan_training([(index,) for index in range(50)], epochs=2, batch_size=50, seed=0)
    assert plan.calls[0].indices != plan.calls[1].indices
    assert list(plan.calls[0].indices) != list(range(50))


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_a_plan_of_nothing_is_refused(name: str) -> None:
    arguments = {"epochs": 1, "batch_size": 1} | {name: 0}
    with pytest.raises(InvalidRequestError, match=f"{name}: at least 1"):
        plan_training([(0,)], seed=0, **arguments)


EXPECTED = """\
4 calls: 2 epochs, at most 3 samples a call, seed 7
call 0, epoch 0: [2, 0, 3]
call 1, epoch 0: [4]
call 2, epoch 1: [3, 4, 1]
call 3, epoch 1: [2]"""


ROOM = st.integers(2, 9)


@given(count=st.integers(1, 40), batch_size=ROOM, old=st.integers(1, 9), share=st.floats(0.05, 0.9))
def test_every_call_rehearses_its_share_and_none_comes_again_before_all_have_come(
    count: int, batch_size: int, old: int, share: float
) -> None:
    groups = [(index,) for index in range(count)]
    options: dict[str, Any] = {"batch_size": batch_size, "rehearsal": [1] * old, "rehearsal_share": share}
    plan = plan_training(groups, epochs=2, seed=1, **options)
    repeated = [index for call in plan.calls for index in call.rehearsed]
    assert all(call.rehearsed and call.indices for call in plan.calls)
    assert all(len(call.indices) + len(call.rehearsed) <= batch_size for call in plan.calls)
    for call in plan.calls:
        wanted = share * (len(call.indices) + len(call.rehearsed))
        assert len(call.rehearsed) == 1 or len(call.rehearsed) <= wanted + 1
    for start in range(0, len(repeated) - old + 1, old):
        assert sorted(repeated[start : start + old]) == list(range(old))
    assert sorted(index for call in plan.calls for index in call.indices) == sorted(2 * list(range(count)))
    assert plan_training(groups, epochs=1, seed=1, **options).calls == tuple(
        call for call in plan.calls if call.epoch == 0
    )


@given(tokens=st.lists(st.integers(1, 30), min_size=1, max_size=40), limit=st.integers(1, 60))
def test_a_call_holds_no_more_tokens_than_allowed_unless_one_sample_has_more(
    tokens: list[int], limit: int
) -> None:
    groups = [(index,) for index in range(len(tokens))]
    plan = plan_training(groups, epochs=1, batch_size=7, seed=0, batch_tokens=limit, tokens=tokens)
    for call in plan.calls:
        assert len(call.indices) == 1 or sum(tokens[index] for index in call.indices) <= limit
        assert len(call.indices) <= 7
    assert sorted(index for call in plan.calls for index in call.indices) == list(range(len(tokens)))


def test_samples_come_as_given_by_length_or_by_a_rank_with_ties_shuffled() -> None:
    groups = [(index,) for index in range(20)]

    def order(epoch: int = 0, **arguments: Any) -> list[int]:
        plan = plan_training(groups, epochs=2, batch_size=20, seed=3, **arguments)
        return list(plan.calls[epoch].indices)

    assert order(order="as_given") == order(1, order="as_given") == list(range(20))
    tokens = [20 - index for index in range(20)]
    assert order(order="by_length", tokens=tokens) == list(range(19, -1, -1))
    ranks = [float(index % 2) for index in range(20)]
    ranked = order(ranks=ranks)
    assert [ranks[index] for index in ranked] == [0.0] * 10 + [1.0] * 10
    assert ranked != order(1, ranks=ranks)


def test_a_long_plan_is_printed_short_and_whole_as_a_dict() -> None:
    plan = plan_training([(index,) for index in range(1000)], epochs=3, batch_size=30, seed=0)
    lines = str(plan).splitlines()
    assert len(lines) == 22
    assert lines[-1] == f"and {len(plan.calls) - 20} more"
    assert lines[1].endswith(", ... 30 in all]")
    fields = json.loads(json.dumps(plan.to_dict()))
    assert [call["indices"] for call in fields["calls"]] == [list(call.indices) for call in plan.calls]
    assert plan.fingerprint != plan_training([(0,)], epochs=3, batch_size=30, seed=0).fingerprint
