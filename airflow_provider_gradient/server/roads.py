"""Which road a base model takes: continuous batching where its form allows, micro-batches elsewhere.

Modules alone don't prove a form, so our own reading of the model is tried on a few tokens against the model's
before it is trusted with requests. A plain Llama needs no trial: it is the form itself.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from airflow_provider_gradient.server.continuous import ContinuousRoad
from airflow_provider_gradient.server.devices import SlotPlan
from airflow_provider_gradient.server.generation import Road
from airflow_provider_gradient.server.lean_llama import LeanLlama
from airflow_provider_gradient.server.llama_form import LlamaForm
from airflow_provider_gradient.server.lora_stack import AdapterKey, Lora, LoraStack
from airflow_provider_gradient.server.micro_batches import MicroBatchRoad
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.settings import StartError
from airflow_provider_gradient.server.slots import NewText, Slots
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_TRIED = (24, 9)
"""Tokens of the texts that are tried."""
_LARGEST_WINDOW = 256
"""Sliding windows up to this many tokens are tried too."""
_TOLERANCE = {torch.float32: 1e-3}
_COARSE = 0.1
"""Of the largest logit, for shorter number types."""


def road_of(
    served: ServedModel, plan: SlotPlan, weights: AdapterWeights, *, resident_adapters: int = 8
) -> Road:
    """The road for a model that was loaded.

    :param resident_adapters: kept in memory, unless rows of more share a batch.
    :raises StartError: the model can't continue texts.
    """
    form = _form_of(served)
    if form is None:
        return _micro_batches(served, plan, weights, resident_adapters)

    def read(key: AdapterKey) -> Lora:
        return Lora.load(weights.path(key.id, version=key.version), key.digests)

    return ContinuousRoad(
        Slots(form, slots=plan.slots, longest=plan.longest),
        LoraStack(form.targets, most=resident_adapters, read=read),
        slots=plan.slots,
        stop_tokens=served.stop_tokens,
    )


def _micro_batches(
    served: ServedModel, plan: SlotPlan, weights: AdapterWeights, resident_adapters: int
) -> MicroBatchRoad:
    from airflow_provider_gradient.server.adapters import PeftAdapters, twin_of
    from airflow_provider_gradient.server.model_trial import UnservableError, try_model

    try:
        abilities = try_model(served.model, served.tokenizer, served.config)
    except UnservableError as error:
        source = f"base model {served.slug!r} in {served.directory}"
        raise StartError(f"{source} can't be served: {error}") from None
    if abilities.tuning:
        _log_what_adapters_leave(served)
    return MicroBatchRoad(
        PeftAdapters(twin_of(served.model), weights, at_most=resident_adapters),
        slots=plan.slots,
        stop_tokens=served.stop_tokens,
        abilities=replace(abilities, switch=_switch_of(served)),
    )


def _log_what_adapters_leave(served: ServedModel) -> None:
    from airflow_provider_gradient.server.lora_targets import lora_targets, weights_left_out

    targets = lora_targets(served.model)
    if left := weights_left_out(served.model, targets):
        _LOG.info(
            "%s: fine-tunes change %s; they leave %s as they are",
            served.slug,
            ", ".join(sorted({name.rpartition(".")[2] for name in targets})),
            ", ".join(f"{name} ({share:.0%} of the weights)" for name, share in left.items()),
        )


def _switch_of(served: ServedModel) -> int | None:
    """See :class:`.generation.Abilities`. Other kinds whose frequencies change with the length (``dynamic``)
    do so beyond the context only."""
    rope = getattr(served.core.config.get_text_config(), "rope_parameters", None) or {}
    for parameters in (rope, *rope.values()):
        if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
            switch = int(parameters["original_max_position_embeddings"])
            return switch if served.context_length is None or switch < served.context_length else None
    return None


def _form_of(served: ServedModel) -> LlamaForm | None:
    form = LlamaForm.of(served.core)
    if form is None or isinstance(served.core, LeanLlama):
        return form
    try:
        difference = _difference(form, served.core)
    except Exception:
        _LOG.info("%s has the modules of Llama, and other shapes", served.slug, exc_info=True)
        return None
    if not difference <= _TOLERANCE.get(form.dtype, _COARSE):
        _LOG.info("%s has the modules of Llama, and other answers (by %g)", served.slug, difference)
        return None
    return form


@torch.inference_mode()
def _difference(form: LlamaForm, model: Any) -> float:
    """The largest between our logits and the model's, in parts of its largest logit: prompts and a step."""
    windows = [layer.window for layer in form.layers if layer.window and layer.window <= _LARGEST_WINDOW]
    lengths = [length + max(windows, default=0) for length in _TRIED]
    chance = torch.Generator().manual_seed(0)
    texts = [torch.randint(form.embed.num_embeddings, (length + 1,), generator=chance) for length in lengths]
    slots = Slots(form, slots=len(texts), longest=max(lengths) + 1)
    first = torch.cat(slots.prefill([NewText(tokens=text[:-1].tolist()) for text in texts]))
    second = slots.step([int(text[-1]) for text in texts])
    told = [model(text.unsqueeze(0).to(form.device), use_cache=False).logits[0, -2:] for text in texts]
    expected = torch.stack(told, dim=1)
    return float((torch.stack([first, second]) - expected).abs().max() / expected.abs().max())
