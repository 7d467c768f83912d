"""Which linear layers of a model an adapter changes, and which of its weights no adapter reaches.

Adapters change the text model alone: what a multimodal model has beside it (vision and audio towers, the
projections from them) is never read by a completion, so nothing would be learnt there. Two kinds of linear
layers in the text model are left as they are as well: those that only look like one (a router that returns
its choice of experts) and the output projections of state-space mixers, whose kernels read the weight past
the adapter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

_MODELLING_CODE = "transformers.models."
_NAMED_FROM = 0.01
"""Weights that no adapter reaches are named where they are at least this share of the text model."""


def lora_targets(model: Any) -> list[str]:
    """The names of the linear layers that an adapter changes, in the order of the model's modules.

    :param model: a causal language model of transformers, without adapters.
    """
    inside = set(map(id, _text_modules(model)))
    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and id(module) in inside
        and _is_plain(module)
        and not _is_read_by_a_kernel(model, name)
    ]


def weights_left_out(model: Any, targets: Collection[str]) -> dict[str, float]:
    """Large weights of the text model that adapters on ``targets`` don't reach: the experts of a mixture,
    for one, where they are one tensor a layer.

    :returns: their share of the text model's weights, embeddings and output layer aside (which adapters
        never change), by their name with ``*`` for the layers' numbers.
    """
    inside = set(map(id, _text_modules(model)))
    adapted = {id(model.get_submodule(name)) for name in targets}
    output = model.get_output_embeddings()
    sizes: Counter[str] = Counter()
    whole = 0
    for name, module in model.named_modules():
        if id(module) not in inside or module is output or isinstance(module, nn.Embedding):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            whole += parameter.numel()
            if id(module) not in adapted:
                sizes[re.sub(r"\b\d+\b", "*", f"{name}.{own}")] += parameter.numel()
    return {name: size / whole for name, size in sizes.most_common() if size >= _NAMED_FROM * whole}


def _text_modules(model: Any) -> Iterator[nn.Module]:
    """The modules of the text model: all, or in a multimodal model those of its decoder."""
    text_config = model.config.get_text_config()
    whole = model if text_config is model.config else model.get_decoder()
    return _without_towers(whole, type(text_config))


def _without_towers(module: nn.Module, text_config: type) -> Iterator[nn.Module]:
    """The module and all below it, except models of another configuration than the text's."""
    yield module
    for child in module.children():
        config = getattr(child, "config", None)
        is_model = hasattr(child, "get_input_embeddings")
        if not is_model or config is None or isinstance(config, text_config):
            yield from _without_towers(child, text_config)


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer computes what a linear layer does; those of a model's own making may not."""
    if not type(module).__module__.startswith(_MODELLING_CODE):
        return True
    weight: Any = module.weight
    bias: Any = module.bias
    some = torch.linspace(-1, 1, weight.shape[-1], dtype=weight.dtype, device=weight.device).unsqueeze(0)
    with torch.no_grad():
        try:
            return torch.allclose(module(some), linear(some, weight, bias), rtol=1e-2, atol=1e-2)
        except (RuntimeError, TypeError):
            return False


def _is_read_by_a_kernel(model: nn.Module, name: str) -> bool:
    """Whether it is the output projection of a state-space mixer."""
    parent, _, own = name.rpartition(".")
    mixer = model.get_submodule(parent)
    return own == "out_proj" and hasattr(mixer, "A_log") and hasattr(mixer, "D")
