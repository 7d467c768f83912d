"""What is measured. Each function gives values that the report holds as they are."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.completions.peers import PEERS
from benchmarks.completions.processes import (
    LoopbackServer,
    PeerError,
    finish_peer,
    is_installed,
    remove_outputs,
    run_peer,
    serving,
    start_peer,
)

OURS = "complete_dataset"
_COMPARED = [peer for peer in PEERS if peer != "without_journal"]
_AT_64_ONLY = {"httpx"}
"""Takes minutes with more in flight."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything.

    :ivar latency: seconds until the server answers.
    :ivar rounds: rows for each request in flight, by the number in flight.
    :ivar repeats: runs of which the median counts.
    :ivar peers: who is compared.
    :ivar in_flight: of all scenarios but the throughput's.
    :ivar bears: completions at once that the overloaded server bears.
    :ivar overload_rows: rows sent to that one.
    :ivar immediate_rows: rows that show what the journal costs against a server that answers at once.
    :ivar memory_rows: rows of the memory and resume scenarios.
    """

    latency: float
    rounds: dict[int, int]
    repeats: int
    peers: Sequence[str]
    in_flight: int
    bears: int
    overload_rows: int
    immediate_rows: int
    memory_rows: int


FULL = Scale(
    latency=0.2,
    rounds={64: 40, 256: 40, 1000: 25},
    repeats=3,
    peers=_COMPARED,
    in_flight=256,
    bears=40,
    overload_rows=4000,
    immediate_rows=20_000,
    memory_rows=200_000,
)
QUICK = Scale(
    latency=0.05,
    rounds={16: 6},
    repeats=1,
    peers=_COMPARED,
    in_flight=16,
    bears=4,
    overload_rows=60,
    immediate_rows=200,
    memory_rows=2000,
)


def write_dataset(path: Path, rows: int) -> Path:
    """A JSONL file of ``rows`` rows, 150 bytes each."""
    with path.open("w") as file:
        for index in range(rows):
            question = (
                f"In the country numbered {index}, which city is the seat of its government, and since when?"
            )
            file.write(json.dumps({"id": index, "question": question, "topic": "capitals"}) + "\n")
    return path


def throughput(scale: Scale, folder: Path, say: Say) -> list[dict[str, Any]]:
    """Every peer at every number in flight, in turn; one row of the table each."""
    table = []
    for in_flight, rounds in scale.rounds.items():
        rows = in_flight * rounds
        dataset = write_dataset(folder / "rows.jsonl", rows)
        peers = [peer for peer in scale.peers if peer not in _AT_64_ONLY or in_flight <= 64]
        out = {peer: "not installed" for peer in peers if not is_installed(peer)}
        runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers if peer not in out}
        with serving(latency=scale.latency) as server:
            for repeat, peer in itertools.product(range(scale.repeats), runs):
                if peer in out or (repeat and peer in _AT_64_ONLY):
                    continue
                say(f"{in_flight} in flight, {peer}, run {repeat + 1} of {scale.repeats}")
                try:
                    run = run_peer(peer, server, dataset=dataset, folder=folder, in_flight=in_flight)
                except PeerError:
                    if peer == OURS:
                        raise
                    out[peer] = "failed"
                else:
                    runs[peer].append(run)
        for peer in peers:
            head = {"peer": peer, "in_flight": in_flight, "rows": rows}
            if peer in out:
                table.append(head | {"skipped": out[peer]})
            else:
                table.append(head | summary(runs[peer], rows, ideal=rounds * scale.latency))
    return table


def summary(runs: Sequence[dict[str, Any]], rows: int, *, ideal: float) -> dict[str, Any]:
    """Medians over runs of the same rows.

    :param ideal: seconds that ``rows`` take with never one request less in flight than allowed.
    """

    def median(name: str) -> float:
        return float(statistics.median(run[name] for run in runs))

    return {
        "answered": min(run["answered"] for run in runs),
        "runs": len(runs),
        "ideal_seconds": round(ideal, 4),
        "seconds": round(median("seconds"), 4),
        "seconds_of_runs": [round(run["seconds"], 4) for run in runs],
        "share_of_ideal": round(ideal / median("seconds"), 4),
        "cpu_seconds_per_1000_rows": round(median("cpu_seconds") / rows * 1000, 4),
        "process_share_of_ideal": round(ideal / median("process_seconds"), 4),
        "process_cpu_seconds_per_1000_rows": round(median("process_cpu_seconds") / rows * 1000, 4),
        "server_cpu_seconds_per_1000_rows": round(
            statistics.median(run["server"]["cpu_seconds"] for run in runs) / rows * 1000, 4
        ),
        "others_cores": round(median("others_cores"), 2),
        "most_in_flight": max(run["server"]["most_in_flight"] for run in runs),
    }


def faults(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """A fifth of the answers 429, 503 or a cut connection, against none, in turn."""
    rows = scale.in_flight * max(scale.rounds.values())
    dataset = write_dataset(folder / "rows.jsonl", rows)
    runs: dict[float, list[dict[str, Any]]] = {0.0: [], 0.2: []}
    for repeat, share in itertools.product(range(scale.repeats), runs):
        say(f"{share:.0%} faults, run {repeat + 1} of {scale.repeats}")
        with serving(latency=scale.latency, faults=share) as server:
            runs[share].append(
                run_peer(OURS, server, dataset=dataset, folder=folder, in_flight=scale.in_flight)
            )
    ideal = rows / scale.in_flight * scale.latency
    clean, faulty = (summary(runs[share], rows, ideal=ideal) for share in runs)
    return {
        "in_flight": scale.in_flight,
        "rows": rows,
        "clean": clean,
        "faulty": faulty | {"faults": max(run["server"]["faults"] for run in runs[0.2])},
        "unanswered": rows - faulty["answered"],
        "share_of_clean": round(clean["seconds"] / faulty["seconds"], 4),
    }


def overload(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """A server that bears few completions at once and refuses the others, asked for many more."""
    rows = scale.overload_rows
    dataset = write_dataset(folder / "rows.jsonl", rows)
    say(f"{scale.in_flight} in flight against a server that bears {scale.bears}")
    with serving(latency=scale.latency, bears=scale.bears) as server:
        run = run_peer(OURS, server, dataset=dataset, folder=folder, in_flight=scale.in_flight)
    result = summary([run], rows, ideal=rows / scale.bears * scale.latency)
    return {
        "in_flight": scale.in_flight,
        "bears": scale.bears,
        "rows": rows,
        "run": result,
        "unanswered": rows - run["answered"],
        "requests_refused": run["server"]["refused"],
        "share_of_what_it_bears": round(result["share_of_ideal"] * run["answered"] / rows, 4),
    }


def journaling(scale: Scale, folder: Path, say: Say) -> list[dict[str, Any]]:
    """With the journal on disk against in memory: at the usual latency, and where only the CPU counts."""
    result = []
    usual = scale.in_flight * max(scale.rounds.values())
    for latency, rows in ((scale.latency, usual), (0.0, scale.immediate_rows)):
        dataset = write_dataset(folder / "rows.jsonl", rows)
        runs: dict[str, list[dict[str, Any]]] = {OURS: [], "without_journal": []}
        with serving(latency=latency) as server:
            for repeat, peer in itertools.product(range(scale.repeats), runs):
                say(f"journaling at {latency * 1000:.0f} ms, {peer}, run {repeat + 1} of {scale.repeats}")
                runs[peer].append(
                    run_peer(peer, server, dataset=dataset, folder=folder, in_flight=scale.in_flight)
                )
        ideal = rows / scale.in_flight * latency
        on_disk, in_memory = (summary(runs[peer], rows, ideal=ideal) for peer in runs)
        result.append(
            {
                "latency": latency,
                "in_flight": scale.in_flight,
                "rows": rows,
                "on_disk": on_disk,
                "in_memory": in_memory,
                "cost": round(on_disk["seconds"] / in_memory["seconds"] - 1, 4),
            }
        )
    return result


def memory(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """Resident memory of a long run against a server that answers at once."""
    rows = scale.memory_rows
    dataset = write_dataset(folder / "rows.jsonl", rows)
    say(f"memory over {rows} rows")
    samples: list[tuple[int, int]] = []
    started = time.monotonic()
    with _long_run(scale, dataset, folder) as (server, process):
        for completed, resident in _watch(server, process):
            samples.append((completed, resident))
        report = finish_peer(process)
    early, late = _resident(samples, rows, 0.1, 0.2), _resident(samples, rows, 0.9, 1.0)
    return {
        "in_flight": scale.in_flight,
        "rows": rows,
        "answered": report["answered"],
        "seconds": round(time.monotonic() - started, 2),
        "rows_per_second": round(rows / report["seconds"], 1),
        "resident_mib_second_tenth": early,
        "resident_mib_last_tenth": late,
        "resident_mib_peak": round(max(resident for _, resident in samples) / 2**20, 1),
        "growth": round(late / early - 1, 4),
    }


def resume(scale: Scale, folder: Path, say: Say) -> dict[str, Any]:
    """``kill -9`` once nine tenths are answered and the next ones hang, and the same call again."""
    rows = scale.memory_rows
    dataset = write_dataset(folder / "rows.jsonl", rows)
    say(f"resume after a kill at {rows * 9 // 10} of {rows} rows")
    with _long_run(scale, dataset, folder, hold_after=rows * 9 // 10) as (server, process):
        first = _wait_for_standstill(server)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.reset()
        started = time.monotonic()
        output = folder / "long.jsonl"
        again = start_peer(OURS, server, dataset=dataset, output=output, in_flight=scale.in_flight)
        report = finish_peer(again)
        second = server.stats()
    return {
        "in_flight": scale.in_flight,
        "rows": rows,
        "completed_before": first["completed"],
        "answered": report["answered"],
        "sent_again": first["requests"] + second["requests"] - rows,
        "seconds_until_first_request": round(second["first_request"] - started, 3),
    }


@contextmanager
def _long_run(
    scale: Scale, dataset: Path, folder: Path, *, hold_after: int | None = None
) -> Iterator[tuple[LoopbackServer, subprocess.Popen[str]]]:
    output = folder / "long.jsonl"
    remove_outputs(output)
    with serving(latency=0.0, hold_after=hold_after) as server:
        process = start_peer(OURS, server, dataset=dataset, output=output, in_flight=scale.in_flight)
        try:
            yield server, process
        finally:
            process.kill()
            process.wait()
    remove_outputs(output)


def _wait_for_standstill(server: LoopbackServer) -> dict[str, Any]:
    """The server's counts once requests have come and come no more."""
    before = server.stats()
    while True:
        time.sleep(0.5)
        now = server.stats()
        if now["requests"] and now["requests"] == before["requests"]:
            return now
        before = now


def _watch(server: LoopbackServer, process: subprocess.Popen[str]) -> Iterator[tuple[int, int]]:
    """Rows completed and resident bytes, until the process ends."""
    peer = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            resident = peer.memory_info().rss
        except psutil.NoSuchProcess:
            return
        yield server.stats()["completed"], resident
        time.sleep(0.1)


def _resident(samples: Sequence[tuple[int, int]], rows: int, begin: float, end: float) -> float:
    """Mean MiB while the rows from the share ``begin`` to ``end`` were completed; of the nearest moment where
    the run was too short for any."""
    within = [resident for completed, resident in samples if begin * rows <= completed < end * rows]
    if not within:
        middle = (begin + end) / 2 * rows
        within = [min(samples, key=lambda sample: abs(sample[0] - middle))[1]]
    return round(statistics.mean(within) / 2**20, 1)
