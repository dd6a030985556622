"""The engine and a fleet of replicas by discrete events: for planning, and as a reference for the engine.

It shares no code with the engine: a test compares the two event by event.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet._values import array_value
from eenet.errors import InvalidInputError
from eenet.serving.engine import EngineOptions

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_ROUTINGS = ("shared", "two choices")

StageCost = Callable[[int, int], float]
"""Seconds that stage k takes on n samples: `cost(k, n)`."""


@array_value
@dataclass(frozen=True)
class SimulatedTraffic:
    """What became of N requests of one sample each.

    Attributes
    ----------
    arrivals, finished : array (N,)
        When each arrived and was answered, in seconds. None is refused: the queues are unbounded.
    calls : list of tuples
        The stage, the samples and the start of each call, in the order of the starts.

    Examples
    --------
    >>> from eenet.capacity import simulate
    >>> traffic = simulate([0.0, 0.0, 0.0], [0, 1, 1], lambda stage, samples: 0.01, 2)
    >>> traffic.latencies.shape, traffic.throughput > 0
    ((3,), True)
    """

    arrivals: Floats
    finished: Floats
    calls: list[tuple[int, int, float]]

    @property
    def latencies(self) -> Floats:
        """Seconds from arrival to answer, (N,)."""
        return self.finished - self.arrivals

    @property
    def throughput(self) -> float:
        """Answers per second, from the first arrival to the last answer."""
        return float(len(self.arrivals) / (self.finished.max() - self.arrivals[0]))

    def percentile(self, q: float) -> float:
        """The latency in seconds that q percent of the requests stay within."""
        return float(np.percentile(self.latencies, q))


def simulate(
    arrivals: ArrayLike, exits: ArrayLike, cost: StageCost, num_exits: int, options: EngineOptions | None = None
) -> SimulatedTraffic:
    """Simulate one worker that runs all stages under the engine's rule.

    Parameters
    ----------
    arrivals : array (N,)
        When requests of one sample arrive, in seconds, ascending.
    exits : array (N,)
        The exit of each sample, from 0.
    cost : callable
        `cost(k, n)` is the seconds that stage k takes for n samples.
    num_exits : int
        K.
    options : EngineOptions
        As for the engine. Batching of whole models is `merge=False` with all exits the last.

    Returns
    -------
    SimulatedTraffic

    Raises
    ------
    InvalidInputError
        For arrivals that do not ascend, or exits that there are not.

    Examples
    --------
    >>> from eenet.capacity import simulate
    >>> traffic = simulate([0.0, 0.0, 0.5], [0, 1, 0], lambda k, n: 0.1 * n, num_exits=2)
    >>> traffic.latencies.round(3).tolist()
    [0.202, 0.302, 0.102]
    """
    times, leave = _checked_traffic(arrivals, exits, num_exits)
    return _Simulation(times.tolist(), leave.tolist(), cost, num_exits, options or EngineOptions()).run()


def _checked_traffic(arrivals: ArrayLike, exits: ArrayLike, num_exits: int) -> tuple[Floats, Ints]:
    """Arrivals and exits as arrays, checked."""
    times, leave = np.asarray(arrivals, dtype=np.float64), np.asarray(exits, dtype=np.intp)
    if times.shape != leave.shape or times.ndim != 1 or len(times) == 0 or not (np.diff(times) >= 0).all():
        raise InvalidInputError(
            f"arrivals {times.shape} and exits {leave.shape}: expected one exit for each arrival, arrivals ascending"
        )
    if leave.min() < 0 or leave.max() >= num_exits:
        raise InvalidInputError(f"exits go from {leave.min()} to {leave.max()}, expected 0 to {num_exits - 1}")
    return times, leave


class _Simulation:
    """Queues of sample numbers; a sample's number is also its place in the order of arrival."""

    def __init__(
        self, arrivals: list[float], exits: list[int], cost: StageCost, num_exits: int, options: EngineOptions
    ) -> None:
        self.arrivals, self.exits, self.cost, self.options = arrivals, exits, cost, options
        # Before each stage, groups of samples that came there together, and when.
        self.queues: list[list[tuple[float, list[int]]]] = [[] for _ in range(num_exits)]
        self.finished = np.zeros(len(arrivals))
        self.calls: list[tuple[int, int, float]] = []
        self.arrived = 0

    def run(self) -> SimulatedTraffic:
        now = self.arrivals[0]
        left = len(self.arrivals)
        while left:
            self.let_in(now)
            stage = self.stage_at(now)
            if stage is None:
                now = self.next_event(now)
                continue
            samples = self.take(stage)
            self.calls.append((stage, len(samples), now))
            now += self.cost(stage, len(samples))
            self.let_in(now)
            done = [s for s in samples if self.exits[s] <= stage]
            self.finished[done] = now
            left -= len(done)
            staying = [s for s in samples if self.exits[s] > stage]
            if staying:
                self.queues[stage + 1].append((now, staying))
        return SimulatedTraffic(np.asarray(self.arrivals), self.finished, self.calls)

    def let_in(self, now: float) -> None:
        while self.arrived < len(self.arrivals) and self.arrivals[self.arrived] <= now:
            self.queues[0].append((self.arrivals[self.arrived], [self.arrived]))
            self.arrived += 1

    def stage_at(self, now: float) -> int | None:
        stages = range(len(self.queues))
        deep = [k for k in stages if k > 0 and self.queues[k]]
        if deep and not self.options.merge:
            return max(deep)
        waited = min(deep, key=lambda k: (self.queues[k][0][0], -k), default=None)
        if waited is not None and now >= self.queues[waited][0][0] + self.options.max_delay:
            return waited
        full = [k for k in stages if self.count(k) >= self.options.max_batch]
        if full:
            return max(full)
        oldest = min((self.oldest(k), k) for k in stages) if any(self.queues) else None
        if oldest is None or now < self.arrivals[oldest[0]] + self.options.max_wait:
            return None
        return oldest[1]

    def next_event(self, now: float) -> float:
        """The next arrival, or when a request has waited for `max_wait`, or at a deep stage for `max_delay`."""
        times: Sequence[float] = self.arrivals[self.arrived : self.arrived + 1]
        ready = [self.arrivals[self.oldest(k)] + self.options.max_wait for k, q in enumerate(self.queues) if q]
        delayed = [queue[0][0] + self.options.max_delay for queue in self.queues[1:] if queue]
        return max(now, min([*times, *ready, *delayed]))

    def count(self, stage: int) -> int:
        return sum(len(samples) for _, samples in self.queues[stage])

    def oldest(self, stage: int) -> int:
        return min((s for _, samples in self.queues[stage] for s in samples), default=len(self.arrivals))

    def take(self, stage: int) -> list[int]:
        queue = self.queues[stage]
        if stage > 0 and not self.options.merge:
            return queue.pop(0)[1]
        taken: list[int] = []
        while queue and len(taken) < self.options.max_batch:
            since, samples = queue.pop(0)
            free = self.options.max_batch - len(taken)
            taken += samples[:free]
            if samples[free:]:
                queue.insert(0, (since, samples[free:]))
        return taken


def simulate_fleet(
    arrivals: ArrayLike,
    exits: ArrayLike,
    cost: StageCost,
    replicas: Sequence[int],
    options: EngineOptions | None = None,
    *,
    hop: float = 0.0,
    routing: str = "two choices",
    seed: int = 0,
) -> SimulatedTraffic:
    """Simulate K stages, each with replicas of its own, by discrete events.

    Parameters
    ----------
    arrivals : array (N,)
        When requests of one sample arrive, in seconds, ascending.
    exits : array (N,)
        The exit of each sample, from 0.
    cost : callable
        `cost(k, n)` is the seconds that a replica of stage k takes for n samples.
    replicas : sequence of int (K,)
        Replicas of each stage. A replica starts a batch when `max_batch` samples wait, or the first has waited for
        `max_wait`.
    options : EngineOptions
        How batches are formed.
    hop : float
        Seconds that a call takes to arrive at a stage.
    routing : str
        "two choices": a sample goes to the emptier of two random replicas, as in Ray Serve. "shared": one queue for all
        replicas of a stage, which no cluster has, but about which more is known.
    seed : int
        Of the random choices.

    Returns
    -------
    SimulatedTraffic

    Raises
    ------
    InvalidInputError
        As `simulate`, and for a routing or numbers of replicas that there are not.

    Examples
    --------
    >>> from eenet.capacity import simulate_fleet
    >>> traffic = simulate_fleet([0.0, 0.0, 0.0], [0, 1, 1], lambda stage, samples: 0.01, replicas=[2, 1])
    >>> len(traffic.finished)
    3
    """
    # Samples only go forward: when a stage is simulated, all its arrivals are known.
    times, leave = _checked_traffic(arrivals, exits, len(replicas))
    if routing not in _ROUTINGS:
        raise InvalidInputError(f"routing is {routing!r}, expected one of {_ROUTINGS}")
    if not replicas or min(replicas) < 1:
        raise InvalidInputError(f"replicas are {list(replicas)}, expected 1 or more for each stage")
    options = options or EngineOptions()
    rng = np.random.default_rng(seed)
    finished = np.zeros(len(times))
    calls: list[tuple[int, int, float]] = []
    here = np.arange(len(times))
    arrive = times
    for k, count in enumerate(replicas):
        arrive = arrive + hop
        if routing == "shared" or count == 1:
            gone = _shared(arrive, k, cost, count, options, calls)
        else:
            gone = _two_choices(arrive, k, cost, count, options, calls, rng)
        left = leave[here] == k
        finished[here[left]] = gone[left]
        here, arrive = here[~left], gone[~left]
        if len(here) == 0:
            break
        order = np.argsort(arrive, kind="stable")
        here, arrive = here[order], arrive[order]
    calls.sort(key=lambda call: call[2])
    return SimulatedTraffic(times, finished, calls)


def _shared(
    arrive: Floats, k: int, cost: StageCost, count: int, options: EngineOptions, calls: list[tuple[int, int, float]]
) -> Floats:
    """When the samples that arrive at these times leave a stage whose replicas take from one queue."""
    times = arrive.tolist()
    gone = np.empty(len(times))
    free = [0.0] * count
    first, samples = 0, len(times)
    while first < samples:
        begin, end = _batch(times, first, free[0], options)
        done = begin + cost(k, end - first)
        heapq.heapreplace(free, done)
        calls.append((k, end - first, begin))
        gone[first:end] = done
        first = end
    return gone


def _batch(times: Sequence[float], first: int, free: float, options: EngineOptions) -> tuple[float, int]:
    """When the batch that begins with sample `first` starts on a replica, and the sample after its last."""
    full = first + options.max_batch
    ready = times[first] + options.max_wait
    if full <= len(times):
        ready = min(ready, times[full - 1])
    begin = max(free, ready)
    end = first + 1
    while end < len(times) and end < full and times[end] <= begin:
        end += 1
    return begin, end


def _two_choices(
    arrive: Floats,
    k: int,
    cost: StageCost,
    count: int,
    options: EngineOptions,
    calls: list[tuple[int, int, float]],
    rng: np.random.Generator,
) -> Floats:
    """When the samples that arrive at these times leave a stage whose replicas have queues of their own."""
    gone = np.empty(len(arrive))
    replicas = [_Replica(k, cost, options, calls, gone) for _ in range(count)]
    one = rng.integers(0, count, len(arrive)).tolist()
    other = rng.integers(0, count - 1, len(arrive)).tolist()
    for sample, now in enumerate(arrive.tolist()):
        a = replicas[one[sample]]
        b = replicas[(one[sample] + 1 + other[sample]) % count]
        (a if a.inside(now) <= b.inside(now) else b).take(sample, now)
    for replica in replicas:
        replica.finish()
    return gone


class _Replica:
    """A replica with a queue; its past is simulated only when it is asked about."""

    def __init__(
        self, k: int, cost: StageCost, options: EngineOptions, calls: list[tuple[int, int, float]], gone: Floats
    ) -> None:
        self._k, self._cost, self._options, self._calls, self._gone = k, cost, options, calls, gone
        self._free = 0.0
        self._times: list[float] = []  # of those that wait
        self._samples: list[int] = []
        self._running: deque[tuple[float, int]] = deque()  # when batches are done, and their samples

    def inside(self, now: float) -> int:
        """The samples that wait here or are being run."""
        self._until(now)
        while self._running and self._running[0][0] <= now:
            self._running.popleft()
        return len(self._times) + sum(samples for _, samples in self._running)

    def take(self, sample: int, now: float) -> None:
        """Let a sample join the queue."""
        self._times.append(now)
        self._samples.append(sample)

    def finish(self) -> None:
        """Run everything that waits."""
        self._until(float("inf"))

    def _until(self, now: float) -> None:
        """Start the batches that start before now: later samples cannot be in them."""
        while self._times:
            begin, end = _batch(self._times, 0, self._free, self._options)
            if begin >= now:
                return
            self._free = begin + self._cost(self._k, end)
            self._calls.append((self._k, end, begin))
            self._gone[self._samples[:end]] = self._free
            self._running.append((self._free, end))
            del self._times[:end], self._samples[:end]
