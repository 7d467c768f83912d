"""Which samples go into which call: a pure function of the seed.

The same groups, epochs, batch size and seed give the same plan, in another process and another version of
Python, so that a run can be resumed in its middle and repeated from its seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_gradient.api import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class PlannedCall:
    """One fine-tune request.

    :ivar number: from 0, through all epochs.
    :ivar epoch: from 0.
    :ivar indices: of the samples, in the order in which they are sent.
    """

    number: int
    epoch: int
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All calls of a run, in order; ``str()`` has one line a call."""

    epochs: int
    batch_size: int
    seed: int
    calls: tuple[PlannedCall, ...]

    def __str__(self) -> str:
        head = (
            f"{len(self.calls)} calls: {self.epochs} epochs, at most {self.batch_size} samples a call, "
            f"seed {self.seed}"
        )
        lines = [f"call {call.number}, epoch {call.epoch}: {list(call.indices)}" for call in self.calls]
        return "\n".join([head, *lines])


def plan_training(
    groups: Sequence[Sequence[int]], *, epochs: int, batch_size: int, seed: int
) -> TrainingPlan:
    """The plan over samples in groups.

    Each epoch takes one sample of each group, in a new shuffled order. A group of several is gone through in
    a shuffled order of its own, so that none comes again before all have come once.

    :param groups: indices of samples; those in one group say the same thing in other words.
    :raises InvalidRequestError: ``epochs`` or ``batch_size`` is below 1.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise InvalidRequestError(f"{name}: at least 1 is needed (got {value})")
    wordings = [_shuffled(group, f"{seed}/group/{number}") for number, group in enumerate(groups)]
    calls: list[PlannedCall] = []
    for epoch in range(epochs):
        order = _shuffled([group[epoch % len(group)] for group in wordings], f"{seed}/epoch/{epoch}")
        for start in range(0, len(order), batch_size):
            indices = tuple(order[start : start + batch_size])
            calls.append(PlannedCall(number=len(calls), epoch=epoch, indices=indices))
    return TrainingPlan(epochs=epochs, batch_size=batch_size, seed=seed, calls=tuple(calls))


def _shuffled(items: Sequence[int], seed: str) -> list[int]:
    """A copy in an order that ``seed`` alone decides: a text as seed is hashed with SHA-512, not by
    ``hash``."""
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled
