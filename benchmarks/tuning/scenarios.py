"""What is measured. Each scenario gives plain figures.

``overhead`` runs the same samples over the real server twice: as bare ``client.fine_tune`` calls, one after
another, and through ``fine_tune`` from a file, with all checks and a journal on disk. A fine-tune takes
seconds that vary by more than what is asked for here, so the cost is also taken apart from it: the same two
ways against a server that answers at once, over the seconds of the real calls.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import complete_dataset
from airflow_provider_gradient.datasets import read_rows, write_rows
from airflow_provider_gradient.evaluation import evaluate
from airflow_provider_gradient.tuning import fine_tune, plan_training
from benchmarks.tuning.servers import gradient_server, immediate_server

DATA = Path(__file__).resolve().parents[2] / "example_dags" / "data"
PROMPT = "Question: {question}\n\nAnswer:"
TEMPLATES = {"prompt_template": PROMPT, "completion_template": " {answer}"}
KEPT_APART = [{"question": f"What was never asked about number {number}?"} for number in range(1000)]
GROUPED = {**TEMPLATES, "group_column": "fact"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is run.

    :param repeats: pairs of runs over the real server.
    :param samples: of a run against the server that answers at once.
    :param seeds: of the loop.
    :param epochs: of the loop's fine-tune.
    """

    repeats: int
    samples: int
    seeds: tuple[int, ...]
    epochs: int


FULL = Scale(repeats=3, samples=20_000, seeds=(1, 2, 3, 4, 5), epochs=4)
QUICK = Scale(repeats=1, samples=640, seeds=(1,), epochs=1)

Say = Callable[[str], None]


def overhead(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """What journal and checks add to the calls."""
    return asyncio.run(_overhead(scale, folder, say))


def loop(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """Exact match before and after a fine-tune on the example DAG's questions, by seed."""
    return asyncio.run(_loop(scale, folder, say))


async def _overhead(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    rows = list(read_rows(DATA / "support_phrasings.jsonl"))[:: 1 if scale is FULL else 6]
    write_rows(folder / "samples.jsonl", rows)
    pairs: list[tuple[float, float]] = []
    calls = 0
    with gradient_server(folder / "server") as credentials:
        async with AsyncGradientClient(**credentials) as client:
            for number in range(scale.repeats):
                say(f"overhead, pair {number + 1} of {scale.repeats}")
                ways = [_bare, _whole] if number % 2 == 0 else [_whole, _bare]
                seconds = {}
                for way in ways:
                    async with _adapter(client) as adapter:
                        begun = time.perf_counter()
                        calls = await way(client, adapter, folder)
                        seconds[way] = time.perf_counter() - begun
                pairs.append((seconds[_bare], seconds[_whole]))
    apart = await _apart(scale, folder, say)
    call_seconds = statistics.median(bare for bare, _ in pairs) / calls
    added = apart["whole_seconds_a_call"] - apart["bare_seconds_a_call"]
    return {
        "samples": len(rows),
        "calls": calls,
        "bare_seconds": [bare for bare, _ in pairs],
        "whole_seconds": [whole for _, whole in pairs],
        "measured_share": statistics.median(whole / bare - 1 for bare, whole in pairs),
        "seconds_a_call": call_seconds,
        **apart,
        "added_seconds_a_call": added,
        "added_share": added / call_seconds,
    }


async def _bare(client: AsyncGradientClient, adapter: str, folder: Path) -> int:
    """The plan's calls, over samples that are read and built as briefly as can be: a program of one's own
    would have to do that too."""
    rows = list(read_rows(folder / "samples.jsonl"))
    samples = [
        {
            "inputs": [
                {"value": PROMPT.format_map(row), "trainable": False},
                {"value": f" {row['answer']}"},
            ]
        }
        for row in rows
    ]
    plan = plan_training([(index,) for index in range(len(samples))], epochs=1, batch_size=32, seed=0)
    for call in plan.calls:
        await client.fine_tune(adapter, [samples[index] for index in call.indices])
    return len(plan.calls)


async def _whole(client: AsyncGradientClient, adapter: str, folder: Path) -> int:
    report = await fine_tune(
        client,
        model_id=adapter,
        samples=folder / "samples.jsonl",
        evaluation_dataset=KEPT_APART,
        max_sample_characters=2000,
        journal_path=folder / f"{adapter}.journal.jsonl",
        **TEMPLATES,
    )
    return report.calls


async def _apart(scale: Scale, folder: Path, say: Say) -> dict[str, float]:
    say(f"overhead, {scale.samples} samples against a server that answers at once")
    rows = list(read_rows(DATA / "support_phrasings.jsonl"))
    many = (
        {**row, "question": f"{row['question']} ({number})"}
        for number, row in zip(range(scale.samples), itertools.cycle(rows), strict=False)
    )
    write_rows(folder / "samples.jsonl", many)
    found: dict[str, list[float]] = {"bare": [], "whole": []}
    with immediate_server() as credentials:
        async with AsyncGradientClient(**credentials) as client:
            for number in range(3):
                for name, way in (("bare", _bare), ("whole", _whole)):
                    begun = time.perf_counter()
                    model = f"{name}-{number}".ljust(36, "0") + "_model_adapter"
                    calls = await way(client, model, folder)
                    found[name].append((time.perf_counter() - begun) / calls)
    return {f"{name}_seconds_a_call": statistics.median(values) for name, values in found.items()}


async def _loop(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    seeds: list[dict[str, Any]] = []
    with gradient_server(folder / "server") as credentials:
        async with AsyncGradientClient(**credentials) as client:
            base = await client.find_base_model("tiny")
            before = await _scores(client, base.id, folder / "before.jsonl")
            for seed in scale.seeds:
                say(f"loop, seed {seed}")
                begun = time.perf_counter()
                async with _adapter(client) as adapter:
                    await fine_tune(
                        client,
                        model_id=adapter,
                        samples=DATA / "support_phrasings.jsonl",
                        epochs=scale.epochs,
                        seed=seed,
                        **GROUPED,
                    )
                    after = await _scores(client, adapter, folder / f"after-{seed}.jsonl")
                seeds.append({"seed": seed, "seconds": time.perf_counter() - begun, **after})
    return {"epochs": scale.epochs, "before": before, "seeds": seeds}


async def _scores(client: AsyncGradientClient, model_id: str, path: Path) -> dict[str, float]:
    manifest = await complete_dataset(
        client,
        model_id=model_id,
        dataset=DATA / "support_questions.jsonl",
        prompt_template=PROMPT,
        output_path=path,
        concurrency=32,
        auto_template=False,
        max_generated_token_count=24,
        temperature=0,
    )
    report = evaluate(manifest, reference_column="answer", slice_columns=["set"])
    return {name: metrics["exact_match"].value for name, metrics in report.slices["set"].items()}


@asynccontextmanager
async def _adapter(client: AsyncGradientClient) -> Any:
    base = await client.find_base_model("tiny")
    adapter = await client.create_model_adapter(base_model_id=base.id, name="benchmark", rank=16)
    try:
        yield adapter
    finally:
        await client.delete_model(adapter)
