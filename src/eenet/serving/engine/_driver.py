"""The driver: all stages of a servable in this process, batched by the engine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eenet.costs import Budget
from eenet.errors import ReliabilityWarning
from eenet.serving.engine._engine import Engine, EngineOptions
from eenet.serving.engine._metrics import Metrics
from eenet.serving.engine._policies import WholeNetwork
from eenet.serving.engine._request import Outcome, Request
from eenet.serving.engine._servable import Controller, Servable
from eenet.serving.engine._work import Work
from eenet.serving.engine._workers import Workers


class Driver:
    """Runs a servable's stages in `workers` threads as the engine says; a `Runner`.

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
        self._backend = servable.backend
        self._controller = controller
        self._engine = Engine(controller.policy, options)
        self._whole = WholeNetwork()
        self._workers = Workers(
            self._engine, servable.backend, servable.task, _Account(self), count=workers, clock=clock
        )
        self.metrics = Metrics(servable.costs, lambda: self._engine.waiting)

    def start(self) -> None:
        """Start the workers."""
        self._workers.start()

    @property
    def alive(self) -> bool:
        """Whether all workers run."""
        return self._workers.alive

    @property
    def accepting(self) -> bool:
        """Whether requests are taken in."""
        return self.alive and not self._engine.draining

    @property
    def waiting(self) -> Sequence[int]:
        """Samples before each stage."""
        return self._workers.waiting

    async def set_budget(self, budget: Budget) -> float:
        """Keep to another budget, which is returned in the costs' unit; requests inside go on by the policy they have.

        Raises `InvalidInputError` for a budget that cannot be met.
        """
        with self._workers.turn:
            limit = change_budget(self._controller, budget)
            self._engine.policy = self._controller.policy
            return limit

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Take in the inputs of some samples and wait until the request has ended; `full` switches the exits off.

        Raises what `StageBackend.enter` and `Engine.submit` do. A caller that is cancelled takes its request along.
        """
        live = self._backend.enter(inputs)
        samples = self._backend.size(0, live)

        def submit(now: float, context: Any) -> Request:
            policy = self._whole.of(self._engine.policy) if full else None
            return self._engine.submit(live, samples, now, deadline=now + timeout, policy=policy, context=context)

        return await self._workers.answer(submit, timeout=timeout, context=not full)

    async def drain(self) -> None:
        """Take no more requests, answer those inside, and stop the workers."""
        await self._workers.drain()

    def account(self, ended: Sequence[Request]) -> None:
        """Requests were answered: count what they cost, except those that switched the exits off."""
        counted = [r for r in ended if r.outcome is Outcome.ANSWERED and Workers.context_of(r)]
        account(counted, self._controller, self.metrics)
        self._engine.policy = self._controller.policy


class _Account:
    """Tells a driver's metrics and controller what the workers did."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def batch(self, work: Work, seconds: float) -> None:
        self._driver.metrics.batch(work.stage, work.samples, seconds)

    def failure(self, work: Work) -> None:
        self._driver.metrics.failure(work.stage)

    def ended(self, requests: Sequence[Request]) -> None:
        self._driver.account(requests)


def account(requests: Sequence[Request], controller: Controller, metrics: Metrics) -> None:
    """Tell the metrics and the controller where the samples of answered requests left, under which policy."""
    by_policy: dict[int, list[Request]] = {}
    for request in requests:
        by_policy.setdefault(id(request.policy), []).append(request)
    for group in by_policy.values():
        left = np.concatenate([request.exits for request in group])
        metrics.left(left)
        controller.observe(left, group[0].policy)


def change_budget(controller: Controller, budget: Budget) -> float:
    """Set the budget of a controller and return it, in the unit of the costs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # more than can be spent: the answer says what can
        controller.set_budget(budget)
    return controller.budget
