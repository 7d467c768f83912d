"""The engine's checks and figures on a CUDA machine: ``python -m benchmarks.server_gpu [--device cuda]``.

First what is right: greedy tokens of the base model and of an adapter, mixed in a batch, in float32, against
``generate`` with PEFT on the same device. Then what is fast: the scenarios ``start``, ``decode`` and ``tune``
of :mod:`benchmarks.server`, on that device. Where there is no such device it says so, runs nothing and ends
with status 3. ``--device mps`` is Apple's; ``--device cpu`` shows that the script itself works, in the
benchmark's quick form, which is also mps's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from airflow_provider_gradient.server.adapters import twin_of
from airflow_provider_gradient.server.lora_stack import AdapterKey
from airflow_provider_gradient.server.slots import NewText, Slots
from benchmarks.completions.__main__ import machine
from benchmarks.server import scenarios
from benchmarks.server.subjects import NEW_TOKENS, PROMPTS, SLUG
from benchmarks.server.tables import goals, show

_NO_DEVICE = 3


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda")
    device = parser.parse_args(arguments).device
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not there[device]:
        print(f"NOT RUN: torch finds no {device} device on this machine.")
        raise SystemExit(_NO_DEVICE)
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if device == "cuda" else device
    scale = replace(scenarios.FULL if device == "cuda" else scenarios.QUICK, device=device)
    report: dict[str, Any] = {"device": name, "quick": device != "cuda", "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        report["same_tokens"] = same_tokens(Path(folder), device)
        for scenario in ("start", "decode", "tune"):
            path = Path(folder) / scenario
            path.mkdir()
            report[scenario] = getattr(scenarios, scenario)(scale, path, print)
    report["goals"] = goals(report)
    print(json.dumps(report, indent=2))
    print(f"{name}: greedy tokens are those of generate with PEFT: {report['same_tokens']}\n")
    print(show(report))
    raise SystemExit(0 if report["same_tokens"] else 1)


@torch.inference_mode()
def same_tokens(folder: Path, device: str) -> bool:
    """Whether a mixed batch gets what ``generate`` with PEFT gives each of its rows."""
    model, stack, form = scenarios.stacked(folder, device)
    reference = PeftModel.from_pretrained(twin_of(model), folder / "stacked" / "any").eval()
    texts = [list(ids) for ids in AutoTokenizer.from_pretrained(folder / SLUG)(PROMPTS).input_ids] * 2
    place = stack.place(AdapterKey("any", 1), used=())
    added = stack.added([place if row % 2 else None for row in range(len(texts))])
    slots = Slots(form, slots=len(texts), longest=512)
    logits = torch.cat(slots.prefill([NewText(tokens=text) for text in texts], added=added))
    found = [logits.argmax(dim=-1).tolist()]
    for _ in range(NEW_TOKENS - 1):
        found.append(slots.step(found[-1], added=added).argmax(dim=-1).tolist())
    for row, text in enumerate(texts):
        ids = torch.tensor([text], device=device)
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
        if row % 2:
            expected = reference.generate(input_ids=ids, **options)
        else:
            with reference.disable_adapter():
                expected = reference.generate(input_ids=ids, **options)
        if expected[0, len(text) :].tolist() != [step[row] for step in found]:
            return False
    return True


if __name__ == "__main__":
    main()
