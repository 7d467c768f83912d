"""Fine-tune calls on the adapters of one base model, from samples to the record of a new version.

A call reads the last recorded version and leaves either the next one, on the disk and on record, or nothing:
whatever goes wrong on the way, the last good version counts, and the next call goes on from it.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_gradient.api import NanLossError
from airflow_provider_gradient.server.adapter_files import AdapterFileError, check_shapes, finding
from airflow_provider_gradient.server.adapters import PeftAdapters, twin_of
from airflow_provider_gradient.server.encoding import EncodedSample, encode_samples
from airflow_provider_gradient.server.failures import damaged_adapter, unknown_adapter
from airflow_provider_gradient.server.jobs import Answer, FineTuneJob
from airflow_provider_gradient.server.lora_stack import AdapterKey
from airflow_provider_gradient.server.lora_targets import lora_targets
from airflow_provider_gradient.server.model_config import BaseModelConfig
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.store import AdapterRecord, Store
from airflow_provider_gradient.server.training import (
    MOMENTS_FILE,
    STATE_FILE,
    TrainerState,
    fine_tune,
    new_lora_config,
)
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_NO_LIMIT = 1 << 30
_IN_TRAINING = 8
"""Adapters kept in memory, each with the state of its optimizer, for their next call."""


class Trainer:
    """Trains the adapters of one base model. Not safe to use from several threads at once."""

    def __init__(self, served: ServedModel, *, store: Store, weights: AdapterWeights) -> None:
        self._served = served
        self._store = store
        self._weights = weights
        self._tokenizer = copy.deepcopy(served.tokenizer)  # tokenizers can't be used by two threads
        self._adapters = PeftAdapters(twin_of(served.model), weights, at_most=_IN_TRAINING)
        self._states: dict[str, TrainerState] = {}

    def train(self, job: FineTuneJob) -> tuple[Answer, int]:
        """One call: its answer and how many tokens were learnt.

        :raises ApiError: it can't be done; the adapter is as it was.
        """
        began = time.monotonic()
        record = self._store.adapter(job.adapter_id)
        if record is None:
            raise unknown_adapter(job.adapter_id)
        samples = encode_samples(
            self._tokenizer,
            job.request.samples,
            config=self._served.config,
            max_length=self._served.context_length or _NO_LIMIT,
        )
        try:
            state = self._load(record)
            result = fine_tune(
                self._adapters.peft_model,
                self._tokenizer,
                samples,
                state,
                config=self._config_for(samples),
                learning_rate=record.learning_rate,
                seed=seed_of(record),
                abilities=self._served.abilities,
            )
            version = record.version + 1
            answer = result.to_wire() | {"modelVersion": version}
            digests = self._weights.write(
                record.id, version=version, save=lambda path: self._save(record, state, path)
            )
            if not self._store.advance(
                record.id, version=version, answer=answer, digests=digests, call=job.call
            ):
                raise unknown_adapter(record.id)
        except BaseException as error:
            self.forget(record.id)
            if isinstance(error, NanLossError):
                raise _rolled_back(error, record) from None
            raise
        self._adapters.advance(record.id)
        self._weights.remove_version(record.id, version=record.version)
        _LOG.info(
            "fine-tuned %s to version %d: %d samples, %d tokens, mean loss %.3f, %.2f s",
            record.id,
            version,
            len(samples),
            result.number_of_trainable_tokens,
            result.mean_loss,
            time.monotonic() - began,
        )
        return answer, result.number_of_trainable_tokens

    def forget(self, adapter_id: str) -> None:
        """Forget what is in memory of an adapter; what lies on the disk counts."""
        self._adapters.evict(adapter_id)
        self._states.pop(adapter_id, None)

    def _config_for(self, samples: Sequence[EncodedSample]) -> BaseModelConfig:
        """One sample a pass where a long one would change how the short ones beside it are read."""
        config, switch = self._served.config, self._served.abilities.switch
        if switch is None or all(len(sample.tokens) <= switch for sample in samples):
            return config
        training = config.training.model_copy(update={"rows_per_pass": 1})
        return config.model_copy(update={"training": training})

    def _load(self, record: AdapterRecord) -> TrainerState:
        """Have the adapter in memory, and give its state.

        :raises ServerError: what lies on the disk is not what the last fine-tune wrote.
        """
        if record.version == 0:
            policy = self._served.config.training
            config = new_lora_config(record.rank, policy, lora_targets(self._served.model))
            self._adapters.activate(AdapterKey(record.id, 0), new=(config, seed_of(record)))
            self._states.setdefault(record.id, TrainerState())
        else:
            try:
                self._adapters.activate(AdapterKey(record.id, record.version, record.digests))
                if record.id not in self._states:
                    self._states[record.id] = self._read_state(record)
            except (AdapterFileError, FileNotFoundError) as error:
                _LOG.error("adapter %s, version %d: %s", record.id, record.version, error)
                raise damaged_adapter(record.id, record.version, finding(error)) from error
        self._states = {name: kept for name, kept in self._states.items() if name in self._adapters}
        return self._states[record.id]

    def _read_state(self, record: AdapterRecord) -> TrainerState:
        """The state beside an adapter's weights, which must fit them; the weights must be numbers."""
        self._adapters.check_finite(record.id)
        directory = self._weights.path(record.id, version=record.version)
        if not (directory / STATE_FILE).exists():
            raise AdapterFileError(STATE_FILE, "is missing")
        state = TrainerState.load(directory, record.digests)
        if state.steps:
            moments = {name: first.shape for name, (first, _) in state.moments.items()}
            check_shapes(MOMENTS_FILE, moments, self._adapters.shapes(record.id))
        return state

    def _save(self, record: AdapterRecord, state: TrainerState, directory: Path) -> None:
        self._adapters.save(record.id, directory)
        state.save(directory)


def seed_of(record: AdapterRecord) -> int:
    """The seed of an adapter's next step. Two adapters of one name, made and tuned alike, become the same."""
    identity = f"{record.base_slug}\0{record.name}\0{record.version}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4])


def _rolled_back(error: NanLossError, record: AdapterRecord) -> NanLossError:
    kept = f"version {record.version}" if record.version else "its base model, as it was created"
    return NanLossError(
        f"{error.message}. The adapter was rolled back to {kept}.",
        status=error.status,
        type=error.type,
    )
