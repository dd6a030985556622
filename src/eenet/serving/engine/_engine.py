"""The engine: queues before each stage, and which stage runs next on which samples; no threads and no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

from eenet.errors import DrainingError, InvalidInputError, OverloadedError
from eenet.scheduler import DecisionState, ExitHistory, ThresholdPolicy
from eenet.serving.engine._request import Batch, EngineOptions, Outcome, Request, Work

if TYPE_CHECKING:
    from eenet.runtime import Live

_RATE_MEMORY = 0.9  # the weight of the past in the running mean of the time a sample takes
_STALE_DEADLINES = 256  # deadlines of ended requests that are kept before the heap is rebuilt


class Engine:
    """Batches by stage: the samples of several requests go through a multi-exit network together.

    There is a queue before each stage. The next stage to run is the deepest one with a full batch before it, else that
    of the oldest request. The caller submits requests, asks for work, executes it and reports that it is complete. Each
    of these calls is given the time, in seconds of a clock that does not go back. Every accepted request ends once:
    `complete`, `fail` and `expire` return the requests that ended, `cancel` ends one. A request keeps the policy that
    was in force when it came.

    An engine has no threads and no clock. Only one thread may use it at a time; `Work.execute` may run in any.

    Parameters
    ----------
    policy : ThresholdPolicy
        Decides on requests that name no policy of their own. The attribute may be set at any time.
    options : EngineOptions
        How batches are formed. The attribute `max_delay`, at first the one of the options, may be set at any time.
    stages : range
        The stages that run here, one after the other, by default all K. Samples that go on to a stage elsewhere leave
        as their request's `onward`: so stages in different processes make up one network.

    Examples
    --------
    >>> import numpy as np
    >>> import eenet
    >>> from eenet.serving.engine import Engine
    >>> from eenet.testing import toy_logits
    >>> logits, labels = toy_logits(100, exits=3, classes=4, seed=0)
    >>> costs = eenet.ExitCosts([1.0, 2.0, 3.0])
    >>> records = eenet.ExitRecords.from_logits(logits, labels)
    >>> scheduler = eenet.MaxProbability().fit(records, costs, budget=2.0)
    >>> engine = Engine(scheduler.policy)
    >>> request = engine.submit((np.zeros((2, 8), dtype=np.float32),), 2, now=0.0)
    >>> engine.waiting
    [2, 0, 0]
    >>> engine.next_work(now=0.001) is None  # it waits for other requests
    True
    >>> work = engine.next_work(now=0.002)
    >>> work.stage, work.samples
    (0, 2)
    """

    def __init__(
        self, policy: ThresholdPolicy, options: EngineOptions | None = None, *, stages: range | None = None
    ) -> None:
        self.policy = policy
        self.options = options or EngineOptions()
        self.num_exits = policy.num_exits
        self.stages = stages or range(self.num_exits)
        self.max_delay = self.options.max_delay
        self.draining = False
        self.inside = 0
        self.working = 0
        self._queues: list[dict[Hashable, _Queue]] = [{} for _ in range(self.num_exits)]
        self._alone: deque[tuple[int, Batch]] = deque()
        self._open: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._submitted = 0
        self._seconds_per_sample = 0.0
        self._measured_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is inside and no stage runs."""
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
        history: ExitHistory | None = None,
        shape: Hashable = None,
        context: Any = None,
    ) -> Request:
        """Take in a request.

        Parameters
        ----------
        live : tuple of arrays
            The live tensors before the first stage here; `StageBackend.enter` gives them before stage 0.
        samples : int
            How many samples they hold.
        now, deadline : float
            The time, and when the request is given up.
        policy : ThresholdPolicy
            Decides on its samples, by default the engine's policy.
        history : ExitHistory
            What earlier exits showed of the samples, where stage 0 runs elsewhere.
        shape : hashable
            Only requests of one shape share a batch, by default that of the live tensors.
        context : Any
            The caller's own.

        Raises
        ------
        OverloadedError, DrainingError, InvalidInputError
            While the queues are full, while the server stops, and for a request without samples or with more than
            `EngineOptions.max_samples`.
        """
        require_capacity(
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
        state = (
            DecisionState(request.policy, samples)
            if history is None
            else DecisionState.onward(request.policy, samples, history)
        )
        batch = Batch(live, state, [request] * samples, list(range(samples)), shape, now)
        self.inside += samples
        self._push(self.stages[0], batch)
        return request

    def cancel(self, request: Request, now: float) -> bool:
        """Drop a request whose caller has gone; False when it has ended already."""
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
        """Take no more requests; those inside are answered, without waiting for others."""
        self.draining = True

    def next_work(self, now: float) -> Work | None:
        """The stage to run now and its samples, or None; then `wake_at` says when to ask again if nothing happens."""
        while self._alone:
            k, batch = self._alone.popleft()
            if batch.open:
                return self._work(k, [batch])
        choice = self._choose(now)
        if choice is None:
            return None
        k, queue = choice
        return self._work(k, self._form(k, queue))

    @property
    def wake_at(self) -> float | None:
        """When a request has waited for `max_wait`, or at a deep stage for `max_delay`, or is past its deadline.

        None when no request waits.
        """
        times = [queue.batches[0].queued + self.max_delay for k, queue in self._all_queues() if k > 0]
        if oldest := self._oldest():
            times.append(oldest[0].arrived + self.options.max_wait)
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(times, default=None)

    def complete(self, work: Work, now: float) -> list[Request]:
        """Take the results of work that was executed; returns the requests that are answered by it."""
        self.working -= 1
        answered = []
        for request, place, scores in work.scores:
            request.scores[place] = scores
        for owners, places, logits, abstained in work.answers:
            for request, rows in _by_request(owners):
                if request.open:
                    back = None if abstained is None else abstained[rows]
                    request.answer([places[i] for i in rows], work.stage, logits[rows], back)
                    if request.remaining == 0:
                        self._end(request, Outcome.ANSWERED, now)
                        answered.append(request)
        if work.stage == self.stages[-1]:
            answered += self._hand_on(work, now)
            work.staying.clear()
        if answered:
            self._measure(sum(request.samples for request in answered), now)
        for batch in work.staying:
            batch.queued = now
            if batch.open:
                self._push(work.stage + 1, batch)
        return answered

    def _hand_on(self, work: Work, now: float) -> list[Request]:
        """Samples that go on to a stage elsewhere leave the engine; returns the requests that end with it."""
        ended = []
        for batch in work.staying:
            for part in batch.by_request():
                request = part.owners[0]
                if request.open:
                    request.pass_on(part)
                    if request.remaining == 0:
                        self._end(request, Outcome.ANSWERED, now)
                        ended.append(request)
        return ended

    def fail(self, work: Work, error: Exception, now: float) -> list[Request]:
        """Say that executing raised; returns the requests that fail with it.

        Where several requests shared the batch, each is tried again alone, so that none fails because of another.
        """
        self.working -= 1
        requests = [request for request in work.requests if request.open]
        if len(work.requests) == 1:
            for request in requests:
                request.error = error
                self._end(request, Outcome.FAILED, now)
            return requests
        for part in work.parts:
            self._alone.extend((work.stage, batch) for batch in part.by_request() if batch.open)
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
                if not queue.batches:
                    del self._queues[k][shape]

    def _measure(self, samples: int, now: float) -> None:
        """Keep a running mean of the time that a sample takes, while there is work: for `retry_after`."""
        spent = (now - self._measured_at) / samples
        weight = _RATE_MEMORY**samples
        self._seconds_per_sample = weight * self._seconds_per_sample + (1 - weight) * spent
        self._measured_at = now

    def _push(self, k: int, batch: Batch) -> None:
        self._queues[k].setdefault(batch.shape, _Queue()).push(batch)

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
        waited = [(queue.batches[0].queued, k, queue) for k, queue in self._all_queues() if k > 0]
        if waited:
            since, k, queue = min(waited, key=lambda item: item[0])
            if now >= since + self.max_delay:  # as `wake_at` says, to the bit
                return k, queue
        for k, queue in self._all_queues():
            if queue.samples >= options.max_batch:
                return k, queue
        oldest = self._oldest()
        if oldest is None:
            return None
        request, k, queue = oldest
        return (k, queue) if self.draining or now >= request.arrived + options.max_wait else None

    def _form(self, k: int, queue: _Queue) -> list[Batch]:
        """Take a batch out of a queue."""
        shape = queue.batches[0].shape
        if k > 0 and not self.options.merge:
            parts = [queue.pop(queue.samples)]
        else:
            parts, free = [], self.options.max_batch
            while free > 0 and queue.batches:
                parts.append(queue.pop(free))
                free -= len(parts[-1])
        if not queue.batches:
            del self._queues[k][shape]
        return parts

    def _work(self, k: int, parts: list[Batch]) -> Work:
        self.working += 1
        for part in parts:
            for request, rows in _by_request(part.owners):
                request.reached[[part.places[i] for i in rows]] = k
        return Work(k, parts, self.num_exits)


def shape_of(live: Live) -> Hashable:
    """What the inputs of two requests must have in common to share a batch: all but the number of samples."""
    return tuple((tensor.dtype.str, tensor.shape[1:]) for tensor in live)


def require_capacity(
    samples: int, inside: int, options: EngineOptions, *, draining: bool = False, retry_after: float = 0.0
) -> None:
    """Raise as `Engine.submit` where a request cannot be accepted beside the `inside` samples."""
    if draining:
        raise DrainingError("the server is stopping and takes no more requests; try another one")
    if not 1 <= samples <= options.max_samples:
        raise InvalidInputError(
            f"the request has {samples} samples, expected 1 to {options.max_samples}; send it in parts"
        )
    if inside + samples > options.max_samples:
        raise OverloadedError(
            f"{inside} samples are waiting, and the limit is {options.max_samples}; try again later",
            retry_after=max(1.0, retry_after),
        )


class _Queue:
    """Batches of one shape before one stage, in the order they came; each has samples that still wait."""

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()
        self.samples = 0

    def push(self, batch: Batch) -> None:
        batch = batch.without_ended()
        self.batches.append(batch)
        self.samples += len(batch)

    def pop(self, most: int) -> Batch:
        """Take the first batch, or `most` samples of it."""
        batch = self.batches.popleft()
        if len(batch) > most:
            self.batches.appendleft(batch.select(range(most, len(batch))))
            batch = batch.select(range(most))
        self.samples -= len(batch)
        return batch

    def drop(self, request: Request) -> None:
        """Leave out the samples of a request that has ended."""
        if not any(request in batch.owners for batch in self.batches):
            return
        self.batches = deque(batch.without_ended() for batch in self.batches if batch.open)
        self.samples = sum(map(len, self.batches))

    def oldest(self, *, ordered: bool) -> Request:
        """The oldest request with samples here; `ordered` where batches stand in the order of their requests."""
        if ordered:
            return self.batches[0].oldest
        return min((batch.oldest for batch in self.batches), key=lambda request: request.number)


def _by_request(owners: list[Request]) -> Iterator[tuple[Request, list[int]]]:
    """Each request with the positions of its samples."""
    if len(owners) == 1:
        yield owners[0], [0]
        return
    rows: dict[Request, list[int]] = {}
    for i, owner in enumerate(owners):
        rows.setdefault(owner, []).append(i)
    yield from rows.items()
