"""What LoRA adapters add to the rows of a batch when any row may use any adapter.

Layers that read the same input share their tables, since one product with all their A is faster than one
each. There are two ways to multiply, and which is faster depends on how many tokens each adapter has:

- A prompt has many: the rows are sorted by adapter into equally high blocks, and a batched product of
  matrices does all blocks at once.
- A step has one a row, so on a processor that product would spend its time on arranging the matrices. But a
  row times a matrix is a weighted sum of the matrix's rows, and sums of rows of a table, chosen by index, are
  what recommendation models are made of: ``embedding_bag`` is tuned for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from airflow_provider_gradient.server.llama_form import Joined


@dataclass(frozen=True)
class LoraTables:
    """A and B of joined layers, of all adapters.

    :param first: places x inputs x layers · rank: each A transposed, the layers' side by side.
    :param second: places x pieces x rank x width: each B transposed, with the scale, its outputs cut into
        pieces of the greatest width by which those of all the layers can be divided.
    :param layers: the number of the layer that each piece belongs to.
    """

    first: Tensor
    second: Tensor
    layers: Tensor

    @classmethod
    def zeros(cls, target: Joined, *, places: int, rank: int) -> LoraTables:
        """Of adapters that add nothing."""
        width = math.gcd(*target.outputs)
        layers = [layer for layer, outputs in enumerate(target.outputs) for _ in range(outputs // width)]
        new = target.weight.new_zeros
        return cls(
            new(places, target.inputs, len(target.outputs) * rank),
            new(places, len(layers), rank, width),
            torch.tensor(layers, device=target.weight.device),
        )

    @property
    def places(self) -> int:
        """Adapters there is room for."""
        return len(self.first)

    @property
    def rank(self) -> int:
        """The largest there is room for."""
        return self.second.shape[2]

    def take_over(self, old: LoraTables) -> None:
        """Copy the adapters of smaller tables, each to the place it had."""
        self._parted()[: old.places, :, :, : old.rank] = old._parted()
        self.second[: old.places, :, : old.rank] = old.second

    def fill(self, place: int, pairs: Sequence[tuple[Tensor, Tensor]], scale: float) -> None:
        """Put an adapter at a place.

        :param pairs: A (rank x inputs) and B (outputs x rank) of each layer.
        """
        first, second = self._parted()[place], self.second[place]
        first[:], second[:] = 0, 0
        for layer, (a, b) in enumerate(pairs):
            rank = len(a)
            first[:, layer, :rank] = a.t()
            scaled = (b * scale).view(-1, second.shape[2], rank)
            second[self.layers == layer, :rank] = scaled.transpose(1, 2).to(second)

    def spread(self, inner: Tensor) -> Tensor:
        """What A made of tokens, for each piece: tokens x pieces x rank."""
        parts = inner.view(len(inner), -1, self.rank)
        return parts if parts.shape[1] == len(self.layers) else parts.index_select(1, self.layers)

    def _parted(self) -> Tensor:
        return self.first.view(*self.first.shape[:2], -1, self.rank)


class AddedByAdapters:
    """What the adapters of a batch add to its linear layers; see :class:`.llama_form.Added`.

    :param tables: of each target.
    :param places: of each row's adapter in them, 0 for none; not all of them 0.
    """

    def __init__(self, tables: Sequence[LoraTables], places: Sequence[int]) -> None:
        self._tables = tables
        self._places = places
        self._device = tables[0].first.device
        self._several = len(set(places)) > 1
        self._picked: dict[tuple[int, int], _Picked] = {}

    def add(self, target: int, x: Tensor, y: Tensor) -> None:
        """Add the adapters' share to ``y``, in place."""
        tables = self._tables[target]
        if not self._several:
            self._add_of_one(tables, self._places[0], x, y)
        elif x.shape[0] == len(self._places) and self._device.type == "cpu":
            self._add_sums(tables, x, y)
        else:
            self._add_products(target, x, y)

    def _add_of_one(self, tables: LoraTables, place: int, x: Tensor, y: Tensor) -> None:
        inner = tables.spread(x.mm(tables.first[place])).transpose(0, 1)
        outer = y.view(len(y), len(tables.layers), -1).transpose(0, 1)
        outer.baddbmm_(inner, tables.second[place])

    def _add_sums(self, tables: LoraTables, x: Tensor, y: Tensor) -> None:
        inner = _sums(tables.first, self._pick(1, x.shape[1]), x)
        outer = _sums(tables.second, self._pick(len(tables.layers), tables.rank), tables.spread(inner))
        y.add_(outer.view_as(y))

    def _pick(self, pieces: int, height: int) -> _Picked:
        if (pieces, height) not in self._picked:
            places = torch.tensor(self._places, device=self._device, dtype=torch.int32)
            matrices = (places[:, None] * pieces + torch.arange(pieces, dtype=torch.int32)).view(-1, 1)
            rows = matrices * height + torch.arange(height, dtype=torch.int32)
            starts = torch.arange(0, rows.numel() + 1, height, dtype=torch.int32)
            self._picked[pieces, height] = _Picked(rows.view(-1), starts)
        return self._picked[pieces, height]

    def _add_products(self, target: int, x: Tensor, y: Tensor) -> None:
        blocks, tables = self._blocks, self._tables[target]
        first, second = blocks.weights[target]
        arranged = blocks.arrange(x)
        groups, height, rank = len(first), len(arranged) // len(first), tables.rank
        inner = tables.spread(torch.bmm(arranged.view(groups, height, -1), first).flatten(0, 1))
        pieces = inner.view(groups, height, -1, rank).transpose(1, 2).reshape(-1, height, rank)
        outer = torch.bmm(pieces, second.flatten(0, 1))
        share = outer.view(groups, -1, height, second.shape[3]).transpose(1, 2)
        blocks.add_back(share.reshape(len(arranged), -1), y)

    @cached_property
    def _blocks(self) -> _Blocks:
        return _Blocks(self._tables, self._places)


class _Picked(NamedTuple):
    """Rows of a table: those of the first sum, of the second, and so on, and where each sum's begin."""

    rows: Tensor
    starts: Tensor


def _sums(table: Tensor, picked: _Picked, weights: Tensor) -> Tensor:
    """Sums of a table's rows, each row times its weight."""
    rows = table.view(-1, table.shape[-1])
    sums, *_ = torch.embedding_bag(
        rows, picked.rows, picked.starts, False, 0, False, weights.reshape(-1), True
    )
    return sums


class _Blocks:
    """The rows of a batch sorted by adapter into equally high blocks; what fills one up belongs to no row.

    :param weights: of each target the tables' matrices for these blocks.
    """

    def __init__(self, tables: Sequence[LoraTables], places: Sequence[int]) -> None:
        device = tables[0].first.device
        active = sorted(set(places) - {0})
        first, end = active[0], active[-1] + 1
        chosen: slice | Tensor = torch.tensor(active, device=device)
        if end - first <= 2 * len(active):
            active, chosen = list(range(first, end)), slice(first, end)
        self.weights = [(table.first[chosen], table.second[chosen]) for table in tables]
        members = [[row for row, place in enumerate(places) if place == number] for number in active]
        height = max(map(len, members))
        filled = [row for block in members for row in block + [0] * (height - len(block))]
        cells = [number * height + n for number, block in enumerate(members) for n in range(len(block))]
        self._rows = len(places)
        self._filled = torch.tensor(filled, device=device)
        self._cells = torch.tensor(cells, device=device)
        self._members = torch.tensor([row for block in members for row in block], device=device)

    def arrange(self, x: Tensor) -> Tensor:
        """The tokens of the rows, block by block."""
        return x.view(self._rows, -1).index_select(0, self._filled).view(-1, x.shape[1])

    def add_back(self, share: Tensor, y: Tensor) -> None:
        """Add what came out of the blocks to the rows, in place."""
        added = share.view(len(self._filled), -1).index_select(0, self._cells)
        y.view(self._rows, -1).index_add_(0, self._members, added)
