"""One fine-tune call: LoRA steps on an adapter, through PEFT.

Invariants:

- A call either ends with finite weights or leaves adapter and trainer state as they were
  (:class:`NanLossError`).
- What is reported is the loss *before* the update: Σ multiplier · negative log-likelihood over the
  trainable tokens.
- The same adapter, state, samples and seed give the same weights again on one thread; a state that was
  saved and loaded goes on exactly as one that was not.
- Dropout stays off: a handful of tokens is learnt, and the base model's answers must be the same each time
  they are compared.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from airflow_provider_gradient.api import FineTuneResult, NanLossError
from airflow_provider_gradient.server.adapter_files import (
    AdapterFileError,
    Digests,
    read_json,
    read_tensors,
)
from airflow_provider_gradient.server.encoding import EncodedSample
from airflow_provider_gradient.server.generation import Abilities
from airflow_provider_gradient.server.model_config import BaseModelConfig, TrainingPolicy
from airflow_provider_gradient.server.neighbours import (
    Neighbour,
    divergence,
    fold,
    neighbours_of,
    references_of,
)

MOMENTS_FILE = "trainer.safetensors"
STATE_FILE = "trainer.json"


def new_lora_config(
    rank: int | None, policy: TrainingPolicy, targets: Sequence[str] | None = None
) -> LoraConfig:
    """The PEFT configuration of a new adapter.

    PEFT draws the new weights from torch's global generator: seed it first where a run must repeat.

    :param rank: ``None`` for the policy's.
    :param targets: names of the linear layers that it changes; ``None`` for every one but the output's.
    """
    chosen = rank or policy.default_rank
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=chosen,
        lora_alpha=max(1, round(policy.alpha_per_rank * chosen)),
        lora_dropout=0.0,
        target_modules="all-linear" if targets is None else list(targets),
    )


@dataclass
class TrainerState:
    """What an adapter's training carries from call to call beside the weights.

    :param steps: updates made so far.
    :param moments: AdamW's first and second moments by parameter name, without the adapter's own name in it.
    :param neighbours: anchors of neighbour distillation, oldest first.
    :param seen: folded prompts of every sample met so far: none of them is an anchor.
    """

    steps: int = 0
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    neighbours: list[Neighbour] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def save(self, directory: Path) -> None:
        """Write two files into the directory, each whole or not at all."""
        tensors = {}
        for name, (first, second) in self.moments.items():
            tensors[f"first.{name}"] = first.contiguous()
            tensors[f"second.{name}"] = second.contiguous()
        record = {
            "steps": self.steps,
            "neighbours": [[list(n.tokens), n.answer_start, n.prompt] for n in self.neighbours],
            "seen": sorted(self.seen),
        }
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / f"{MOMENTS_FILE}.new")
        (directory / f"{STATE_FILE}.new").write_text(json.dumps(record))
        for name in (MOMENTS_FILE, STATE_FILE):
            (directory / f"{name}.new").replace(directory / name)

    @classmethod
    def load(cls, directory: Path, digests: Digests | None = None) -> TrainerState:
        """What :meth:`save` wrote; an adapter that was never trained has a new state.

        :param digests: of the directory's files, where they are on record.
        :raises OSError, ValueError: the files are there but can't be read, or are not what was written.
        """
        if not (directory / STATE_FILE).exists():
            return cls()
        record = read_json(directory, STATE_FILE, digests)
        tensors = read_tensors(directory, MOMENTS_FILE, digests)
        names = [name.removeprefix("first.") for name in tensors if name.startswith("first.")]
        try:
            return cls(
                steps=record["steps"],
                moments={name: (tensors[f"first.{name}"], tensors[f"second.{name}"]) for name in names},
                neighbours=[Neighbour(tuple(t), start, prompt) for t, start, prompt in record["neighbours"]],
                seen=set(record["seen"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterFileError(STATE_FILE, f"or {MOMENTS_FILE} lacks a part: {error!r}") from None


@dataclass(frozen=True)
class _Plan:
    passes: int
    learning_rate: float
    per_sample: int
    per_step: int
    weight: float


def _plan(policy: TrainingPolicy, samples: int, learning_rate: float) -> _Plan:
    passes = min(policy.max_passes, max(1, policy.pass_samples // samples))
    rate = learning_rate * policy.lr_scale
    if policy.neighbours is None:
        return _Plan(passes, rate, 0, 0, 0.0)
    few = policy.few_samples
    if few is not None and samples <= few.up_to:
        return _Plan(passes, rate * few.learning_rate_factor, few.per_sample, few.per_step, few.weight)
    usual = policy.neighbours
    return _Plan(passes, rate, usual.per_sample, usual.per_step, usual.weight)


def fine_tune(
    model: PeftModel,
    tokenizer: Any,
    samples: Sequence[EncodedSample],
    state: TrainerState,
    *,
    config: BaseModelConfig,
    learning_rate: float,
    seed: int,
    abilities: Abilities | None = None,
) -> FineTuneResult:
    """Train the active adapter on the samples as the model's policy says, in place, and the state with it.

    :param learning_rate: the adapter's, before the policy's scale.
    :param seed: decides which neighbours take part in which step.
    :param abilities: the base model's; by default, what most can do.
    :raises NanLossError: loss or weights are not finite; adapter and state are as they were.
    """
    policy = config.training
    plan = _plan(policy, len(samples), learning_rate)
    anchors, seen = _anchors(model, tokenizer, samples, state, config, plan, abilities)
    parameters = _adapter_parameters(model)
    optimizer = _optimizer(parameters, state, plan.learning_rate, policy)
    with _trainable_and_restored_on_failure(parameters), _checkpointed(model, policy):
        sum_loss, steps = _train(model, samples, anchors, optimizer, policy, plan, random.Random(seed))
    state.steps += steps
    state.moments = _moments(parameters, optimizer) or state.moments
    state.neighbours, state.seen = anchors, seen
    tokens = sum(sum(sample.trainable[1:]) for sample in samples)
    return FineTuneResult(number_of_trainable_tokens=tokens, sum_loss=sum_loss)


def _train(
    model: PeftModel,
    samples: Sequence[EncodedSample],
    anchors: Sequence[Neighbour],
    optimizer: torch.optim.Optimizer,
    policy: TrainingPolicy,
    plan: _Plan,
    rng: random.Random,
) -> tuple[float, int]:
    """The loss before the first update, and how many updates there were."""
    parameters = optimizer.param_groups[0]["params"]
    reported = 0.0
    for done in range(plan.passes):
        optimizer.zero_grad(set_to_none=True)
        picked = rng.sample(anchors, min(plan.per_step, len(anchors)))
        step = _accumulate(model, samples, picked, policy, plan.weight)
        norm = torch.nn.utils.clip_grad_norm_(parameters, policy.max_gradient_norm)
        if not (math.isfinite(step.sum_loss) and bool(torch.isfinite(norm))):
            raise _diverged()
        if done == 0:
            reported = step.sum_loss
        if plan.passes > 1 and step.worst < policy.stop_nll:
            return reported, done
        optimizer.step()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise _diverged()
    return reported, plan.passes


def _diverged() -> NanLossError:
    return NanLossError(
        "the loss is not a number: lower the learning rate, or the samples' multiplier where one is large",
        status=400,
        type="nanLoss",
    )


@contextmanager
def _trainable_and_restored_on_failure(parameters: dict[str, torch.nn.Parameter]) -> Iterator[None]:
    before = [
        (parameter, parameter.detach().clone(), parameter.requires_grad) for parameter in parameters.values()
    ]
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value, _ in before:
                parameter.copy_(value)
        raise
    finally:
        for parameter, _, trainable in before:
            parameter.grad = None
            parameter.requires_grad_(trainable)


@contextmanager
def _checkpointed(model: PeftModel, policy: TrainingPolicy) -> Iterator[None]:
    """Layers compute their insides again in the backward pass, where the policy says so.

    transformers does that for layers in training mode. Only the layers themselves are told so: what is inside
    them stays in evaluation mode, since dropout stays off.
    """
    if not policy.gradient_checkpointing:
        yield
        return
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    try:
        for layer in layers:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = layer.training = True
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


def _anchors(
    model: PeftModel,
    tokenizer: Any,
    samples: Sequence[EncodedSample],
    state: TrainerState,
    config: BaseModelConfig,
    plan: _Plan,
    abilities: Abilities | None,
) -> tuple[list[Neighbour], set[str]]:
    """The neighbours after these samples, and every prompt met; the state itself stays as it is."""
    policy = config.training.neighbours
    if policy is None:
        return [], state.seen
    prompts = {fold(sample.prompt_text): sample for sample in samples}
    fresh = [sample for prompt, sample in prompts.items() if prompt not in state.seen]
    drawn = neighbours_of(
        model,
        tokenizer,
        fresh,
        config=config,
        per_sample=plan.per_sample,
        max_new_tokens=policy.max_new_tokens,
        abilities=abilities,
    )
    seen = state.seen | set(prompts)
    kept = [neighbour for neighbour in [*state.neighbours, *drawn] if neighbour.prompt not in seen]
    return kept[-policy.max_kept :], seen


# --- one step ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    sum_loss: float
    worst: float


def _accumulate(
    model: PeftModel,
    samples: Sequence[EncodedSample],
    anchors: Sequence[Neighbour],
    policy: TrainingPolicy,
    weight: float,
) -> _Step:
    """Add to the gradients those of the samples' weighted mean loss and of the anchors' mean divergence."""
    weights = [_token_weights(sample, policy.prompt_weight) for sample in samples]
    total = sum(sum(row) for row in weights)
    sum_loss, worst = 0.0, 0.0
    for rows in _chunks(range(len(samples)), policy.rows_per_pass):
        chunk = _pass(model, [samples[i] for i in rows], [weights[i] for i in rows], total)
        sum_loss, worst = sum_loss + chunk.sum_loss, max(worst, chunk.worst)
    if anchors:
        _hold(model, anchors, policy.rows_per_pass, weight)
    return _Step(sum_loss, worst)


def _pass(
    model: PeftModel, samples: Sequence[EncodedSample], weights: Sequence[Sequence[float]], total: float
) -> _Step:
    """One pass forward and back."""
    ids = _padded([sample.tokens for sample in samples], 0, model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nll = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(samples), -1)
    factors = _padded(weights, 0.0, model.device)
    torch.autograd.backward((nll * factors).sum() / total)
    return _Step(*_figures(nll.detach(), samples))


def _hold(model: PeftModel, anchors: Sequence[Neighbour], rows_per_pass: int, weight: float) -> None:
    """Add the gradients of the anchors' mean divergence, a token of their answers, from the base model."""
    tokens = sum(len(anchor.tokens) - anchor.answer_start for anchor in anchors)
    ordered = sorted(anchors, key=lambda anchor: len(anchor.tokens))
    for rows in _chunks(range(len(ordered)), rows_per_pass):
        chunk = [ordered[i] for i in rows]
        ids = _padded([anchor.tokens for anchor in chunk], 0, model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        total = logits.new_zeros((), dtype=torch.float32)
        for row, anchor, reference in zip(logits, chunk, references_of(model, chunk), strict=True):
            total = total + divergence(reference, row[anchor.answer_start - 1 : len(anchor.tokens) - 1])
        torch.autograd.backward(total * weight / tokens)


def _token_weights(sample: EncodedSample, prompt_weight: float) -> list[float]:
    """Weight of the prediction of each token but the first."""
    return [
        sample.multiplier * trained * (prompt_weight if i < sample.prompt_length else 1.0)
        for i, trained in enumerate(sample.trainable)
    ][1:]


def _figures(nll: Tensor, samples: Sequence[EncodedSample]) -> tuple[float, float]:
    """The reported loss of the rows, and the highest cost of a trainable token after a prompt."""
    total, worst = 0.0, 0.0
    for row, sample in zip(nll.tolist(), samples, strict=True):
        for i, trained in enumerate(sample.trainable[1:]):
            if trained:
                total += sample.multiplier * row[i]
                if i + 1 >= sample.prompt_length:
                    worst = max(worst, row[i])
    return total, worst


def _padded(rows: Sequence[Sequence[Any]], value: float, device: torch.device) -> Tensor:
    """Rows as one tensor, padded on the right, where a causal model needs no mask."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


def _chunks(indices: range, size: int) -> Iterator[range]:
    return (indices[first : first + size] for first in range(0, len(indices), size))


# --- parameters and their optimizer ------------------------------------------------------------------------


def _adapter_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The active adapter's LoRA weights by name, without the adapter's name in it."""
    inner = f".{model.active_adapter}."
    return {
        name.replace(inner, "."): parameter
        for name, parameter in model.named_parameters()
        if inner in name and "lora_" in name
    }


def _optimizer(
    parameters: dict[str, torch.nn.Parameter], state: TrainerState, rate: float, policy: TrainingPolicy
) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, betas=policy.betas, weight_decay=0.0)
    for name, parameter in parameters.items():
        if name in state.moments:
            first, second = state.moments[name]
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state.steps)),
                "exp_avg": first.to(parameter.device, copy=True),
                "exp_avg_sq": second.to(parameter.device, copy=True),
            }
    return optimizer


def _moments(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.AdamW
) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"])
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }
