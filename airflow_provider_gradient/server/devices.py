"""Where models live and in which number type, and how much fits there.

Memory is reckoned with before anything is loaded: the weights, then the key-value cache of as many slots as
there is room for. What can't fit is refused at the start or at the request, with the figures, instead of
ending the process later.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from airflow_provider_gradient.server.settings import StartError

MOST_SLOTS = 32
"""Completions of one base model at once, unless asked otherwise; more gain little and wait for each other."""
_USUAL_LENGTH = 4096
"""Tokens a slot should hold, where the model reads that many, before there are more slots."""
_SHARE = 0.6
"""Of the memory left after the weights that the cache may take: adapters, training and the rest need some."""
_UNKNOWN = 1 << 62
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How many completions at once, and how long each may be.

    :param slots: the most at once.
    :param longest: tokens of one, prompt and continuation.
    :param bytes_per_slot: of key-value cache, where a completion is that long.
    """

    slots: int
    longest: int
    bytes_per_slot: int

    def __str__(self) -> str:
        each = f"{self.longest} tokens ({self.bytes_per_slot / (1 << 20):.1f} MiB of cache each)"
        return f"{self.slots} slot{'s' * (self.slots > 1)} of {each}"


@dataclass(frozen=True)
class Placement:
    """A device and a number type."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str, dtype: str) -> Placement:
        """What two options mean; ``auto`` is CUDA where there is some, and bfloat16 there, float32 elsewhere.

        :raises StartError: there is no such device.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there[device]:
            raise StartError(f"--device {device}: torch finds none on this machine; take cpu or auto")
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        return cls(torch.device(device), getattr(torch, dtype))

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def free_bytes(self) -> int:
        """Memory that a model here may still take; very much where nobody tells."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        if self.device.type == "mps":
            return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
        return min(_available_on_this_machine(), _left_in_this_container())

    def check_room(self, directory: Path, source: str) -> None:
        """Refuse a model whose weights don't fit.

        :param source: how the model is named in the error.
        :raises StartError: with both figures and the remedies.
        """
        needed, free = _weight_bytes(directory, self.dtype), self.free_bytes
        if needed > free:
            raise StartError(
                f"{source} needs about {needed / _GIB:.1f} GiB for its weights ({self}); "
                f"{free / _GIB:.1f} GiB are free. Take a smaller model, or --dtype bfloat16."
            )

    def plan(self, config: Any, *, context_length: int | None, slots: int | None, source: str) -> SlotPlan:
        """How many slots of which length there is room for, once the model is loaded.

        :param config: the model's, of transformers.
        :param slots: as many as asked for; ``None`` for what fits, at most :data:`MOST_SLOTS`.
        :raises StartError: not even short texts fit.
        """
        per_token = key_value_bytes(config, self.dtype)
        tokens = int(self.free_bytes * _SHARE) // per_token
        context = context_length or _USUAL_LENGTH
        if slots is None:
            slots = max(1, min(MOST_SLOTS, tokens // min(context, _USUAL_LENGTH)))
        longest = min(context_length or _UNKNOWN, tokens // slots)
        if longest < min(context, 256):
            raise StartError(
                f"{source}: {slots} slots leave room for {longest} tokens each "
                f"({per_token / 1024:.0f} KiB a token, {self.free_bytes / _GIB:.1f} GiB free). "
                "Ask for fewer --slots, or take a smaller model or --dtype bfloat16."
            )
        return SlotPlan(slots=slots, longest=longest, bytes_per_slot=min(longest, context) * per_token)


def key_value_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of key-value cache a token: two vectors a head and layer."""
    config = config.get_text_config()
    if layers := getattr(config, "per_layer_config", None):  # of a model whose layers differ
        return sum(_key_value_numbers(layer) for layer in layers) * dtype.itemsize
    return _key_value_numbers(config) * int(config.num_hidden_layers) * dtype.itemsize


def _key_value_numbers(config: Any) -> int:
    """Of one layer and token."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * kept * width)


def _weight_bytes(directory: Path, dtype: torch.dtype) -> int:
    """Of a model directory once loaded: its files, in the other number type."""
    files = [*directory.glob("*.safetensors")] or [*directory.glob("*.bin")]
    stored = torch.float32
    try:
        config = json.loads((directory / "config.json").read_text())
        stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    except (OSError, ValueError):
        pass  # loading it says what is wrong
    size = sum(file.stat().st_size for file in files)
    return size * dtype.itemsize // (stored.itemsize if isinstance(stored, torch.dtype) else 4)


def _available_on_this_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_in_this_container() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        return _UNKNOWN if most == "max" else int(most) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return _UNKNOWN
