"""The engine: queues before each stage, and which stage runs next on whom. No threads and no clock of its own."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eenet.errors import DrainingError, InvalidInputError, OverloadedError
from eenet.scheduler import DecisionState, ExitHistory, ThresholdPolicy
from eenet.serving.engine._request import Outcome, Request
from eenet.serving.engine._work import Cohort, Work

if TYPE_CHECKING:
    from eenet.runtime import Live

_RATE_MEMORY = 0.9  # the weight of the past in the running mean of the time a sample takes
_STALE_DEADLINES = 256  # so many deadlines of requests that have ended are kept before the heap is rebuilt


@dataclass(frozen=True)
class EngineOptions:
    """How the engine batches. Times are in seconds.

    A batch has at most `max_batch` samples. A request waits at most `max_wait` for company while the machine is idle.
    Survivors that have stood before a deep stage for `max_hold` go first, full batch or not, so that nobody starves
    while the machine is saturated; a server holds them for less where a call costs little beyond its samples. More than
    `max_samples` samples are not taken in at once. With `merge` off, a batch goes through its stages alone, as it would
    without an engine.
    """

    max_batch: int = 16
    max_wait: float = 0.002
    max_hold: float = 1.0
    max_samples: int = 1024
    merge: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_samples"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected 1 or more")
        for name in ("max_wait", "max_hold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected seconds, 0 or more")


class Engine:
    """Batches by stage: the samples of several requests go through a multi-exit network together.

    There is a queue before each stage. The next stage to run is the deepest one with a full batch before it, else that
    of the oldest request. The caller submits, asks for work, does it (`Work.execute`) and says that it is complete;
    `submit`, `complete`, `fail` and `expire` are told the time, in seconds of any clock that does not go back. Every
    accepted request ends exactly once: `complete`, `fail` and `expire` return those that did, `cancel` ends one. A
    request's samples go by the policy that was in force when it came, whatever `policy` is set to later. `max_hold`, at
    first that of the options, may be set anew at any time.

    `stages` are those it runs, one after the other, by default all. Samples that neither left nor have a stage to go to
    leave it as their request's `onward`: that is how stages in different processes make up one network.

    It is not safe to call from several threads at once; `Work.execute` is.
    """

    def __init__(
        self, policy: ThresholdPolicy, options: EngineOptions | None = None, *, stages: range | None = None
    ) -> None:
        self.policy = policy
        self.options = options or EngineOptions()
        self.num_exits = policy.num_exits
        self.stages = stages or range(self.num_exits)
        self.max_hold = self.options.max_hold
        self.draining = False
        self.inside = 0
        self.working = 0
        self._queues: list[dict[Hashable, _Queue]] = [{} for _ in range(self.num_exits)]
        self._alone: deque[tuple[int, Cohort]] = deque()
        self._open: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._submitted = 0
        self._seconds_per_sample = 0.0
        self._measured_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether there is nobody inside and nothing at work."""
        return self.inside == 0 and self.working == 0

    @property
    def waiting(self) -> list[int]:
        """How many samples wait before each stage, K numbers."""
        return [sum(queue.samples for queue in queues.values()) for queues in self._queues]

    def submit(
        self,
        live: Live,
        samples: int,
        now: float,
        *,
        deadline: float | None = None,
        policy: ThresholdPolicy | None = None,
        trail: ExitHistory | None = None,
        shape: Hashable = None,
        context: Any = None,
    ) -> Request:
        """Take in a request: the live tensors before the first stage, of so many samples.

        `StageBackend.enter` gives them before stage 0; before another one `trail` says what is known of the samples
        already. It goes by `policy`, or by the engine's, and merges with requests of the same `shape`, by default that
        of its live tensors. Raises as `require_room` does.
        """
        require_room(
            samples,
            self.inside,
            self.options,
            draining=self.draining,
            retry_after=self.inside * self._seconds_per_sample,
        )
        if not self.inside:
            self._measured_at = now
        self._submitted += 1
        request = Request(self._submitted, samples, now, policy or self.policy, deadline, context)
        self._open[request.number] = request
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, request.number))
        shape = shape_of(live) if shape is None else shape
        route = (
            DecisionState(request.policy, samples)
            if trail is None
            else DecisionState.onward(request.policy, samples, trail)
        )
        cohort = Cohort(live, route, [request] * samples, list(range(samples)), shape, now)
        self.inside += samples
        self._push(self.stages[0], cohort)
        return request

    def cancel(self, request: Request, now: float) -> bool:
        """Drop a request that nobody waits for any more; False when it has ended already."""
        if not request.open:
            return False
        self._end(request, Outcome.CANCELLED, now)
        return True

    def expire(self, now: float) -> list[Request]:
        """Drop the requests whose deadline has passed, and return them."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = self._open[self._deadlines[0][1]]
            self._end(request, Outcome.LATE, now)
            late.append(request)
        return late

    def drain(self) -> None:
        """Take no more requests; those inside are answered, without waiting for company."""
        self.draining = True

    def next_work(self, now: float) -> Work | None:
        """The stage to run now and on whom, or None; then `wake_at` says when to ask again if nothing happens."""
        while self._alone:
            k, cohort = self._alone.popleft()
            if cohort.open:
                return self._work(k, [cohort])
        found = self._choose(now)
        if found is None:
            return None
        k, queue = found
        return self._work(k, self._form(k, queue))

    @property
    def wake_at(self) -> float | None:
        """When a request will have waited for company long enough, or is past its deadline; None when nobody waits."""
        times = []
        if oldest := self._oldest():
            times.append(oldest[0].arrived + self.options.max_wait)
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(times, default=None)

    def complete(self, work: Work, now: float) -> list[Request]:
        """Take the results of work that was executed; returns the requests that are answered by it."""
        self.working -= 1
        answered = []
        for owners, places, logits in work.answers:
            for request, rows in _by_request(owners):
                if request.open:
                    request.answer([places[i] for i in rows], work.stage, logits[rows])
                    if request.remaining == 0:
                        self._end(request, Outcome.ANSWERED, now)
                        answered.append(request)
        if work.stage == self.stages[-1]:
            answered += self._hand_on(work, now)
            work.survivors.clear()
        if answered:
            self._measure(sum(request.samples for request in answered), now)
        for cohort in work.survivors:
            cohort.queued = now
            if cohort.open:
                self._push(work.stage + 1, cohort)
        return answered

    def _hand_on(self, work: Work, now: float) -> list[Request]:
        """Let the survivors of the last stage that runs here go; returns the requests that end with it."""
        ended = []
        for cohort in work.survivors:
            for part in cohort.by_request():
                request = part.owners[0]
                if request.open:
                    request.pass_on(part)
                    if request.remaining == 0:
                        self._end(request, Outcome.ANSWERED, now)
                        ended.append(request)
        return ended

    def fail(self, work: Work, error: Exception, now: float) -> list[Request]:
        """Say that executing raised; returns the requests that fail with it.

        Where several requests shared the batch, each is tried again alone, so that none fails for another's sake.
        """
        self.working -= 1
        requests = [request for request in work.requests if request.open]
        if len(work.requests) == 1:
            for request in requests:
                request.error = error
                self._end(request, Outcome.FAILED, now)
            return requests
        for part in work.parts:
            self._alone.extend((work.stage, cohort) for cohort in part.by_request() if cohort.open)
        return []

    def _end(self, request: Request, outcome: Outcome, now: float) -> None:
        request.outcome, request.finished = outcome, now
        self.inside -= request.samples
        del self._open[request.number]
        if len(self._deadlines) > _STALE_DEADLINES + 2 * len(self._open):
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._open]
            heapq.heapify(self._deadlines)
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heapq.heappop(self._deadlines)
        if outcome is Outcome.ANSWERED:
            return
        for k, queues in enumerate(self._queues):
            for shape, queue in list(queues.items()):
                queue.drop(request)
                if not queue.cohorts:
                    del self._queues[k][shape]

    def _measure(self, samples: int, now: float) -> None:
        """Keep a running mean of the time a sample takes while there is work, for the advice when to come back."""
        spent = (now - self._measured_at) / samples
        weight = _RATE_MEMORY**samples
        self._seconds_per_sample = weight * self._seconds_per_sample + (1 - weight) * spent
        self._measured_at = now

    def _push(self, k: int, cohort: Cohort) -> None:
        self._queues[k].setdefault(cohort.shape, _Queue()).push(cohort)

    def _oldest(self) -> tuple[Request, int, _Queue] | None:
        """The oldest request that waits, the stage it waits before, and the queue it is in."""
        oldest: tuple[Request, int, _Queue] | None = None
        for k, queue in self._all_queues():
            request = queue.oldest(ordered=k == 0)
            if oldest is None or request.number < oldest[0].number:
                oldest = request, k, queue
        return oldest

    def _all_queues(self) -> Iterator[tuple[int, _Queue]]:
        """All queues that are not empty, the deepest first."""
        for k in reversed(range(self.num_exits)):
            for queue in self._queues[k].values():
                yield k, queue

    def _choose(self, now: float) -> tuple[int, _Queue] | None:
        options = self.options
        if not options.merge:
            deepest = next(((k, queue) for k, queue in self._all_queues() if k > 0), None)
            if deepest is not None:
                return deepest
        held = [(queue.cohorts[0].queued, k, queue) for k, queue in self._all_queues() if k > 0]
        if held:
            since, k, queue = min(held, key=lambda item: item[0])
            if now - since >= self.max_hold:
                return k, queue
        for k, queue in self._all_queues():
            if queue.samples >= options.max_batch:
                return k, queue
        oldest = self._oldest()
        if oldest is None:
            return None
        request, k, queue = oldest
        return (k, queue) if self.draining or now >= request.arrived + options.max_wait else None

    def _form(self, k: int, queue: _Queue) -> list[Cohort]:
        """Take a batch out of a queue."""
        shape = queue.cohorts[0].shape
        if k > 0 and not self.options.merge:
            parts = [queue.pop(queue.samples)]
        else:
            parts, room = [], self.options.max_batch
            while room > 0 and queue.cohorts:
                parts.append(queue.pop(room))
                room -= len(parts[-1])
        if not queue.cohorts:
            del self._queues[k][shape]
        return parts

    def _work(self, k: int, parts: list[Cohort]) -> Work:
        self.working += 1
        return Work(k, parts, self.num_exits)


def shape_of(live: Live) -> Hashable:
    """What the inputs of two requests must have in common to share a batch: all but the number of samples."""
    return tuple((tensor.dtype.str, tensor.shape[1:]) for tensor in live)


def require_room(
    samples: int, inside: int, options: EngineOptions, *, draining: bool = False, retry_after: float = 0.0
) -> None:
    """Raise where a request of so many samples cannot be taken in beside the `inside` samples that are.

    `OverloadedError`, which says when to try again, while there is no room for it, `DrainingError` while `draining`,
    and `InvalidInputError` for a request without samples or with more than there is ever room for.
    """
    if draining:
        raise DrainingError("the server is going down and takes no more requests; try another one")
    if not 1 <= samples <= options.max_samples:
        raise InvalidInputError(
            f"the request has {samples} samples, expected 1 to {options.max_samples}; send it in parts"
        )
    if inside + samples > options.max_samples:
        raise OverloadedError(
            f"{inside} samples are waiting and there is room for {options.max_samples}; try again later",
            retry_after=max(1.0, retry_after),
        )


class _Queue:
    """Cohorts of one shape before one stage, in the order they came; each has samples that still wait."""

    def __init__(self) -> None:
        self.cohorts: deque[Cohort] = deque()
        self.samples = 0

    def push(self, cohort: Cohort) -> None:
        cohort = cohort.without_ended()
        self.cohorts.append(cohort)
        self.samples += len(cohort)

    def pop(self, most: int) -> Cohort:
        """Take the first cohort, or so many samples of it."""
        cohort = self.cohorts.popleft()
        if len(cohort) > most:
            self.cohorts.appendleft(cohort.select(range(most, len(cohort))))
            cohort = cohort.select(range(most))
        self.samples -= len(cohort)
        return cohort

    def drop(self, request: Request) -> None:
        """Leave out the samples of a request that has ended."""
        if not any(request in cohort.owners for cohort in self.cohorts):
            return
        self.cohorts = deque(cohort.without_ended() for cohort in self.cohorts if cohort.open)
        self.samples = sum(map(len, self.cohorts))

    def oldest(self, *, ordered: bool) -> Request:
        """The oldest request with samples here; `ordered` where cohorts stand in the order of their requests."""
        if ordered:
            return self.cohorts[0].oldest
        return min((cohort.oldest for cohort in self.cohorts), key=lambda request: request.number)


def _by_request(owners: list[Request]) -> Iterator[tuple[Request, list[int]]]:
    """Each request with the positions of its samples."""
    if len(owners) == 1:
        yield owners[0], [0]
        return
    rows: dict[Request, list[int]] = {}
    for i, owner in enumerate(owners):
        rows.setdefault(owner, []).append(i)
    yield from rows.items()
