"""Fine-tunes on a thread of their own, or a step of either in turn: which is better, by a lock around steps.

The engine runs in this process, with a closed loop of completions and one long fine-tune at a time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from airflow_provider_gradient.api import CompleteRequest, FineTuneRequest, Sample
from airflow_provider_gradient.server import training
from airflow_provider_gradient.server.catalogue import new_adapter_id
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.slots import Slots
from airflow_provider_gradient.server.store import AdapterRecord, Store
from airflow_provider_gradient.server.weights import AdapterWeights
from benchmarks.server.scenarios import Say, Scale
from benchmarks.server.subjects import NEW_TOKENS, PROMPTS, SAMPLES, endless_model


def threads(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """Completions a second and seconds of the fine-tune, for both ways, in turn."""
    store = Store(folder / "gradient.db")
    store.accounts.grant(token="t", workspace_id="w")  # noqa: S106
    weights = AdapterWeights(folder / "adapters")
    engine = Engine({"plain": endless_model(folder, plain=True)}, store=store, weights=weights, threads=1)
    adapter = new_adapter_id()
    store.create_adapter(
        id=adapter, workspace_id="w", name="any", base_slug="plain", rank=16, learning_rate=0.001
    )
    texts = [SAMPLES[number % len(SAMPLES)] for number in range(scale.tune_samples)]
    request = FineTuneRequest(samples=[Sample(inputs=text) for text in texts])

    def once() -> tuple[float, float]:
        record = store.adapter(adapter)
        assert record is not None
        return _both(engine, record, request, scale.clients)

    once()
    found: dict[str, list[tuple[float, float]]] = {"two_threads": [], "in_turn": []}
    for _ in range(scale.repeats):
        say("a fine-tune beside completions, on two threads and in turn")
        found["two_threads"].append(once())
        with _in_turn():
            found["in_turn"].append(once())
    engine.stop()
    store.close()
    figures = {}
    for way, runs in found.items():
        figures[f"{way}_completions_per_second"] = statistics.median(run[0] for run in runs)
        figures[f"{way}_fine_tune_seconds"] = statistics.median(run[1] for run in runs)
    return figures


def _both(
    engine: Engine, record: AdapterRecord, request: FineTuneRequest, clients: int
) -> tuple[float, float]:
    began = time.perf_counter()
    tuning = engine.fine_tune(record, request, call=None)
    question = CompleteRequest(
        query=PROMPTS[0], auto_template=False, max_generated_token_count=NEW_TOKENS, temperature=None
    )
    done = 0
    while not tuning.done():
        for answer in [engine.complete("plain", None, question) for _ in range(clients)]:
            answer.result()
        done += clients
    seconds = time.perf_counter() - began
    tuning.result()
    return done / seconds, seconds


@contextmanager
def _in_turn() -> Iterator[None]:
    """One step at a time: of decoding, of reading prompts, or of training."""
    lock = threading.Lock()

    def alone(step: Any) -> Any:
        def locked(*arguments: Any, **options: Any) -> Any:
            with lock:
                return step(*arguments, **options)

        return locked

    with (
        patch.object(Slots, "step", alone(Slots.step)),
        patch.object(Slots, "prefill", alone(Slots.prefill)),
        patch.object(training, "_pass", alone(training._pass)),
    ):
        yield
