"""Threads and a clock around an engine, for callers in an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eenet.errors import InvalidInputError
from eenet.serving.engine._engine import Engine
from eenet.serving.engine._holding import FixedCosts
from eenet.serving.engine._request import Request
from eenet.serving.engine._work import Work
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.runtime import StageBackend

_log = logging.getLogger("eenet.serving")


class Watcher(Protocol):
    """Who is told what the workers did. `ended` is called while `Workers.turn` is held, the others are not."""

    def batch(self, work: Work, seconds: float) -> None:
        """A stage was run."""
        ...

    def failure(self, work: Work) -> None:
        """Running a stage raised."""
        ...

    def ended(self, requests: Sequence[Request]) -> None:
        """Requests were answered."""
        ...


@dataclass(frozen=True)
class _Waiting:
    """Who waits for a request: a future of an event loop; and the caller's own."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    context: Any


class Workers:
    """Run an engine's work in `count` threads. `turn` guards the engine; it is held for bookkeeping only.

    How long the engine holds survivors is learned from what the calls take.
    """

    def __init__(
        self,
        engine: Engine,
        backend: StageBackend,
        task: Task,
        watcher: Watcher,
        *,
        count: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if count < 1:
            raise InvalidInputError(f"workers is {count}, expected 1 or more")
        self.engine = engine
        self.turn = threading.Condition()
        self._backend, self._task = backend, task
        self._watcher = watcher
        self._clock = clock
        self._stopping = False
        self._fixed_costs = FixedCosts(engine.options.max_hold)
        self._reported: set[tuple[int, type[Exception]]] = set()
        self._threads = [threading.Thread(target=self._run, name=f"eenet-{n}", daemon=True) for n in range(count)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> Sequence[int]:
        """Samples before each stage."""
        with self.turn:
            return self.engine.waiting

    async def answer(self, submit: Callable[[float, Any], Request], *, timeout: float, context: Any = None) -> Request:
        """Submit a request and wait until it has ended; a caller that is cancelled takes its request along.

        `submit` is called with the time and with what must become the request's context, while `turn` is held.
        `context` is what `context_of` will give back.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop, loop.create_future(), context)
        with self.turn:
            request = submit(self._clock(), waiting)
            self.turn.notify()
        # The workers look at deadlines between stages; where a stage takes longer than that, this does.
        timer = loop.call_later(timeout, self._expire)
        try:
            await waiting.future
        finally:
            timer.cancel()
            if request.open:
                with self.turn:
                    self.engine.cancel(request, self._clock())
        return request

    @staticmethod
    def context_of(request: Request) -> Any:
        """What `answer` was given as the context of a request."""
        return request.context.context

    async def drain(self) -> None:
        """Take no more requests, answer those inside, and stop the threads."""
        with self.turn:
            self.engine.drain()
            self._stopping = True
            self.turn.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join)

    def _expire(self) -> None:
        with self.turn:
            self._tell(self.engine.expire(self._clock()))

    def _run(self) -> None:
        while (work := self._next()) is not None:
            began = time.perf_counter()
            try:
                work.execute(self._backend, self._task)
            except Exception as error:  # noqa: BLE001 - whatever a network raises ends its request, not the server
                self._report(work, error)
                self._watcher.failure(work)
                with self.turn:
                    self._tell(self.engine.fail(work, error, self._clock()))
                    self.turn.notify()
                continue
            seconds = time.perf_counter() - began
            self._watcher.batch(work, seconds)
            with self.turn:
                if len(self.engine.stages) > 1:
                    self.engine.max_hold = self._fixed_costs.add(work.stage, work.samples, seconds)
                ended = self.engine.complete(work, self._clock())
                self._watcher.ended(ended)
                self._tell(ended)
                self.turn.notify()

    def _report(self, work: Work, error: Exception) -> None:
        """Log a failure, with its traceback the first time: whoever finds a request that fails can send many."""
        kind = (work.stage, type(error))
        _log.error(
            "stage %d failed on %d samples: %r", work.stage, work.samples, error, exc_info=kind not in self._reported
        )
        self._reported.add(kind)

    def _next(self) -> Work | None:
        """Wait for work; None when there will be none."""
        with self.turn:
            while True:
                now = self._clock()
                self._tell(self.engine.expire(now))
                work = self.engine.next_work(now)
                if work is not None:
                    return work
                if self._stopping and self.engine.idle:
                    self.turn.notify_all()
                    return None
                wake = self.engine.wake_at
                self.turn.wait(None if wake is None else max(0.0, wake - now))

    def _tell(self, ended: Sequence[Request]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for request in ended:
            by_loop.setdefault(request.context.loop, []).append(request.context.future)
        for loop, futures in by_loop.items():
            loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
