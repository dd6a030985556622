"""The driver: the engine with worker threads and a clock, for callers in an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.costs import Budget
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.scheduler import ThresholdPolicy, Trail
from eenet.serving._engine import Engine, EngineOptions
from eenet.serving._metrics import Metrics
from eenet.serving._request import Outcome, Request
from eenet.serving._servable import Controller, Servable
from eenet.serving._work import Work

_log = logging.getLogger("eenet.serving")


@dataclass(frozen=True)
class _Waiting:
    """Who waits for a request: a future of an event loop. `counted` unless the request switched the exits off."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    counted: bool


class _NoScore:
    """Of a policy whose early exits are off: nothing is looked at, and the last exit answers for itself."""

    name = "none"
    uses_history = False

    def __call__(self, trail: Trail) -> NDArray[np.float64]:
        return np.zeros(len(trail.evidence[-1]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {}


class Driver:
    """Runs a servable's stages in `workers` threads as the engine says.

    Call `start`, then `answer` from an event loop as often as you like, and `drain` at the end.
    """

    def __init__(
        self,
        servable: Servable,
        controller: Controller,
        options: EngineOptions | None = None,
        *,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise InvalidInputError(f"workers is {workers}, expected 1 or more")
        self._backend, self._task, self._costs = servable.backend, servable.task, servable.costs
        self._controller = controller
        self._engine = Engine(controller.policy, options)
        self._whole: tuple[ThresholdPolicy | None, ThresholdPolicy] = (None, controller.policy)
        self._clock = clock
        # Guards the engine and the controller; held for bookkeeping only, never while a stage runs.
        self._turn = threading.Condition()
        self._stopping = False
        self._reported: set[tuple[int, type[Exception]]] = set()
        self._threads = [threading.Thread(target=self._run, name=f"eenet-{n}", daemon=True) for n in range(workers)]
        self.metrics = Metrics(servable.costs, lambda: self._engine.waiting)

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all workers run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def accepting(self) -> bool:
        """Whether requests are taken in."""
        return self.alive and not self._engine.draining

    @property
    def waiting(self) -> Sequence[int]:
        """Samples before each stage."""
        with self._turn:
            return self._engine.waiting

    def set_budget(self, budget: Budget) -> float:
        """Keep to another budget, which is returned in the costs' unit; requests inside go on by the policy they have.

        Raises `InvalidInputError` for a budget that cannot be met.
        """
        with self._turn, warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # more than can be spent: it is in the answer
            self._controller.set_budget(budget)
            self._engine.policy = self._controller.policy
            return self._controller.budget

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Take in the inputs of some samples and wait until the request has ended; `full` switches the exits off.

        Raises what `StageBackend.enter` and `Engine.submit` do. A caller that is cancelled takes its request along.
        """
        live = self._backend.enter(inputs)
        samples = self._backend.size(0, live)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop, loop.create_future(), not full)
        with self._turn:
            now = self._clock()
            policy = self._whole_network() if full else None
            request = self._engine.submit(live, samples, now, deadline=now + timeout, policy=policy, context=waiting)
            self._turn.notify()
        # The workers look at deadlines between stages; where a stage takes longer than that, this does.
        timer = loop.call_later(timeout, self._expire)
        try:
            await waiting.future
        finally:
            timer.cancel()
            if request.open:
                with self._turn:
                    self._engine.cancel(request, self._clock())
        return request

    async def drain(self) -> None:
        """Take no more requests, answer those inside, and stop the workers."""
        with self._turn:
            self._engine.drain()
            self._stopping = True
            self._turn.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join)

    def _whole_network(self) -> ThresholdPolicy:
        # One object for all such requests under a policy: only requests of one policy are decided together.
        of, whole = self._whole
        if of is not self._engine.policy:
            of = self._engine.policy
            whole = replace(of, score=_NoScore(), enabled=np.zeros_like(of.enabled))
            self._whole = of, whole
        return whole

    def _expire(self) -> None:
        with self._turn:
            self._tell(self._engine.expire(self._clock()))

    def _run(self) -> None:
        while (work := self._next()) is not None:
            began = time.perf_counter()
            try:
                work.execute(self._backend, self._task)
            except Exception as error:  # noqa: BLE001 - whatever a network raises ends its request, not the server
                self._report(work, error)
                self.metrics.failure(work.stage)
                with self._turn:
                    self._tell(self._engine.fail(work, error, self._clock()))
                    self._turn.notify()
                continue
            self.metrics.batch(work.stage, work.samples, time.perf_counter() - began)
            with self._turn:
                ended = self._engine.complete(work, self._clock())
                self._account(ended)
                self._tell(ended)
                self._turn.notify()

    def _report(self, work: Work, error: Exception) -> None:
        """Log a failure, with its traceback the first time: whoever finds a request that fails can send many."""
        kind = (work.stage, type(error))
        _log.error(
            "stage %d failed on %d samples: %r", work.stage, work.samples, error, exc_info=kind not in self._reported
        )
        self._reported.add(kind)

    def _next(self) -> Work | None:
        """Wait for work; None when there will be none."""
        with self._turn:
            while True:
                now = self._clock()
                self._tell(self._engine.expire(now))
                work = self._engine.next_work(now)
                if work is not None:
                    return work
                if self._stopping and self._engine.idle:
                    self._turn.notify_all()
                    return None
                wake = self._engine.wake_at
                self._turn.wait(None if wake is None else max(0.0, wake - now))

    def _account(self, ended: Sequence[Request]) -> None:
        by_policy: dict[int, list[Request]] = {}
        for request in ended:
            if request.outcome is Outcome.ANSWERED and request.context.counted:
                by_policy.setdefault(id(request.policy), []).append(request)
        for requests in by_policy.values():
            left = np.concatenate([request.exits for request in requests])
            self.metrics.left(left)
            self._controller.observe(left, requests[0].policy)
        self._engine.policy = self._controller.policy

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
