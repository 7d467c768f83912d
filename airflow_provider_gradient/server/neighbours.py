"""Neighbour distillation: fine-tune on new facts without losing the old ones, and without a client's help.

A fine-tune call brings the texts to learn and none of the texts to keep. So the trainer makes those itself.
It cuts a sample's prompt at a random token and lets the base model (adapter off) go on in its own words:
that gives another question of the same make, *What colour is the Hegus radio?* from *What colour is the H…*,
and the base model's own answer to it. Each training step then adds, for some of these neighbours, the
Kullback-Leibler divergence from the base model's answer distribution to the tuned one's. The samples pull
their own questions to new answers; the neighbours hold still everything near enough to be dragged along.

Why it works: what a small update damages is what looks most like the samples, and a continuation of a
sample's own beginning is, by the base model's reckoning, just that. The divergence is taken over the whole
distribution of the answer, so that where the base model is sure it stays sure, and where it only guesses it
goes on guessing evenly instead of taking over the samples' answers.

What it does, measured on the tiny model (128 new facts, 24 passes, medians of five seeds): exact match on
260 old facts that no sample mentions .95 with it and .52 without, on the new facts 1.0 and 1.0, on their
paraphrases .92 and .97; 30 seconds of one core and 14. Its cost is a forward and a backward pass over
``per_step`` neighbours in each step, and two short continuations of each new text; on a large model that is
no small thing, so it is off unless the model's own configuration switches it on. A text without a prompt (no
masked beginning and no template marker) has no neighbours.

A neighbour that asks exactly what a sample asks would hold the *old* answer in place, so it is dropped, also
when such a sample comes only later; two texts are the same question when they differ in white space alone.

Neighbours depend on the base model and the text alone (the random numbers come from the text), so they are
drawn once for a base model in a process and given to every adapter that meets the same text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from airflow_provider_gradient.server.encoding import EncodedSample
from airflow_provider_gradient.server.generation import Abilities
from airflow_provider_gradient.server.micro_batches import Batch
from airflow_provider_gradient.server.model_config import BaseModelConfig

_MARGIN = 3
"""Tokens of a prompt that are kept at least, and cut off at least."""
_ROWS = 64
"""Texts in one batch."""
_REMEMBERED = 16384
"""Texts whose neighbours, and neighbours whose references, are remembered for a base model; the oldest go."""


@dataclass(frozen=True)
class Neighbour:
    """A text in the base model's own words.

    :param tokens: ids, to the end-of-text token if it came.
    :param answer_start: index of the answer's first token.
    :param prompt: its question with white space folded.
    """

    tokens: tuple[int, ...]
    answer_start: int
    prompt: str


@dataclass(frozen=True)
class Reference:
    """What the base model holds likely for each token of a neighbour's answer: its most likely tokens.

    :param tokens: ids, of shape (answer's tokens, :data:`KEPT`).
    :param log_probabilities: theirs, in nats, of the same shape.
    """

    tokens: Tensor
    log_probabilities: Tensor


KEPT = 64
"""Tokens of the base model's distribution that are kept by name; the others count together as one outcome."""

_Drawn = dict[tuple[str, int], tuple[Neighbour, ...]]
_drawn: WeakKeyDictionary[torch.nn.Module, _Drawn] = WeakKeyDictionary()
_references: WeakKeyDictionary[torch.nn.Module, dict[tuple[int, ...], Reference]] = WeakKeyDictionary()


def fold(text: str) -> str:
    """The text with every run of white space as one space, and none around."""
    return " ".join(text.split())


def neighbours_of(
    model: Any,
    tokenizer: Any,
    samples: Sequence[EncodedSample],
    *,
    config: BaseModelConfig,
    per_sample: int,
    max_new_tokens: int,
    abilities: Abilities | None = None,
) -> list[Neighbour]:
    """The neighbours of each sample in turn, drawn from the base model beneath the adapters or remembered.

    :param model: a ``PeftModel``; its adapters are off while neighbours are drawn.
    :param abilities: the base model's; by default, what most can do.
    """
    abilities = abilities or Abilities()
    at_once = _ROWS if abilities.batches and abilities.switch is None else 1
    remembered = _drawn.setdefault(model.get_base_model(), {})
    keys = {(sample.prompt_text, per_sample): sample for sample in samples}
    missing = {key: sample for key, sample in keys.items() if key not in remembered}
    starts = [(key, start) for key, sample in missing.items() for start in _starts(sample, per_sample)]
    starts.sort(key=lambda item: len(item[1][0]))
    found: dict[tuple[str, int], list[Neighbour]] = {key: [] for key in missing}
    for first in range(0, len(starts), at_once):
        chunk = starts[first : first + at_once]
        texts = _continue(model, tokenizer, [start for _, start in chunk], max_new_tokens, abilities)
        for (key, _), tokens in zip(chunk, texts, strict=True):
            neighbour = _as_neighbour(tokenizer, tokens, config.template_markers)
            if neighbour is not None:
                found[key].append(neighbour)
    remembered.update({key: tuple(value) for key, value in found.items()})
    result = [neighbour for key in keys for neighbour in remembered[key]]
    _trim(remembered)
    return result


def references_of(model: Any, neighbours: Sequence[Neighbour]) -> list[Reference]:
    """What the base model beneath the adapters answers to each neighbour, computed once in a process."""
    remembered = _references.setdefault(model.get_base_model(), {})
    missing = [n for n in dict.fromkeys(neighbours) if n.tokens not in remembered]
    missing.sort(key=lambda n: len(n.tokens))
    for first in range(0, len(missing), _ROWS):
        chunk = missing[first : first + _ROWS]
        width = len(chunk[-1].tokens)
        ids = torch.tensor([[*n.tokens, *[0] * (width - len(n.tokens))] for n in chunk], device=model.device)
        with torch.no_grad(), model.disable_adapter():
            logits = model(input_ids=ids, use_cache=False).logits
        for row, neighbour in zip(logits, chunk, strict=True):
            answer = row[neighbour.answer_start - 1 : len(neighbour.tokens) - 1].float().log_softmax(-1)
            top = answer.topk(min(KEPT, answer.shape[-1] - 1))
            remembered[neighbour.tokens] = Reference(top.indices, top.values)
    result = [remembered[neighbour.tokens] for neighbour in neighbours]
    _trim(remembered)
    return result


def _trim(remembered: dict[Any, Any]) -> None:
    for key in list(islice(remembered, max(0, len(remembered) - _REMEMBERED))):
        del remembered[key]


def divergence(reference: Reference, logits: Tensor) -> Tensor:
    """Σ KL(base ‖ adapter) over an answer's tokens, in nats.

    :param logits: the adapter's, of shape (answer's tokens, vocabulary).
    """
    tuned = logits.float().log_softmax(-1).gather(-1, reference.tokens)
    base = reference.log_probabilities
    named = (base.exp() * (base - tuned)).sum()
    base_rest = (1 - base.exp().sum(-1)).clamp(min=1e-6)
    tuned_rest = (1 - tuned.exp().sum(-1)).clamp(min=1e-6)
    return named + (base_rest * (base_rest / tuned_rest).log()).sum()


_Start = tuple[tuple[int, ...], random.Random]


def _starts(sample: EncodedSample, count: int) -> list[_Start]:
    """Beginnings of the sample's prompt, each with the random numbers its continuation takes."""
    last = sample.prompt_length - _MARGIN
    if last < _MARGIN:
        return []
    starts = []
    for number in range(count):
        digest = hashlib.sha256(f"{number} {sample.prompt_text}".encode()).digest()
        rng = random.Random(digest)
        starts.append((sample.tokens[: rng.randint(_MARGIN, last)], rng))
    return starts


@torch.no_grad()
def _continue(
    model: Any, tokenizer: Any, starts: Sequence[_Start], max_new_tokens: int, abilities: Abilities
) -> list[list[int]]:
    """Each start with a continuation sampled from the base model at temperature 1."""
    texts = [list(tokens) for tokens, _ in starts]
    open_rows = [True] * len(texts)
    with model.disable_adapter():
        batch = Batch(model.get_base_model(), texts, abilities)
        logits = batch.prefill()
        for number in range(max_new_tokens):
            chosen = _sample(logits, [rng.random() for _, rng in starts]).tolist()
            for row, token in enumerate(chosen):
                if open_rows[row]:
                    texts[row].append(token)
                    open_rows[row] = token != tokenizer.eos_token_id
            if number + 1 == max_new_tokens or not any(open_rows):
                break
            logits = batch.step(chosen)
    return texts


def _sample(logits: Tensor, numbers: Sequence[float]) -> Tensor:
    """One token a row, by the row's own number in [0, 1)."""
    cumulative = logits.cpu().double().softmax(-1).cumsum(-1)  # not every device knows doubles
    targets = torch.tensor(numbers, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    return chosen.clamp(max=logits.shape[-1] - 1).to(logits.device)


def _as_neighbour(tokenizer: Any, tokens: Sequence[int], markers: Sequence[str]) -> Neighbour | None:
    """``None`` where no answer begins."""
    if not markers:
        return Neighbour(tuple(tokens), 1, fold(tokenizer.decode(tokens, skip_special_tokens=True)))
    if not any(marker in tokenizer.decode(tokens) for marker in markers):
        return None
    for end in range(_MARGIN, len(tokens)):
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        if text.rstrip().endswith(tuple(markers)):
            return Neighbour(tuple(tokens), end, fold(text))
    return None
