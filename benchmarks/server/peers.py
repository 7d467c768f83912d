"""Servers that a team would write over PEFT: one request at a time, and micro-batches of several adapters.

``python -m benchmarks.server.peers PEER MODEL ADAPTER...`` prints its port. Both answer
``POST /models/NAME/complete`` as the Gradient API does, greedily, with NAME ``base`` or ``adapter<N>``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

_MOST = 32


@dataclass
class _Waiting:
    name: str
    text: str
    tokens: int
    answer: asyncio.Future[str]


class Peer:
    """The model with all adapters loaded, and requests that wait for it.

    :param most: requests in one batch.
    """

    def __init__(self, model: str, adapters: list[str], *, most: int) -> None:
        self._most = most
        self._tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        for number, path in enumerate(adapters):
            if number == 0:
                self._model = PeftModel.from_pretrained(self._model, path, adapter_name="adapter0")
            else:
                self._model.load_adapter(path, adapter_name=f"adapter{number}")
        self._model.eval()
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def complete(self, name: str, request: Request) -> dict[str, str]:
        """The route."""
        body = await request.json()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Waiting(name, body["query"], body["maxGeneratedTokenCount"], answer))
        return {"finishReason": "length", "generatedOutput": await answer}

    async def work(self) -> None:
        """Answer what waits, for ever."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._most and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            texts = await asyncio.to_thread(self._generate, batch)
            for waiting, text in zip(batch, texts, strict=True):
                waiting.answer.set_result(text)

    @torch.no_grad()
    def _generate(self, batch: list[_Waiting]) -> list[str]:
        torch.set_num_threads(1)
        inputs = self._tokenizer([waiting.text for waiting in batch], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": max(w.tokens for w in batch)}
        if len(batch) > 1:
            names = ["__base__" if waiting.name == "base" else waiting.name for waiting in batch]
            found = self._model.generate(**inputs, **options, adapter_names=names)
        elif batch[0].name == "base":
            with self._model.disable_adapter():
                found = self._model.generate(**inputs, **options)
        else:
            self._model.set_adapter(batch[0].name)
            found = self._model.generate(**inputs, **options)
        new = found[:, inputs["input_ids"].shape[1] :]
        return list(self._tokenizer.batch_decode(new, skip_special_tokens=True))


def main() -> None:
    kind, model, *adapters = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    peer = Peer(model, adapters, most=1 if kind == "one_at_a_time" else _MOST)
    app = FastAPI()

    @app.post("/models/{name}/complete")
    async def complete(name: str, request: Request) -> dict[str, str]:
        return await peer.complete(name, request)

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))

    async def run() -> None:
        working = asyncio.create_task(peer.work())
        print(listener.getsockname()[1], flush=True)
        await server.serve(sockets=[listener])
        working.cancel()

    asyncio.run(run())


if __name__ == "__main__":
    main()
