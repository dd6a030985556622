"""Ray Serve: two ways to batch inside a replica of a stage, in CPU per call; and simulated queues, measured.

batching  our engine inside the replica against @serve.batch around the same work, in turns: one replica, a small
          convolutional stage, calls of one sample, 64 at a time. CPU is the replica process's own, so that it holds on
          a busy machine too; calls per second do not.
tensors   8 MB of live tensors between stages, by value through the ingress and by reference from Ray's object store, in
          turns: CPU of the ingress for a request of 16 images, all of which go through the whole network.
queues    stages that sleep (so that a busy machine matters little), with replicas in one process and Poisson traffic:
          measured latencies against those of eenet.capacity.simulate_fleet.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import eenet
from _load import client, counters, saturate
from eenet._extras import require
from eenet._timing import describe_machine, machine
from eenet.bundle import load
from eenet.capacity import StageTime, simulate_fleet
from eenet.runtime import Live
from eenet.serving.engine import Engine, EngineOptions, FixedBudget
from eenet.serving.engine._model import PolicyBook
from eenet.serving.ray import RayOptions, RemoteService, StageScaling, StageServer, start, stop
from eenet.serving.ray._stage import StageCall, StageReplica, StageReply, reply
from eenet.tasks import Classification

OPTIONS = EngineOptions(max_batch=16, max_wait=0.002)
UNIT = 0.2  # seconds: long beside what a busy machine adds to a sleep
STAGES = [StageTime(UNIT, UNIT / 20), StageTime(UNIT, UNIT / 10), StageTime(UNIT, UNIT / 5)]
QUEUE_OPTIONS = EngineOptions(max_batch=16, max_wait=UNIT / 10)
SHARES = (0.5, 0.3, 0.2)
REPLICAS = (2, 2, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1500, help="for each way of batching and round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=500, help="for each rate of the queues")
    parser.add_argument("--only", choices=("batching", "tensors", "queues"))
    options = parser.parse_args(argv)
    print(describe_machine(machine()), flush=True)
    if options.only in (None, "queues"):
        print(asyncio.run(queues(options.requests)), flush=True)
    if options.only in (None, "batching"):
        print(batching(options.calls, options.rounds), flush=True)
    if options.only in (None, "tensors"):
        print(tensors(options.calls // 10, options.rounds), flush=True)
    return 0


def toy_model(pixels: int = 32) -> tuple[eenet.MultiExitModel, eenet.Scheduler, torch.Tensor]:
    """A small convolutional network with three exits."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(c, 32, 3, 1, 1), nn.ReLU()) for c in (3, 32, 32)]
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()
    x = torch.randn(64, 3, pixels, pixels)
    model = eenet.attach(network, exits=["0", "1"], num_classes=5, example=x[:2]).eval()
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0, 3.0]), budget="60%")
    return model, scheduler, x


class Measured(StageReplica):
    """Our engine inside the replica."""

    def cpu(self) -> float:
        """CPU seconds of this process so far."""
        return time.process_time()


class Decorated:
    """`@serve.batch` around the same work."""

    def __init__(self, bundle: str, stage: int, options: EngineOptions, **_: Any) -> None:
        loaded = load(bundle, threads=1, stages=(stage,))
        self._stage, self._backend, self._task = stage, loaded.backend, loaded.task
        self._book = PolicyBook(loaded.scheduler)
        whole = replace(options, max_batch=10**6, max_wait=0.0, max_samples=10**9)
        self._engine = Engine(loaded.scheduler.policy, whole, stages=range(stage, stage + 1))
        batch = require("ray.serve", "ray").batch
        self._batched = batch(max_batch_size=options.max_batch, batch_wait_timeout_s=options.max_wait)(self._run)

    async def __call__(self, call: StageCall) -> StageReply:
        """Run the stage."""
        found: StageReply = await self._batched(call)
        return found

    async def _run(self, calls: list[StageCall]) -> list[StageReply]:
        submit, policy = self._engine.submit, self._book.policy
        lives = [cast(Live, c.live) for c in calls]  # the first stage gets no object references
        requests = [
            submit(live, c.samples, 0.0, policy=policy(c.policy), shape=c.shape)
            for live, c in zip(lives, calls, strict=True)
        ]
        while (work := self._engine.next_work(0.0)) is not None:
            await asyncio.to_thread(work.execute, self._backend, self._task)
            self._engine.complete(work, 0.0)
        return [reply(self._backend, self._stage, request, ()) for request in requests]

    def cpu(self) -> float:
        """CPU seconds of this process so far."""
        return time.process_time()


def batching(calls: int, rounds: int) -> str:
    """Calls per second and CPU per call of the two, round by round."""
    ray, serve = require("ray", "ray"), require("ray.serve", "ray")
    model, scheduler, x = toy_model()
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        eenet.export(model, scheduler, bundle, example=x, measure=False)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
        try:
            handles = {}
            for name, kind in (("engine", Measured), ("@serve.batch", Decorated)):
                one = serve.deployment(
                    kind, name=name.strip("@"), max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1}
                )
                made = one.bind(bundle, 0, OPTIONS, threads=1)
                handles[name] = serve.run(made, name=name.strip("@"), route_prefix=None)
            loaded = load(bundle, stages=())
            name_of = PolicyBook(loaded.scheduler).name(loaded.scheduler.policy)
            sample = x[:1].numpy()
            call = StageCall((sample,), 1, None, name_of, "x", 60.0)
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in handles}
            for number in range(rounds + 1):
                for name, handle in handles.items():
                    before, began = handle.cpu.remote().result(), time.perf_counter()
                    asyncio.run(_send(handle, call, calls))
                    seconds = time.perf_counter() - began
                    if number:  # the first round warms up
                        found[name].append((calls / seconds, 1000 * (handle.cpu.remote().result() - before) / calls))
        finally:
            serve.shutdown()
            ray.shutdown()
    lines = ["batching inside a replica, medians (and all rounds)"]
    for name, rows in found.items():
        rate, cpu = np.median(np.array(rows), axis=0)
        listed = ", ".join(f"{one:.2f}" for _, one in rows)
        lines.append(f"{name:14} {rate:7.0f} calls/s   {cpu:.2f} CPU ms per call in the replica ({listed})")
    ratio = [b[1] / a[1] for a, b in zip(found["engine"], found["@serve.batch"], strict=True)]
    lines.append(f"CPU of @serve.batch over the engine's, round by round: {', '.join(f'{r:.2f}' for r in ratio)}")
    return "\n".join(lines)


def tensors(requests: int, rounds: int) -> str:
    """Milliseconds per request, and CPU milliseconds of the ingress, round by round."""
    model, scheduler, x = toy_model(64)
    found: dict[str, list[tuple[float, float]]] = {"by value": [], "by reference": []}
    body = io.BytesIO()
    np.save(body, x[:16].numpy())
    with tempfile.TemporaryDirectory() as folder, socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        one.close()
        bundle = str(Path(folder) / "bundle")
        eenet.export(model, scheduler, bundle, example=x, measure=False)
        for _ in range(rounds):
            for name, inline in (("by value", 10**9), ("by reference", 0)):
                options = RayOptions(
                    stages=[StageScaling(cpus=0.1)], ingress_cpus=0.1, engine=OPTIONS, inline_bytes=inline
                )
                start(bundle, options, port=port)
                try:
                    found[name].append(asyncio.run(_through(port, body.getvalue(), requests)))
                finally:
                    stop()
    lines = ["16 images of 8 MB between stages through two boundaries, medians (and the CPU of all rounds)"]
    for name, rows in found.items():
        wall, cpu = np.median(np.array(rows), axis=0)
        listed = ", ".join(f"{one:.1f}" for _, one in rows)
        lines.append(f"{name:14} {wall:7.1f} ms per request   {cpu:.1f} CPU ms of the ingress ({listed})")
    return "\n".join(lines)


async def _through(port: int, body: bytes, requests: int) -> tuple[float, float]:
    async with client(port) as connected:

        async def send(_: int) -> int:
            return (await connected.request("POST", "/predict?full=true", body, "application/x-npy")).status

        await saturate(send, 5, 1)
        before, began = await counters(connected), time.perf_counter()
        result = await saturate(send, requests, 1)
        seconds, after = time.perf_counter() - began, await counters(connected)
    if result.answered != requests:
        raise RuntimeError(f"{requests - result.answered} of {requests} requests were not answered: {result.statuses}")
    spent = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    return 1000 * seconds / requests, 1000 * spent / requests


async def _send(handle: Any, call: StageCall, calls: int) -> None:
    slots = asyncio.Semaphore(64)

    async def one() -> None:
        async with slots:
            await handle.remote(call)

    await asyncio.gather(*(one() for _ in range(calls)))


class Sleeping:
    """A back end whose stages sleep for as long as they would take, and whose input says where a sample exits."""

    num_exits, num_classes = len(STAGES), 2

    def enter(self, inputs: Any) -> Live:
        return (inputs,)

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        time.sleep(STAGES[k](len(live[0])))
        logits = np.where(live[0] <= k, 9.0, 0.0).astype(np.float32) * np.array([1.0, 0.0], dtype=np.float32)
        return live, logits if observe or k == self.num_exits - 1 else None

    def size(self, k: int, live: Live) -> int:  # noqa: ARG002
        return len(live[0])

    def take(self, k: int, live: Live, rows: NDArray[np.intp]) -> Live:  # noqa: ARG002
        return (live[0][rows],)

    def join(self, k: int, parts: Sequence[Live]) -> Live:  # noqa: ARG002
        return (np.concatenate([part[0] for part in parts]),)


async def queues(requests: int) -> str:
    """Latencies through stages with replicas, measured and simulated."""
    flat = eenet.ExitRecords.from_logits(np.zeros((3, 40, 2), dtype=np.float32), np.zeros(40, dtype=int))
    scheduler = eenet.MaxProbability().fit(flat, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=3.0)
    scheduler.policy.thresholds[:] = 5.0
    scheduler.policy.enabled[:] = True
    model: Any = _Model(scheduler)
    lines = ["queues of stages with (2, 2, 1) replicas: latency in ms, measured / simulated"]
    for rate in (1.2 / UNIT, 2.4 / UNIT, 3.6 / UNIT):
        rng = np.random.default_rng(int(rate))
        exits = rng.choice(3, requests, p=SHARES)
        arrivals = np.cumsum(rng.exponential(1 / rate, requests))
        measured = await _measure(model, exits, arrivals)
        simulated = simulate_fleet(arrivals, exits, lambda k, n: STAGES[k](n), REPLICAS, QUEUE_OPTIONS).latencies
        cells = [
            f"p{q} {1000 * np.percentile(measured, q):6.1f} / {1000 * np.percentile(simulated, q):6.1f}"
            for q in (50, 90, 99)
        ]
        lines.append(f"{rate:5.0f} requests/s   " + "   ".join(cells))
    return "\n".join(lines)


class _Model:
    def __init__(self, scheduler: eenet.Scheduler) -> None:
        self.backend, self.scheduler, self.costs = Sleeping(), scheduler, scheduler.costs
        self.task = Classification()


async def _measure(model: Any, exits: NDArray[np.intp], arrivals: NDArray[np.float64]) -> NDArray[np.float64]:
    servers = [[StageServer(model, k, QUEUE_OPTIONS) for _ in range(count)] for k, count in enumerate(REPLICAS)]
    rng = np.random.default_rng(0)

    def handle(k: int) -> Any:
        inside = [0] * REPLICAS[k]

        async def sent(call: StageCall) -> StageReply:
            pair = rng.choice(REPLICAS[k], 2, replace=False) if REPLICAS[k] > 1 else [0]
            chosen = min(pair, key=lambda n: inside[n])
            inside[chosen] += call.samples
            try:
                return await servers[k][chosen](call)
            finally:
                inside[chosen] -= call.samples

        return lambda call: asyncio.ensure_future(sent(call))

    service = RemoteService(model, FixedBudget(model.scheduler), [handle(k) for k in range(3)], QUEUE_OPTIONS)
    began = time.perf_counter()

    async def one(exit_index: int, at: float) -> float:
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - began)))
        await service.answer(np.array([[exit_index]]), timeout=600.0)
        return time.perf_counter() - began - at

    found = await asyncio.gather(*(one(int(e), float(a)) for e, a in zip(exits, arrivals, strict=True)))
    for group in servers:
        for server in group:
            await server.drain()
    return np.array(found)


if __name__ == "__main__":
    raise SystemExit(main())
