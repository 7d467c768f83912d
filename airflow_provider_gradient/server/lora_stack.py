"""The LoRA weights of the adapters in memory, stacked, so that rows of one batch may use different ones.

Every adapter has the same place in the tables of all linear layers, padded with zeros to the largest rank; at
the first place there are zeros alone, which is what the base model adds to itself. :mod:`.lora_rows` says
what the tables look like and multiplies by them. A version of an adapter never changes in place: a new one
gets another, and texts begun by the old one finish on the old one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from airflow_provider_gradient.server.adapter_files import (
    AdapterFileError,
    Digests,
    check_shapes,
    read_json,
    read_tensors,
)
from airflow_provider_gradient.server.llama_form import Joined
from airflow_provider_gradient.server.lora_rows import AddedByAdapters, LoraTables

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
_FEWEST = 4
"""Places at first; they double when more are used."""


@dataclass(frozen=True)
class AdapterKey:
    """One version of an adapter.

    :param digests: of its files, where they are on record; see :mod:`.adapter_files`.
    """

    id: str
    version: int
    digests: Digests | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Lora:
    """An adapter's weights.

    :param pairs: A (rank x inputs) and B (outputs x rank) by the linear layer's name in the model.
    :param scale: what their product is multiplied with.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scale: float

    @classmethod
    def load(cls, directory: Path, digests: Digests | None = None) -> Lora:
        """Read an adapter in PEFT's format.

        :param digests: of the directory's files, where they are on record.
        :raises FileNotFoundError: a file is missing.
        :raises AdapterFileError: a file is not what was written, or the two don't go together.
        """
        config = read_json(directory, CONFIG_FILE, digests)
        try:
            rank, scale = int(config["r"]), config["lora_alpha"] / config["r"]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            raise AdapterFileError(CONFIG_FILE, "names no rank and alpha") from None
        tensors = read_tensors(directory, WEIGHTS_FILE, digests)
        names = {name.rpartition(".lora_")[0] for name in tensors}
        alone = tensors.keys() ^ {f"{name}.lora_{part}.weight" for name in names for part in "AB"}
        if alone:
            raise AdapterFileError(WEIGHTS_FILE, f"has no pair of A and B at {min(alone)!r}")
        pairs = {
            name.removeprefix(_PREFIX): (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])
            for name in names
        }
        for name, (first, second) in pairs.items():
            if first.dim() != 2 or second.dim() != 2 or not len(first) == second.shape[1] == rank:
                raise AdapterFileError(
                    WEIGHTS_FILE, f"holds {name!r} in another rank than the {rank} of {CONFIG_FILE}"
                )
        return cls(pairs, scale)

    @property
    def rank(self) -> int:
        """Its largest."""
        return max(len(first) for first, _ in self.pairs.values())


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
        self._tables = [LoraTables.zeros(target, places=_FEWEST, rank=1) for target in targets]
        self._layers = {
            name: (target.inputs, outputs)
            for target in targets
            for name, outputs in zip(target.names, target.outputs, strict=True)
        }

    def __len__(self) -> int:
        return len(self._places)

    @torch.inference_mode()
    def place(self, key: AdapterKey, *, used: Collection[AdapterKey]) -> int:
        """Where the adapter's weights are in the stack, read if they are not in memory.

        :param used: adapters that must stay.
        :raises AdapterFileError: it doesn't fit this base model.
        """
        if key not in self._places:
            lora = self._read(key)
            found = {name: (a.shape[1], b.shape[0]) for name, (a, b) in lora.pairs.items()}
            check_shapes(WEIGHTS_FILE, found, self._layers)
            place = self._free_place(used)
            self._make_room(place + 1, lora.rank)
            self._fill(place, lora)
            self._places[key] = place
        self._places.move_to_end(key)
        return self._places[key]

    @torch.inference_mode()
    def forget(self, adapter_id: str) -> None:
        """Let go of an adapter that no row uses any more; its weights are wiped."""
        for key in [key for key in self._places if key.id == adapter_id]:
            place = self._places.pop(key)
            for tables in self._tables:
                tables.fill(place, [], scale=0.0)

    def added(self, places: Sequence[int | None]) -> AddedByAdapters | None:
        """What adapters add to a batch; ``None`` where no row has one.

        :param places: of each row's adapter, ``None`` for the base model.
        """
        if all(place is None for place in places):
            return None
        return AddedByAdapters(self._tables, [place or 0 for place in places])

    def _free_place(self, used: Collection[AdapterKey]) -> int:
        idle = [key for key in self._places if key not in used]
        for oldest in idle[: max(0, len(self._places) + 1 - self._most)]:
            del self._places[oldest]
        return min(set(range(1, len(self._places) + 2)) - set(self._places.values()))

    def _make_room(self, places: int, rank: int) -> None:
        there = self._tables[0]
        if places <= there.places and rank <= there.rank:
            return
        room = there.places
        while room < places:
            room *= 2
        rank = max(rank, there.rank)
        grown = [LoraTables.zeros(target, places=room, rank=rank) for target in self._targets]
        for new, old in zip(grown, self._tables, strict=True):
            new.take_over(old)
        self._tables = grown  # all at once, since memory may have ended half-way

    def _fill(self, place: int, lora: Lora) -> None:
        for target, tables in zip(self._targets, self._tables, strict=True):
            tables.fill(place, [lora.pairs[name] for name in target.names], lora.scale)
