"""How long it takes to load a model adapter from the disk: ``python -m benchmarks.adapter_loading``.

A server of the built-in model keeps one adapter in memory. Completions of one token that alternate between
two adapters each load one; those that stay with an adapter load none. The difference of the medians is the
loading.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

_ROUNDS = 30
_RANKS = (8, 32)


def main() -> None:
    """Measure and print a line a rank."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        options = ("--port", "0", "--data-dir", folder, "--resident-adapters", "1")
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "airflow_provider_gradient.server", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert server.stdout is not None
            url = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            lines = (data_dir / "credentials.env").read_text().splitlines()
            values = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            headers = {
                "Authorization": f"Bearer {values['GRADIENT_ACCESS_TOKEN']}",
                "x-gradient-workspace-id": values["GRADIENT_WORKSPACE_ID"],
            }
            with httpx.Client(base_url=url, headers=headers, timeout=600) as http:
                for rank in _RANKS:
                    print(_measure(http, data_dir, rank))
        finally:
            server.terminate()
            server.communicate()


def _measure(http: httpx.Client, data_dir: Path, rank: int) -> str:
    first, second = (_tuned_adapter(http, rank) for _ in range(2))
    loading = _median_seconds(http, [first, second] * _ROUNDS)
    resident = _median_seconds(http, [first] * 2 * _ROUNDS)
    size = sum(file.stat().st_size for file in (data_dir / "adapters" / first / "v1").iterdir())
    return (
        f"rank {rank}: {size / 1e6:.2f} MB on the disk; one token in {resident * 1e3:.1f} ms if resident, in "
        f"{loading * 1e3:.1f} ms with loading it: {(loading - resident) * 1e3:.1f} ms a load"
    )


def _tuned_adapter(http: httpx.Client, rank: int) -> str:
    base = http.get("/models", params={"onlyBase": "true"}).json()["models"][0]["id"]
    model = {"baseModelId": base, "name": "measured"}
    hyperparameters = {"loraHyperparameters": {"rank": rank}}
    body = {"model": model, "initialHyperparameters": hyperparameters}
    adapter = http.post("/models", json=body).raise_for_status().json()["id"]
    samples = [{"inputs": "Question: What is the colour of the sky?\n\nAnswer: Blue."}]
    http.post(f"/models/{adapter}/fine-tune", json={"samples": samples}).raise_for_status()
    return str(adapter)


def _median_seconds(http: httpx.Client, adapters: list[str]) -> float:
    seconds = []
    for adapter in adapters:
        began = time.perf_counter()
        body = {"query": "What is the colour of the sky?", "maxGeneratedTokenCount": 1}
        http.post(f"/models/{adapter}/complete", json=body).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
