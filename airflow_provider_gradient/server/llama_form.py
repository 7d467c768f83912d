"""Which models have the form of Llama, and what they compute, layer by layer.

Llama, Mistral, Qwen2, Qwen3 and their kin are one architecture: attention with rotary positions and a gated
MLP, each after a norm and beside a residual. A model is taken for one when its modules say so, and when what
:class:`LlamaForm` makes of them agrees with what the model itself answers; many a cousin has the same modules
and does more with them (factors, layers without positions), and only the numbers tell. Norms, activation and
rotary embedding are the model's own modules, so their kinds don't matter here.

A small model's time goes into the number of operations more than into their size, so linear layers that read
the same input are one, and what can be done in place is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

_CORE = ("embed_tokens", "rotary_emb", "layers", "norm")
_BLOCKS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_QUERY_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_JOINED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linear layers of a layer, those together that read the same input."""
_ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend on the position alone."""

Norm = Callable[[Tensor], Tensor]


class Added(Protocol):
    """What adapters add to the outputs of linear layers, row by row."""

    def add(self, target: int, x: Tensor, y: Tensor) -> None:
        """Add to ``y`` what the rows' adapters make of ``x`` at the joined layers of that number.

        :param x: rows of the batch, token by token, x the layers' inputs.
        :param y: the same x their outputs.
        """
        ...


class Attend(Protocol):
    """Keeps the new keys and values of a layer and attends to all that its rows may see."""

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        """Rows x tokens x heads · head width.

        :param query: rows x tokens x heads x head width.
        :param key_value: rows x tokens x key heads, then value heads, x head width.
        """
        ...


class Joined:
    """Linear layers that read the same input, as one. Their own weights become views of its.

    :param modules: by their names in the model.
    """

    def __init__(self, modules: Mapping[str, nn.Linear]) -> None:
        self.names = tuple(modules)
        self.inputs = next(iter(modules.values())).in_features
        self.outputs = tuple(module.out_features for module in modules.values())
        self.weight = torch.cat([module.weight.detach().t() for module in modules.values()], dim=1)
        for module, part in zip(modules.values(), self.weight.split_with_sizes(self.outputs, 1), strict=True):
            module.weight.data = part.t()
        biases = [module.bias for module in modules.values()]
        self._bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            self._bias = torch.cat(
                [
                    self.weight.new_zeros(width) if bias is None else bias.detach()
                    for bias, width in zip(biases, self.outputs, strict=True)
                ]
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens x all their outputs side by side, of tokens x inputs."""
        return x.mm(self.weight) if self._bias is None else torch.addmm(self._bias, x, self.weight)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add the outputs to ``y``, in place."""
        y.addmm_(x, self.weight)
        if self._bias is not None:
            y.add_(self._bias)


@dataclass(frozen=True)
class Layer:
    """One layer's parts. ``query_norm`` and ``key_norm`` are there in some models only."""

    query_key_value: Joined
    output: Joined
    gate_up: Joined
    down: Joined
    activation: Callable[[Tensor], Tensor]
    attention_norm: Norm
    mlp_norm: Norm
    query_norm: Norm | None
    key_norm: Norm | None
    window: int | None


@dataclass(frozen=True)
class LlamaForm:
    """A model of the form of Llama.

    :param targets: its linear layers but the output's, in the order of their numbers.
    """

    embed: Any
    rotary: Any
    layers: Sequence[Layer]
    norm: Norm
    head: nn.Linear
    targets: Sequence[Joined]
    heads: int
    key_value_heads: int
    head_width: int
    scale: float

    @classmethod
    def of(cls, model: Any) -> LlamaForm | None:
        """The form of a causal language model of transformers, ``None`` where its modules are others."""
        core: Any = getattr(model, "model", None)
        head = getattr(model, "lm_head", None)
        if type(head) is not nn.Linear or any(not hasattr(core, name) for name in _CORE):
            return None
        embed, rotary, modules, norm = (getattr(core, name) for name in _CORE)
        if getattr(rotary, "rope_type", None) not in _ROTARY or not all(map(_is_layer, modules)):
            return None
        layers = [_layer(f"model.layers.{number}", module) for number, module in enumerate(modules)]
        attention = modules[0].self_attn
        width = int(attention.head_dim)
        return cls(
            embed=embed,
            rotary=rotary,
            layers=layers,
            norm=_norm(norm),
            head=head,
            targets=[part for layer in layers for part in _parts(layer)],
            heads=attention.q_proj.out_features // width,
            key_value_heads=attention.k_proj.out_features // width,
            head_width=width,
            scale=float(attention.scaling),
        )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.head.weight.dtype

    def read(self, tokens: Tensor, positions: Tensor, *, attend: Attend, added: Added | None) -> Tensor:
        """What the last layer makes of the tokens, before the output layer: rows x tokens x width.

        :param tokens: ids, rows x tokens.
        :param positions: theirs, of the same shape.
        """
        rows, length = tokens.shape
        x = self.embed(tokens)
        cosine, sine = self.rotary(x, positions)
        half = self.head_width // 2
        angles = cosine.unsqueeze(2), torch.cat((-sine[..., :half], sine[..., half:]), dim=-1).unsqueeze(2)
        x = x.view(rows * length, -1)
        for number, layer in enumerate(self.layers):
            target = number * len(_JOINED)
            normed = layer.attention_norm(x)
            y = layer.query_key_value(normed)
            if added is not None:
                added.add(target, normed, y)
            heads = self._turned(layer, y.view(rows, length, -1, self.head_width), *angles)
            query, key_value = heads[:, :, : self.heads], heads[:, :, self.heads :]
            seen = attend(number, query, key_value).view(rows * length, -1)
            layer.output.add_to(x, seen)
            if added is not None:
                added.add(target + 1, seen, x)
            normed = layer.mlp_norm(x)
            y = layer.gate_up(normed)
            if added is not None:
                added.add(target + 2, normed, y)
            gate, up = y.chunk(2, dim=-1)
            inner = layer.activation(gate) * up
            layer.down.add_to(x, inner)
            if added is not None:
                added.add(target + 3, inner, x)
        return self.norm(x).view(rows, length, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """The output layer."""
        return linear(hidden, self.head.weight, self.head.bias)

    def _turned(self, layer: Layer, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Query and key heads at their positions, in place; the value heads after them stay as they are.

        :param sine: negative for the first half of a head.
        """
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key, _ = heads.split_with_sizes(
                (self.heads, self.key_value_heads, self.key_value_heads), dim=2
            )
            query.copy_(layer.query_norm(query))
            key.copy_(layer.key_norm(key))
        turning = heads[:, :, : self.heads + self.key_value_heads]
        swapped = turning.roll(self.head_width // 2, -1)
        turning.mul_(cosine).addcmul_(swapped, sine)
        return heads


def _parts(layer: Layer) -> tuple[Joined, ...]:
    return layer.query_key_value, layer.output, layer.gate_up, layer.down


class _RootMeanSquareNorm:
    """torch's ``rms_norm`` in half its time; on a processor that one is made of eight operations.

    x / sqrt(mean(x²) + epsilon) · weight is x / sqrt(sum(x²) + n · epsilon) · (sqrt(n) · weight).
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self._weight = weight * weight.numel() ** 0.5
        self._epsilon = torch.tensor(epsilon * weight.numel())

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self._epsilon, length, length).rsqrt_()).mul_(self._weight)


@torch.inference_mode()
def _norm(module: Any) -> Norm:
    """A norm in few operations, where it is the usual one."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or epsilon is None:
        return module  # type: ignore[no-any-return]
    short: Norm = partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
    if weight.device.type == "cpu" and weight.dtype is torch.float32:
        short = _RootMeanSquareNorm(weight, epsilon)
    some = torch.linspace(-3, 3, weight.numel(), device=weight.device, dtype=weight.dtype)
    same = torch.allclose(short(some), module(some), rtol=torch.finfo(weight.dtype).eps * 8)
    return short if same else module


def _is_layer(module: Any) -> bool:
    blocks = dict(module.named_children())
    if set(blocks) != _BLOCKS:
        return False
    attention, mlp = dict(blocks["self_attn"].named_children()), dict(blocks["mlp"].named_children())
    return (
        set(attention) in (_ATTENTION, _ATTENTION | _QUERY_NORMS)
        and set(mlp) == _MLP
        and all(hasattr(blocks["self_attn"], name) for name in ("head_dim", "scaling"))
        and all(type(module.get_submodule(name)) is nn.Linear for names in _JOINED for name in names)
    )


def _layer(path: str, module: Any) -> Layer:
    attention = module.self_attn
    configured = getattr(attention.config, "sliding_window", None)
    query_key_value, output, gate_up, down = (
        Joined({f"{path}.{name}": module.get_submodule(name) for name in names}) for names in _JOINED
    )
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    query_norm, key_norm = (None if norm is None else _norm(norm) for norm in norms)
    return Layer(
        query_key_value=query_key_value,
        output=output,
        gate_up=gate_up,
        down=down,
        activation=module.mlp.act_fn,
        attention_norm=_norm(module.input_layernorm),
        mlp_norm=_norm(module.post_attention_layernorm),
        query_norm=query_norm,
        key_norm=key_norm,
        window=getattr(attention, "sliding_window", configured),
    )
