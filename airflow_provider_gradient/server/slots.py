"""The key-value cache of a model of the form of Llama, a row a text, and the two ways it is read.

A new text is read whole (:meth:`Slots.prefill`), several at once; then every text in the cache grows by one
token at a time (:meth:`Slots.step`). Texts come and go between steps. The rows in use are always the first
ones, each filled from its beginning: a row that leaves is replaced by the last. What a row is told depends on
its own text and adapter alone, up to the rounding of floating-point sums of another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from airflow_provider_gradient.server.llama_form import Added, LlamaForm

_FIRST_LENGTH = 64
"""Tokens a row has room for at first; the room doubles when a text needs more."""


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Continuations of a text as a tree, read in one pass.

    :param tokens: of each node.
    :param parents: index of the node before each, -1 where that is the end of the text; lower than its own.
    """

    tokens: Sequence[int]
    parents: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class NewText:
    """A text to read. With ``branches`` it is only read, else it gets a row of the cache.

    :param tokens: at least one.
    """

    tokens: Sequence[int]
    branches: Branches | None = None


class Slots:
    """The cache and what is read through it. Everything here runs in inference mode.

    :param slots: the most texts at once.
    :param longest: the most tokens of one text.
    """

    def __init__(self, form: LlamaForm, *, slots: int, longest: int) -> None:
        self._form = form
        self._slots = slots
        self._longest = longest
        self._lengths: list[int] = []
        self._room = 0
        self._cache: list[Tensor] = [torch.empty(0)] * len(form.layers)
        """Of each layer: slots x key heads, then value heads, x room x head width."""

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.inference_mode()
    def prefill(self, texts: Sequence[NewText], *, added: Added | None = None) -> list[Tensor]:
        """Read new texts, and give each without branches the next row.

        :returns: for each text the logits after its last token and after each node of its branches:
            (1 + nodes) x vocabulary.
        """
        reading = _Reading(self._form, texts)
        hidden = self._form.read(reading.tokens, reading.positions, attend=reading, added=added)
        kept = [row for row, text in enumerate(texts) if text.branches is None]
        self._keep(reading, kept, [len(texts[row].tokens) for row in kept])
        spans = [
            range(len(text.tokens) - 1, length) for text, length in zip(texts, reading.lengths, strict=True)
        ]
        rows = [row for row, span in enumerate(spans) for _ in span]
        columns = [column for span in spans for column in span]
        logits = self._form.logits(hidden[rows, columns])
        return list(torch.split(logits, [len(span) for span in spans]))

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], *, added: Added | None = None) -> Tensor:
        """One more token for every row; the logits after it: rows x vocabulary."""
        self._make_room(max(self._lengths) + 1)
        device = self._form.device
        positions = torch.tensor(self._lengths, device=device)
        growing = _Growing(self._form, self._cache, positions, self._lengths)
        ids = torch.tensor(tokens, device=device).unsqueeze(1)
        hidden = self._form.read(ids, positions.unsqueeze(1), attend=growing, added=added)
        self._lengths = [length + 1 for length in self._lengths]
        return self._form.logits(hidden[:, 0])

    @torch.inference_mode()
    def release(self, row: int, *, wipe: bool = False) -> None:
        """Give up a row; the last one takes its place.

        :param wipe: what it holds may not be numbers, which no mask keeps from those who come after.
        """
        last = len(self._lengths) - 1
        if wipe:
            for cached in self._cache:
                cached[row] = 0
        if row != last:
            length = self._lengths[row] = self._lengths[last]
            for cached in self._cache:
                cached[row, :, :length] = cached[last, :, :length]
        self._lengths.pop()

    def clear(self) -> None:
        """Give up all rows, and the memory."""
        self._lengths.clear()
        self._room = 0
        self._cache = [torch.empty(0)] * len(self._cache)

    def _keep(self, reading: _Reading, rows: Sequence[int], lengths: Sequence[int]) -> None:
        if not rows:
            return
        first = len(self._lengths)
        width = max(lengths)
        self._make_room(width)
        for cached, read in zip(self._cache, reading.kept, strict=True):
            kept = read if len(rows) == len(read) else read[list(rows)]
            cached[first : first + len(rows), :, :width] = kept[:, :width].transpose(1, 2)
        self._lengths.extend(lengths)

    def _make_room(self, length: int) -> None:
        """Grow all rows to at least this length, one layer after another."""
        if length <= self._room:
            return
        room = max(_FIRST_LENGTH, self._room)
        while room < length:
            room *= 2
        self._room = max(length, min(room, self._longest))
        form = self._form
        shape = (self._slots, 2 * form.key_value_heads, self._room, form.head_width)
        for number, old in enumerate(self._cache):
            grown = torch.zeros(shape, dtype=form.dtype, device=form.device)
            for row, filled in enumerate(self._lengths):
                grown[row, :, :filled] = old[row, :, :filled]
            self._cache[number] = grown


class _Growing:
    """Attention of one new token a row to its row of the cache."""

    def __init__(
        self, form: LlamaForm, cache: Sequence[Tensor], positions: Tensor, lengths: Sequence[int]
    ) -> None:
        self._form = form
        self._cache = cache
        self._positions = positions
        self._rows = torch.arange(len(lengths), device=positions.device)
        self._width = max(lengths) + 1
        self._even = min(lengths) == max(lengths)
        self._masks = {window: self._mask(window) for window in {layer.window for layer in form.layers}}

    def _mask(self, window: int | None) -> Tensor | None:
        """Rows x 1 x 1 x width: 0 where a row sees a token, minus infinity elsewhere; ``None`` where every
        row sees all."""
        if self._even and (window is None or window >= self._width):
            return None
        columns = torch.arange(self._width, device=self._positions.device)
        ends = self._positions[:, None, None, None]
        hidden = columns > ends
        if window is not None:
            hidden |= columns <= ends - window
        mask = torch.zeros(hidden.shape, dtype=self._form.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, -torch.inf)

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        form, rows, cached = self._form, len(self._rows), self._cache[layer]
        cached[self._rows, :, self._positions] = key_value[:, 0]
        keys, values = cached[:rows, :, : self._width].chunk(2, dim=1)
        seen = scaled_dot_product_attention(
            query.view(rows, form.key_value_heads, -1, form.head_width),
            keys,
            values,
            attn_mask=self._masks[form.layers[layer].window],
            scale=form.scale,
        )
        return seen.reshape(rows, 1, -1)


class _Reading:
    """Attention of new texts to themselves, padded on the right; keeps every layer's keys and values."""

    def __init__(self, form: LlamaForm, texts: Sequence[NewText]) -> None:
        self._form = form
        nodes = [text.branches.tokens if text.branches else () for text in texts]
        self.lengths = [len(text.tokens) + len(more) for text, more in zip(texts, nodes, strict=True)]
        width = max(self.lengths)
        ids = [
            [*t.tokens, *more, *[0] * (width - n)]
            for t, more, n in zip(texts, nodes, self.lengths, strict=True)
        ]
        self.tokens = torch.tensor(ids, device=form.device)
        self.positions = torch.tensor([_positions(text, width) for text in texts], device=form.device)
        self.kept: list[Tensor] = []
        branched = any(text.branches for text in texts)
        self._masks = {
            window: self._mask(texts, window, width)
            if branched or (window is not None and window < width)
            else None
            for window in {layer.window for layer in form.layers}
        }

    def _mask(self, texts: Sequence[NewText], window: int | None, width: int) -> Tensor:
        """Rows x 1 x tokens x tokens: whether the first sees the second."""
        device = self.positions.device
        order = torch.arange(width, device=device)
        seen = (order[:, None] >= order).repeat(len(texts), 1, 1)
        for row, text in enumerate(texts):
            if text.branches:
                length = len(text.tokens)
                seen[row, length:, length:] = _ancestry(text.branches, width - length).to(device)
        if window is not None:
            seen &= self.positions[:, None, :] > self.positions[:, :, None] - window
        return seen.unsqueeze(1)

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        self.kept.append(key_value)
        mask = self._masks[self._form.layers[layer].window]
        key, value = key_value.transpose(1, 2).chunk(2, dim=1)
        seen = scaled_dot_product_attention(
            query.transpose(1, 2),
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._form.scale,
            enable_gqa=True,
        )
        return seen.transpose(1, 2).reshape(*query.shape[:2], -1)


def _positions(text: NewText, width: int) -> list[int]:
    positions = list(range(len(text.tokens)))
    if text.branches is not None:
        last = len(positions) - 1
        for parent in text.branches.parents:
            positions.append(positions[last + 1 + parent] + 1 if parent >= 0 else last + 1)
    return positions + [0] * (width - len(positions))


def _ancestry(branches: Branches, width: int) -> Tensor:
    """Nodes x nodes: which is the other or comes before it; padding sees itself."""
    seen = torch.eye(width, dtype=torch.bool)
    for node, parent in enumerate(branches.parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen
