"""One stage of a bundle as a Ray Serve deployment: what comes to it, what it gives back, and a replica of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet.bundle import load
from eenet.scheduler import DecisionState, ExitHistory
from eenet.serving.engine._engine import Engine, EngineOptions
from eenet.serving.engine._policies import PolicyBook, PolicyName
from eenet.serving.engine._request import Outcome, Request
from eenet.serving.engine._servable import Servable
from eenet.serving.engine._work import Work
from eenet.serving.engine._workers import Workers
from eenet.serving.ray._parcels import INLINE_BYTES, LostParcelError, ObjectStore, Parcel, Store

if TYPE_CHECKING:
    from eenet.runtime import Live, StageBackend

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class StageCall:
    """n samples for a stage: their live tensors, or where those are, what is known of them (None before the first
    stage), their policy.

    Only calls of one `shape` share a batch; the caller has given up after `timeout` seconds.
    """

    live: Live | Parcel
    samples: int
    trail: ExitHistory | None
    policy: PolicyName
    shape: Hashable
    timeout: float


@dataclass(frozen=True)
class StageReply:
    """What became of a call's samples, by their positions in it.

    Those at `left` (m,) leave here, with `logits` (m, C, ...); those at `staying` go on with `live` and `trail`, which
    are None where nobody does. Where `outcome` is not `ANSWERED` there is nothing of this, and `error` may say why;
    where it is None the call's live tensors were gone. `runs` are the samples and seconds of runs of the stage that no
    reply has told of before.
    """

    outcome: Outcome | None
    left: Ints
    logits: NDArray[np.float32] | None
    staying: Ints
    live: Live | Parcel | None = None
    trail: ExitHistory | None = None
    error: str | None = None
    runs: tuple[tuple[int, float], ...] = ()


class StageServer:
    """Runs stage `stage` of a servable, batched by the engine: survivors of many calls share a run.

    With a `store` those who go on are left there.
    """

    def __init__(
        self,
        servable: Servable,
        stage: int,
        options: EngineOptions,
        *,
        workers: int = 1,
        store: Store | None = None,
    ) -> None:
        self._store = store
        self.stage, self.backend, self.task = stage, servable.backend, servable.task
        self.book = PolicyBook(servable.scheduler)
        # How much may wait here is bounded by who calls and by the deployment's own limit.
        options = replace(options, max_samples=10**9)
        engine = Engine(servable.scheduler.policy, options, stages=range(stage, stage + 1))
        self._runs: list[tuple[int, float]] = []
        self._lock = threading.Lock()
        self._workers = Workers(engine, servable.backend, servable.task, self, count=workers)
        self._workers.start()

    async def __call__(self, call: StageCall) -> StageReply:
        """Run the stage on some samples."""
        policy = self.book.policy(call.policy)
        live, timeout = call.live, call.timeout
        if isinstance(live, Parcel):
            assert self._store is not None, "who gets parcels has the store they are in"
            nobody, began = np.arange(0), time.monotonic()
            try:
                live = await asyncio.wait_for(self._store.fetch(live), call.timeout)
            except LostParcelError as error:
                return StageReply(None, nobody, None, nobody, error=str(error), runs=self._told())
            except asyncio.TimeoutError:
                return StageReply(Outcome.LATE, nobody, None, nobody, runs=self._told())
            timeout = max(0.0, timeout - (time.monotonic() - began))

        def submit(now: float, context: Any) -> Request:
            return self._workers.engine.submit(
                live,
                call.samples,
                now,
                deadline=now + timeout,
                policy=policy,
                trail=call.trail,
                shape=call.shape,
                context=context,
            )

        request = await self._workers.answer(submit, timeout=timeout)
        found = reply(self.backend, self.stage, request, self._told())
        if self._store is None or found.live is None or isinstance(found.live, Parcel):
            return found
        return replace(found, live=await self._store.leave(found.live))

    async def drain(self) -> None:
        """Answer what is inside and stop the workers."""
        await self._workers.drain()

    def check_health(self) -> None:
        """Raises where a worker has died: Ray Serve then replaces the replica."""
        if not self._workers.alive:
            raise RuntimeError(f"a worker of stage {self.stage} has died")

    def batch(self, work: Work, seconds: float) -> None:
        """The stage was run."""
        with self._lock:
            self._runs.append((work.samples, seconds))

    def failure(self, work: Work) -> None:
        """Running it raised: the request says so."""

    def ended(self, requests: Sequence[Request]) -> None:
        """Requests were answered: their replies say so."""

    def _told(self) -> tuple[tuple[int, float], ...]:
        with self._lock:
            runs, self._runs = tuple(self._runs), []
        return runs


class StageReplica(StageServer):
    """A replica of stage `stage` of the bundle in a folder, of which it loads nothing else.

    Stages are pure, so a call may be sent again to another replica when this one dies. Survivors of more than
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
        servable = load(bundle, threads=threads, allow=allow, stages=(stage,))
        super().__init__(servable, stage, options, workers=workers, store=ObjectStore(inline_bytes))


def reply(backend: StageBackend, stage: int, request: Request, runs: tuple[tuple[int, float], ...]) -> StageReply:
    """What an engine of one stage made of a request, the survivors compacted."""
    assert request.outcome is not None, "the request has ended"
    nobody = np.arange(0)
    if request.outcome is not Outcome.ANSWERED:
        return StageReply(request.outcome, nobody, None, nobody, error=repr(request.error), runs=runs)
    left = np.flatnonzero(request.exits >= 0)
    logits = None if request.logits is None else request.logits[left]
    if not request.onward:
        return StageReply(Outcome.ANSWERED, left, logits, nobody, runs=runs)
    lives = [c.live if c.rows is None else backend.take(stage + 1, c.live, c.rows) for c in request.onward]
    routes = [c.route if c.rows is None else c.route.take(c.rows) for c in request.onward]
    return StageReply(
        Outcome.ANSWERED,
        left,
        logits,
        np.array([place for cohort in request.onward for place in cohort.places], dtype=np.intp),
        lives[0] if len(lives) == 1 else backend.join(stage + 1, lives),
        DecisionState.join(routes).trail,
        runs=runs,
    )
