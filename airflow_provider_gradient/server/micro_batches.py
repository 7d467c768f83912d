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

from airflow_provider_gradient.server.generation import Prompt, Row
from airflow_provider_gradient.server.guidance import read_choices
from airflow_provider_gradient.server.lora_stack import AdapterKey
from airflow_provider_gradient.server.sampling import next_tokens


class AdaptersOver(Protocol):
    """Adapters over a model, one at a time."""

    def __len__(self) -> int: ...

    def applied(self, key: AdapterKey | None) -> Any:
        """The model as this adapter, or as the bare base model."""
        ...


class MicroBatchRoad:
    """See :class:`.generation.Road`.

    :param adapters: gives the model with an adapter over it.
    :param stop_tokens: the ids that end a text.
    """

    name = "micro-batches"

    def __init__(self, adapters: AdaptersOver, *, slots: int, stop_tokens: frozenset[int]) -> None:
        self.slots = slots
        self._adapters = adapters
        self._stop_tokens = stop_tokens
        self._waiting: deque[Row] = deque()
        self._model: Any = None
        self._alive: list[Row] = []
        self._last: list[int] = []
        self._batch: _Batch | None = None

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
        adapter = self._waiting[0].adapter
        self._alive = [row for row in self._waiting if row.adapter == adapter]
        self._waiting = deque(row for row in self._waiting if row.adapter != adapter)
        try:
            self._model = self._adapters.applied(adapter)
        except Exception as error:
            for row in self._alive:
                row.failed(error)
            self._alive = []
            return
        self._choose()
        if self._alive:
            self._batch = _Batch(self._model, [row.prompt for row in self._alive])
            self._append(self._batch.prefill())

    def _choose(self) -> None:
        for row in list(self._alive):
            choices = row.prompt.choices
            if choices is not None:
                row.choose(choices.log_probabilities(read_choices(self._model, row.prompt.tokens, choices)))
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


class _Batch:
    """The model's inputs for rows of different lengths: padding, positions and the cache."""

    def __init__(self, model: Any, prompts: Sequence[Prompt]) -> None:
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self._options["logits_to_keep"] = 1
        width = max(len(prompt.tokens) for prompt in prompts)
        padding = [width - len(prompt.tokens) for prompt in prompts]
        self._tokens = torch.tensor(
            [[0] * pad + prompt.tokens for pad, prompt in zip(padding, prompts, strict=True)],
            device=model.device,
        )
        self._mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device)
        self._cache: Any = None

    def prefill(self) -> torch.Tensor:
        """Logits after the prompts: rows x vocabulary."""
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)
        return self._forward(self._tokens, positions)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after one more token a row: rows x vocabulary."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        positions = self._mask.sum(dim=-1, keepdim=True) - 1
        return self._forward(torch.tensor(tokens, device=self._mask.device).unsqueeze(-1), positions)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows (indices, in order) only."""
        kept = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[kept]
        self._cache.batch_select_indices(kept)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self._takes_positions:
            self._options["position_ids"] = positions
        output = self._model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, **self._options
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits
