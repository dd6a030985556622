"""Runs of a batch in which a chosen number of samples exits at each exit, with what each stage took: for measurements.

Times of stages by themselves, at full batches, leave out what happens in a real run: stages on what is left, selecting
those samples, putting answers in order, and the Python between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from eenet._timing import Clock, waiting_for
from eenet.models import MultiExitModel
from eenet.optimize import batch_of, eager
from eenet.runtime._adaptive import AdaptiveModel
from eenet.scheduler import ThresholdPolicy
from eenet.scheduler._forced import forced, scheduler_of
from eenet.stages import Variant

Tensors = tuple[torch.Tensor, ...]

GOING_ON = (1.0, 0.8, 0.5, 0.25, 0.1)
"""The share of the samples at an exit that go on, one for each run: with these a stage runs on many, some and few."""


def clock_now() -> Clock:
    """Wall and CPU seconds."""
    return time.perf_counter_ns() / 1e9, time.process_time_ns() / 1e9


class BatchRuns:
    """Runs of one batch by `AdaptiveModel`, one for each of `GOING_ON`, as steps for `eenet._timing.in_turns`.

    Parameters
    ----------
    model
        The model.
    live
        Its inputs, repeated or shortened to `size`.
    size
        The batch size.
    policy
        What decides, at its own cost: at the exits that it observes a given number of samples exits.
    """

    def __init__(self, model: MultiExitModel, live: Tensors, size: int, policy: ThresholdPolicy) -> None:
        observed = [policy.observes(k) for k in range(model.num_exits - 1)]
        self.samples = tuple(dict.fromkeys(_remaining(size, share, observed) for share in GOING_ON))
        """For each run how many samples are in each stage."""
        self._wait = waiting_for(live[0].device)
        self._args, self._kwargs = model.staged.call_of(batch_of(model, live, size))
        self._took: list[Clock] = []
        self._schedulers = [
            scheduler_of(forced(policy, [before - after for before, after in pairwise(remaining)], observed))
            for remaining in self.samples
        ]
        own = eager(model)
        self._watched = _Watched(own.name, own.stages, own.heads, own.final, now=self._now)
        self._fast = AdaptiveModel(model, self._schedulers[0])
        self._fast._own = self._watched

    @property
    def steps(self) -> list[Callable[[], Clock]]:
        """The steps: for each run one that runs the batch, and one for each stage that gives what that took."""
        stages = range(len(self.samples[0]))
        return [
            step
            for number in range(len(self.samples))
            for step in (partial(self._run, number), *(partial(self._of_stage, k) for k in stages))
        ]

    def _run(self, number: int) -> Clock:
        times = self._watched.times
        times.clear()
        self._fast.scheduler = self._schedulers[number]
        start = self._now()
        self._fast(*self._args, **self._kwargs)
        end = self._now()
        took = [_between(before, after) for before, after in pairwise([start, *times[1:]])]
        rest = _between(times[-1], end)  # happens once in every batch, as checking inputs does
        took[0] = (took[0][0] + rest[0], took[0][1] + rest[1])
        self._took = took
        return _between(start, end)

    def _of_stage(self, k: int) -> Clock:
        return self._took[k]

    def _now(self) -> Clock:
        if self._wait is not None:
            self._wait()
        return clock_now()


@dataclass(frozen=True, eq=False)
class _Watched(Variant):
    """The model's own stages, with the times at which each began (selecting samples included) and the last ended."""

    now: Callable[[], Clock] = clock_now
    times: list[Clock] = field(default_factory=list)

    def run(self, k: int, live: Tensors, *, observe: bool) -> tuple[Tensors, torch.Tensor | None]:
        """Run stage k."""
        if len(self.times) == k:
            self.times.append(self.now())
        found = super().run(k, live, observe=observe)
        if k == len(self.stages) - 1:
            self.times.append(self.now())
        return found

    def take(self, k: int, live: Tensors, rows: NDArray[np.intp]) -> Tensors:
        """Select samples before stage k."""
        self.times.append(self.now())
        return super().take(k, live, rows)


def _remaining(size: int, share: float, observed: Sequence[bool]) -> tuple[int, ...]:
    """How many samples are in each stage where at the observed exits this share of them goes on: at least one."""
    counts = [size]
    for looks in observed:
        counts.append(max(round(counts[-1] * share), 1) if looks else counts[-1])
    return tuple(counts)


def _between(before: Clock, after: Clock) -> Clock:
    return after[0] - before[0], after[1] - before[1]
