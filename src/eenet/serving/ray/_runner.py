"""The runner whose stages are deployments: requests go from one to the next by handle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np

from eenet.costs import Budget
from eenet.scheduler import ExitHistory
from eenet.serving.engine._driver import account, change_budget
from eenet.serving.engine._engine import EngineOptions, require_room, shape_of
from eenet.serving.engine._limits import RefusedError
from eenet.serving.engine._metrics import Metrics
from eenet.serving.engine._policies import PolicyBook, WholeNetwork
from eenet.serving.engine._request import Outcome, Request
from eenet.serving.engine._servable import Controller, Servable
from eenet.serving.ray._stage import StageCall, StageReply

_log = logging.getLogger("eenet.serving")
_POLL = 0.02  # seconds between looks at whether everybody inside has been answered, while draining


class Call(Protocol):
    """A call of a stage under way: awaited for the reply, or cancelled."""

    def __await__(self) -> Any: ...

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        ...


StageHandle = Callable[[StageCall], Call]
"""Sends a call to a replica of a stage."""


class RayRunner:
    """Sends the samples of each request through stages that run elsewhere; a `Runner`.

    `stages` (K) send a call to a replica of each stage. `lost` are the exceptions that say that a replica died under a
    call, `refused` those that say that none can take it. Stages are pure, so a call whose replica died is sent again,
    `retries` times at most; and samples whose live tensors died with a replica begin anew, as often.
    """

    def __init__(
        self,
        servable: Servable,
        controller: Controller,
        stages: Sequence[StageHandle],
        options: EngineOptions | None = None,
        *,
        retries: int = 3,
        lost: tuple[type[Exception], ...] = (),
        refused: tuple[type[Exception], ...] = (),
    ) -> None:
        self._servable, self._controller, self._stages = servable, controller, list(stages)
        self._options = options or EngineOptions()
        self._retries, self._lost, self._refused = retries, lost, refused
        self._whole = WholeNetwork()
        self._book = PolicyBook(servable.scheduler)
        self._draining = False
        self._inside = 0
        self._numbers = 0
        self._waiting = [0] * len(self._stages)
        self.metrics = Metrics(servable.costs, lambda: self._waiting)

    def start(self) -> None:
        """Nothing: the stages run already."""

    @property
    def alive(self) -> bool:
        """Always: dead replicas are replaced."""
        return True

    @property
    def accepting(self) -> bool:
        """Whether requests are taken in."""
        return not self._draining

    @property
    def waiting(self) -> Sequence[int]:
        """Samples sent to each stage and not back yet."""
        return list(self._waiting)

    async def set_budget(self, budget: Budget) -> float:
        """Keep to another budget; see `Runner`."""
        return change_budget(self._controller, budget)

    async def drain(self) -> None:
        """Take no more requests and wait until those inside have been answered."""
        self._draining = True
        while self._inside:
            await asyncio.sleep(_POLL)

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Answer some samples; see `Runner`.

        They go on their way in groups of `max_batch`, so that a large request is spread over the replicas.
        """
        backend = self._servable.backend
        live = backend.enter(inputs)
        samples = backend.size(0, live)
        require_room(samples, self._inside, self._options, draining=self._draining)
        policy = self._controller.policy
        if full:
            policy = self._whole.of(policy)
        self._numbers += 1
        began = time.monotonic()
        request = Request(self._numbers, samples, began, policy, began + timeout)
        size = self._options.max_batch
        groups = [np.arange(first, min(first + size, samples)) for first in range(0, samples, size)]
        shape = shape_of(live)
        parts = [live if len(groups) == 1 else backend.take(0, live, group) for group in groups]
        ways = [self._way(request, part, group, shape) for part, group in zip(parts, groups, strict=True)]
        self._inside += samples
        try:
            await asyncio.wait_for(_all(ways), timeout)
        except asyncio.TimeoutError:
            request.outcome = Outcome.LATE
        finally:
            self._inside -= samples
        if request.outcome is None:
            request.outcome = Outcome.ANSWERED
            if not full:
                account([request], self._controller, self.metrics)
        request.finished = time.monotonic()
        return request

    async def _way(self, request: Request, live: Any, places: Any, shape: Any) -> None:
        """The way of some samples of a request, those at `places`, through the stages."""
        assert request.deadline is not None, "a request has a deadline here"
        name = self._book.name(request.policy)
        entered, rows = live, np.arange(len(places))  # rows of what entered that are still running
        trail: ExitHistory | None = None
        k = begun = 0
        while k < len(self._stages):
            left = request.deadline - time.monotonic()
            found = await self._run(k, StageCall(live, len(rows), trail, name, shape, max(left, 0.0)))
            if found.outcome is None:
                _log.warning("what was to go on to stage %d is gone, so it begins anew: %s", k, found.error)
                self.metrics.sent_again(k)
                begun += 1
                if begun > self._retries:
                    raise RefusedError(503, f"the request was lost before stage {k} {begun} times; try again later")
                k, trail, live = 0, None, self._servable.backend.take(0, entered, rows)
                continue
            if found.outcome is not Outcome.ANSWERED:
                if request.outcome is None:
                    request.outcome = found.outcome
                if found.outcome is Outcome.FAILED:
                    _log.error("stage %d failed on %d samples: %s", k, len(rows), found.error)
                    self.metrics.failure(k)
                return
            if found.logits is not None:
                request.answer(places[rows[found.left]].tolist(), k, found.logits)
            if found.live is None:
                return
            live, trail, rows = found.live, found.trail, rows[found.staying]
            k += 1

    async def _run(self, k: int, call: StageCall) -> StageReply:
        """Have a stage run; a call whose replica died is sent again."""
        self._waiting[k] += call.samples
        try:
            for _ in range(1 + self._retries):
                sent = self._stages[k](call)
                try:
                    found: StageReply = await sent
                except asyncio.CancelledError:
                    sent.cancel()
                    raise
                except self._lost as error:
                    _log.warning("a replica of stage %d died under a call, which is sent again: %r", k, error)
                    self.metrics.sent_again(k)
                    continue
                except self._refused as error:
                    raise RefusedError(503, f"no replica of stage {k} can take the request; try again later") from error
                for samples, seconds in found.runs:
                    self.metrics.batch(k, samples, seconds)
                return found
        finally:
            self._waiting[k] -= call.samples
        raise RefusedError(503, f"{1 + self._retries} replicas of stage {k} died under the request; try again later")


async def _all(ways: Sequence[Awaitable[None]]) -> None:
    """Wait for all; where one raises, the others are cancelled."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
