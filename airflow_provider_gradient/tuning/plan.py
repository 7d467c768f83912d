"""Which samples go into which call: a pure function of the seed.

The same groups, epochs, sizes and seed give the same plan, in another process and another version of Python,
so that a run can be resumed in its middle and repeated from its seed. A plan of fewer epochs is the beginning
of one of more, so the state after any epoch can be had again in a fresh adapter.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import dump_row

Order = Literal["shuffle", "as_given", "by_length"]

_SHOWN_CALLS = 20
_SHOWN_INDICES = 12


@dataclass(frozen=True, kw_only=True)
class PlannedCall:
    """One fine-tune request.

    :ivar number: from 0, through all epochs.
    :ivar epoch: from 0.
    :ivar indices: of the samples, in the order in which they are sent.
    :ivar rehearsed: indices, among the samples to rehearse, of those that follow.
    """

    number: int
    epoch: int
    indices: tuple[int, ...]
    rehearsed: tuple[int, ...] = ()

    def __str__(self) -> str:
        rehearsed = f", rehearses {_listed(self.rehearsed)}" if self.rehearsed else ""
        return f"call {self.number}, epoch {self.epoch}: {_listed(self.indices)}{rehearsed}"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All calls of a run, in order; ``str()`` has a line a call, of the first ones.

    In memory it takes some 30 bytes a sample, and 15 more an epoch.
    """

    epochs: int
    batch_size: int
    seed: int
    batch_tokens: int | None = None
    order: str = "shuffle"
    rehearsal_share: float = 0.0
    calls: tuple[PlannedCall, ...] = field(repr=False)

    def __str__(self) -> str:
        tokens = f" and {self.batch_tokens} tokens" if self.batch_tokens is not None else ""
        order = "" if self.order == "shuffle" else f", order {self.order}"
        rehearsal = f", {self.rehearsal_share:.0%} rehearsal" if self.rehearsal_share else ""
        head = (
            f"{len(self.calls)} calls: {self.epochs} epochs, at most {self.batch_size} samples{tokens} a "
            f"call, seed {self.seed}{order}{rehearsal}"
        )
        lines = [str(call) for call in self.calls[:_SHOWN_CALLS]]
        left = len(self.calls) - len(lines)
        return "\n".join([head, *lines, *([f"and {left} more"] if left else [])])

    def to_dict(self) -> dict[str, Any]:
        """The whole plan as JSON has it."""
        return self._head() | {"calls": [_call_dict(call) for call in self.calls]}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the plan, in hexadecimal."""
        digest = hashlib.sha256(dump_row(self._head()))
        for call in self.calls:
            digest.update(dump_row(_call_dict(call)))
        return digest.hexdigest()

    def _head(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "batch_tokens": self.batch_tokens,
            "seed": self.seed,
            "order": self.order,
            "rehearsal_share": self.rehearsal_share,
        }


def plan_training(
    groups: Sequence[Sequence[int]],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    batch_tokens: int | None = None,
    tokens: Sequence[int] = (),
    order: Order = "shuffle",
    ranks: Sequence[float] | None = None,
    rehearsal: Sequence[int] = (),
    rehearsal_share: float = 0.0,
) -> TrainingPlan:
    """The plan over samples in groups.

    Each epoch takes one sample of each group, in the order asked for. A group of several is gone through in a
    shuffled order of its own, so that none comes again before all have come once; so are the samples to
    rehearse, through the whole plan.

    :param groups: indices of samples; those in one group say the same thing in other words.
    :param batch_size: samples a call at most, those to rehearse included.
    :param batch_tokens: tokens a call at most, likewise; a sample of more has a call of its own.
    :param tokens: of each sample by its index; ``batch_tokens`` and the order ``by_length`` need them.
    :param order: ``shuffle`` anew each epoch; ``as_given``; ``by_length``, short ones first.
    :param ranks: of each sample by its index: low ones first, instead of ``order``.
    :param rehearsal: tokens of each sample to rehearse.
    :param rehearsal_share: of each call's samples, from 0 to below 1.
    :raises InvalidRequestError: a parameter is out of range.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise InvalidRequestError(f"{name}: at least 1 is needed (got {value})")
    if order not in get_args(Order):
        raise InvalidRequestError(f"order: one of {', '.join(get_args(Order))} (got {order!r})")
    if ranks is not None and order != "shuffle":
        raise InvalidRequestError("give order or curriculum_column, not both")
    _check_rehearsal(rehearsal, rehearsal_share, batch_size)
    first = _first_key(order, tokens, ranks)
    cut = _Cut(batch_size=batch_size, batch_tokens=batch_tokens, tokens=tokens, share=rehearsal_share)
    old = _endless(len(rehearsal), seed) if rehearsal_share else iter(())
    wordings = _Wordings(groups, seed)
    calls: list[PlannedCall] = []
    for epoch in range(epochs):
        taken = wordings.of(epoch)
        if order != "as_given":
            taken = _shuffled(taken, f"{seed}/epoch/{epoch}")
        if first is not None:
            taken.sort(key=first.__getitem__)
        for batch in cut.batches(taken):
            repeated = cut.rehearsed(len(batch), old, rehearsal)
            calls.append(
                PlannedCall(number=len(calls), epoch=epoch, indices=tuple(batch), rehearsed=repeated)
            )
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        batch_tokens=batch_tokens,
        order="curriculum" if ranks is not None else order,
        rehearsal_share=rehearsal_share,
        calls=tuple(calls),
    )


def _check_rehearsal(rehearsal: Sequence[int], share: float, batch_size: int) -> None:
    if not 0 <= share < 1:
        raise InvalidRequestError(f"rehearsal_share: from 0 to below 1 (got {share!r})")
    if bool(share) != bool(len(rehearsal)):
        raise InvalidRequestError("give rehearsal_samples and a rehearsal_share above 0 together, or neither")
    if share and batch_size < 2:
        raise InvalidRequestError("rehearsal_share: a call of one sample has no room to rehearse another")


def _first_key(order: Order, tokens: Sequence[int], ranks: Sequence[float] | None) -> Sequence[float] | None:
    if ranks is not None:
        return ranks
    return tokens if order == "by_length" else None


class _Wordings:
    """The sample of each group whose turn it is."""

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        self._first = [group[0] for group in groups]  # the same numbers in every epoch, for memory's sake
        self._orders = {
            number: _shuffled(group, f"{seed}/group/{number}")
            for number, group in enumerate(groups)
            if len(group) > 1
        }

    def of(self, epoch: int) -> list[int]:
        turns = list(self._first)
        for number, wording in self._orders.items():
            turns[number] = wording[epoch % len(wording)]
        return turns


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """How an epoch is cut into calls, with room for what is rehearsed."""

    batch_size: int
    batch_tokens: int | None
    tokens: Sequence[int]
    share: float

    @property
    def _own_size(self) -> int:
        room = min(self.batch_size - 1, max(1, round(self.batch_size * self.share))) if self.share else 0
        return self.batch_size - room

    def batches(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Runs of ``order``, none larger than a call may be."""
        limit = math.inf if self.batch_tokens is None else self.batch_tokens * (1 - self.share)
        batch: list[int] = []
        weight = 0
        for index in order:
            size = self.tokens[index] if self.batch_tokens is not None else 0
            if batch and (len(batch) == self._own_size or weight + size > limit):
                yield batch
                batch, weight = [], 0
            batch.append(index)
            weight += size
        if batch:
            yield batch

    def rehearsed(self, own: int, old: Iterator[int], tokens: Sequence[int]) -> tuple[int, ...]:
        """The samples that a call of ``own`` samples rehearses: at least one, if any."""
        if not self.share:
            return ()
        most = max(1, min(self.batch_size - own, round(own * self.share / (1 - self.share))))
        limit = math.inf if self.batch_tokens is None else self.batch_tokens * self.share
        chosen = [next(old)]
        weight = tokens[chosen[0]]
        while len(chosen) < most:
            index = next(old)
            chosen.append(index)
            weight += tokens[index]
            if weight > limit:
                break
        return tuple(chosen)


def _endless(count: int, seed: int) -> Iterator[int]:
    """Indices below ``count``, in one shuffled order after another."""
    for turn in itertools.count():
        yield from _shuffled(range(count), f"{seed}/rehearsal/{turn}")


def _shuffled(items: Sequence[int], seed: str) -> list[int]:
    """A copy in an order that ``seed`` alone decides: a text as seed is hashed with SHA-512, not by
    ``hash``."""
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _call_dict(call: PlannedCall) -> dict[str, Any]:
    fields = {"number": call.number, "epoch": call.epoch, "indices": list(call.indices)}
    return fields | ({"rehearsed": list(call.rehearsed)} if call.rehearsed else {})


def _listed(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:_SHOWN_INDICES]))
    more = f", ... {len(indices)} in all" if len(indices) > _SHOWN_INDICES else ""
    return f"[{shown}{more}]"
