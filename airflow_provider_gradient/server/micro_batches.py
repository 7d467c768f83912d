"""Micro-batches: one batch at a time of rows that use the same adapter, for any causal language model.

Prompts are padded on the left and share one key-value cache; a finished row leaves the batch at once, so a
short answer neither waits for a long one nor costs it time. Rows that come meanwhile wait for the next batch.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from airflow_provider_gradient.server.generation import Abilities, Row
from airflow_provider_gradient.server.guidance import read_choices, reread_choices
from airflow_provider_gradient.server.lora_stack import AdapterKey
from airflow_provider_gradient.server.sampling import next_tokens


class AdaptersOver(Protocol):
    """Adapters over a model, one at a time."""

    def __len__(self) -> int: ...

    def applied(self, key: AdapterKey | None) -> Any:
        """The model as this adapter, or as the bare base model."""
        ...

    def evict(self, adapter_id: str) -> None:
        """Forget what is in memory of an adapter, if anything."""
        ...


class MicroBatchRoad:
    """See :class:`.generation.Road`.

    :param adapters: gives the model with an adapter over it.
    :param stop_tokens: the ids that end a text.
    :param abilities: the model's. Where rows can't share a batch, there is one slot. Where there is a
        ``switch``, rows share one if all stay within that length or all are longer from the beginning; one
        that may grow beyond it is answered by itself.
    """

    def __init__(
        self,
        adapters: AdaptersOver,
        *,
        slots: int,
        stop_tokens: frozenset[int],
        abilities: Abilities,
    ) -> None:
        self.name = "micro-batches" if abilities.batches else "one row at a time"
        self.slots = slots if abilities.batches else 1
        self.abilities = abilities
        self._adapters = adapters
        self._stop_tokens = stop_tokens
        self._waiting: deque[Row] = deque()
        self._model: Any = None
        self._alive: list[Row] = []
        self._last: list[int] = []
        self._batch: Batch | None = None

    @property
    def rows(self) -> int:
        """Under way."""
        return len(self._waiting) + len(self._alive)

    @property
    def resident_adapters(self) -> int:
        """In memory."""
        return len(self._adapters)

    def admit(self, row: Row) -> None:
        """Take a row on; there must be a slot for it."""
        self._waiting.append(row)

    def forget(self, adapter_id: str) -> None:
        """Let go of what is in memory of an adapter that no row uses."""
        self._adapters.evict(adapter_id)

    @torch.no_grad()
    def step(self) -> None:
        """One more token for the batch's rows, or the next batch's prompts."""
        if self._batch is not None:
            self._append(self._batch.step(self._last))
        elif self._waiting:
            self._begin()

    def drop(self) -> list[Row]:
        """Give up all rows."""
        rows = [*self._alive, *self._waiting]
        self._waiting.clear()
        self._alive.clear()
        self._batch = None
        return rows

    def _begin(self) -> None:
        first = self._waiting[0]
        kind = self._kind(first)
        self._alive = [row for row in self._waiting if self._kind(row) == kind]
        self._waiting = deque(row for row in self._waiting if self._kind(row) != kind)
        try:
            self._model = self._adapters.applied(first.adapter)
        except Exception as error:
            for row in self._alive:
                row.failed(error)
            self._alive = []
            return
        self._choose()
        if self._alive:
            self._batch = Batch(self._model, [row.prompt.tokens for row in self._alive], self.abilities)
            self._append(self._batch.prefill())

    def _kind(self, row: Row) -> tuple[object, ...]:
        """What the rows of one batch have in common."""
        switch = self.abilities.switch
        if self._crosses(row):
            return row.adapter, row
        return row.adapter, switch is not None and len(row.prompt.tokens) > switch

    def _crosses(self, row: Row) -> bool:
        """Whether the row may grow beyond the switch."""
        prompt, switch = row.prompt, self.abilities.switch
        if switch is None:
            return False
        more = max(map(len, prompt.choices.leaves)) if prompt.choices else prompt.max_new_tokens
        return len(prompt.tokens) <= switch < len(prompt.tokens) + more

    def _choose(self) -> None:
        for row in list(self._alive):
            choices = row.prompt.choices
            if choices is not None:
                share = self.abilities.shares_prompt and not self._crosses(row)
                read = read_choices if share else reread_choices
                row.choose(choices.log_probabilities(read(self._model, row.prompt.tokens, choices)))
                self._alive.remove(row)

    def _append(self, logits: torch.Tensor) -> None:
        tokens = next_tokens(logits, [row.draws for row in self._alive])
        sound = logits.amax(dim=-1).isfinite().tolist()
        staying = [
            number
            for number, row in enumerate(self._alive)
            if row.append(tokens[number], sound=sound[number], stop_tokens=self._stop_tokens)
        ]
        if len(staying) < len(self._alive) and self._batch is not None:
            self._alive = [self._alive[number] for number in staying]
            if staying:
                self._batch.keep(staying)
            else:
                self._batch = None
        self._last = [tokens[number] for number in staying]


class Batch:
    """The model's inputs for rows of different lengths: padding, positions and the cache.

    :param rows: the prompts' token ids.
    :param abilities: the model's. A row that grows beyond the ``switch`` is read again from its beginning.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], abilities: Abilities) -> None:
        self._model = model
        self._positions = abilities.positions
        self._switch = abilities.switch
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._options["logits_to_keep"] = 1
        width = max(len(row) for row in rows)
        padding = [width - len(row) for row in rows]
        self._tokens = torch.tensor(
            [[0] * pad + list(row) for pad, row in zip(padding, rows, strict=True)], device=model.device
        )
        self._mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device)
        self._cache: Any = None

    @torch.no_grad()
    def prefill(self) -> torch.Tensor:
        """Logits after all tokens there are: rows x vocabulary."""
        self._cache = None
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)
        return self._forward(self._tokens, positions)

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after one more token a row: rows x vocabulary."""
        new = torch.tensor(tokens, device=self._mask.device).unsqueeze(-1)
        self._tokens = torch.cat([self._tokens, new], dim=-1)
        self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=-1)
        lengths = self._mask.sum(dim=-1, keepdim=True)
        if self._switch is not None and self._switch + 1 in lengths.flatten().tolist():
            return self.prefill()
        return self._forward(new, lengths - 1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows (indices, in order) only."""
        kept = torch.tensor(rows, device=self._mask.device)
        self._tokens, self._mask = self._tokens[kept], self._mask[kept]
        self._cache.reorder_cache(kept)  # the one way to pick rows that every kind of cache knows

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self._positions:
            self._options["position_ids"] = positions
        output = self._model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, **self._options
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits
