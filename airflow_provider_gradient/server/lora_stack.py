"""The LoRA weights of the adapters in memory, stacked, so that rows of one batch may use different ones.

Every adapter is one row of a matrix: the A and B of each linear layer one after another, padded with zeros to
the largest rank and with the scale in B. Layers that read the same input are one here too: their A stand side
by side. What a batch needs of a layer is then a view of that matrix, and the layers' share for all rows is
one batched product with all their A and one with the B of each, however many adapters there are. A version of
an adapter never changes in place: a new one is another row, and texts begun by the old one finish on the old
one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from airflow_provider_gradient.server.llama_form import Joined

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
_FEWEST = 4
"""Adapters the stack has room for at first; the room doubles when more are used."""


@dataclass(frozen=True)
class AdapterKey:
    """One version of an adapter."""

    id: str
    version: int


@dataclass(frozen=True)
class Lora:
    """An adapter's weights.

    :param pairs: A (rank x inputs) and B (outputs x rank) by the linear layer's name in the model.
    :param scale: what their product is multiplied with.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scale: float

    @classmethod
    def load(cls, directory: Path) -> Lora:
        """Read an adapter in PEFT's format.

        :raises OSError, ValueError: the files can't be read.
        """
        config = json.loads((directory / CONFIG_FILE).read_text())
        tensors = load_file(directory / WEIGHTS_FILE)
        names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
        pairs = {
            name.removeprefix(_PREFIX): (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])
            for name in names
        }
        return cls(pairs, config["lora_alpha"] / config["r"])

    @property
    def rank(self) -> int:
        """Its largest."""
        return max(len(first) for first, _ in self.pairs.values())


class _Part(NamedTuple):
    """A and B of joined layers.

    :param first: adapters x layers x rank x inputs.
    :param seconds: of each layer: adapters x rank x its outputs.
    """

    first: Tensor
    seconds: list[Tensor]


class LoraStack:
    """The adapters in memory; the one not used for longest goes when there are too many.

    :param targets: the linear layers, in the order of their numbers.
    :param most: adapters in memory, unless more are used at once.
    :param read: gives an adapter's weights.
    """

    def __init__(self, targets: Sequence[Joined], *, most: int, read: Callable[[AdapterKey], Lora]) -> None:
        self._targets = targets
        self._most = most
        self._read = read
        self._places: OrderedDict[AdapterKey, int] = OrderedDict()
        self._rank = 0
        self._weights = torch.empty(0, 0)
        self._parts: list[_Part] = []

    def __len__(self) -> int:
        return len(self._places)

    @torch.inference_mode()
    def place(self, key: AdapterKey, *, used: Collection[AdapterKey]) -> int:
        """Where the adapter's weights are in the stack, read if they are not in memory.

        :param used: adapters that must stay.
        :raises ValueError: it doesn't fit this base model.
        """
        if key not in self._places:
            lora = self._read(key)
            if lora.pairs.keys() != {name for target in self._targets for name in target.names}:
                raise ValueError(f"adapter {key.id} doesn't fit this base model")
            place = self._free_place(used)
            self._make_room(place + 1, lora.rank)
            self._fill(place, lora)
            self._places[key] = place
        self._places.move_to_end(key)
        return self._places[key]

    def added(self, places: Sequence[int | None]) -> AddedByAdapters | None:
        """What adapters add to a batch; ``None`` where no row has one.

        :param places: of each row's adapter, ``None`` for the base model.
        """
        active = sorted({place for place in places if place is not None})
        if not active:
            return None
        first, last = active[0], active[-1] + 1
        if last - first <= 2 * len(active):
            groups = range(first, last)
            parts = [_Part(a[first:last], [b[first:last] for b in bs]) for a, bs in self._parts]
        else:
            groups = range(0)
            parts = self._split(self._weights[active])
        numbers = {place: number for number, place in enumerate(groups or active)}
        return AddedByAdapters(
            parts,
            [None if place is None else numbers[place] for place in places],
            self._weights.device,
        )

    def _free_place(self, used: Collection[AdapterKey]) -> int:
        idle = [key for key in self._places if key not in used]
        for oldest in idle[: max(0, len(self._places) + 1 - self._most)]:
            del self._places[oldest]
        return min(set(range(len(self._places) + 1)) - set(self._places.values()))

    def _make_room(self, places: int, rank: int) -> None:
        if places <= len(self._weights) and rank <= self._rank:
            return
        room = max(_FEWEST, len(self._weights))
        while room < places:
            room *= 2
        old, kept = self._parts, len(self._weights)
        rank, self._rank = self._rank, max(rank, self._rank)
        some = self._targets[0].weight
        size = sum(self._first_size(target) + self._second_size(target) for target in self._targets)
        self._weights = torch.zeros(room, size, dtype=some.dtype, device=some.device)
        self._parts = self._split(self._weights)
        for new, part in zip(self._parts, old, strict=False):
            new.first[:kept, :, :rank] = part.first
            for grown, second in zip(new.seconds, part.seconds, strict=True):
                grown[:kept, :rank] = second

    def _first_size(self, target: Joined) -> int:
        return len(target.names) * self._rank * target.inputs

    def _second_size(self, target: Joined) -> int:
        return self._rank * sum(target.outputs)

    def _split(self, weights: Tensor) -> list[_Part]:
        """What each target has of these rows."""
        parts, start = [], 0
        for target in self._targets:
            middle = start + self._first_size(target)
            end = middle + self._second_size(target)
            shape = (-1, len(target.names), self._rank, target.inputs)
            widths = [self._rank * width for width in target.outputs]
            seconds = [
                second.view(-1, self._rank, width)
                for second, width in zip(
                    weights[:, middle:end].split_with_sizes(widths, dim=1), target.outputs, strict=True
                )
            ]
            parts.append(_Part(weights[:, start:middle].view(shape), seconds))
            start = end
        return parts

    def _fill(self, place: int, lora: Lora) -> None:
        self._weights[place].zero_()
        for target, (first, seconds) in zip(self._targets, self._parts, strict=True):
            for number, (name, second) in enumerate(zip(target.names, seconds, strict=True)):
                a, b = lora.pairs[name]
                first[place, number, : len(a)] = a
                second[place, : len(a)] = b.t() * lora.scale


class AddedByAdapters:
    """What the adapters of a batch add to its linear layers; see :class:`.llama_form.Added`.

    The rows are sorted by adapter into equally high blocks, each adapter multiplies its block, and what comes
    out is added to its rows. What fills a block up belongs to no row.

    :param parts: A and B of each target for these adapters.
    :param rows: the number of each row's adapter among them, ``None`` for none.
    """

    def __init__(self, parts: Sequence[_Part], rows: Sequence[int | None], device: torch.device) -> None:
        self._views = [
            (first.flatten(1, 2).transpose(1, 2), first.shape[2], seconds) for first, seconds in parts
        ]
        self._groups = len(parts[0].first)
        self._rows = len(rows)
        members: list[list[int]] = [[] for _ in range(self._groups)]
        for row, group in enumerate(rows):
            if group is not None:
                members[group].append(row)
        height = max(map(len, members))
        self._alone = self._groups == 1 and height == self._rows
        blocks = [row for block in members for row in block + [0] * (height - len(block))]
        cells = [number * height + n for number, block in enumerate(members) for n in range(len(block))]
        self._blocks = torch.tensor(blocks, device=device)
        self._cells = torch.tensor(cells, device=device)
        self._members = torch.tensor([row for block in members for row in block], device=device)

    def add(self, target: int, x: Tensor, y: Tensor) -> None:
        """Add the adapters' share to ``y``, in place."""
        first, rank, seconds = self._views[target]
        if self._alone:
            widths = [second.shape[2] for second in seconds]
            inner = x.mm(first[0]).split_with_sizes([rank] * len(seconds), dim=1)
            for part, second, out in zip(inner, seconds, y.split_with_sizes(widths, dim=1), strict=True):
                out.addmm_(part, second[0])
            return
        blocks = x.view(self._rows, -1).index_select(0, self._blocks).view(self._groups, -1, x.shape[-1])
        inner = torch.bmm(blocks, first).split_with_sizes([rank] * len(seconds), dim=2)
        shares = [torch.bmm(part, second) for part, second in zip(inner, seconds, strict=True)]
        share = torch.cat(shares, dim=2) if len(shares) > 1 else shares[0]
        added = share.view(len(self._blocks), -1).index_select(0, self._cells)
        y.view(self._rows, -1).index_add_(0, self._members, added)
