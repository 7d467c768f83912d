"""Choice guidance: which of the given values the model holds likeliest as its answer.

The rule. A value's probability is the exact one that the model's text begins with it, as a product over the
value's tokens, with or without one blank before it (both are counted, since whether an answer starts with a
blank is the tokenizer's affair). There is no bonus or penalty for length: a longer value pays for each of its
tokens, as it would in free generation. Where one value begins another (``no`` and ``no idea``), texts that go
on into the longer one count for the longer one only, so the values are events that exclude each other.

All spellings of all values are one tree of tokens, of which a model reads every node once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch

from airflow_provider_gradient.server.slots import Branches

Spellings = Sequence[Sequence[int]]
"""The ways one value may be written, each as token ids."""


class Choices:
    """Values to choose from, as a tree.

    :param values: at least one, each with at least one spelling of at least one token.
    """

    def __init__(self, values: Sequence[Spellings]) -> None:
        self.lengths = [len(spellings[-1]) for spellings in values]
        """Tokens of each value's last spelling."""
        self._nodes: dict[tuple[int, ...], int] = {}
        self._ends: list[tuple[int, tuple[int, ...]]] = []
        for value, spellings in enumerate(values):
            for spelling in sorted({tuple(tokens) for tokens in spellings}):
                self._ends.append((value, spelling))
                for end in range(1, len(spelling) + 1):
                    self._nodes.setdefault(spelling[:end], len(self._nodes))
        self.branches = Branches(
            tokens=[prefix[-1] for prefix in self._nodes],
            parents=[self._nodes.get(prefix[:-1], -1) for prefix in self._nodes],
        )

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The tokens up to each node of the tree, in the order of its nodes."""
        return list(self._nodes)

    @property
    def leaves(self) -> list[tuple[int, ...]]:
        """The spellings that no other goes on from."""
        return [prefix for prefix in self._nodes if not any(other[:-1] == prefix for other in self._nodes)]

    def log_probabilities(self, logits: torch.Tensor) -> list[float]:
        """The log-probability of each value as the beginning of what follows the prompt, in nats; NaN for all
        of them where any of the logits they rest on are no numbers.

        :param logits: after the prompt, then after each node: (1 + nodes) x vocabulary.
        """
        if not bool(logits.amax(dim=-1).isfinite().all()):
            return [math.nan] * len(self.lengths)
        table = logits.float().log_softmax(dim=-1).cpu()
        told = table[[parent + 1 for parent in self.branches.parents], self.branches.tokens].tolist()
        totals = [-math.inf] * len(self.lengths)
        for value, spelling in self._ends:
            nodes = [self._nodes[spelling[:end]] for end in range(1, len(spelling) + 1)]
            spelled = math.fsum(told[node] for node in nodes)
            longer = self._longer(value, spelling)
            spelled += _log_of_rest(math.fsum(math.exp(told[node]) for node in longer))
            totals[value] = _log_sum(totals[value], spelled)
        return totals

    def _longer(self, value: int, spelling: tuple[int, ...]) -> set[int]:
        """The nodes by which this spelling goes on into another value's."""
        length = len(spelling)
        return {
            self._nodes[other[: length + 1]]
            for owner, other in self._ends
            if owner != value and len(other) > length and other[:length] == spelling
        }


def read_choices(model: Any, prompt: Sequence[int], choices: Choices) -> torch.Tensor:
    """What :meth:`Choices.log_probabilities` takes, from any causal language model of transformers.

    The prompt is read once; its cache is then shared by all spellings.

    :param prompt: token ids, at least one.
    """
    prefixes, leaves = choices.prefixes, choices.leaves
    longest = max(map(len, leaves))
    device = model.device
    tokens = torch.tensor([[*leaf, *[0] * (longest - len(leaf))] for leaf in leaves], device=device)
    mask = torch.ones(len(leaves), len(prompt) + longest, dtype=torch.long, device=device)
    for row, leaf in enumerate(leaves):
        mask[row, len(prompt) + len(leaf) :] = 0
    with torch.no_grad():
        read = model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True)
        cache = read.past_key_values
        cache.reorder_cache(torch.zeros(len(leaves), dtype=torch.long, device=device))  # one row for each
        told = model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
    rows = [next(row for row, leaf in enumerate(leaves) if leaf[: len(p)] == p) for p in prefixes]
    nodes = told.logits[rows, [len(prefix) - 1 for prefix in prefixes]]
    return torch.cat([read.logits[0, -1:], nodes])


@torch.no_grad()
def reread_choices(model: Any, prompt: Sequence[int], choices: Choices) -> torch.Tensor:
    """The same as :func:`read_choices`, where a cache can't be shared: each spelling is read with the whole
    prompt before it, one after another."""
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    told: dict[tuple[int, ...], torch.Tensor] = {}
    for leaf in choices.leaves:
        last = len(leaf) + 1
        options = {"logits_to_keep": last} if keeps_logits else {}
        tokens = torch.tensor([[*prompt, *leaf]], device=model.device)
        logits = model(input_ids=tokens, use_cache=False, **options).logits[0, -last:]
        told.update({leaf[:length]: row for length, row in enumerate(logits)})
    return torch.stack([told[prefix] for prefix in ((), *choices.prefixes)])


def _log_of_rest(probability: float) -> float:
    return math.log1p(-probability) if probability < 1 else -math.inf


def _log_sum(left: float, right: float) -> float:
    high, low = max(left, right), min(left, right)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
