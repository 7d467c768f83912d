"""A batch of prompts in, their continuations out, each handed over as soon as it is finished.

Prompts are padded on the left and share one key-value cache; a finished row leaves the batch at once, so a
short answer neither waits for a long one nor costs it time. Alone and greedy, a row's tokens are those of
``transformers``' own ``generate``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from airflow_provider_gradient.server.sampling import BatchSampler, Sampling

FinishReason = Literal["stop", "length", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A row of a batch: what to continue, by at most how many tokens, and how to draw them."""

    tokens: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(kw_only=True)
class Continuation:
    """The new ``tokens`` of a row, without the one that stopped it.

    ``finish_reason`` is ``stop`` (the model ended the text), ``length`` (the limit did) or ``diverged`` (the
    model's output was no longer a number).
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"


def continue_prompts(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    stop_tokens: frozenset[int],
    generator: torch.Generator,
    deliver: Callable[[int, Continuation], None],
) -> None:
    """Continue every prompt.

    :param model: a causal language model of transformers, in evaluation mode.
    :param stop_tokens: the ids that end a text.
    :param generator: the source of chance for rows that sample, on the model's device.
    :param deliver: called with a prompt's index and its continuation, in the order they are finished.
    """
    batch = _Batch(model, prompts)
    sampler = BatchSampler([prompt.sampling for prompt in prompts], generator=generator)
    alive = list(range(len(prompts)))
    continuations = [Continuation() for _ in prompts]
    with torch.no_grad():
        logits = batch.prefill()
        while True:
            tokens = sampler.next_tokens(logits)
            sound = logits.amax(dim=-1).isfinite().tolist()
            staying = []
            for row, (index, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
                if _append(continuations[index], token, sound[row], prompts[index], stop_tokens):
                    staying.append(row)
                else:
                    deliver(index, continuations[index])
            if not staying:
                return
            if len(staying) < len(alive):
                alive = [alive[row] for row in staying]
                kept = torch.tensor(staying, device=tokens.device)
                tokens = tokens[kept]
                sampler.keep(kept)
                batch.keep(kept)
            logits = batch.step(tokens)


def _append(
    continuation: Continuation, token: int, sound: bool, prompt: Prompt, stop_tokens: frozenset[int]
) -> bool:
    """Add a row's token; whether the row goes on."""
    if not sound:
        continuation.finish_reason = "diverged"
        return False
    if token in stop_tokens:
        continuation.finish_reason = "stop"
        return False
    continuation.tokens.append(token)
    return len(continuation.tokens) < prompt.max_new_tokens


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

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after one more token a row: rows x vocabulary."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        positions = self._mask.sum(dim=-1, keepdim=True) - 1
        return self._forward(tokens.unsqueeze(-1), positions)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows (indices, in order) only."""
        self._mask = self._mask[rows]
        self._cache.batch_select_indices(rows)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self._takes_positions:
            self._options["position_ids"] = positions
        output = self._model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, **self._options
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits
