"""What completes and what trains, behind one door.

A fine-tune is acknowledged after its weights and its record are on the disk, and a completion is by the
version that was on record when it came; so a completion that comes after an acknowledgement always gets the
new weights, and one that is under way meanwhile finishes on those it began with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from airflow_provider_gradient.api import CompleteRequest, FineTuneRequest, TokenizeRequest
from airflow_provider_gradient.server.devices import Placement
from airflow_provider_gradient.server.jobs import Answer, CompleteJob, FineTuneJob, ForgetJob
from airflow_provider_gradient.server.lanes import CompletionLane, FineTuneLane
from airflow_provider_gradient.server.roads import road_of
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.store import AdapterRecord, RepeatableCall, Store
from airflow_provider_gradient.server.tokenizing import Tokenizing
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_STOP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class EngineLoad:
    """What an engine has to do and what it has done, all base models together.

    :param waiting: completions and fine-tunes that wait for their turn.
    :param running: completions and fine-tunes under way.
    :param slots: the most completions that can be under way at once.
    :param resident_adapters: adapters in memory.
    :param generated_tokens: tokens of all completions answered since the start.
    :param trained_tokens: trainable tokens of all fine-tunes kept since the start.
    """

    waiting: int
    running: int
    slots: int
    resident_adapters: int
    generated_tokens: int
    trained_tokens: int


class Engine:
    """Answers completions and fine-tunes for the models it loads.

    :param directories: the models' Hugging Face directories by slug.
    :param threads: CPU threads of torch, for completions and for fine-tunes each.
    :param placement: device and number type; float32 on the CPU if not given.
    :param slots: completions of one base model at once; ``None`` for what fits.
    :param retain: slugs of models whose fine-tunes use neighbour distillation whatever their configuration.
    :param resident_adapters: of each model, kept in memory for completions, unless one batch uses more.
    :raises StartError: a model can't be loaded, or doesn't fit.
    """

    def __init__(
        self,
        directories: Mapping[str, Path],
        *,
        store: Store,
        weights: AdapterWeights,
        threads: int,
        placement: Placement | None = None,
        slots: int | None = None,
        retain: Collection[str] = (),
        resident_adapters: int = 32,
    ) -> None:
        torch.set_num_threads(threads)
        placement = placement or Placement.of("cpu", "float32")
        self.models = {
            slug: ServedModel.load(slug, path, placement, retain=slug in retain)
            for slug, path in directories.items()
        }
        self.shown: list[str] = []
        self._lanes: dict[str, CompletionLane] = {}
        for slug, served in list(self.models.items()):
            plan = placement.plan(
                served.core.config,
                context_length=served.context_length,
                slots=slots,
                source=f"base model {slug!r}",
            )
            road = road_of(served, plan, weights, resident_adapters=resident_adapters)
            plan = replace(plan, slots=road.slots)
            served = self.models[slug] = replace(served, longest=plan.longest, abilities=road.abilities)
            self._lanes[slug] = CompletionLane(served, road, store=store, threads=threads)
            self.shown.append(
                "; ".join([f"{slug}: {road.name}, {plan}, {placement}", *road.abilities.remarks])
            )
            _LOG.info("%s", self.shown[-1])
        self._tokenizing = Tokenizing(self.models)
        self._tuning = FineTuneLane(self.models, store=store, weights=weights, threads=threads)

    def complete(
        self, base_slug: str, record: AdapterRecord | None, request: CompleteRequest
    ) -> Future[Answer]:
        """Complete by an adapter as it is on record, or by the bare base model.

        The future gives the response's body or raises an :class:`ApiError`.
        """
        job = CompleteJob(record=record, request=request)
        self._lanes[base_slug].put(job)
        return job.answer

    def fine_tune(
        self, record: AdapterRecord, request: FineTuneRequest, *, call: RepeatableCall | None
    ) -> Future[Answer]:
        """Train an adapter on samples; the same ``call`` again gives the first answer and doesn't train.

        The future gives the response's body or raises an :class:`ApiError`; in that case nothing is kept.
        """
        job = FineTuneJob(base_slug=record.base_slug, adapter_id=record.id, request=request, call=call)
        self._tuning.put(job)
        return job.answer

    def tokenize(self, base_slug: str, request: TokenizeRequest) -> Future[Answer]:
        """The tokens that a base model and its adapters read for a query.

        The future gives the response's body.

        :raises ServerError: the engine is stopping.
        """
        return self._tokenizing.put(base_slug, request)

    def forget(self, record: AdapterRecord) -> Future[None]:
        """Let a deleted adapter leave memory, and the disk when its turn comes.

        :returns: done when it has left memory or, where completions by it are under way, when it is to leave
            with the last of them. What a fine-tune under way holds goes after it.
        """
        self._tuning.put(ForgetJob(base_slug=record.base_slug, adapter_id=record.id))
        lane = self._lanes.get(record.base_slug)
        if lane is not None:
            return lane.forget(record.id)
        nothing: Future[None] = Future()
        nothing.set_result(None)
        return nothing

    def load(self) -> EngineLoad:
        """How it stands at this moment; takes no lock for long and waits for nothing."""
        lanes: list[CompletionLane | FineTuneLane] = [*self._lanes.values(), self._tuning]
        return EngineLoad(
            waiting=sum(lane.waiting for lane in lanes),
            running=sum(lane.running for lane in lanes),
            slots=sum(lane.road.slots for lane in self._lanes.values()),
            resident_adapters=sum(lane.road.resident_adapters for lane in self._lanes.values()),
            generated_tokens=sum(lane.generated_tokens for lane in self._lanes.values()),
            trained_tokens=self._tuning.trained_tokens,
        )

    def stop(self) -> bool:
        """Answer nothing more: what waits is refused at once, what runs if it isn't done in a few seconds.

        :returns: whether all threads are done; if not, torch still runs on one.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        lanes: list[CompletionLane | FineTuneLane] = [*self._lanes.values(), self._tuning]
        for lane in lanes:
            lane.close()
        self._tokenizing.stop()
        done = [lane.join(max(0.0, deadline - time.monotonic())) for lane in lanes]
        return all(done)
