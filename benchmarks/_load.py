"""A client that makes load: open loop with Poisson arrivals, or closed loop at saturation; and a server to load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """HTTP/1.1 over connections that are kept; makes as many as there are requests at a time."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "", accept: str = "*/*"
    ) -> Reply:
        """Send one request and wait for the reply; a connection that was closed while idle is replaced."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: {accept}\r\n"
        if body or method != "GET":
            head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        message = head.encode() + b"\r\n" + body
        while self._idle:
            reader, writer = self._idle.pop()
            # The server closes a connection that has been idle for long, perhaps just now.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                return await self._exchange(reader, writer, message)
        reader, writer = await asyncio.open_connection(self._host, self._port)
        return await self._exchange(reader, writer, message)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> Reply:
        try:
            writer.write(message)
            reply = await _read_reply(reader)
        except BaseException:
            writer.close()
            raise
        if reply.headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return reply

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop()[1].close()


async def _read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(head[0].split(" ", 2)[1]), headers, body)


@dataclass
class Result:
    """What became of the requests: latencies in seconds of those answered, and the statuses of all."""

    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        """Requests answered with 200."""
        return self.statuses.get(200, 0)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds

    def percentile(self, q: float) -> float:
        """In milliseconds."""
        return float(1000 * np.percentile(self.latencies, q))

    def note(self, status: int, latency: float) -> None:
        """One more request has ended."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.latencies.append(latency)


Send = Callable[[int], Awaitable[int]]
"""Sends request number n and gives its status."""


async def saturate(send: Send, requests: int, at_once: int) -> Result:
    """Keep `at_once` requests open until all have been answered."""
    result, numbers = Result(), iter(range(requests))

    async def keep_asking() -> None:
        for n in numbers:
            sent = time.perf_counter()
            result.note(await send(n), time.perf_counter() - sent)

    began = time.perf_counter()
    await asyncio.gather(*(keep_asking() for _ in range(at_once)))
    result.seconds = time.perf_counter() - began
    return result


async def poisson(send: Send, requests: int, rate: float, seed: int = 0, at_once: int = 2000) -> Result:
    """Send at random times, `rate` a second on average, whether or not the earlier ones are answered.

    A latency is counted from when its request was due, so that a client that falls behind hides nothing. There are at
    most `at_once` requests open, beyond which the client itself would be what is measured.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, requests)
    due: NDArray[np.float64] = np.cumsum(gaps)
    result = Result()
    began = time.perf_counter()

    slots = asyncio.Semaphore(at_once)

    async def one(n: int) -> None:
        try:
            status = await send(n)
        finally:
            slots.release()
        result.note(status, time.perf_counter() - began - due[n])

    tasks = []
    for n in range(requests):
        wait = due[n] - (time.perf_counter() - began)
        if wait > 0:
            await asyncio.sleep(wait)
        await slots.acquire()
        tasks.append(asyncio.ensure_future(one(n)))
    await asyncio.gather(*tasks)
    result.seconds = time.perf_counter() - began
    return result


@contextlib.contextmanager
def server(arguments: Sequence[str], script: str = "_serving_models.py") -> Iterator[tuple[int, int]]:
    """A server in a process of its own; gives its port and process number, and stops it as an operator would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.strip().isdecimal():
            raise RuntimeError(f"the server did not start: {line!r}")
        yield int(line), process.pid
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    """A client that closes its connections."""
    made = Client(port)
    try:
        yield made
    finally:
        made.close()


async def counters(connected: Client) -> dict[str, float]:
    """The server's metrics by name and labels."""
    reply = await connected.request("GET", "/metrics")
    lines = [line for line in reply.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
