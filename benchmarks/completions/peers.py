"""The ways to complete a dataset that are compared, each run in a process of its own.

A peer reads the rows from a JSONL file, makes the prompts, sends them with so many in flight, and writes one
line a row in the rows' order, on disk when it ends. This package's own ``complete_dataset`` does besides what
it always does: it checks all rows first and journals every answer. The others keep all in memory until the
end and lose it when they are killed.

What a peer imports is imported before its clock starts; the process as a whole is counted separately.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.completions.server import MODEL_ID, raise_file_limit

TOKEN = "benchmark-token"  # noqa: S105
WORKSPACE = "benchmark-workspace"
TEMPLATE = "### Question: {question}\n\n### Answer:"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a peer is given. ``url`` is the API's, ``/api`` included."""

    url: str
    dataset: Path
    output: Path
    in_flight: int


Run = Callable[[Task], int]
"""Completes the task; how many rows have an answer."""
Complete = Callable[[Task, list[str]], Coroutine[Any, Any, list[str]]]
"""Outputs of prompts, in their order."""


def _in_memory(complete: Complete) -> Run:
    """A peer that holds prompts and outputs in memory, and writes at the end."""

    def run(task: Task) -> int:
        with task.dataset.open() as file:
            rows = [json.loads(line) for line in file]
        prompts = [TEMPLATE.format_map(row) for row in rows]
        outputs = asyncio.run(complete(task, prompts))
        with task.output.open("w") as file:
            for index, (row, output) in enumerate(zip(rows, outputs, strict=True)):
                file.write(json.dumps({"index": index, "output": output, "row": row}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return sum(bool(output) for output in outputs)

    return run


async def _by_workers(
    prompts: list[str], in_flight: int, complete: Callable[[str], Awaitable[str]]
) -> list[str]:
    """Outputs of ``prompts`` by as many workers as may be in flight."""
    outputs = [""] * len(prompts)
    left = iter(enumerate(prompts))

    async def work() -> None:
        for index, prompt in left:
            outputs[index] = await complete(prompt)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return outputs


def _headers() -> dict[str, str]:
    return {
        "Authorization": f"Bearer {TOKEN}",
        "X-Gradient-Workspace-Id": WORKSPACE,
        "Content-Type": "application/json",
    }


# --- this package ---


def complete_dataset() -> Run:
    """The library call, as ``GradientCompleteDatasetOperator`` makes it."""
    import uvloop
    from langchain_core.prompts import PromptTemplate  # noqa: F401 - what the first template would import

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.completions import complete_dataset

    async def complete(task: Task) -> int:
        async with AsyncGradientClient(
            access_token=TOKEN, workspace_id=WORKSPACE, base_url=task.url
        ) as client:
            manifest = await complete_dataset(
                client,
                model_id=MODEL_ID,
                dataset=task.dataset,
                output_path=task.output,
                prompt_template=TEMPLATE,
                concurrency=task.in_flight,
            )
        return manifest.counts.success

    return lambda task: uvloop.run(complete(task))


def without_journal() -> Run:
    """``complete_dataset`` with its journal in memory instead of on disk, to see what the journal costs."""
    from airflow_provider_gradient.completions import run_journal

    class MemoryLog:
        """Takes the place of :class:`airflow_provider_gradient.datasets.AppendLog`."""

        size = 0

        def __init__(self, _path: object) -> None:
            self._lines: list[bytes] = []

        def __exit__(self, *_: object) -> None: ...

        def lines(self) -> Iterator[tuple[int, bytes]]:
            return iter(())

        def append(self, line: bytes) -> int:
            self._lines.append(line)
            return len(self._lines) - 1

        def read(self, offset: int) -> bytes:
            return self._lines[offset]

        def commit(self) -> None: ...

        def clear(self) -> None: ...

        def remove(self) -> None: ...

    run_journal.AppendLog = MemoryLog  # type: ignore[assignment,misc]
    return complete_dataset()


def abatch() -> Run:
    """This package's ``GradientLLM.abatch``."""
    from airflow_provider_gradient.langchain import GradientLLM

    async def complete(task: Task, prompts: list[str]) -> list[str]:
        llm = GradientLLM(
            model=MODEL_ID,
            gradient_access_token=TOKEN,
            gradient_workspace_id=WORKSPACE,
            gradient_api_url=task.url,
        )
        return await llm.abatch(prompts, {"max_concurrency": task.in_flight})  # type: ignore[arg-type]

    return _in_memory(complete)


# --- others ---


def asyncio_protocol() -> Run:
    """Hand-made HTTP on bare asyncio protocols, a connection for each request in flight: the limit."""

    class Connection(asyncio.Protocol):
        def __init__(self) -> None:
            self._received = b""
            self._answer: asyncio.Future[bytes] | None = None

        def connection_made(self, transport: Any) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            self._received += data
            head, found, body = self._received.partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
                self._received = b""
                assert self._answer is not None
                self._answer.set_result(body)

        def request(self, data: bytes) -> asyncio.Future[bytes]:
            self._answer = asyncio.get_running_loop().create_future()
            self._transport.write(data)
            return self._answer

    async def complete(task: Task, prompts: list[str]) -> list[str]:
        host, _, port = task.url.removeprefix("http://").removesuffix("/api").partition(":")
        fields = "".join(f"{name}: {value}\r\n" for name, value in _headers().items())
        head = f"POST /api/models/{MODEL_ID}/complete HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Length: "
        outputs = [""] * len(prompts)
        left = iter(enumerate(prompts))

        async def work() -> None:
            loop = asyncio.get_running_loop()
            transport, connection = await loop.create_connection(Connection, host, int(port))
            for index, prompt in left:
                body = json.dumps({"query": prompt})
                answer = await connection.request(f"{head}{len(body)}\r\n\r\n{body}".encode())
                outputs[index] = json.loads(answer)["generatedOutput"]
            transport.close()

        await asyncio.gather(*(work() for _ in range(task.in_flight)))
        return outputs

    return _in_memory(complete)


def aiohttp() -> Run:
    """aiohttp's client and nothing around it."""
    import aiohttp

    async def complete(task: Task, prompts: list[str]) -> list[str]:
        url = f"{task.url}/models/{MODEL_ID}/complete"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=_headers()) as session:

            async def one(prompt: str) -> str:
                async with session.post(url, json={"query": prompt}) as response:
                    return str((await response.json())["generatedOutput"])

            return await _by_workers(prompts, task.in_flight, one)

    return _in_memory(complete)


def httpx() -> Run:
    """One ``httpx.AsyncClient``."""
    import httpx

    async def complete(task: Task, prompts: list[str]) -> list[str]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(headers=_headers(), limits=limits, timeout=600) as client:

            async def one(prompt: str) -> str:
                url = f"{task.url}/models/{MODEL_ID}/complete"
                return str((await client.post(url, json={"query": prompt})).json()["generatedOutput"])

            return await _by_workers(prompts, task.in_flight, one)

    return _in_memory(complete)


def gradientai() -> Run:
    """Gradient's published SDK, a thread for each request in flight."""
    import gradientai

    async def complete(task: Task, prompts: list[str]) -> list[str]:
        client = gradientai.Gradient(access_token=TOKEN, workspace_id=WORKSPACE, host=task.url)
        model = client.get_model_adapter(model_adapter_id=MODEL_ID)
        with ThreadPoolExecutor(task.in_flight) as threads:
            return list(threads.map(lambda prompt: model.complete(query=prompt).generated_output, prompts))

    return _in_memory(complete)


def langchain_community() -> Run:
    """``GradientLLM.abatch`` of langchain-community, with a session of its own for each request."""
    from langchain_community.llms.gradient_ai import GradientLLM

    async def complete(task: Task, prompts: list[str]) -> list[str]:
        llm = GradientLLM(
            model=MODEL_ID,
            gradient_access_token=TOKEN,
            gradient_workspace_id=WORKSPACE,
            gradient_api_url=task.url,
        )
        return await llm.abatch(prompts, {"max_concurrency": task.in_flight})

    return _in_memory(complete)


PEERS: dict[str, Callable[[], Run]] = {
    "asyncio_protocol": asyncio_protocol,
    "complete_dataset": complete_dataset,
    "abatch": abatch,
    "aiohttp": aiohttp,
    "gradientai": gradientai,
    "langchain_community": langchain_community,
    "httpx": httpx,
    "without_journal": without_journal,
}


def main() -> None:
    """Run one peer and print what it took, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.completions.peers")
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--url", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    given = vars(parser.parse_args())
    raise_file_limit()
    run = PEERS[given.pop("peer")]()
    before, started = _cpu_seconds(), time.perf_counter()
    answered = run(Task(**given))
    seconds, cpu = time.perf_counter() - started, _cpu_seconds()
    print(
        json.dumps(
            {
                "answered": answered,
                "seconds": seconds,
                "cpu_seconds": cpu - before,
                "process_cpu_seconds": cpu,
            }
        )
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
