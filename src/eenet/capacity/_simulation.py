"""What the engine would do, by discrete events: for planning, and to hold the engine to.

Written apart from the engine, on exit numbers alone: a test compares the two event by event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet.errors import InvalidInputError
from eenet.serving.engine._engine import EngineOptions

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

StageCost = Callable[[int, int], float]
"""Seconds that stage k takes on n samples: `cost(k, n)`."""


@dataclass(frozen=True)
class SimulatedTraffic:
    """What became of N requests of one sample each.

    `finished` (N,) is when each was answered, in seconds; `latencies` (N,) how long that took; `calls` are the stage,
    the samples and the start of each call, in the order they began. Nobody is refused: the waiting room is unbounded.
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
    """Send requests of one sample through one worker under the engine's rule.

    `arrivals` (N,) in seconds, ascending; `exits` (N,) from 0, where each sample will leave; `cost(k, n)` the seconds
    of stage k on n samples; `options` as for the engine. Whole-model batching is `options.merge` off and all exits the
    last one. Raises `InvalidInputError` for arrivals that do not ascend or exits that are not there.
    """
    times, leave = checked_traffic(arrivals, exits, num_exits)
    return _Simulation(times.tolist(), leave.tolist(), cost, num_exits, options or EngineOptions()).run()


def checked_traffic(arrivals: ArrayLike, exits: ArrayLike, num_exits: int) -> tuple[Floats, Ints]:
    """Arrivals and exits as arrays; raises `InvalidInputError` where they make no sense."""
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
        held = min(deep, key=lambda k: (self.queues[k][0][0], -k), default=None)
        if held is not None and now - self.queues[held][0][0] >= self.options.max_hold:
            return held
        full = [k for k in stages if self.count(k) >= self.options.max_batch]
        if full:
            return max(full)
        oldest = min((self.oldest(k), k) for k in stages) if any(self.queues) else None
        if oldest is None or now < self.arrivals[oldest[0]] + self.options.max_wait:
            return None
        return oldest[1]

    def next_event(self, now: float) -> float:
        """The next arrival, or when somebody will have waited for company long enough."""
        times: Sequence[float] = self.arrivals[self.arrived : self.arrived + 1]
        waited = [self.arrivals[self.oldest(k)] + self.options.max_wait for k, q in enumerate(self.queues) if q]
        return max(now, min([*times, *waited]))

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
            room = self.options.max_batch - len(taken)
            taken += samples[:room]
            if samples[room:]:
                queue.insert(0, (since, samples[room:]))
        return taken
