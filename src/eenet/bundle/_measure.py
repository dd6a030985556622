"""What a bundle costs in the runtime that runs it, measured in turns with the plain network.

A round is a real run of the decision loop on one batch, with the clock read before each stage. Of the batch as many
samples exit at each exit as the policy lets exit there, so that deeper stages run on as few as they will. What an exit
costs is the whole way to it: checking inputs, stages, heads, decisions, selecting the remaining samples, and putting
answers in order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._sizes import Inputs, dynamic_sizes
from eenet._timing import Clock, fingerprint, in_turns, timed
from eenet.runtime import StageBackend, TensorSpec
from eenet.runtime._backend import Ints, Live
from eenet.runtime._loop import Arrays, run
from eenet.scheduler import DecisionState, ThresholdPolicy
from eenet.scheduler._forced import forced
from eenet.tasks import Task

BATCH_SIZES = (1, 8, 32)
UNITS = ("ms", "cpu_ms")
INCLUDES = ("inputs", "stages", "heads", "scheduler", "selection", "outputs")

_PERCENTILES = (50, 95, 99)
_LEAST, _MOST = 5, 200
_SMALLEST = 1e-9  # above 0, since a clock of the processor that ticks coarsely may not see a small stage at all

Floats = NDArray[np.float64]


def measured(
    backend: StageBackend,
    task: Task,
    policy: ThresholdPolicy,
    inputs: Callable[[int], Inputs],
    *,
    observed: Sequence[bool],
    shares: Sequence[float],
    plain: Callable[[Live], Any],
    batch_sizes: Sequence[int],
    seconds: float,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The costs of the exits at several batch sizes, as `eenet profile --json` writes them.

    `observed` says at which early exits the head runs and the policy looks, `shares` (K,) how many samples exit where.
    `plain` runs the plain network, `inputs(n)` gives n samples.
    """
    tables: dict[str, dict[str, list[Any]]] = {
        name: {unit: [] for unit in UNITS} for name in ("costs", "spreads", "plain")
    }
    percentiles: dict[str, dict[str, list[Any]]] = {unit: {f"p{p}": [] for p in _PERCENTILES} for unit in UNITS}
    for size in batch_sizes:
        if progress is not None:
            progress(f"measuring at batch size {size}")
        rounds = _Rounds(backend, task, policy, inputs(size), observed, remaining(shares, size))
        for unit, ways in zip(UNITS, rounds.run(plain, seconds), strict=True):
            exits = ways[:, :-1]
            median = np.median(exits, axis=0)
            low, high = np.quantile(exits, [0.25, 0.75], axis=0)
            tables["costs"][unit].append(_increasing(median).tolist())
            tables["spreads"][unit].append(((high - low) / np.maximum(median, _SMALLEST)).tolist())
            tables["plain"][unit].append(max(float(np.median(ways[:, -1])), _SMALLEST))
            for percent, values in zip(_PERCENTILES, np.percentile(ways, _PERCENTILES, axis=0), strict=True):
                percentiles[unit][f"p{percent}"].append(values.tolist())
    return {
        "batch_sizes": list(batch_sizes),
        **tables,
        "percentiles": percentiles,
        "shares": [float(share) for share in shares],
        "includes": list(INCLUDES),
    }


def device_of(
    runtime: str, threads: int | None, specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a measurement in a runtime depends on; `threads` None stands for a thread for each core it may use."""
    sizes = dynamic_sizes(specs, [one["shape"] for one in described])
    return fingerprint() | {"runtime": runtime, "threads": threads or _cores()} | ({"sizes": sizes} if sizes else {})


def remaining(shares: Sequence[float], size: int) -> list[int]:
    """How many samples of a batch reach each stage, where these shares exit at the exits: at least one."""
    before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
    reach = np.maximum(np.rint(size * (1 - before)), 1).astype(int)
    counts: list[int] = np.minimum.accumulate(reach).tolist()
    return counts


def failures_of(backend: str) -> tuple[type[Exception], ...]:
    """What a network raises where it fails in the runtime of a bundle, by the name in its manifest."""
    if backend == "onnx":
        from eenet.bundle._onnx import errors_of

        # Where outputs are bound, ONNX Runtime raises a RuntimeError in place of its own.
        return (*errors_of(require("onnxruntime", "onnx")), RuntimeError)
    from eenet.stages._example import MODEL_ERRORS  # with PyTorch alone

    return MODEL_ERRORS


class _Rounds:
    """Runs of one batch, each with the times of its stages."""

    def __init__(
        self,
        backend: StageBackend,
        task: Task,
        policy: ThresholdPolicy,
        inputs: Inputs,
        observed: Sequence[bool],
        remaining: Sequence[int],
    ) -> None:
        self._backend, self._task, self._inputs = backend, task, inputs
        self._remaining = np.array(remaining, dtype=np.float64)
        exiting = [before - after for before, after in pairwise(remaining)]
        self._policy = forced(policy, exiting, observed)
        self._parts: list[Clock] = []

    def run(self, plain: Callable[[Live], Any], seconds: float) -> tuple[Floats, Floats]:
        """Milliseconds per sample, (rounds, K + 1), of wall and CPU time: to each exit, and of the plain network."""
        live, exits = self._backend.enter(self._inputs), self._backend.num_exits
        # What a round took in all, its stages apart: their clocks are read within it.
        clocks: list[Callable[[], Clock]] = [self._round, *(partial(self._part, k) for k in range(exits + 1))]
        timing = in_turns([*clocks, partial(timed, plain, live)], seconds=seconds, least=_LEAST, most=_MOST, warm_up=2)
        return self._ways(timing.wall * 1e3), self._ways(timing.cpu * 1e3)

    def _ways(self, times: Floats) -> Floats:
        stages, out, plain = times[:, 1:-2], times[:, -2:-1], times[:, -1:]
        size = self._remaining[0]
        ways = (stages / self._remaining).cumsum(axis=1) + out / size
        return np.concatenate([ways, plain / size], axis=1)

    def _round(self) -> Clock:
        watched, arrays = _Watched(self._backend), _WatchedArrays()
        state = DecisionState(self._policy, int(self._remaining[0]))
        start = _now()
        run(watched, state, self._task, self._backend.enter(self._inputs), arrays=arrays)
        state.exits.astype(np.int64)
        end = _now()
        ends = [start, *watched.began[1:], arrays.began or end, end]
        self._parts = [_between(before, after) for before, after in pairwise(ends)]
        return _between(start, end)

    def _part(self, number: int) -> Clock:
        return self._parts[number]


def _now() -> Clock:
    return time.perf_counter(), time.process_time()


def _between(before: Clock, after: Clock) -> Clock:
    return after[0] - before[0], after[1] - before[1]


class _Watched:
    """A backend that notes when each stage began."""

    def __init__(self, backend: StageBackend) -> None:
        self._backend = backend
        self.began: list[Clock] = []
        self.take = backend.take

    @property
    def num_exits(self) -> int:
        return self._backend.num_exits

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, Any]:
        self.began.append(_now())
        return self._backend.run(k, live, observe=observe)


class _WatchedArrays(Arrays):
    """What the loop does with logits, noting when it began to put them in order."""

    began: Clock | None = None

    def in_order(self, parts: list[tuple[Ints, Any]]) -> Any:
        self.began = _now()
        return super().in_order(parts)


def _increasing(values: Floats) -> Floats:
    increasing: Floats = np.maximum.accumulate(values) + _SMALLEST * np.arange(1, len(values) + 1)
    return increasing


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
