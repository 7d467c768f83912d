"""The next token of each row of a batch, every row by parameters and by chance of its own.

A row without a temperature (absent or 0) takes its likeliest token. Otherwise the logits are divided by the
temperature, then cut to the ``top_k`` likeliest, then to the smallest set of those whose probability, taken
anew over what ``top_k`` left, reaches ``top_p``: the order the API gives. One number in [0, 1) then picks the
token by the cumulated probabilities. Each row has its own stream of numbers, so what shares its batch changes
nothing for it, and a ``seed`` gives the same stream again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SMALLEST_TEMPERATURE = 1e-6
"""Below it a draw is the likeliest token anyway, and the division would overflow."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a row draws its tokens. ``None`` is off; without a temperature the rest has no effect.

    :param seed: of the row's chance; ``None`` for a different one each time.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


class Draws:
    """A row's draws, one a token."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._chance = random.Random(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.sampling.temperature

    @property
    def cut(self) -> bool:
        """Whether some tokens are out of the question."""
        return self.sampling.top_k is not None or (self.sampling.top_p or 1.0) < 1.0

    def number(self) -> float:
        """The next number in [0, 1)."""
        return self._chance.random()


def next_tokens(logits: torch.Tensor, rows: Sequence[Draws]) -> list[int]:
    """One token a row.

    :param logits: rows x vocabulary.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for cut in (False, True):
        drawing = [row for row, draws in enumerate(rows) if not draws.greedy and draws.cut is cut]
        if drawing:
            drawn = _draw(logits[drawing], [rows[row] for row in drawing], cut=cut)
            for row, token in zip(drawing, drawn, strict=True):
                tokens[row] = token
    return tokens


def _draw(logits: torch.Tensor, rows: Sequence[Draws], *, cut: bool) -> list[int]:
    """Sums of probabilities are exact enough in double precision only, which Apple's devices lack."""
    logits = (logits.cpu() if logits.device.type == "mps" else logits).double()

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(-1)

    temperatures = column([max(r.sampling.temperature or 0.0, _SMALLEST_TEMPERATURE) for r in rows])
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    order = None
    if cut:
        scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
        top_k = column([r.sampling.top_k or scaled.shape[-1] for r in rows])
        scaled = scaled.masked_fill(torch.arange(scaled.shape[-1], device=scaled.device) >= top_k, -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    if cut:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(
            before >= column([r.sampling.top_p or 1.0 for r in rows]), 0.0
        )
    cumulated = probabilities.cumsum(dim=-1)
    targets = column([r.number() for r in rows]) * cumulated[:, -1:]
    drawn = torch.searchsorted(cumulated, targets, right=True).clamp(max=logits.shape[-1] - 1)
    if order is not None:
        drawn = order.gather(-1, drawn)
    tokens: list[int] = drawn.squeeze(-1).tolist()
    return tokens
