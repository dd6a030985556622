"""What batching by stage gains: three engines behind the same HTTP server, loaded by a real client over loopback.

model   whole-model batching: every sample goes through the whole network
batch   early exit with whole-batch compaction: a batch goes through its stages alone, the remaining samples are
        compacted, and each request is answered as soon as its sample has exited
stage   the product's engine: the remaining samples of several requests merge before each stage

The engines take turns, round by round. "fixed" is a back end where a call costs as much as 16 samples (it sleeps);
"cpu" is ResNet-18 at 112 px, a bundle of ONNX graphs, one thread. Saturation: a closed loop of clients, as many answers
a second as the server gives. Tails: Poisson arrivals at 0.9 of what the batch engine saturates at, the same for all.
CPU per answer is the server process's own (all threads). "simulated" is what eenet.capacity.simulate says for the same
traffic, without any HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _load import Client, Result, client, counters, poisson, saturate, server
from _serving_models import ENGINES, EXITS, FIXED, export_bundle, inputs_of
from eenet._timing import describe_machine, machine
from eenet.capacity import simulate
from eenet.serving.engine import BatchingDelay, EngineOptions
from resnet50 import SHARES

AT_ONCE = 96
LONG = 50_000  # simulated requests whose 99th percentile says something
NPY = "application/x-npy"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="for each engine, round and kind of load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=("fixed", "cpu", "free"), default=["fixed", "cpu", "free"])
    parser.add_argument("--unit", type=float, default=4e-3, help="seconds per sample and stage of the fixed back end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    found = machine()
    print(describe_machine(found), flush=True)
    results: dict[str, Any] = {}
    for name in options.models:
        if name == "free":
            results[name] = asyncio.run(_overhead(options.requests))
            print(_overhead_table(results[name]), flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            more = []
            if name == "cpu":
                export_bundle(Path(folder) / "bundle")
                more = ["--bundle", str(Path(folder) / "bundle")]
            results[name] = asyncio.run(_engines(name, options, more))
        print(_table(name, results[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": found, "results": results}, indent=1) + "\n", encoding="utf-8")
    return 0


class Prober:
    """Sends one sample of the pool after the other, and keeps what they cost the server."""

    def __init__(self, connected: Client, bodies: Sequence[bytes], content_type: str = NPY) -> None:
        self._client, self._bodies, self._type = connected, bodies, content_type

    async def __call__(self, n: int) -> int:
        body = self._bodies[n % len(self._bodies)]
        return (await self._client.request("POST", "/predict", body, self._type)).status


async def _engines(name: str, options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    bodies = [_npy(x[None]) for x in inputs_of(name)]
    batch = 16 if name == "fixed" else 8
    arguments = [name, "--unit", str(options.unit), "--max-batch", str(batch), *more]
    rounds: list[dict[str, dict[str, float]]] = []
    for index in range(options.rounds):
        row: dict[str, dict[str, float]] = {}
        order = np.random.default_rng(index).permutation(len(ENGINES))
        for engine in [ENGINES[i] for i in order]:
            row[engine] = await _saturated([*arguments[:1], engine, *arguments[1:]], bodies, options.requests)
        rate = 0.9 * row["batch"]["throughput"]
        for engine in [ENGINES[i] for i in order]:
            if engine == "model" and row["model"]["throughput"] < rate:
                continue  # it would never catch up
            row[engine] |= await _tail([*arguments[:1], engine, *arguments[1:]], bodies, options.requests, rate, index)
        rounds.append(row)
        print(f"  {name}: round {index + 1} of {options.rounds}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"rounds": rounds, "max_batch": batch}
    if name == "fixed":
        found["simulated"] = _simulated(options, batch)
    return found


async def _saturated(arguments: list[str], bodies: Sequence[bytes], requests: int) -> dict[str, float]:
    with server(arguments) as (port, _):
        async with client(port) as connected:
            send = Prober(connected, bodies)
            await saturate(send, AT_ONCE, AT_ONCE)  # warm-up
            before = await counters(connected)
            result = await saturate(send, requests, AT_ONCE)
            after = await counters(connected)
    _require_all(result, requests)
    spent = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    return {"throughput": result.throughput, "cpu_ms": 1000 * spent / requests}


async def _tail(
    arguments: list[str], bodies: Sequence[bytes], requests: int, rate: float, seed: int
) -> dict[str, float]:
    with server(arguments) as (port, _):
        async with client(port) as connected:
            send = Prober(connected, bodies)
            await saturate(send, 32, 8)  # warm-up
            result = await poisson(send, requests, rate, seed)
    _require_all(result, requests)
    return {"rate": rate, "p50": result.percentile(50), "p99": result.percentile(99)}


async def _overhead(requests: int) -> dict[str, Any]:
    """CPU of the server for requests of one sample whose stages cost nothing, one at a time."""
    found: dict[str, Any] = {}
    x = inputs_of("free")
    picture = _npy(np.zeros((3, 224, 224), np.float32))
    kinds = {
        "JSON, 8 numbers": ([json.dumps({"inputs": row.tolist()}).encode() for row in x], "application/json", 200),
        "npy, 8 numbers": ([_npy(row) for row in x], NPY, 200),
        # Refused for its shape after all of it was received and read: what a larger body adds.
        "npy, 3 x 224 x 224": ([picture], NPY, 422),
    }
    with server(["free", "stage", "--max-wait", "0"]) as (port, _):
        async with client(port) as connected:
            for name, (bodies, content_type, status) in kinds.items():
                send = Prober(connected, bodies, content_type)
                await saturate(send, 100, 1)
                before = await counters(connected)
                result = await saturate(send, requests, 1)
                after = await counters(connected)
                if result.statuses != {status: requests}:
                    raise RuntimeError(f"{name}: {result.statuses}")
                spent = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
                found[name] = {"cpu_ms": 1000 * spent / requests}
    return found


def _simulated(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """The same loads by discrete events, the closed loop as arrivals all at once; and how tails compare by chance."""
    fixed, full = options.unit * FIXED, options.unit * (FIXED + batch)
    delay = BatchingDelay.of(fixed, full, EngineOptions.max_delay)  # as the server learns it

    def run(engine: str, arrivals: NDArray[np.float64], exits: NDArray[np.intp]) -> Any:
        engine_options = EngineOptions(max_batch=batch, merge=engine == "stage", max_delay=delay)
        leave = np.full(len(exits), EXITS - 1) if engine == "model" else exits
        return simulate(arrivals, leave, lambda _, n: options.unit * (FIXED + n), EXITS, engine_options)

    rng = np.random.default_rng(0)
    exits = rng.choice(EXITS, options.requests, p=SHARES)
    found: dict[str, Any] = {e: {"throughput": run(e, np.zeros(len(exits)), exits).throughput} for e in ENGINES}
    rate = 0.9 * found["batch"]["throughput"]

    def tails(requests: int, seed: int) -> float:
        rng = np.random.default_rng(seed)
        exits = rng.choice(EXITS, requests, p=SHARES)
        due = np.cumsum(rng.exponential(1 / rate, requests))
        stage, alone = (run(engine, due, exits).percentile(99) for engine in ("stage", "batch"))
        return float(stage / alone)

    found["p99_ratio"] = {
        n: [tails(n, seed) for seed in range(times)] for n, times in ((options.requests, 20), (LONG, 4))
    }
    return found


def _require_all(result: Result, requests: int) -> None:
    if result.answered != requests:
        raise RuntimeError(f"{result.answered} of {requests} requests were answered: {result.statuses}")


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_RATIOS = (
    ("stage / batch, answers a second", "throughput", "stage", "batch", {"fixed": "at least 1.3", "cpu": ">= 0.97"}),
    ("stage / model, answers a second", "throughput", "stage", "model", {"fixed": "at least 1.7", "cpu": ""}),
    ("stage / batch, p99 at 0.9 load", "p99", "stage", "batch", {"fixed": "at most 1", "cpu": "at most 1"}),
    ("batch / stage, CPU per answer", "cpu_ms", "batch", "stage", {"fixed": "", "cpu": ">= 0.97"}),
)


def _table(name: str, found: dict[str, Any]) -> str:
    rounds = found["rounds"]
    lines = [
        f"\n{name}, at most {found['max_batch']} samples in a batch, {len(rounds)} rounds; median (lowest-highest)"
    ]
    lines.append(
        f"  {'engine':<10}{'answers/s':>22}{'CPU ms/answer':>20}{'p50 ms':>22}{'p99 ms':>24}{'simulated/s':>14}"
    )
    for engine in ENGINES:
        cells = [_cell([row[engine].get(key) for row in rounds]) for key in ("throughput", "cpu_ms", "p50", "p99")]
        simulated = found.get("simulated", {}).get(engine, {}).get("throughput")
        cells.append("" if simulated is None else f"{simulated:.1f}")
        widths = (22, 20, 22, 24, 14)
        lines.append(f"  {engine:<10}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    for label, key, over, under, targets in _RATIOS:
        values = [row[over][key] / row[under][key] for row in rounds]
        lines.append(f"  {label:<34}{_cell(values, 3):>24}  {targets[name]}".rstrip())
    for requests, values in found.get("simulated", {}).get("p99_ratio", {}).items():
        lines.append(
            f"  {f'the p99 ratio simulated, {requests:,} requests':<42}{_cell(values, 3):>16}  {len(values)} seeds"
        )
    return "\n".join(lines)


def _overhead_table(found: dict[str, Any]) -> str:
    lines = ["\nfree: CPU of the server per request of one sample whose stages cost nothing (target: at most 3 ms)"]
    lines += [f"  {name:<24}{row['cpu_ms']:.2f} ms" for name, row in found.items()]
    return "\n".join(lines)


def _cell(values: Sequence[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{np.median(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
