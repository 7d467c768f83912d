"""The next token of each row of a batch, every row by parameters of its own.

A row without a temperature (absent or 0) takes its likeliest token. Otherwise the logits are divided by the
temperature, then cut to the ``top_k`` likeliest, then to the smallest set of those whose probability, taken
anew over what ``top_k`` left, reaches ``top_p``: the order the API gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SMALLEST_TEMPERATURE = 1e-6
"""Below it a draw is the likeliest token anyway, and the division would overflow."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a row draws its tokens. ``None`` is off; without a temperature the rest has no effect."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


class BatchSampler:
    """Draws the next tokens of a batch whose rows may leave it.

    :param rows: the parameters of each row.
    :param generator: where the chance comes from.
    """

    def __init__(self, rows: Sequence[Sampling], *, generator: torch.Generator) -> None:
        self._generator = generator
        device = generator.device
        self._temperature = torch.tensor([row.temperature or 0.0 for row in rows], device=device)
        self._top_k = torch.tensor([row.top_k or 0 for row in rows], device=device)
        self._top_p = torch.tensor([row.top_p or 1.0 for row in rows], device=device)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows (indices, in order) only."""
        self._temperature = self._temperature[rows]
        self._top_k = self._top_k[rows]
        self._top_p = self._top_p[rows]

    def next_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """One token a row.

        :param logits: rows x vocabulary.
        """
        tokens = logits.argmax(dim=-1)
        drawing = (self._temperature > 0).nonzero().squeeze(-1)
        if len(drawing):
            tokens[drawing] = self._draw(logits[drawing].float(), drawing)
        return tokens

    def _draw(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        temperature = self._temperature[rows].clamp(min=_SMALLEST_TEMPERATURE).unsqueeze(-1)
        scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
        scaled, order = scaled.sort(dim=-1, descending=True)
        top_k = self._top_k[rows].unsqueeze(-1)
        rank = torch.arange(scaled.shape[-1], device=scaled.device)
        scaled = scaled.masked_fill((top_k > 0) & (rank >= top_k), -torch.inf)
        probabilities = scaled.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self._top_p[rows].unsqueeze(-1), 0.0)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator)
        return order.gather(-1, drawn).squeeze(-1)
