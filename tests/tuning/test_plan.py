"""Which samples go into which call."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

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
