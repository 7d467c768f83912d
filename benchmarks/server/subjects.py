"""What is measured: the built-in model without an end-of-text token, the processes that serve it, and load.

Every answer then has exactly as many tokens as were asked for, from us and from the peers.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop

from airflow_provider_gradient.client.calls import Call
from airflow_provider_gradient.client.connections import AsyncConnections
from airflow_provider_gradient.client.endpoint import Endpoint
from airflow_provider_gradient.client.policy import ResponseLimits, TimeLeft

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ROOT / "airflow_provider_gradient" / "server" / "tiny_model"
SLUG = "endless"
ADAPTERS = 16
NEW_TOKENS = 24
SAMPLES = [
    f"Question: What is the {adjective} {noun} called?\n\nAnswer: It is called {name}."
    for adjective, name in zip(
        ("red", "green", "old", "new", "small", "great", "first", "last"),
        ("Amiro", "Belanu", "Cordin", "Dumaso", "Elvira", "Fenwik", "Gorbal", "Hetmin"),
        strict=True,
    )
    for noun in ("house", "ship", "bridge", "song")
]
PROMPTS = [f"Question: Tell me about the {thing}.\n\nAnswer:" for thing in ("sea", "moon", "city", "river")]


def endless_model(folder: Path, *, plain: bool = False) -> Path:
    """A copy of the built-in model that never ends a text by itself.

    :param plain: without its training policy: one step a call.
    """
    target = folder / ("plain" if plain else SLUG)
    shutil.copytree(BUILT_IN, target)
    for name, field_name, value in (
        ("tokenizer_config.json", "eos_token", "<pad>"),
        ("config.json", "eos_token_id", 2),
        ("generation_config.json", "eos_token_id", 2),
    ):
        content = json.loads((target / name).read_text())
        (target / name).write_text(json.dumps(content | {field_name: value}))
    if plain:
        (target / "gradient.json").unlink()
    return target


def random_qwen2(folder: Path) -> Path:
    """A model of another architecture, of the built-in one's size and tokenizer, with random weights."""
    import torch
    from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

    size = AutoConfig.from_pretrained(BUILT_IN)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{name: getattr(size, name) for name in names}))
    target = folder / "qwen2"
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILT_IN / name, target / name)
    return target


@dataclass
class Served:
    """A server that runs. ``ids`` are the models of the mix: the base model, then the adapters."""

    url: str
    process: psutil.Process
    headers: dict[str, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    seconds_to_ready: float = 0.0

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request's answer."""
        answer = httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=600)
        answer.raise_for_status()
        return dict(answer.json())

    def complete(self, number: int, tokens: int = NEW_TOKENS) -> dict[str, Any]:
        """The request of that number in the mix."""
        return self.post(*self.request(number, tokens))

    def request(self, number: int, tokens: int = NEW_TOKENS) -> tuple[str, dict[str, Any]]:
        """Path and body of the request of that number in the mix."""
        query = PROMPTS[number % len(PROMPTS)]
        body = {"query": query, "maxGeneratedTokenCount": tokens, "autoTemplate": False}
        return f"/models/{self.ids[number % len(self.ids)]}/complete", body

    @property
    def resident_megabytes(self) -> float:
        """Resident memory of its process."""
        return float(self.process.memory_info().rss / 1e6)


@contextmanager
def gradient_server(data_dir: Path, *options: str, device: str = "cpu") -> Iterator[Served]:
    """``gradient serve``, ready."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "airflow_provider_gradient.server", "--port", "0"]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("GRADIENT_")}
    with subprocess.Popen(  # noqa: S603
        [*command, "--data-dir", str(data_dir), "--device", device, "--dtype", "float32", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            seconds = time.perf_counter() - began
            lines = (data_dir / "credentials.env").read_text().splitlines()
            given = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            yield Served(
                url=next(word for word in ready.split() if word.startswith("http")),
                process=psutil.Process(process.pid),
                headers={
                    "Authorization": f"Bearer {given['GRADIENT_ACCESS_TOKEN']}",
                    "x-gradient-workspace-id": given["GRADIENT_WORKSPACE_ID"],
                },
                seconds_to_ready=seconds,
            )
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def peer_server(peer: str, model: Path, adapters: Sequence[Path]) -> Iterator[Served]:
    """One of :mod:`benchmarks.server.peers`, ready."""
    command = [sys.executable, "-m", "benchmarks.server.peers", peer, str(model), *map(str, adapters)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            names = ["base", *(f"adapter{number}" for number in range(len(adapters)))]
            yield Served(url=f"http://127.0.0.1:{port}", process=psutil.Process(process.pid), ids=names)
        finally:
            process.kill()


def base_id(server: Served, slug: str) -> str:
    """A base model's id."""
    answer = httpx.get(f"{server.url}/models", params={"capability": "any"}, headers=server.headers)
    return str(next(model["id"] for model in answer.json()["models"] if model.get("slug") == slug))


def tuned_adapter(server: Served, base: str, name: str, samples: Sequence[str] = SAMPLES) -> str:
    """A new adapter after one fine-tune call."""
    adapter = str(server.post("/models", {"model": {"baseModelId": base, "name": name}})["id"])
    server.post(f"/models/{adapter}/fine-tune", {"samples": [{"inputs": text} for text in samples]})
    return adapter


def latencies(server: Served, *, clients: int, requests: int) -> tuple[float, list[float]]:
    """Seconds for so many requests of so many clients at once, and each one's own.

    They come over this package's own connections: what it takes of the two cores, the server lacks.
    """
    return uvloop.run(_load(server, clients, requests))


async def _load(server: Served, clients: int, requests: int) -> tuple[float, list[float]]:
    numbers = iter(range(requests))
    took: list[float] = []
    endpoint = Endpoint(
        base_url=server.url,
        workspace_id=server.headers.get("x-gradient-workspace-id", "none"),
        access_token=server.headers.get("Authorization", "Bearer none").removeprefix("Bearer "),
    )
    connections = AsyncConnections(endpoint, ResponseLimits())

    async def client() -> None:
        for number in numbers:
            path, body = server.request(number)
            text = json.dumps(body).encode()
            call = Call(method="POST", path=path, body=text, parse=json.loads, frequent=True)
            began = time.perf_counter()
            answer = await connections.send(call, timeouts=TimeLeft(connect=600, read=600, total=600))
            took.append(time.perf_counter() - began)
            assert answer.status == 200, answer.body

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    connections.close()
    return seconds, took


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so many of them don't pass."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
