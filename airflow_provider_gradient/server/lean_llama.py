"""A plain Llama's weights, read without transformers' modelling code.

Importing that code takes longer than all else at the start and a hundred megabytes, and what completes needs
none of it: :class:`.llama_form.LlamaForm` does its own reading. So the one architecture that is fully known
here, Llama without variants, is put into modules of the same names, and transformers' model is made over the
same weights when a fine-tune first needs it. Every other model is transformers' own from the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import load_file
from torch import Tensor, nn

_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Tokenizers that are all in ``tokenizer.json``."""


class _Rope(BaseModel):
    rope_theta: float = 10_000.0
    rope_type: Literal["default"] = "default"

    model_config = ConfigDict(extra="forbid")


class LeanConfig(BaseModel):
    """The ``config.json`` of a plain Llama; whatever asks for more doesn't pass."""

    architectures: list[Literal["LlamaForCausalLM"]] = Field(min_length=1, max_length=1)
    model_type: Literal["llama"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: _Rope
    hidden_act: Literal["silu"]
    tie_word_embeddings: bool
    attention_bias: Literal[False]
    mlp_bias: Literal[False]
    eos_token_id: int | list[int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_quantized(cls, values: Any) -> Any:
        if isinstance(values, dict) and "quantization_config" in values:
            raise ValueError("quantized")
        return values

    def get_text_config(self) -> LeanConfig:
        """Itself, as in transformers."""
        return self

    @classmethod
    def of(cls, directory: Path) -> LeanConfig | None:
        """That of a model directory, ``None`` where transformers has to load it."""
        try:
            tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
            config = cls.model_validate_json((directory / "config.json").read_text())
        except (OSError, ValueError, ValidationError):
            return None
        whole = tokenizer.get("tokenizer_class") in _TOKENIZERS and (directory / "tokenizer.json").exists()
        return config if whole and any(directory.glob("*.safetensors")) else None


class LeanLlama(nn.Module):
    """The modules that :meth:`.llama_form.LlamaForm.of` looks for. It has no ``forward``.

    :param eos_token_ids: what ends a text, by ``generation_config.json`` or else by the configuration.
    """

    def __init__(self, config: LeanConfig, weights: _Weights, eos_token_ids: list[int]) -> None:
        super().__init__()
        self.config = config
        self.eos_token_ids = eos_token_ids
        self.model = _Core(config, weights)
        tied = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.lm_head = weights.linear(tied, config.hidden_size, config.vocab_size)

    @classmethod
    def load(
        cls, directory: Path, config: LeanConfig, *, dtype: torch.dtype, device: torch.device
    ) -> LeanLlama:
        """Read the weights.

        :raises OSError, ValueError: some can't be read, are missing, or of another shape.
        """
        tensors: dict[str, Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                tensors[name] = tensor.to(device=device, dtype=dtype)
        return cls(config, _Weights(tensors), _eos_token_ids(directory, config)).eval()


class _Weights:
    """Modules made of tensors by name. None is initialised first, which would take longer than all else."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def linear(self, name: str, inputs: int, outputs: int) -> nn.Linear:
        module = nn.Linear(1, 1, bias=False)
        module.in_features, module.out_features = inputs, outputs
        module.weight = self._parameter(name, outputs, inputs)
        return module

    def embedding(self, name: str, count: int, width: int) -> nn.Embedding:
        return nn.Embedding(count, width, _weight=self._parameter(name, count, width).data, _freeze=True)

    def norm(self, name: str, width: int, epsilon: float) -> nn.RMSNorm:
        module = nn.RMSNorm(width, eps=epsilon)
        module.weight = self._parameter(name, width)
        return module

    def _parameter(self, name: str, *shape: int) -> nn.Parameter:
        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
            raise ValueError(f"{name}.weight {found}; its configuration says {shape}")
        return nn.Parameter(tensor, requires_grad=False)


class _Core(nn.Module):
    def __init__(self, config: LeanConfig, weights: _Weights) -> None:
        super().__init__()
        self.embed_tokens = weights.embedding("model.embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            _Layer(config, weights, f"model.layers.{number}") for number in range(config.num_hidden_layers)
        )
        self.norm = weights.norm("model.norm", config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = _Rotary(config, self.norm.weight.device)


class _Layer(nn.Module):
    def __init__(self, config: LeanConfig, weights: _Weights, name: str) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.self_attn = _Attention(config, weights, f"{name}.self_attn")
        self.mlp = _Mlp(config, weights, f"{name}.mlp")
        self.input_layernorm = weights.norm(f"{name}.input_layernorm", width, epsilon)
        self.post_attention_layernorm = weights.norm(f"{name}.post_attention_layernorm", width, epsilon)


class _Attention(nn.Module):
    def __init__(self, config: LeanConfig, weights: _Weights, name: str) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        inputs = config.hidden_size
        width, kept = (
            count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = weights.linear(f"{name}.q_proj", inputs, width)
        self.k_proj = weights.linear(f"{name}.k_proj", inputs, kept)
        self.v_proj = weights.linear(f"{name}.v_proj", inputs, kept)
        self.o_proj = weights.linear(f"{name}.o_proj", width, inputs)


class _Mlp(nn.Module):
    def __init__(self, config: LeanConfig, weights: _Weights, name: str) -> None:
        super().__init__()
        outer, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = weights.linear(f"{name}.gate_proj", outer, inner)
        self.up_proj = weights.linear(f"{name}.up_proj", outer, inner)
        self.down_proj = weights.linear(f"{name}.down_proj", inner, outer)
        self.act_fn = nn.SiLU()


class _Rotary(nn.Module):
    """Cosines and sines of positions (RoFormer, Su et al. 2021), the halves of a head turned together."""

    rope_type = "default"

    def __init__(self, config: LeanConfig, device: torch.device) -> None:
        super().__init__()
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        self._frequencies = 1.0 / config.rope_parameters.rope_theta**steps

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions.unsqueeze(-1).float() * self._frequencies
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


def _eos_token_ids(directory: Path, config: LeanConfig) -> list[int]:
    found: Any = config.eos_token_id
    path = directory / "generation_config.json"
    if path.exists():
        found = json.loads(path.read_text()).get("eos_token_id", found)
    ids = found if isinstance(found, list) else [found]
    return [token for token in ids if token is not None]
