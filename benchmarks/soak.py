"""Does the server stay what it is? Mixed traffic for a long time at 0.8 load, then 3 times what it can do.

While it soaks: every request gets one reply; every answer is the one that AdaptiveModel gives offline; requests that
are malformed, late or given up half-way are told so and leave no trace; memory and open files stay where they are.
Under overload: memory is bounded, what cannot be served is refused with a time to come back, and within 5 seconds after
it the server is as quick as before. Ends with exit code 1 and what was wrong, if anything was.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import eenet
from _load import Client, client, counters, poisson, saturate, server
from _serving_models import EXITS, inputs_of, model, network_and_scheduler

NPY = "application/x-npy"
LOAD = 0.8
_PATIENT = ("--head-timeout", "120")  # the client itself may be late on a busy machine
_SAMPLE_EVERY = 1.0  # seconds between two looks at memory
_MOST_GROWTH = 12.0  # MB from the first to the last third: what an allocator may keep without there being a leak
_RECOVERED = 5.0  # seconds until the server is as quick as before an overload
_TOLERANCE = 1e-3  # of probabilities, between an answer and the offline one


@dataclass
class Soak:
    """What was seen."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    files: list[float] = field(default_factory=list)


class Offline:
    """The answers that are right: of AdaptiveModel, one sample at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        model, scheduler = network_and_scheduler("small")
        fast = eenet.AdaptiveModel(model, scheduler)
        self.inputs = inputs_of("small")
        outputs = [fast(torch.from_numpy(x[None])) for x in self.inputs]
        self.exits = [int(output.exits[0]) for output in outputs]
        probabilities = torch.cat([output.logits for output in outputs]).softmax(1).numpy()
        self.classes = probabilities.argmax(1)
        self.probabilities = probabilities.max(1)

    def differs(self, rows: Sequence[int], body: bytes) -> str | None:
        """What is wrong with an answer, if anything."""
        predictions = json.loads(body)["predictions"]
        if len(predictions) != len(rows):
            return f"{len(predictions)} predictions for {len(rows)} samples"
        for n, prediction in zip(rows, predictions, strict=True):
            found = (prediction["exit"], prediction["class"])
            expected = (self.exits[n], int(self.classes[n]))
            if found != expected or abs(prediction["probability"] - self.probabilities[n]) > _TOLERANCE:
                return f"sample {n}: {prediction}, expected exit and class {expected}, p {self.probabilities[n]:.4f}"
        return None


class Traffic:
    """Requests of all kinds: request number n is always the same."""

    def __init__(self, connected: Client, port: int, offline: Offline, seen: Soak) -> None:
        self._client, self._port, self._offline, self._seen = connected, port, offline, seen

    async def __call__(self, n: int) -> int:
        kind = np.random.default_rng(n).choice(
            ["one", "json", "many", "wrong", "late", "gone"], p=[0.74, 0.08, 0.1, 0.04, 0.02, 0.02]
        )
        rows = [n % len(self._offline.inputs)]
        if kind == "gone":
            return await self._give_up(rows)
        if kind == "wrong":
            return await self._expect(kind, rows, {422}, _npy(self._offline.inputs[rows][:, :2]))
        if kind == "late":
            body = _npy(self._offline.inputs[rows])
            return await self._expect(kind, rows, {200, 504}, body, path="/predict?timeout_ms=1")
        if kind == "json":
            body = json.dumps({"inputs": self._offline.inputs[rows].tolist()}).encode()
            return await self._expect(kind, rows, {200}, body, content_type="application/json")
        if kind == "many":
            rows = [(n + 7 * i) % len(self._offline.inputs) for i in range(5)]
        return await self._expect(kind, rows, {200}, _npy(self._offline.inputs[rows]))

    async def _expect(
        self,
        kind: str,
        rows: list[int],
        statuses: set[int],
        body: bytes,
        *,
        content_type: str = NPY,
        path: str = "/predict",
    ) -> int:
        reply = await self._client.request("POST", path, body, content_type)
        self._seen.statuses[f"{kind} {reply.status}"] += 1
        if reply.status == 503:
            if "retry-after" not in reply.headers:
                self._seen.wrong.append("503 without Retry-After")
        elif reply.status not in statuses:
            self._seen.wrong.append(f"{kind}: {reply.status} {reply.body[:200]!r}")
        if reply.status == 200:
            self._seen.samples += len(rows)
            difference = self._offline.differs(rows, reply.body)
            if difference:
                self._seen.wrong.append(f"{kind}: {difference}")
        return reply.status

    async def _give_up(self, rows: list[int]) -> int:
        """Close the connection in the middle of the body, or before the answer."""
        body = _npy(self._offline.inputs[rows])
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nContent-Length: {len(body)}\r\n\r\n"
        sent = len(body) // 2 if rows[0] % 2 else len(body)
        writer.write(head.encode() + body[:sent])
        await writer.drain()
        writer.close()
        self._seen.statuses["gone"] += 1
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, overload, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long to soak")
    parser.add_argument("--overload", type=float, default=20.0, help="how long to overload; 0 for not at all")
    options = parser.parse_args(argv)
    offline = Offline()
    wrong = asyncio.run(_soak(offline, options.seconds))
    if options.overload:
        wrong += asyncio.run(_overload(options.overload))
    for line in wrong[:20]:
        print(f"WRONG: {line}", flush=True)
    print("soak: " + (f"{len(wrong)} things were wrong" if wrong else "nothing was wrong"), flush=True)
    return 1 if wrong else 0


async def _soak(offline: Offline, seconds: float) -> list[str]:
    with server(["small", "stage", *_PATIENT]) as (port, _):
        async with client(port) as connected:
            send = Traffic(connected, port, offline, Soak())
            rate = (await saturate(send, 2000, 64)).throughput
            seen = Soak()
            send = Traffic(connected, port, offline, seen)
            before = await counters(connected)
            watching = asyncio.ensure_future(_watch(connected, seen))
            requests = max(1, int(LOAD * rate * seconds))
            result = await poisson(send, requests, LOAD * rate, at_once=200)
            await asyncio.sleep(0.5)  # the last of those who gave up
            watching.cancel()
            after = await counters(connected)
    print(
        f"soaked for {result.seconds:.0f} s at {LOAD * rate:.0f} requests a second ({LOAD} of {rate:.0f}); latency p50 "
        f"{result.percentile(50):.1f}, p99 {result.percentile(99):.1f} ms; {dict(sorted(seen.statuses.items()))}",
        flush=True,
    )
    wrong = seen.wrong
    if sum(seen.statuses.values()) != requests:
        wrong.append(f"{requests} requests, but {sum(seen.statuses.values())} ended")
    counted = sum(
        after[f'eenet_samples_total{{exit="{k}"}}'] - before[f'eenet_samples_total{{exit="{k}"}}'] for k in range(4)
    )
    # Those who gave up may have been answered before the server knew.
    if not seen.samples <= counted <= seen.samples + seen.statuses["gone"]:
        wrong.append(f"{seen.samples} samples were answered, but the server counted {counted:.0f}")
    return wrong + _leaks(seen)


async def _watch(connected: Client, seen: Soak) -> None:
    began = time.perf_counter()
    while True:
        now = await counters(connected)
        seen.memory.append((time.perf_counter() - began, now["process_resident_memory_bytes"] / 2**20))
        seen.files.append(now["process_open_fds"])
        await asyncio.sleep(_SAMPLE_EVERY)


def _leaks(seen: Soak) -> list[str]:
    memory = np.array(seen.memory)
    if len(memory) < 9:
        return [f"memory was looked at {len(memory)} times only; soak longer"]
    third = len(memory) // 3
    settled = memory[third:]  # the first third may still be filling caches and arenas
    slope = float(np.polyfit(settled[:, 0] / 3600, settled[:, 1], 1)[0])
    early, late = (float(np.median(part[:, 1])) for part in (settled[:third], settled[-third:]))
    print(
        f"memory {early:.1f} MB in the second third, {late:.1f} MB in the last ({slope:+.1f} MB an hour); open files "
        f"{seen.files[0]:.0f} to {max(seen.files):.0f}, at the end {seen.files[-1]:.0f}",
        flush=True,
    )
    if late - early > _MOST_GROWTH:
        return [f"memory grew from {early:.1f} to {late:.1f} MB"]
    return []


async def _overload(seconds: float) -> list[str]:
    """On the network that sleeps, which leaves the client the time to send three times what it can do."""
    wrong: list[str] = []
    known = model("free", 0.0)
    inputs = inputs_of("fixed")
    logits = inputs.reshape(len(inputs), EXITS, -1).transpose(1, 0, 2)
    exits = known.scheduler.replay(eenet.ExitRecords.from_logits(logits)).exits
    bodies = [_npy(x) for x in inputs]
    with server(["fixed", "stage", "--unit", "4e-3", "--max-samples", "64", *_PATIENT]) as (port, _):
        async with client(port) as connected:

            async def send(n: int) -> int:
                reply = await connected.request("POST", "/predict", bodies[n % len(bodies)], NPY)
                if reply.status == 503 and int(reply.headers.get("retry-after", "0")) < 1:
                    wrong.append("503 without a Retry-After of a second or more")
                if reply.status == 200 and json.loads(reply.body)["predictions"][0]["exit"] != exits[n % len(bodies)]:
                    wrong.append(f"overload: {reply.body!r}, expected exit {exits[n % len(bodies)]}")
                return reply.status

            capacity = (await saturate(send, 400, 64)).throughput
            calm = await poisson(send, max(50, int(capacity)), 0.5 * capacity)
            before = (await counters(connected))["process_resident_memory_bytes"] / 2**20
            flood = await poisson(send, int(3 * capacity * seconds), 3 * capacity)
            memory = (await counters(connected))["process_resident_memory_bytes"] / 2**20
            quick = 3 * calm.percentile(50) / 1000 + 0.05
            recovery = await _recovery(send, quick)
            if recovery > _RECOVERED:  # other work of the machine delays answers too, but not after every flood
                await poisson(send, int(3 * capacity * seconds), 3 * capacity)
                recovery = min(recovery, await _recovery(send, quick))
    print(
        f"overload: 3 x {capacity:.0f} requests a second for {flood.seconds:.0f} s; {flood.throughput:.0f} answers a "
        f"second, statuses {flood.statuses}; memory {before:.0f} MB before, {memory:.0f} after; p50 "
        f"{calm.percentile(50):.1f} ms at half load, {flood.percentile(50):.1f} ms for those let in; as before after "
        f"{recovery:.2f} s",
        flush=True,
    )
    if set(flood.statuses) != {200, 503}:
        wrong.append(f"overload: statuses {flood.statuses}, expected 200 and 503")
    if memory - before > 100:
        wrong.append(f"overload: memory grew from {before:.0f} to {memory:.0f} MB")
    if recovery > _RECOVERED:
        wrong.append(f"overload: {recovery:.1f} s until the server was as quick as before")
    return wrong


async def _recovery(send: Any, quick: float) -> float:
    """Seconds until five requests in a row are answered within `quick` seconds."""
    began, row, n = time.perf_counter(), 0, 0
    while row < 5 and time.perf_counter() - began < 30:
        sent = time.perf_counter()
        status = await send(n)
        n += 1
        row = row + 1 if status == 200 and time.perf_counter() - sent < quick else 0
    return time.perf_counter() - began


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
