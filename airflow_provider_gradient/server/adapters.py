"""The adapters of one base model that are in memory, over PEFT.

An adapter comes from the disk when it is first asked for, and the one not used for longest goes when there
are too many. At version 0 an adapter is its base model, so it takes no memory before its first fine-tune.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.store import AdapterRecord
from airflow_provider_gradient.server.training import TrainerState, new_lora_config
from airflow_provider_gradient.server.weights import AdapterWeights

_WEIGHTS_FILE = "adapter_model.safetensors"
_RESIDENT = 8
"""Adapters of a base model kept in memory, each with the state of its optimizer."""


@dataclass(kw_only=True)
class ResidentAdapter:
    """An adapter in memory: which version its weights are, and what its next fine-tune goes on from."""

    version: int
    trainer: TrainerState


class ResidentAdapters:
    """Puts adapters over a base model, one at a time. Not safe to use from several threads at once."""

    def __init__(self, served: ServedModel, weights: AdapterWeights) -> None:
        self._served = served
        self._weights = weights
        self._peft: Any = None
        self._active: str | None = None
        self._resident: OrderedDict[str, ResidentAdapter] = OrderedDict()

    @contextmanager
    def applied(self, record: AdapterRecord | None) -> Iterator[None]:
        """The model answers as this adapter, or as the bare base model for ``None``, inside this context."""
        if record is not None and record.version > 0:
            self.resident(record)
            yield
        elif self._peft is not None and self._peft.peft_config:
            with self._peft.disable_adapter():
                yield
        else:
            yield

    def resident(self, record: AdapterRecord) -> ResidentAdapter:
        """The adapter in its recorded version, in memory and active."""
        known = self._resident.get(record.id)
        if known is None or known.version != record.version:
            self.evict(record.id)
            while len(self._resident) >= _RESIDENT:
                self.evict(next(iter(self._resident)))
            try:
                known = self._resident[record.id] = self._load(record)
            except BaseException:
                self.evict(record.id)
                raise
        self._resident.move_to_end(record.id)
        if self._active != record.id:
            self._peft.set_adapter(record.id)
            self._active = record.id
        return known

    @property
    def peft_model(self) -> Any:
        """The base model with the adapters over it; there once an adapter was resident."""
        return self._peft

    def evict(self, adapter_id: str) -> None:
        """Forget what is in memory of an adapter, if anything; what lies on the disk counts."""
        self._resident.pop(adapter_id, None)
        self._active = None  # PEFT makes another adapter the active one, or none
        if self._peft is not None and adapter_id in self._peft.peft_config:
            self._peft.delete_adapter(adapter_id)

    def save(self, record: AdapterRecord, directory: Path) -> None:
        """Write the adapter as it is in memory: PEFT's own format, and the trainer's state beside it."""
        tensors = get_peft_model_state_dict(self._peft, adapter_name=record.id, save_embedding_layers=False)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / _WEIGHTS_FILE)
        self._peft.peft_config[record.id].save_pretrained(directory)
        self._resident[record.id].trainer.save(directory)

    def _load(self, record: AdapterRecord) -> ResidentAdapter:
        if record.version == 0:
            policy = self._served.config.training
            config = new_lora_config(record.rank, policy)
            self._add(record, config)
            return ResidentAdapter(version=0, trainer=TrainerState())
        directory = self._weights.path(record.id, version=record.version)
        self._add(record, LoraConfig.from_pretrained(str(directory)))
        loaded: Any = set_peft_model_state_dict(
            self._peft, load_file(directory / _WEIGHTS_FILE), adapter_name=record.id
        )
        if loaded.unexpected_keys:
            raise ValueError(f"{directory} doesn't fit base model {record.base_slug!r}")
        return ResidentAdapter(version=record.version, trainer=TrainerState.load(directory))

    def _add(self, record: AdapterRecord, config: LoraConfig) -> None:
        """Put a new adapter over the model; its random beginning depends on the record alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(record))
            if self._peft is None:
                self._peft = PeftModel(self._served.model, config, adapter_name=record.id)
            else:
                self._peft.add_adapter(record.id, config)
        self._peft.eval()


def seed_of(record: AdapterRecord) -> int:
    """The seed of an adapter's next step. Two adapters of one name, made and tuned alike, become the same."""
    identity = f"{record.base_slug}\0{record.name}\0{record.version}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4])
