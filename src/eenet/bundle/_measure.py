"""What a bundle costs in the runtime that runs it, measured in turns with the plain network.

A round is a real run of the decision loop on one batch, with the clock read before each stage. Of the batch as many
samples exit at each exit as the policy lets exit there, so that deeper stages run on as few as they will. What an exit
costs is the whole way to it: checking inputs, stages, heads, decisions, selecting the remaining samples, and putting
answers in order.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._timing import Clock, doubt, fingerprint, in_turns, timed
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.runtime import StageBackend, TensorSpec
from eenet.runtime._backend import Array, Ints, Live, dynamic_sizes
from eenet.runtime._loop import Arrays, run
from eenet.scheduler import DecisionState, ExitHistory, Score, ThresholdPolicy
from eenet.scheduler._policy import Ensemble
from eenet.tasks import Task

BATCH_SIZES = (1, 8, 32)
UNITS = ("ms", "cpu_ms")
INCLUDES = ("inputs", "stages", "heads", "scheduler", "selection", "outputs")

_PERCENTILES = (50, 95, 99)
_LEAST, _MOST = 5, 200
_SMALLEST = 1e-9  # above 0, since a clock of the processor that ticks coarsely may not see a small stage at all

Floats = NDArray[np.float64]
Inputs = dict[str, Array]


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
    """What a measurement in a runtime depends on; by default a runtime has a thread for each core it may use."""
    sizes = dynamic_sizes(specs, [one["shape"] for one in described])
    return fingerprint() | {"runtime": runtime, "threads": threads or _cores()} | ({"sizes": sizes} if sizes else {})


def costs_at(data: Mapping[str, Any], unit: str, size: int) -> ExitCosts:
    """The costs at one of the measured batch sizes; warns where they are not to be trusted."""
    row = data["batch_sizes"].index(size)
    spread = data["spreads"][unit][row]
    why = doubt(data["costs"], data["spreads"], data["plain"], unit, row, data["device"])
    if why:
        warnings.warn(f"the costs at batch size {size} {why}", ReliabilityWarning, stacklevel=4)
    return ExitCosts(
        data["costs"][unit][row],
        unit,
        batch_size=size,
        spread=spread,
        device=data["device"],
        includes=tuple(data["includes"]),
        plain=data["plain"][unit][row],
        percentiles={name: values[row] for name, values in data["percentiles"][unit].items()},
    )


def remaining(shares: Sequence[float], size: int) -> list[int]:
    """How many samples of a batch reach each stage, where these shares exit at the exits: at least one."""
    before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
    reach = np.maximum(np.rint(size * (1 - before)), 1).astype(int)
    counts: list[int] = np.minimum.accumulate(reach).tolist()
    return counts


def stand_ins(specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]], size: int) -> Inputs:
    """Inputs for a measurement: noise, or one value that is valid; times do not depend on it."""
    rng = np.random.default_rng(0)
    made: Inputs = {}
    for spec, known in zip(specs, described, strict=True):
        shape = [int(one) for one in known["shape"]]
        if spec.batch_dim is not None:
            shape[spec.batch_dim] = size
        if np.dtype(spec.dtype).kind == "f":
            made[spec.name] = rng.normal(known["mean"], known["std"], shape).astype(spec.dtype)
        else:
            made[spec.name] = np.full(shape, known["value"], dtype=spec.dtype)
    return made


def described(arrays: Sequence[Array]) -> list[dict[str, Any]]:
    """What `stand_ins` need to know of real inputs, none of which is kept."""
    known: list[dict[str, Any]] = []
    for array in arrays:
        one: dict[str, Any] = {"shape": list(array.shape)}
        if array.dtype.kind == "f":
            finite = array[np.isfinite(array)].astype(np.float64)
            one |= {"mean": float(finite.mean()) if finite.size else 0.0}
            one |= {"std": float(finite.std()) if finite.size else 1.0}
        else:
            one["value"] = int(array.max(initial=0))
        known.append(one)
    return known


def of_length(specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]], length: int) -> list[dict[str, Any]]:
    """The same with this size in all dimensions that may change; raises `InvalidInputError` where none may."""
    names = dynamic_sizes(specs, [one["shape"] for one in described])
    if not names:
        raise InvalidInputError(
            f"length is {length}, and the network takes inputs of one size only: leave it out, or cut the network with "
            "dynamic={1: 'sequence'}"
        )
    return _of_sizes(specs, described, dict.fromkeys(names, length))


def _of_sizes(
    specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The same with these sizes in the dimensions that may change, by their names."""
    shapes = [
        [sizes.get(of, size) if isinstance(of, str) and dim != spec.batch_dim else size for dim, (of, size) in pairs]
        for spec, known in zip(specs, described, strict=True)
        for pairs in [list(enumerate(zip(spec.shape, known["shape"], strict=True)))]
    ]
    return [{**known, "shape": shape} for known, shape in zip(described, shapes, strict=True)]


def not_of_length(length: int, usual: int, takes: Callable[[int], bool], why: str) -> str:
    """What to say where a network that takes inputs of the `usual` length fails on this one: the nearest it takes."""
    good, other = _nearest(length, usual, takes)
    return (
        f"length is {length}, expected {_allowed(length, good, other)}: give --length {good}, or length={good} in "
        f"Python (at {length} it says: {' '.join(why.split())[:200]})"
    )


def _nearest(length: int, usual: int, takes: Callable[[int], bool]) -> tuple[int, int | None]:
    """The nearest length on the way to the usual one that is taken, and one beyond `length` that is taken as well.

    There is one where lengths must be multiples of a number: then the nearest is neither longest nor shortest.
    """
    good, bad = usual, length
    while abs(bad - good) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if takes(middle) else (good, middle)
    beyond = (length // usual + 1) * usual
    if length < usual:
        beyond = usual
        while beyond >= max(length, 1):
            beyond //= 2
    return good, beyond if beyond and takes(beyond) else None


def _allowed(length: int, good: int, other: int | None) -> str:
    """The lengths to give in place of this one, in words, from what `_nearest` found."""
    if other is not None:
        return f"one such as {min(good, other)} or {max(good, other)}, which the network takes"
    limit = f"up to {good}, which is the longest" if length > good else f"from {good}, which is the shortest"
    return f"one {limit} that the network takes"


def failures_of(backend: str) -> tuple[type[Exception], ...]:
    """What a network raises where it fails in the runtime of a bundle, by the name in its manifest."""
    if backend == "onnx":
        from eenet.bundle._onnx import _errors_of

        # Where outputs are bound, ONNX Runtime raises a RuntimeError in place of its own.
        return (*_errors_of(require("onnxruntime", "onnx")), RuntimeError)
    from eenet.stages._example import MODEL_ERRORS  # with PyTorch alone

    return MODEL_ERRORS


class Sizes:
    """Which sizes of its inputs a bundle's network takes, found by running it on stand-ins where it failed.

    `described` says how inputs usually are, `failures` what the network raises.
    """

    def __init__(
        self,
        backend: StageBackend,
        specs: Sequence[TensorSpec],
        described: Sequence[Mapping[str, Any]],
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._backend, self._specs, self._described, self._failures = backend, specs, described, failures
        self.usual = dynamic_sizes(specs, [one["shape"] for one in described])
        self._nearest: dict[tuple[str, bool], int] = {}

    def failure(self, sizes: Mapping[str, int]) -> str | None:
        """What the network says of one sample with these sizes; None where it takes them."""
        live = self._backend.enter(stand_ins(self._specs, _of_sizes(self._specs, self._described, sizes), 1))
        try:
            for k in range(self._backend.num_exits):
                live, _ = self._backend.run(k, live, observe=True)
        except self._failures as error:
            return str(error)
        return None

    def refusal(self, given: Mapping[str, int]) -> str | None:
        """What to say of inputs of these sizes, which the network failed on; None where it was not for a size.

        A limit that was found is kept, so that inputs that fail again and again are not searched for each time.
        """
        for name, size in given.items():
            usual = self.usual[name]
            if size == usual:
                continue
            longer, other = size > usual, None
            good = self._nearest.get((name, longer))
            if good is None:
                if not self._takes(name, usual) or self._takes(name, size):
                    continue
                good, other = _nearest(size, usual, partial(self._takes, name))
                if other is None:
                    self._nearest[name, longer] = good
            elif (size <= good) if longer else (size >= good):
                continue
            way = "bring them to one of these" if other else "cut them, or give their parts" if longer else "pad them"
            return f"the inputs have length {size} ({name}), expected {_allowed(size, good, other)}: {way}"
        return None

    def _takes(self, name: str, size: int) -> bool:
        return self.failure({name: size}) is None


def undescribed(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """The same for a bundle that was written before bundles said it; raises `InvalidInputError` for texts."""
    for spec in specs:
        sizes = [size for dim, size in enumerate(spec.shape) if dim != spec.batch_dim]
        if any(isinstance(size, str) for size in sizes):
            raise InvalidInputError(
                f"this bundle does not say how large its input {spec.name!r} of shape {list(spec.shape)} usually is; "
                "export it again to measure it"
            )
    return [
        {"shape": [size if isinstance(size, int) else 1 for size in spec.shape], "mean": 0.0, "std": 1.0, "value": 0}
        for spec in specs
    ]


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
        forced = (_ForcedEnsemble if policy.ensemble is not None else _Forced)(policy.score, exiting)
        on = np.array(observed, dtype=np.bool_)
        self._policy = ThresholdPolicy(forced, np.full(len(on), 0.5), on, policy.num_classes)
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


class _Forced(Score):
    """Computes a score, and then lets as many of the running samples exit as it was told."""

    def __init__(self, score: Score, exiting: Sequence[int]) -> None:
        self.score, self.exiting = score, exiting

    def __call__(self, history: ExitHistory) -> Floats:
        self.score(history)
        scores = np.zeros(len(history.evidence[-1]))
        scores[: self.exiting[history.exit_index]] = 1.0
        return scores


class _ForcedEnsemble(_Forced, Ensemble):
    """The same of a score that also answers."""

    def answers(self, history: ExitHistory) -> NDArray[np.float32]:
        assert isinstance(self.score, Ensemble)
        return self.score.answers(history)


def _increasing(values: Floats) -> Floats:
    increasing: Floats = np.maximum.accumulate(values) + _SMALLEST * np.arange(1, len(values) + 1)
    return increasing


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
