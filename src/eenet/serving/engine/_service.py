"""An engine at work: threads and a clock, the batching delay, and the service that answers requests in this process."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eenet.costs import Budget
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.serving.engine._engine import Engine
from eenet.serving.engine._metrics import Metrics
from eenet.serving.engine._model import Controller, Model, WholeNetwork
from eenet.serving.engine._request import EngineOptions, Outcome, Request, Work
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.runtime import ExitView, StageBackend

_log = logging.getLogger("eenet.serving")


class _Unconfigured(logging.StreamHandler):  # type: ignore[type-arg]
    """Errors of a server go to standard error where the program has set up no logging: they must not be lost."""

    def filter(self, record: logging.LogRecord) -> bool:
        others = [*logging.getLogger("eenet").handlers, *logging.getLogger().handlers]
        return super().filter(record) and all(isinstance(one, logging.NullHandler) for one in others)


_unconfigured = _Unconfigured()
_unconfigured.setLevel(logging.WARNING)
_log.addHandler(_unconfigured)

_FADING = 1.01  # the fastest call of a size counts as this much slower with each further call: a stage may change
_CHANGED = 0.95
_REFIT = 32  # calls of a stage


class BatchingDelay:
    """How long samples wait at a deep stage for others to join their batch, learned from the calls of the stages.

    A call costs a fixed time and a time for each sample. Where the fixed time is large, waiting for a full batch saves
    it for all samples behind. Where it is small, as on most CPUs, waiting gains little and makes the slowest answers
    slower. The two times are a line through the fastest calls of each batch size; slower calls say more about the
    machine than about the stage. The stage with the longest delay decides.

    Parameters
    ----------
    most : float
        The longest delay, in seconds; also the delay until the calls differ in size.

    Attributes
    ----------
    seconds : float
        The delay.
    """

    MAX_CALLS = 12.0
    """The longest delay, in fixed times of a call."""

    MIN_SHARE = 1 / 6
    """Samples wait where the fixed time is at least this share of a call of a full batch.

    By simulation (exits 40/30/20/10 %, batches of 8 and 16), against no delay: from this share on the throughput is
    1.09 to 1.44 times as high, and p99 at a load of 0.9 is 0.67 to 1.05 times as high; at half of this share 1.04 and
    up to 1.15.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._fastest: dict[int, dict[int, float]] = {}
        self._calls: dict[int, int] = {}
        self._delays: dict[int, float] = {}
        self.seconds = most

    @classmethod
    def of(cls, fixed: float, full: float, most: float) -> float:
        """The delay where a call costs `fixed` seconds, and `full` for a full batch; at most `most`, all in seconds.

        0 where the fixed time is a small part: a sample that waits does so for at least one other call.
        """
        return min(most, cls.MAX_CALLS * fixed) if fixed >= cls.MIN_SHARE * full else 0.0

    def add(self, stage: int, samples: int, seconds: float) -> float:
        """Learn from a call of a stage; returns the delay from now on."""
        fastest = self._fastest.setdefault(stage, {})
        before = fastest.get(samples, np.inf) * _FADING
        fastest[samples] = min(before, seconds)
        self._calls[stage] = self._calls.get(stage, 0) + 1
        if seconds < before * _CHANGED or self._calls[stage] % _REFIT == 0:
            self._fit(stage)
        return self.seconds

    def _fit(self, stage: int) -> None:
        sizes = np.array(list(self._fastest[stage]), dtype=np.float64)
        if sizes.max() < 2 * sizes.min():
            return  # batches of one size do not show the fixed time
        seconds = np.array(list(self._fastest[stage].values()))
        off = sizes - sizes.mean()
        slope = max(float(off @ seconds / (off @ off)), 0.0)
        fixed = max(float(seconds.mean() - slope * sizes.mean()), 0.0)
        self._delays[stage] = self.of(fixed, fixed + slope * float(sizes.max()), self._most)
        self.seconds = max(self._delays.values())


class Callback(Protocol):
    """Is called with what the workers did; `ended` while `Workers.turn` is held, the others while it is not."""

    def batch(self, work: Work, seconds: float) -> None:
        """A stage was run."""
        ...

    def failure(self, work: Work) -> None:
        """Running a stage raised."""
        ...

    def ended(self, requests: Sequence[Request]) -> None:
        """Requests have ended, answered or not."""
        ...


@dataclass(frozen=True)
class _Waiting:
    """The future of an event loop that waits for a request; and the caller's own."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    context: Any


class Workers:
    """Run an engine's work in `count` threads. `turn` guards the engine; no stage runs while it is held.

    The engine's batching delay is learned from the calls.
    """

    def __init__(
        self,
        engine: Engine,
        backend: StageBackend,
        task: Task,
        callback: Callback,
        *,
        count: int = 1,
    ) -> None:
        if count < 1:
            raise InvalidInputError(f"workers is {count}, expected 1 or more")
        self.engine = engine
        self.turn = threading.Condition()
        self._backend, self._task = backend, task
        self._callback = callback
        self._stopping = False
        self._delay = BatchingDelay(engine.options.max_delay)
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
        """Submit a request and wait until it has ended; cancelling the caller cancels the request.

        `submit` is called with the time and with what must become the request's context, while `turn` is held.
        `context` is what `context_of` will give back.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop, loop.create_future(), context)
        with self.turn:
            request = submit(time.monotonic(), waiting)
            self.turn.notify()
        # The workers look at deadlines between stages; where a stage takes longer than that, this does.
        timer = loop.call_later(timeout, self._expire, request.deadline)
        try:
            await waiting.future
        finally:
            timer.cancel()
            if request.open:
                with self.turn:
                    if self.engine.cancel(request, time.monotonic()):
                        self._callback.ended([request])
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

    def _expire(self, deadline: float | None) -> None:
        with self.turn:
            # The timers of an event loop may be early by their resolution, and there is no second one.
            self._end(self.engine.expire(max(time.monotonic(), deadline or 0.0)))

    def _run(self) -> None:
        while (work := self._next()) is not None:
            began = time.perf_counter()
            try:
                work.execute(self._backend, self._task)
            except Exception as error:  # noqa: BLE001 - any error of a network ends its request, not the server
                self._report(work, error)
                self._callback.failure(work)
                with self.turn:
                    self._end(self.engine.fail(work, error, time.monotonic()))
                    self.turn.notify()
                continue
            seconds = time.perf_counter() - began
            self._callback.batch(work, seconds)
            with self.turn:
                if len(self.engine.stages) > 1:
                    self.engine.max_delay = self._delay.add(work.stage, work.samples, seconds)
                self._end(self.engine.complete(work, time.monotonic()))
                self.turn.notify()

    def _report(self, work: Work, error: Exception) -> None:
        """Log a failure, with its traceback the first time only: a client may repeat a request that fails."""
        kind = (work.stage, type(error))
        _log.error(
            "stage %d failed on %d samples: %r", work.stage, work.samples, error, exc_info=kind not in self._reported
        )
        self._reported.add(kind)

    def _next(self) -> Work | None:
        """Wait for work; None when there will be none."""
        with self.turn:
            while True:
                now = time.monotonic()
                self._end(self.engine.expire(now))
                work = self.engine.next_work(now)
                if work is not None:
                    return work
                if self._stopping and self.engine.idle:
                    self.turn.notify_all()
                    return None
                wake = self.engine.wake_at
                self.turn.wait(None if wake is None else max(0.0, wake - now))

    def _end(self, ended: Sequence[Request]) -> None:
        """Report requests that have ended, and wake those who wait for them."""
        if not ended:
            return
        self._callback.ended(ended)
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for request in ended:
            by_loop.setdefault(request.context.loop, []).append(request.context.future)
        for loop, futures in by_loop.items():
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class LocalService:
    """Answers requests by running all stages of a model in this process, batched by the engine.

    Call `start`, then `answer` from an event loop, and `drain` at the end.

    Parameters
    ----------
    model : Model
        A loaded bundle or a `ServedModel`.
    controller : Controller
        Holds the policy and the budget: a `BudgetController` or a `FixedBudget`.
    options : EngineOptions
        How batches are formed.
    workers : int
        Threads that run stages at the same time.

    Raises
    ------
    InvalidInputError
        For fewer workers than one.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> from eenet.serving.engine import FixedBudget, LocalService, ServedModel
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> service = LocalService(ServedModel(model, scheduler), FixedBudget(scheduler))
    >>> service.waiting
    [0, 0]
    """

    def __init__(
        self,
        model: Model,
        controller: Controller,
        options: EngineOptions | None = None,
        *,
        workers: int = 1,
    ) -> None:
        self._backend, self._task = model.backend, model.task
        self._controller = controller
        self._engine = Engine(controller.policy, options)
        self._whole = WholeNetwork()
        self._workers = Workers(self._engine, model.backend, model.task, _Counts(self), count=workers)
        self.metrics = Metrics(model.costs, lambda: self._workers.waiting, model.info)

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

    @property
    def batching_delay(self) -> float:
        """The delay at the deep stages, in seconds, as learned so far; see `BatchingDelay`."""
        return self._engine.max_delay

    def view(self, inputs: Any) -> list[ExitView] | None:
        """What each exit says of one sample; see `Service`."""
        from eenet.runtime import view_exits

        live, policy = self._backend.enter(inputs), self._engine.policy
        if self._backend.size(0, live) != 1:
            raise InvalidInputError(f"{self._backend.size(0, live)} samples, expected one: its exits are shown")
        return view_exits(self._backend, policy, self._task, live, self._whole.of(policy))

    async def set_budget(self, budget: Budget) -> float:
        """Keep to another budget, which is returned in the unit of the costs.

        Requests inside keep their policy. Raises `InvalidInputError` for a budget that cannot be met.
        """
        with self._workers.turn:
            limit = change_budget(self._controller, budget)
            self._engine.policy = self._controller.policy
            return limit

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Take in the inputs of some samples and wait until the request has ended.

        `full` switches the early exits off: all samples are answered, or handed back, as the policy does at the last.
        Raises as `StageBackend.enter` and `Engine.submit`. Cancelling the caller cancels the request.
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

    def _account(self, ended: Sequence[Request]) -> None:
        # Requests that switched the exits off are not counted.
        account([r for r in ended if Workers.context_of(r)], self._controller, self.metrics)
        self._engine.policy = self._controller.policy


class _Counts:
    """Reports to a service's metrics and controller what the workers did."""

    def __init__(self, service: LocalService) -> None:
        self._service = service

    def batch(self, work: Work, seconds: float) -> None:
        self._service.metrics.batch(work.stage, work.samples, seconds)

    def failure(self, work: Work) -> None:
        self._service.metrics.failure(work.stage)

    def ended(self, requests: Sequence[Request]) -> None:
        self._service._account(requests)


def account(requests: Sequence[Request], controller: Controller, metrics: Metrics) -> None:
    """Report to the metrics and the controller where the samples of answered requests left, policy by policy.

    Of requests that ended without an answer, what was computed for them.
    """
    by_policy: dict[int, list[Request]] = {}
    for request in requests:
        if request.outcome is Outcome.ANSWERED:
            by_policy.setdefault(id(request.policy), []).append(request)
            continue
        begun = request.reached[request.reached >= 0]
        if len(begun):
            controller.observe_costs(metrics.unanswered(begun, controller.budget), request.policy)
    for group in by_policy.values():
        left = np.concatenate([request.exits for request in group])
        metrics.left(left, int(sum(request.abstained.sum() for request in group)))
        metrics.recent.add(group, controller.budget)
        controller.observe(left, group[0].policy)


def change_budget(controller: Controller, budget: Budget) -> float:
    """Set the budget of a controller and return it, in the unit of the costs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # more than can be spent: the answer says what can
        controller.set_budget(budget)
    return controller.budget
