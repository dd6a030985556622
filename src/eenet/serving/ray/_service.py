"""The service whose stages are deployments: it sends the samples of each request from one to the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet.costs import Budget
from eenet.errors import InvalidInputError
from eenet.runtime import ExitView, Live, TensorSpec, exit_views
from eenet.runtime._backend import NoStages
from eenet.scheduler import ExitHistory
from eenet.serving.engine._engine import require_capacity, shape_of
from eenet.serving.engine._metrics import Metrics
from eenet.serving.engine._model import Controller, Model, PolicyBook, WholeNetwork
from eenet.serving.engine._request import EngineOptions, Outcome, RefusedError, Request
from eenet.serving.engine._service import account, change_budget
from eenet.serving.ray._stage import StageCall, StageReply

_log = logging.getLogger("eenet.serving")
_VIEW = 10.0  # seconds that one sample may take in a stage
_POLL = 0.02  # seconds between checks whether all requests inside have been answered, while draining


class Call(Protocol):
    """A call of a stage under way: awaited for the reply, or cancelled."""

    def __await__(self) -> Any: ...

    def cancel(self) -> None:
        """Give up the call."""
        ...


StageHandle = Callable[[StageCall], Call]
"""Sends a call to a replica of a stage."""


class RemoteService:
    """Answers requests by sending their samples through stages that run elsewhere.

    Stages are pure, so a call whose replica died is sent again. Samples whose live tensors are lost start again at the
    first stage.

    Parameters
    ----------
    model : Model
        Its back end need not be able to run any stage.
    controller : Controller
        Holds the policy and the budget.
    stages : sequence of callables (K,)
        Each sends a `StageCall` to a replica of its stage, and returns an awaitable of the reply with `cancel()`.
    options : EngineOptions
        How many samples may be inside, and how many go in one call.
    retries : int
        How often a call is sent again, and how often samples start again.
    lost, refused : exceptions
        What a call raises whose replica died, and one that no replica can take.
    views : sequence of callables (K,)
        Each has a replica of its stage run, with its head, on the live tensors of one sample; returns an awaitable of
        the next live tensors and the logits. Without them, `view` gives None.
    """

    def __init__(
        self,
        model: Model,
        controller: Controller,
        stages: Sequence[StageHandle],
        options: EngineOptions | None = None,
        *,
        retries: int = 3,
        lost: tuple[type[Exception], ...] = (),
        refused: tuple[type[Exception], ...] = (),
        views: Sequence[Callable[[Any], Call]] = (),
    ) -> None:
        self._model, self._controller, self._stages = model, controller, list(stages)
        self._options = options or EngineOptions()
        self._retries, self._lost, self._refused = retries, lost, refused
        self._views = list(views)
        self._whole = WholeNetwork()
        self._book = PolicyBook(model.scheduler)
        self._draining = False
        self._inside = 0
        self._numbers = 0
        self._waiting = [0] * len(self._stages)
        self.metrics = Metrics(model.costs, lambda: self._waiting, model.info)

    def start(self) -> None:
        """Do nothing: the stages run already."""

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

    async def view(self, inputs: Any) -> list[ExitView] | None:
        """What each exit says of one sample; see `Service`."""
        if not self._views:
            return None
        policy, live, found = self._controller.policy, self._model.backend.enter(inputs), []
        for k, view in enumerate(self._views):
            try:
                live, logits = await view(live)
            except (*self._lost, *self._refused) as error:
                raise RefusedError(503, f"no replica of stage {k} shows its exit; try again later") from error
            found.append(logits)
        return exit_views(found, policy, self._model.task)

    async def set_budget(self, budget: Budget) -> float:
        """Keep to another budget; see `Service`."""
        return change_budget(self._controller, budget)

    async def drain(self) -> None:
        """Take no more requests and wait until those inside have been answered."""
        self._draining = True
        while self._inside:
            await asyncio.sleep(_POLL)

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Answer some samples; see `Service`.

        They are sent in groups of `max_batch`, so that a large request is spread over the replicas.
        """
        backend = self._model.backend
        live = backend.enter(inputs)
        samples = backend.size(0, live)
        require_capacity(samples, self._inside, self._options, draining=self._draining)
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
        paths = [self._path(request, part, group, shape) for part, group in zip(parts, groups, strict=True)]
        self._inside += samples
        try:
            await asyncio.wait_for(_all(paths), timeout)
            request.outcome = request.outcome or Outcome.ANSWERED
        except asyncio.TimeoutError:
            request.outcome = Outcome.LATE
        finally:
            self._inside -= samples
            if not full:
                account([request], self._controller, self.metrics)
        request.finished = time.monotonic()
        return request

    async def _path(self, request: Request, live: Any, places: Any, shape: Any) -> None:
        """Send some samples of a request, those at `places`, through the stages."""
        assert request.deadline is not None, "a request has a deadline here"
        name = self._book.name(request.policy)
        entered, rows = live, np.arange(len(places))  # rows of what entered that are still running
        history: ExitHistory | None = None
        k = restarts = 0
        while k < len(self._stages):
            sent = places[rows]
            request.reached[sent] = np.maximum(request.reached[sent], k)
            left = request.deadline - time.monotonic()
            reply = await self._run(k, StageCall(live, len(rows), history, name, shape, max(left, 0.0)))
            if reply.outcome is None:
                _log.warning("live tensors for stage %d are lost, so their samples start again: %s", k, reply.error)
                self.metrics.sent_again(k)
                restarts += 1
                if restarts > self._retries:
                    raise RefusedError(503, f"the request was lost before stage {k} {restarts} times; try again later")
                k, history, live = 0, None, self._model.backend.take(0, entered, rows)
                continue
            if reply.outcome is not Outcome.ANSWERED:
                if request.outcome is None:
                    request.outcome = reply.outcome
                if reply.outcome is Outcome.FAILED:
                    _log.error("stage %d failed on %d samples: %s", k, len(rows), reply.error)
                    self.metrics.failure(k)
                    request.error = RuntimeError(reply.said)
                return
            if reply.logits is not None:
                request.answer(places[rows[reply.left]].tolist(), k, reply.logits, reply.abstained)
            if reply.live is None:
                return
            live, history, rows = reply.live, reply.history, rows[reply.staying]
            k += 1

    async def _run(self, k: int, call: StageCall) -> StageReply:
        """Have a stage run; a call whose replica died is sent again."""
        self._waiting[k] += call.samples
        try:
            for _ in range(1 + self._retries):
                sent = self._stages[k](call)
                try:
                    reply: StageReply = await sent
                except asyncio.CancelledError:
                    sent.cancel()
                    raise
                except self._lost as error:
                    _log.warning("a replica of stage %d died under a call, which is sent again: %r", k, error)
                    self.metrics.sent_again(k)
                    continue
                except self._refused as error:
                    raise RefusedError(503, f"no replica of stage {k} can take the request; try again later") from error
                for samples, seconds in reply.runs:
                    self.metrics.batch(k, samples, seconds)
                return reply
        finally:
            self._waiting[k] -= call.samples
        raise RefusedError(503, f"{1 + self._retries} replicas of stage {k} died under the request; try again later")


class RemoteStages(NoStages):
    """A backend whose stages run where they are: one sample after another, beside the batches, and from a thread alone.

    `views` (K,) are methods of the handles. What a call raises for the network is in `failed`, and for want of a
    replica in `gone`.
    """

    def __init__(
        self,
        inputs: Sequence[Sequence[TensorSpec]],
        num_classes: int,
        views: Sequence[Any],
        *,
        failed: type[Exception],
        gone: tuple[type[Exception], ...],
    ) -> None:
        super().__init__(inputs, num_classes)
        self._views, self._failed, self._gone = views, failed, gone

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:  # noqa: ARG002
        """Raises RuntimeError for what the network raises, and `InvalidInputError` where no replica answers."""
        try:
            found: tuple[Live, NDArray[np.float32] | None] = self._views[k].remote(live).result(timeout_s=_VIEW)
        except self._gone as error:
            raise InvalidInputError(f"no replica of stage {k} shows its exit; try again later") from error
        except self._failed as error:
            raise RuntimeError(str(error)) from error
        return found


async def _all(paths: Sequence[Awaitable[None]]) -> None:
    """Wait for all; where one raises, the others are cancelled."""
    tasks = [asyncio.ensure_future(path) for path in paths]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
