"""One stage of a bundle as a Ray Serve deployment: its calls, its replies, its replicas, and where tensors wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._values import array_value
from eenet.bundle import load
from eenet.scheduler import DecisionState, ExitHistory
from eenet.serving.engine._engine import Engine
from eenet.serving.engine._model import Model, PolicyBook, PolicyName
from eenet.serving.engine._request import EngineOptions, Outcome, Request, Work
from eenet.serving.engine._service import Workers

if TYPE_CHECKING:
    from eenet.runtime import Live, StageBackend

Ints = NDArray[np.intp]


INLINE_BYTES = 100_000
"""Live tensors of up to this many bytes travel with a call: Ray itself sends as much along with one."""


class LostObjectError(Exception):
    """An object in the store is gone: the replica that put it there ended."""


@dataclass(frozen=True)
class ObjectReference:
    """Live tensors in a store; only the store knows what `key` is."""

    key: Any


class Store(Protocol):
    """Where live tensors wait for another process."""

    async def put(self, live: Live) -> Live | ObjectReference:
        """Store them, or give them back where that is not worth it."""
        ...

    async def get(self, reference: ObjectReference) -> Live:
        """Those of a reference; raises `LostObjectError` where they are gone."""
        ...


class RayStore:
    """Ray's object store; a `Store`.

    Large live tensors wait there, so that only references pass through the process that handles HTTP. Those of up to
    `inline_bytes` are not worth it. An object is deleted when no reference to it is left.
    """

    def __init__(self, inline_bytes: int) -> None:
        self._inline_bytes = inline_bytes
        self._ray = require("ray", "ray")
        exceptions = require("ray.exceptions", "ray")
        self._lost = exceptions.ObjectLostError
        self._full = (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)

    async def put(self, live: Live) -> Live | ObjectReference:
        """See `Store`."""
        if sum(array.nbytes for array in live) <= self._inline_bytes:
            return live
        try:
            # In a thread: the event loop would stop while they are copied, or while the store frees memory.
            return ObjectReference(await asyncio.to_thread(self._ray.put, live))
        except self._full:
            return live  # with the call then

    async def get(self, reference: ObjectReference) -> Live:
        """See `Store`."""
        try:
            live: Live = await reference.key
        except self._lost as error:
            raise LostObjectError(str(error)) from error
        return live


@dataclass(frozen=True)
class StageCall:
    """n samples for a stage.

    `live` are their live tensors or a reference to them, `history` what earlier exits showed of them (None before the
    first stage), `policy` the name of their policy. Only calls of one `shape` share a batch; the caller gives up after
    `timeout` seconds.
    """

    live: Live | ObjectReference
    samples: int
    history: ExitHistory | None
    policy: PolicyName
    shape: Hashable
    timeout: float


@array_value
@dataclass(frozen=True)
class StageReply:
    """What became of a call's samples, by their positions in it.

    Those at `left` (m,) exit here, with `logits` (m, C, ...), and those with `abstained` (m,) are handed back; those at
    `staying` continue with `live` and `history`, which are None where none does. Where `outcome` is not `ANSWERED`, all
    of these are empty and `error` may say why, `said` in the words of the exception alone; where it is None, the call's
    live tensors were lost. `runs` are the samples and seconds of runs of the stage that no earlier reply has reported.
    """

    outcome: Outcome | None
    left: Ints
    logits: NDArray[np.float32] | None
    staying: Ints
    live: Live | ObjectReference | None = None
    history: ExitHistory | None = None
    error: str | None = None
    said: str | None = None
    runs: tuple[tuple[int, float], ...] = ()
    abstained: NDArray[np.bool_] | None = None


class StageServer:
    """Runs one stage of a model, batched by the engine: samples of many calls share a run.

    Parameters
    ----------
    model : Model
        Its back end need not be able to run other stages.
    stage : int
        Which stage.
    options : EngineOptions
        How batches are formed.
    workers : int
        Threads that run the stage at the same time.
    store : Store
        Where the live tensors of samples that go on wait; by default they travel with the reply.
    """

    def __init__(
        self,
        model: Model,
        stage: int,
        options: EngineOptions,
        *,
        workers: int = 1,
        store: Store | None = None,
    ) -> None:
        self._store = store
        self.stage, self.backend, self.task = stage, model.backend, model.task
        self.book = PolicyBook(model.scheduler)
        # The callers and the deployment's own limit bound how many samples wait here.
        options = replace(options, max_samples=10**9)
        engine = Engine(model.scheduler.policy, options, stages=range(stage, stage + 1))
        self._runs: list[tuple[int, float]] = []
        self._lock = threading.Lock()
        self._workers = Workers(engine, model.backend, model.task, self, count=workers)
        self._workers.start()

    async def __call__(self, call: StageCall) -> StageReply:
        """Run the stage on some samples."""
        policy = self.book.policy(call.policy)
        live, timeout = call.live, call.timeout
        if isinstance(live, ObjectReference):
            assert self._store is not None, "references come to a server with a store"
            none, began = np.arange(0), time.monotonic()
            try:
                live = await asyncio.wait_for(self._store.get(live), call.timeout)
            except LostObjectError as error:
                return StageReply(None, none, None, none, error=str(error), runs=self._unreported())
            except asyncio.TimeoutError:
                return StageReply(Outcome.LATE, none, None, none, runs=self._unreported())
            timeout = max(0.0, timeout - (time.monotonic() - began))

        def submit(now: float, context: Any) -> Request:
            return self._workers.engine.submit(
                live,
                call.samples,
                now,
                deadline=now + timeout,
                policy=policy,
                history=call.history,
                shape=call.shape,
                context=context,
            )

        request = await self._workers.answer(submit, timeout=timeout)
        result = reply(self.backend, self.stage, request, self._unreported())
        if self._store is None or result.live is None or isinstance(result.live, ObjectReference):
            return result
        return replace(result, live=await self._store.put(result.live))

    async def view(self, live: Live) -> tuple[Live, NDArray[np.float32] | None]:
        """Run the stage and its head on one sample, beside the batches: the next live tensors and the logits."""
        running = partial(self.backend.run, self.stage, live, observe=True)
        return await asyncio.get_running_loop().run_in_executor(None, running)

    async def drain(self) -> None:
        """Answer what is inside and stop the workers."""
        await self._workers.drain()

    def check_health(self) -> None:
        """Raises where a worker has died: Ray Serve then replaces the replica."""
        if not self._workers.alive:
            raise RuntimeError(f"a worker of stage {self.stage} has died")

    def batch(self, work: Work, seconds: float) -> None:
        """Count a run of the stage."""
        with self._lock:
            self._runs.append((work.samples, seconds))

    def failure(self, work: Work) -> None:
        """Do nothing: the request has the error."""

    def ended(self, requests: Sequence[Request]) -> None:
        """Do nothing: the replies have the answers."""

    def _unreported(self) -> tuple[tuple[int, float], ...]:
        with self._lock:
            runs, self._runs = tuple(self._runs), []
        return runs


class StageReplica(StageServer):
    """A replica of stage `stage` of the bundle in a folder, of which it loads nothing else.

    Stages are pure, so a call may be sent again to another replica when this one dies. Live tensors of more than
    `inline_bytes` wait in Ray's object store for the next stage.
    """

    def __init__(
        self,
        bundle: str,
        stage: int,
        options: EngineOptions,
        *,
        workers: int = 1,
        threads: int | None = None,
        allow: Sequence[str] = (),
        inline_bytes: int = INLINE_BYTES,
    ) -> None:
        model = load(bundle, threads=threads, allow=allow, stages=(stage,))
        super().__init__(model, stage, options, workers=workers, store=RayStore(inline_bytes))


def reply(backend: StageBackend, stage: int, request: Request, runs: tuple[tuple[int, float], ...]) -> StageReply:
    """The reply to a request that has ended: its answers, and the samples that go on, merged."""
    assert request.outcome is not None, "the request has ended"
    none = np.arange(0)
    if request.outcome is not Outcome.ANSWERED:
        error = request.error  # as text: the exceptions of some runtimes do not travel between processes
        said = None if error is None else str(error)
        return StageReply(request.outcome, none, None, none, error=repr(error), said=said, runs=runs)
    left = np.flatnonzero(request.exits >= 0)
    logits = None if request.logits is None else request.logits[left]
    abstained = request.abstained[left]
    if not request.onward:
        return StageReply(Outcome.ANSWERED, left, logits, none, runs=runs, abstained=abstained)
    lives = [b.live if b.rows is None else backend.take(stage + 1, b.live, b.rows) for b in request.onward]
    states = [b.state if b.rows is None else b.state.take(b.rows) for b in request.onward]
    return StageReply(
        Outcome.ANSWERED,
        left,
        logits,
        np.array([place for batch in request.onward for place in batch.places], dtype=np.intp),
        lives[0] if len(lives) == 1 else backend.join(stage + 1, lives),
        DecisionState.join(states).history,
        runs=runs,
        abstained=abstained,
    )
