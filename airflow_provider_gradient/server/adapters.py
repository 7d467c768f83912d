"""The adapters of one base model that are in memory, over PEFT, one of them active.

An adapter comes from the disk when it is first asked for, and the one not used for longest goes when there
are too many. Training and completions each have their own, over twins of the model that share its weights, so
neither sees what the other has active.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

from airflow_provider_gradient.server.adapter_files import (
    AdapterFileError,
    Shape,
    check_shapes,
    read_json,
    read_tensors,
)
from airflow_provider_gradient.server.lora_stack import CONFIG_FILE, WEIGHTS_FILE, AdapterKey
from airflow_provider_gradient.server.weights import AdapterWeights


def twin_of(model: Any) -> Any:
    """A model of the same weights, not a copy of them, with modules of its own."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


class PeftAdapters:
    """Puts adapters over a model. Not safe to use from several threads at once.

    :param model: becomes PEFT's; give a twin.
    :param at_most: adapters kept in memory.
    """

    def __init__(self, model: Any, weights: AdapterWeights, *, at_most: int) -> None:
        self._at_most = at_most
        self._model = model
        self._weights = weights
        self._peft: Any = None
        self._versions: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._versions)

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._versions

    @property
    def peft_model(self) -> Any:
        """The model with the adapters over it; there once an adapter was."""
        return self._peft

    def applied(self, key: AdapterKey | None) -> Any:
        """The model answering as this adapter, or as the bare base model, until the next call.

        :raises FileNotFoundError: this version isn't on the disk any more.
        :raises AdapterFileError: its files are not what was written, or don't fit this base model.
        """
        if key is not None:
            self.activate(key)
        if self._peft is not None:
            layers = self._peft.base_model
            (layers.disable_adapter_layers if key is None else layers.enable_adapter_layers)()
        return self._model

    def activate(self, key: AdapterKey, *, new: tuple[LoraConfig, int] | None = None) -> None:
        """Have an adapter in memory and active.

        :param new: configuration and seed of one that has no weights on the disk yet.
        :raises FileNotFoundError, AdapterFileError: as :meth:`applied` has them.
        """
        if self._versions.get(key.id) != key.version:
            self.evict(key.id)
            while len(self._versions) >= self._at_most:
                self.evict(next(iter(self._versions)))
            try:
                if new is None:
                    self._load(key)
                else:
                    self._add(key.id, *new)
            except BaseException:
                self.evict(key.id)
                raise
            self._versions[key.id] = key.version
            self._peft.set_adapter(key.id)  # PEFT may call it active already and train none of it
        self._versions.move_to_end(key.id)
        if self._peft.active_adapter != key.id:
            self._peft.set_adapter(key.id)

    def advance(self, adapter_id: str) -> None:
        """What is in memory of an adapter has become its next version."""
        self._versions[adapter_id] += 1

    def evict(self, adapter_id: str) -> None:
        """Forget what is in memory of an adapter, if anything; what lies on the disk counts."""
        self._versions.pop(adapter_id, None)
        if self._peft is not None and adapter_id in self._peft.peft_config:
            self._peft.delete_adapter(adapter_id)

    def save(self, adapter_id: str, directory: Path) -> None:
        """Write an adapter as it is in memory, in PEFT's own format."""
        tensors = {name: tensor.contiguous() for name, tensor in self._state(adapter_id).items()}
        save_file(tensors, directory / WEIGHTS_FILE)
        self._peft.peft_config[adapter_id].save_pretrained(directory)

    def shapes(self, adapter_id: str) -> dict[str, Shape]:
        """The shapes of an adapter's weights by the names they have in its file."""
        return {name: tensor.shape for name, tensor in self._state(adapter_id).items()}

    def check_finite(self, adapter_id: str) -> None:
        """See that an adapter's weights are numbers.

        :raises AdapterFileError: some are not.
        """
        for name, tensor in self._state(adapter_id).items():
            if not bool(tensor.isfinite().all()):
                raise AdapterFileError(WEIGHTS_FILE, f"holds what is no number under {name!r}")

    def _state(self, adapter_id: str) -> dict[str, Any]:
        state: dict[str, Any] = get_peft_model_state_dict(
            self._peft, adapter_name=adapter_id, save_embedding_layers=False
        )
        return state

    def _load(self, key: AdapterKey) -> None:
        directory = self._weights.path(key.id, version=key.version)
        read_json(directory, CONFIG_FILE, key.digests)
        tensors = read_tensors(directory, WEIGHTS_FILE, key.digests)
        try:
            self._add(key.id, LoraConfig.from_pretrained(str(directory)), 0)
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise AdapterFileError(CONFIG_FILE, f"doesn't fit this base model: {reason}") from error
        check_shapes(WEIGHTS_FILE, {name: t.shape for name, t in tensors.items()}, self.shapes(key.id))
        set_peft_model_state_dict(self._peft, tensors, adapter_name=key.id)

    def _add(self, adapter_id: str, config: LoraConfig, seed: int) -> None:
        """Put a new adapter over the model; its random beginning depends on the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=adapter_id)
            else:
                self._peft.add_adapter(adapter_id, config)
        self._peft.eval()
