"""What stages with replicas of their own would do, by discrete events: the queues of a network of stages.

Samples only go forward, so that one stage after the other can be gone through: its arrivals are known when those
before it have been.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet.capacity._simulation import SimulatedTraffic, StageCost, checked_traffic
from eenet.errors import InvalidInputError
from eenet.serving.engine._engine import EngineOptions

Floats = NDArray[np.float64]
ROUTINGS = ("shared", "two choices")


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
    """Send requests of one sample through K stages, of which stage k has `replicas[k]` replicas.

    `arrivals` (N,) in seconds, ascending; `exits` (N,) from 0; `cost(k, n)` the seconds a replica of stage k takes for
    n samples. A replica takes up to `max_batch` samples at once, when so many wait or the first has for `max_wait`.
    `hop` is how long a call is on its way to each stage, in seconds. With the routing "two choices" a sample goes to
    the emptier of two replicas chosen by chance, as Ray Serve does it; "shared" is one queue for all replicas of a
    stage, which no cluster has, but of which more is known. Raises `InvalidInputError` as `simulate`.
    """
    times, leave = checked_traffic(arrivals, exits, len(replicas))
    if routing not in ROUTINGS:
        raise InvalidInputError(f"routing is {routing!r}, expected one of {ROUTINGS}")
    if not replicas or min(replicas) < 1:
        raise InvalidInputError(f"replicas are {list(replicas)}, expected 1 or more for each stage")
    options = options or EngineOptions()
    rng = np.random.default_rng(seed)
    finished = np.zeros(len(times))
    calls: list[tuple[int, int, float]] = []
    here = np.arange(len(times))
    come = times
    for k, count in enumerate(replicas):
        come = come + hop
        if routing == "shared" or count == 1:
            gone = _shared(come, k, cost, count, options, calls)
        else:
            gone = _two_choices(come, k, cost, count, options, calls, rng)
        left = leave[here] == k
        finished[here[left]] = gone[left]
        here, come = here[~left], gone[~left]
        if len(here) == 0:
            break
        order = np.argsort(come, kind="stable")
        here, come = here[order], come[order]
    calls.sort(key=lambda call: call[2])
    return SimulatedTraffic(times, finished, calls)


def _shared(
    come: Floats, k: int, cost: StageCost, count: int, options: EngineOptions, calls: list[tuple[int, int, float]]
) -> Floats:
    """When the samples that came at these times leave a stage whose replicas take from one queue."""
    times = come.tolist()
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
    come: Floats,
    k: int,
    cost: StageCost,
    count: int,
    options: EngineOptions,
    calls: list[tuple[int, int, float]],
    rng: np.random.Generator,
) -> Floats:
    """When the samples that came at these times leave a stage whose replicas have queues of their own."""
    gone = np.empty(len(come))
    replicas = [_Replica(k, cost, options, calls, gone) for _ in range(count)]
    one = rng.integers(0, count, len(come)).tolist()
    other = rng.integers(0, count - 1, len(come)).tolist()
    for sample, now in enumerate(come.tolist()):
        a = replicas[one[sample]]
        b = replicas[(one[sample] + 1 + other[sample]) % count]
        (a if a.inside(now) <= b.inside(now) else b).take(sample, now)
    for replica in replicas:
        replica.finish()
    return gone


class _Replica:
    """A replica with a queue; it is caught up with only when somebody looks."""

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
        """Start the batches that start before now: who comes later cannot be in them."""
        while self._times:
            begin, end = _batch(self._times, 0, self._free, self._options)
            if begin >= now:
                return
            self._free = begin + self._cost(self._k, end)
            self._calls.append((self._k, end, begin))
            self._gone[self._samples[:end]] = self._free
            self._running.append((self._free, end))
            del self._times[:end], self._samples[:end]
