"""Whether memory stays flat: completions by many adapters while others are made, tuned and deleted.

The whole run is 12,000 completions, 120 adapters made and tuned, and 96 of them deleted: what half an hour
brings at 6.7 completions a second and four fine-tunes a minute, in as little time as it takes.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server.scenarios import Say, Scale
from benchmarks.server.subjects import (
    SAMPLES,
    SLUG,
    base_id,
    endless_model,
    gradient_server,
    latencies,
    tuned_adapter,
)

_LIVE = 24
_RESIDENT = 12
"""Fewer than are in use, so that adapters come and go in memory too."""
_COMPLETIONS = 100
_ROUNDS = 120
_QUICK_ROUNDS = 4


def soak(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """Resident megabytes after each round, and by how much the last third exceeds the second."""
    rounds = _ROUNDS if scale.repeats > 1 else _QUICK_ROUNDS
    model = endless_model(folder, plain=True)
    options = (f"--base-model={SLUG}={model}", f"--resident-adapters={_RESIDENT}")
    resident: list[float] = []
    live: deque[str] = deque()
    with (
        gradient_server(folder / "soak", *options, device=scale.device) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        base = base_id(server, SLUG)
        samples = itertools.cycle(SAMPLES)
        for number in range(rounds):
            tuning = pool.submit(tuned_adapter, server, base, f"{number}", [next(samples) for _ in range(8)])
            server.ids = [base, *live]
            latencies(server, clients=scale.clients, requests=_COMPLETIONS)
            live.append(tuning.result())
            if len(live) > _LIVE:
                path = f"{server.url}/models/{live.popleft()}"
                httpx.delete(path, headers=server.headers).raise_for_status()
            resident.append(server.resident_megabytes)
            if number % 20 == 0:
                say(f"soak: round {number} of {rounds}, {resident[-1]:.0f} MB")
    third = len(resident) // 3
    before, after = (
        statistics.median(part) for part in (resident[third : 2 * third], resident[-max(third, 1) :])
    )
    return {
        "completions": rounds * _COMPLETIONS,
        "fine_tunes": rounds,
        "deletes": max(0, rounds - _LIVE),
        "resident_megabytes_second_third": before,
        "resident_megabytes_last_third": after,
        "growth_megabytes": after - before,
        "resident_megabytes": [round(value, 1) for value in resident],
    }
