"""Continuous batching: rows are taken on and let go between the steps of all others.

Each step reads the prompts that came since the last one, as many together as the budget of tokens allows, so
that long prompts delay the others' next token only by a bounded piece of work; then it draws one token for
every row. Rows of different adapters and of the base model share a batch, see :mod:`.lora_rows`. Choice
guidance needs no steps: its values are read together with the prompt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from airflow_provider_gradient.server.generation import Abilities, Row
from airflow_provider_gradient.server.lora_rows import AddedByAdapters
from airflow_provider_gradient.server.lora_stack import LoraStack
from airflow_provider_gradient.server.sampling import next_tokens
from airflow_provider_gradient.server.slots import NewText, Slots

_PREFILL_TOKENS = 2048
"""Prompt tokens, padding included, that are read in one step, unless one prompt alone has more."""


@dataclass(eq=False)
class _Placed:
    """A row with the place of its adapter in the stack and the last token it was given."""

    row: Row
    place: int | None
    last: int = 0

    @property
    def length(self) -> int:
        """Tokens to read: the prompt and all nodes of its choices."""
        choices = self.row.prompt.choices
        return len(self.row.prompt.tokens) + (len(choices.branches.tokens) if choices else 0)

    @property
    def text(self) -> NewText:
        """What to read."""
        choices = self.row.prompt.choices
        return NewText(tokens=self.row.prompt.tokens, branches=choices.branches if choices else None)


class ContinuousRoad:
    """See :class:`.generation.Road`.

    :param stop_tokens: the ids that end a text.
    """

    name = "continuous batching"
    abilities = Abilities()

    def __init__(self, cache: Slots, stack: LoraStack, *, slots: int, stop_tokens: frozenset[int]) -> None:
        self.slots = slots
        self._cache = cache
        self._stack = stack
        self._stop_tokens = stop_tokens
        self._entering: deque[_Placed] = deque()
        self._running: list[_Placed] = []
        self._added: AddedByAdapters | None = None
        self._changed = False

    @property
    def rows(self) -> int:
        """Under way."""
        return len(self._entering) + len(self._running)

    @property
    def resident_adapters(self) -> int:
        """In memory."""
        return len(self._stack)

    def admit(self, row: Row) -> None:
        """Take a row on; there must be a slot for it."""
        place = None
        if row.adapter is not None:
            used = {other.row.adapter for other in (*self._entering, *self._running) if other.row.adapter}
            try:
                place = self._stack.place(row.adapter, used=used)
            except Exception as error:
                row.failed(error)
                return
        self._entering.append(_Placed(row, place))
        self._changed = True  # the stack may have moved to other memory

    def forget(self, adapter_id: str) -> None:
        """Let go of what is in memory of an adapter that no row uses."""
        self._stack.forget(adapter_id)

    def step(self) -> None:
        """Read new prompts, then one more token for every row."""
        if self._entering:
            self._prefill()
        if self._running:
            if self._changed:
                self._added = self._stack.added([placed.place for placed in self._running])
                self._changed = False
            logits = self._cache.step([placed.last for placed in self._running], added=self._added)
            self._append(range(len(self._running)), logits)

    def drop(self) -> list[Row]:
        """Give up all rows."""
        rows = [placed.row for placed in (*self._running, *self._entering)]
        self._entering.clear()
        self._running.clear()
        self._cache.clear()
        self._changed = True
        return rows

    def _prefill(self) -> None:
        batch = self._next_prompts()
        added = self._stack.added([placed.place for placed in batch])
        read = self._cache.prefill([placed.text for placed in batch], added=added)
        growing = []
        for placed, logits in zip(batch, read, strict=True):
            self._entering.popleft()
            choices = placed.row.prompt.choices
            if choices is None:
                self._running.append(placed)
                growing.append(logits)
            else:
                placed.row.choose(choices.log_probabilities(logits))
        if growing:
            self._changed = True
            self._append(range(len(self._running) - len(growing), len(self._running)), torch.cat(growing))

    def _next_prompts(self) -> list[_Placed]:
        batch: list[_Placed] = []
        longest = 0
        for placed in self._entering:
            longest = max(longest, placed.length)
            if batch and longest * (len(batch) + 1) > _PREFILL_TOKENS:
                break
            batch.append(placed)
        return batch

    def _append(self, rows: range, logits: Tensor) -> None:
        """Draw the next token of these rows, and let go of those that are done."""
        tokens = next_tokens(logits, [self._running[row].row.draws for row in rows])
        sound = logits.amax(dim=-1).isfinite().tolist()
        for row, token, is_number in reversed(list(zip(rows, tokens, sound, strict=True))):
            placed = self._running[row]
            placed.last = token
            if not placed.row.append(token, sound=is_number, stop_tokens=self._stop_tokens):
                self._cache.release(row, wipe=not is_number)
                last = self._running.pop()
                if last is not placed:
                    self._running[row] = last
                self._changed = True
