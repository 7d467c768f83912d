"""Tune the shipped model on the example DAGs' questions; print what it learns and what it keeps, as Markdown.

Each seed is one fresh adapter: every pass takes one of the three wordings of each fact, in calls of 32
samples, as the improvement loop does through the API. ``--without-neighbours`` switches neighbour
distillation off.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_gradient.api import InputSegment, Sample
from airflow_provider_gradient.server.encoding import encode_samples
from airflow_provider_gradient.server.model_config import BaseModelConfig
from airflow_provider_gradient.server.training import TrainerState, fine_tune, new_lora_config
from scripts.tiny_model.corpus import TEMPLATES, render
from scripts.tiny_model.make_story import files
from scripts.tiny_model.measure import share_right
from scripts.tiny_model.train import OUTPUT

PROMPT = TEMPLATES[0][1]
SETS = ("tuned", "paraphrase", "old")
SAMPLES_A_CALL = 32


def calls(epochs: int, seed: int) -> Iterator[tuple[int, list[Sample]]]:
    """``(epoch from 1, samples)`` of every call."""
    wordings: dict[str, list[Sample]] = {}
    for row in files()["support_phrasings.jsonl"]:
        prompt = InputSegment(value=render(PROMPT, row["question"]), trainable=False)
        answer = InputSegment(value=f" {row['answer']}")
        wordings.setdefault(row["fact"], []).append(Sample(inputs=[prompt, answer]))
    rng = random.Random(seed)
    for epoch in range(1, epochs + 1):
        order = rng.sample(list(wordings), len(wordings))
        for first in range(0, len(order), SAMPLES_A_CALL):
            yield epoch, [rng.choice(wordings[fact]) for fact in order[first : first + SAMPLES_A_CALL]]


def curve(
    base: Any, tokenizer: Any, config: BaseModelConfig, *, checkpoints: Sequence[int], seed: int
) -> dict[int, tuple[float, ...]]:
    """By epoch: exact match on each set, and seconds of training so far."""
    torch.manual_seed(seed)
    model = PeftModel(base, new_lora_config(None, config.training))
    model.eval()
    state, spent, figures = TrainerState(), 0.0, {}
    plan = list(calls(max(checkpoints), seed))
    for number, (epoch, samples) in enumerate(plan):
        began = time.process_time()
        encoded = encode_samples(tokenizer, samples, config=config, max_length=512)
        rate = config.training.default_learning_rate
        fine_tune(
            model, tokenizer, encoded, state, config=config, learning_rate=rate, seed=seed * 1000 + number
        )
        spent += time.process_time() - began
        last = number + 1 == len(plan) or plan[number + 1][0] != epoch
        if last and epoch in checkpoints:
            figures[epoch] = (*(share_right(model, tokenizer, _pairs(name)) for name in SETS), spent)
    return figures


def _pairs(set_: str) -> list[tuple[str, str]]:
    rows = files()["support_questions.jsonl"]
    return [(render(PROMPT, row["question"]), row["answer"]) for row in rows if row["set"] == set_]


def main() -> None:
    """Print one table: medians over the seeds, and the least in brackets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 8, 10, 20, 24])
    parser.add_argument("--without-neighbours", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = BaseModelConfig.load(OUTPUT)
    if options.without_neighbours:
        policy = config.training.model_copy(update={"neighbours": None})
        config = config.model_copy(update={"training": policy})
    tokenizer = AutoTokenizer.from_pretrained(OUTPUT)
    runs = []
    for seed in options.seeds:
        base = AutoModelForCausalLM.from_pretrained(OUTPUT, dtype="float32").eval()
        runs.append(curve(base, tokenizer, config, checkpoints=options.epochs, seed=seed))
    print("| epochs | " + " | ".join(SETS) + " | CPU seconds |\n| --- | --- | --- | --- | --- |")
    for epoch in options.epochs:
        columns = list(zip(*(run[epoch] for run in runs), strict=True))
        cells = [f"{statistics.median(c):.3f} ({min(c):.3f})" for c in columns[:-1]]
        print(f"| {epoch} | {' | '.join(cells)} | {statistics.median(columns[-1]):.0f} |")


if __name__ == "__main__":
    main()
