"""The scenarios, each a function that gives its figures."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_gradient.server.adapters import twin_of
from airflow_provider_gradient.server.llama_form import LlamaForm
from airflow_provider_gradient.server.lora_stack import AdapterKey, Lora, LoraStack
from airflow_provider_gradient.server.model_config import BaseModelConfig
from airflow_provider_gradient.server.slots import NewText, Slots
from airflow_provider_gradient.server.training import new_lora_config
from benchmarks.server.subjects import (
    ADAPTERS,
    NEW_TOKENS,
    PROMPTS,
    SAMPLES,
    SLUG,
    Served,
    base_id,
    endless_model,
    gradient_server,
    latencies,
    peer_server,
    quantile,
    random_qwen2,
    tuned_adapter,
)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    :param requests: over HTTP, of each server, by its name.
    :param device: of our server and of what is decoded; the peers' servers are on the processor.
    """

    clients: int = 32
    requests: dict[str, int]
    repeats: int
    rows: tuple[int, ...]
    adapters: tuple[int, ...]
    tune_samples: int
    device: str = "cpu"


FULL = Scale(
    requests={"gradient": 640, "one_at_a_time": 64, "adapter_names": 192},
    repeats=3,
    rows=(1, 2, 4, 8, 16, 32, 64),
    adapters=(0, 1, 4, 16),
    tune_samples=1024,
)
QUICK = Scale(
    requests={"gradient": 64, "one_at_a_time": 8, "adapter_names": 32},
    repeats=1,
    rows=(1, 32),
    adapters=(0, 16),
    tune_samples=64,
)


def start(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """Seconds from the command to the first completion, and the memory then."""
    found = []
    for number in range(2):  # the first run warms the disk's cache
        say(f"start {number + 1}")
        began = time.perf_counter()
        with gradient_server(folder / f"start{number}", device=scale.device) as server:
            server.ids = [base_id(server, "tiny")]
            idle = server.resident_megabytes
            server.complete(0)
            found.append(
                {
                    "seconds_to_ready": server.seconds_to_ready,
                    "seconds_to_first_completion": time.perf_counter() - began,
                    "resident_megabytes_idle": idle,
                    "resident_megabytes_after": server.resident_megabytes,
                }
            )
    return found[-1]


def http(scale: Scale, folder: Path, say: Say) -> list[dict[str, Any]]:
    """Requests a second of the mix of the base model and 16 adapters; the peers have the same adapters."""
    model = endless_model(folder)
    data_dir = folder / "http"
    with gradient_server(data_dir, f"--base-model={SLUG}={model}", device=scale.device) as server:
        base = base_id(server, SLUG)
        say("tuning the adapters of the mix")
        server.ids = [base, *(tuned_adapter(server, base, f"{n}") for n in range(ADAPTERS))]
        paths = [data_dir / "adapters" / adapter / "v1" for adapter in server.ids[1:]]
        rows = [_over_http("gradient", server, scale, say)]
        with peer_server("one_at_a_time", model, paths) as peer:
            rows.append(_over_http("one_at_a_time", peer, scale, say))
        with peer_server("adapter_names", model, paths) as peer:
            rows.append(_over_http("adapter_names", peer, scale, say))
        rows.append(_over_http("gradient", server, scale, say))
    return rows


def _over_http(name: str, server: Served, scale: Scale, say: Say) -> dict[str, Any]:
    say(f"over HTTP: {name}")
    for number in range(len(server.ids)):
        server.complete(number, 2)
    _, alone = latencies(server, clients=1, requests=len(server.ids))
    seconds, took = latencies(server, clients=scale.clients, requests=scale.requests[name])
    return {
        "server": name,
        "requests_per_second": len(took) / seconds,
        "p50": statistics.median(took),
        "p95": quantile(took, 0.95),
        "unloaded": statistics.median(alone),
        "requests": len(took),
    }


def decode(scale: Scale, folder: Path, say: Say) -> list[dict[str, Any]]:
    """Tokens a second of rows by adapters, beside ``generate`` of the same rows by the base model."""
    model, stack, form = stacked(folder, scale.device)
    tokenizer = AutoTokenizer.from_pretrained(folder / SLUG)
    prompts = list(itertools.islice(itertools.cycle(tokenizer(PROMPTS).input_ids), max(scale.rows)))
    length = min(map(len, prompts))
    found = []
    for rows in scale.rows:
        say(f"decoding {rows} rows")
        texts = [prompt[-length:] for prompt in prompts[:rows]]

        def generate(texts: list[list[int]] = texts) -> float:
            ids = torch.tensor(texts, device=model.device)
            began = time.perf_counter()
            with torch.no_grad():
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    eos_token_id=None,
                )
            return len(texts) * NEW_TOKENS / (time.perf_counter() - began)

        row: dict[str, Any] = {"rows": rows, "adapters": {}}
        measures: dict[Any, list[float]] = {"generate": [], **{count: [] for count in scale.adapters}}
        for _ in range(scale.repeats + 1):
            measures["generate"].append(generate())
            for count in scale.adapters:
                measures[count].append(_decode(form, stack, texts, count))
        row["generate"] = statistics.median(measures["generate"][1:])
        for count in scale.adapters:
            row["adapters"][count] = statistics.median(measures[count][1:])
        found.append(row)
    return found


def stacked(folder: Path, device: str) -> tuple[Any, LoraStack, LlamaForm]:
    """The model, and 16 random adapters of its own rank over it."""
    from peft import PeftModel

    path = folder / SLUG
    if not path.exists():
        endless_model(folder)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").to(device).eval()
    form = LlamaForm.of(model)
    assert form is not None
    torch.manual_seed(0)
    config = new_lora_config(None, BaseModelConfig.load(path).training)
    tuned = PeftModel(twin_of(model), config, adapter_name="any")
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    tuned.save_pretrained(folder / "stacked")
    return model, LoraStack(form.targets, most=64, read=lambda _: Lora.load(folder / "stacked/any")), form


def _decode(form: LlamaForm, stack: LoraStack, texts: list[list[int]], adapters: int) -> float:
    keys = [AdapterKey(str(number), 1) for number in range(adapters)]
    places = [stack.place(key, used=()) for key in keys]
    of_rows = [places[row % adapters] if adapters else None for row in range(len(texts))]
    slots = Slots(form, slots=len(texts), longest=512)
    began = time.perf_counter()
    added = stack.added(of_rows)
    logits = torch.cat(slots.prefill([NewText(tokens=text) for text in texts], added=added))
    for _ in range(NEW_TOKENS - 1):
        logits = slots.step(logits.argmax(dim=-1).tolist(), added=added)
    return len(texts) * NEW_TOKENS / (time.perf_counter() - began)


def tune(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """Trainable tokens a second of whole fine-tune calls beside a bare loop, and of both works at once."""
    model = endless_model(folder, plain=True)
    texts = [SAMPLES[number % len(SAMPLES)] for number in range(scale.tune_samples)]
    bare = _BareLoop(model, texts, scale.device)
    with gradient_server(folder / "tune", f"--base-model=plain={model}", device=scale.device) as server:
        base = base_id(server, "plain")
        tuned = tuned_adapter(server, base, "tuned")
        server.ids = [base, tuned_adapter(server, base, "mix")]
        call = _Call(server, tuned, texts)
        bare.seconds()
        alone, beside = [], []
        for number in range(scale.repeats):
            say(f"fine-tune {number + 1}, alone")
            alone.append(call.seconds())
            beside.append(bare.seconds())
        say("completions alone, then beside a fine-tune")
        requests = scale.requests["gradient"]
        seconds, _ = latencies(server, clients=scale.clients, requests=requests)
        together = [_together(server, call, scale) for _ in range(scale.repeats)]
    tune_seconds = statistics.median(alone)
    return {
        "trainable_tokens_per_second": call.tokens / tune_seconds,
        "bare_loop_tokens_per_second": call.tokens / statistics.median(beside),
        "completions_per_second_alone": requests / seconds,
        "completions_per_second_beside": statistics.median(each[0] for each in together),
        "fine_tune_slowdown": statistics.median(each[1] for each in together) / tune_seconds,
    }


def retain(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """What ``--retain`` costs a model of another architecture: seconds of the same calls with it and without.

    The model has the built-in one's size and random weights; each call has 32 samples with a masked prompt.
    """
    model = random_qwen2(folder)
    options = (f"--base-model=plain={model}", f"--base-model=holding={model}", "--retain=holding")
    found: dict[str, Any] = {}
    with gradient_server(folder / "retain", *options, device=scale.device) as server:
        for slug in ("plain", "holding"):
            say(f"fine-tunes of the {slug} model")
            adapter = server.post("/models", {"model": {"baseModelId": base_id(server, slug), "name": "any"}})
            server.post(
                f"/models/{adapter['id']}/fine-tune", {"samples": [_masked("Warm up: this is", " it.")]}
            )
            seconds = []
            for number in range(scale.repeats + 1):
                texts = [text.rsplit(" ", 1) for text in SAMPLES]
                body = {"samples": [_masked(f"{number}: {prompt}", f" {end}") for prompt, end in texts]}
                began = time.perf_counter()
                server.post(f"/models/{adapter['id']}/fine-tune", body)
                seconds.append(time.perf_counter() - began)
            found[f"seconds_of_a_call_{slug}"] = statistics.median(seconds)
    found["times_as_long"] = found["seconds_of_a_call_holding"] / found["seconds_of_a_call_plain"]
    return found


def _masked(prompt: str, answer: str) -> dict[str, Any]:
    return {"inputs": [{"value": prompt, "trainable": False}, {"value": answer}]}


def _together(server: Served, call: _Call, scale: Scale) -> tuple[float, float]:
    """Completions a second while a fine-tune runs, and its seconds."""
    took: list[float] = []
    thread = threading.Thread(target=lambda: took.append(call.seconds()))
    began, done = time.perf_counter(), 0
    thread.start()
    while thread.is_alive():
        latencies(server, clients=scale.clients, requests=scale.clients * 2)
        done += scale.clients * 2
    seconds = time.perf_counter() - began
    thread.join()
    return done / seconds, took[0]


class _Call:
    """One fine-tune call over HTTP. ``tokens`` are its trainable ones."""

    def __init__(self, server: Served, adapter: str, texts: list[str]) -> None:
        self.tokens = 0
        self._server, self._path = server, f"/models/{adapter}/fine-tune"
        self._body = {"samples": [{"inputs": text} for text in texts]}

    def seconds(self) -> float:
        began = time.perf_counter()
        self.tokens = self._server.post(self._path, self._body)["numberOfTrainableTokens"]
        return time.perf_counter() - began


class _BareLoop:
    """The same step with PyTorch and PEFT alone: no checks, no record, nothing on the disk."""

    def __init__(self, model: Path, texts: list[str], device: str) -> None:
        from peft import get_peft_model

        torch.set_num_threads(1)
        self._texts = texts
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        config = new_lora_config(None, BaseModelConfig.load(model).training)
        self._model: Any = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model, dtype="float32"), config
        )
        self._model.to(device)
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)

    def seconds(self) -> float:
        began = time.perf_counter()
        rows = [self._tokenizer(text).input_ids for text in self._texts]
        for first in range(0, len(rows), 32):
            chunk = rows[first : first + 32]
            width = max(map(len, chunk))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in chunk], device=self._model.device)
            labels = torch.tensor([row + [-100] * (width - len(row)) for row in chunk], device=ids.device)
            loss = self._model(input_ids=ids, labels=labels).loss
            loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - began
