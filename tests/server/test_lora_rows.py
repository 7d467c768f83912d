"""Sums and batched products add what each row's own adapter says, however the rows and adapters lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from airflow_provider_gradient.server.llama_form import Joined
from airflow_provider_gradient.server.lora_rows import AddedByAdapters, LoraTables
from airflow_provider_gradient.server.lora_stack import AdapterKey, Lora, LoraStack

INPUTS = 24
OUTPUTS = {"q": 32, "k": 16, "v": 8, "o": 24}
"""Of three layers that read one input and have no common width, and of one by itself."""
RANKS = (4, 1, 7, 2, 7, 3)


class Subject:
    """Adapters of several ranks over four linear layers, by the names 0, 1, 2 and so on."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, *, count: int = len(RANKS), most: int = 99
    ) -> None:
        torch.manual_seed(0)
        self.loras = [
            Lora(
                {
                    name: (torch.randn(rank, INPUTS, dtype=dtype), torch.randn(width, rank, dtype=dtype))
                    for name, width in OUTPUTS.items()
                },
                scale=0.5,
            )
            for rank in (RANKS * count)[:count]
        ]
        linears = {name: nn.Linear(INPUTS, width, bias=False, dtype=dtype) for name, width in OUTPUTS.items()}
        targets = [Joined({name: linears[name] for name in names}) for names in ("qkv", "o")]
        self.dtype = dtype
        self.stack = LoraStack(targets, most=most, read=lambda key: self.loras[int(key.id)])

    def places(self, rows: Sequence[int | None]) -> list[int | None]:
        used = {AdapterKey(str(row), 1) for row in rows if row is not None}
        return [None if row is None else self.stack.place(AdapterKey(str(row), 1), used=used) for row in rows]

    def added(self, rows: Sequence[int | None]) -> AddedByAdapters:
        found = self.stack.added(self.places(rows))
        assert found is not None
        return found

    def expected(self, rows: Sequence[int | None], names: str, x: Tensor) -> Tensor:
        """Row by row and layer by layer, as LoRA is defined (Hu et al. 2021)."""
        of_rows = []
        for row, tokens in zip(rows, x.double().view(len(rows), -1, INPUTS), strict=True):
            if row is None:
                of_rows.append(tokens.new_zeros(len(tokens), sum(OUTPUTS[name] for name in names)))
                continue
            lora = self.loras[row]
            pairs = [(a.double(), b.double()) for a, b in (lora.pairs[name] for name in names)]
            of_rows.append(torch.cat([tokens @ a.t() @ b.t() * lora.scale for a, b in pairs], dim=1))
        return torch.cat(of_rows)


def check(subject: Subject, rows: Sequence[int | None], *, tokens: int, tolerance: float = 1e-5) -> None:
    """That both targets' shares are right, and are added to what is there."""
    added = subject.added(rows)
    for target, names in enumerate(("qkv", "o")):
        x = torch.randn(len(rows) * tokens, INPUTS, dtype=subject.dtype)
        y = torch.ones(len(x), sum(OUTPUTS[name] for name in names), dtype=subject.dtype)
        added.add(target, x, y)
        wanted = subject.expected(rows, names, x) + 1
        assert (y - wanted).abs().max() <= tolerance * wanted.abs().max()


MIXES: dict[str, list[int | None]] = {
    "one row": [2],
    "rows of one adapter": [4, 4, 4],
    "an adapter each": [0, 1, 2, 3, 4, 5],
    "uneven and out of order": [5, 0, 5, 2, 5, 0, 1],
    "with the bare base model": [None, 3, None, 3, 0],
    "one adapter and the bare base model": [None, 1, None],
}


@pytest.mark.parametrize("tokens", [1, 5], ids=["steps", "prompts"])
@pytest.mark.parametrize("rows", MIXES.values(), ids=MIXES.keys())
def test_each_row_gets_its_own_adapters_share(rows: list[int | None], tokens: int) -> None:
    check(Subject(), rows, tokens=tokens)


@pytest.mark.parametrize("tokens", [1, 5], ids=["steps", "prompts"])
def test_adapters_far_apart_in_a_stack_that_grew(tokens: int) -> None:
    subject = Subject(count=40)
    subject.places(list(range(40)))
    check(subject, [39, 1, None, 20, 39], tokens=tokens)


@pytest.mark.parametrize("tokens", [1, 5], ids=["steps", "prompts"])
def test_an_adapter_in_the_place_of_a_larger_one_keeps_nothing_of_it(tokens: int) -> None:
    subject = Subject(most=2)
    for rows in ([2, 4], [1, 3], [0, 5], [3, 1]):
        check(subject, rows, tokens=tokens)
    assert len(subject.stack) == 2


@pytest.mark.parametrize("tokens", [1, 5], ids=["steps", "prompts"])
def test_layers_of_different_ranks_in_one_adapter(tokens: int) -> None:
    subject = Subject()
    other = {"k": (torch.randn(2, INPUTS), torch.randn(OUTPUTS["k"], 2))}
    subject.loras[0] = Lora({**subject.loras[0].pairs, **other}, scale=0.5)
    check(subject, [0, 2, 0], tokens=tokens)


def test_an_adapter_for_which_there_was_no_memory_can_be_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(count=40)
    subject.places([0, 1, 2])
    with monkeypatch.context() as short:
        zeros, calls = LoraTables.zeros, iter([True, False])

        def sometimes(*args: Any, **options: Any) -> LoraTables:
            if not next(calls):
                raise MemoryError
            return zeros(*args, **options)

        short.setattr(LoraTables, "zeros", sometimes)
        with pytest.raises(MemoryError):
            subject.places([3])
    check(subject, [3, 0, 2], tokens=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("tokens", [1, 5], ids=["steps", "prompts"])
def test_shorter_number_types(tokens: int, dtype: torch.dtype) -> None:
    check(Subject(dtype), [5, 0, None, 2, 5], tokens=tokens, tolerance=0.03)


def test_a_batch_of_the_bare_base_model_has_nothing_added() -> None:
    assert Subject().stack.added([None, None]) is None
