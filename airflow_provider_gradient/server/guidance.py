"""Choice guidance: which of the given values the model holds likeliest as its answer.

The rule. A value's probability is the exact one that the model's text begins with it, as a product over the
value's tokens, with or without one blank before it (both are counted, since whether an answer starts with a
blank is the tokenizer's affair). There is no bonus or penalty for length: a longer value pays for each of its
tokens, as it would in free generation. Where one value begins another (``no`` and ``no idea``), texts that go
on into the longer one count for the longer one only, so the values are events that exclude each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Spellings = Sequence[Sequence[int]]
"""The ways one value may be written, each as token ids."""


@dataclass(frozen=True, kw_only=True)
class _Path:
    """One spelling of one value."""

    value: int
    tokens: tuple[int, ...]


def log_probabilities(model: Any, prompt: Sequence[int], values: Sequence[Spellings]) -> list[float]:
    """The log-probability of each value as the beginning of what follows the prompt, in nats.

    :param model: a causal language model of transformers, in evaluation mode.
    :param prompt: token ids, at least one.
    :param values: at least one, each with at least one spelling of at least one token.
    """
    paths = [
        _Path(value=value, tokens=tuple(tokens))
        for value, spellings in enumerate(values)
        for tokens in {tuple(spelling) for spelling in spellings}
    ]
    table = _next_token_log_probabilities(model, prompt, [path.tokens for path in paths])
    totals = [-math.inf] * len(values)
    for row, path in enumerate(paths):
        spelled = sum(float(table[row, position, token]) for position, token in enumerate(path.tokens))
        after = table[row, len(path.tokens)]
        spelled += _log_of_rest(math.fsum(math.exp(float(after[token])) for token in _longer(path, paths)))
        totals[path.value] = _log_sum(totals[path.value], spelled)
    return totals


def _next_token_log_probabilities(
    model: Any, prompt: Sequence[int], paths: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probabilities before each token of a path and after its last: paths x (longest + 1) x vocabulary.

    The prompt is read once; its cache is then shared by all paths.
    """
    longest = max(len(path) for path in paths)
    device = model.device
    tokens = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=device)
    mask = torch.ones(len(paths), len(prompt) + longest, dtype=torch.long, device=device)
    for row, path in enumerate(paths):
        mask[row, len(prompt) + len(path) :] = 0
    with torch.no_grad():
        read = model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True)
        cache = read.past_key_values
        cache.batch_repeat_interleave(len(paths))
        told = model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
    first = read.logits[:, -1:].expand(len(paths), -1, -1)
    return torch.cat([first, told.logits], dim=1).float().log_softmax(dim=-1)


def _longer(path: _Path, paths: Sequence[_Path]) -> set[int]:
    """The tokens by which this path goes on into another value's."""
    length = len(path.tokens)
    return {
        other.tokens[length]
        for other in paths
        if other.value != path.value and len(other.tokens) > length and other.tokens[:length] == path.tokens
    }


def _log_of_rest(probability: float) -> float:
    return math.log1p(-probability) if probability < 1 else -math.inf


def _log_sum(left: float, right: float) -> float:
    high, low = max(left, right), min(left, right)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
