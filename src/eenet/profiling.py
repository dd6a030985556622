"""Measuring what each exit costs on the machine at hand.

Stages, heads and the scheduler's steps are timed apart, in rounds that take turns, so that a machine that slows down
or speeds up meanwhile does it to all of them. This room stands above `models`, since it runs them; the costs it gives
are a ground-floor thing.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models import MultiExitModel, inferring
from eenet.runtime._torch_backend import TENSORS
from eenet.scheduler import ExitHistory, Scheduler
from eenet.stages import Example, arguments_of, walk
from eenet.tasks import Task

UNITS = ("ms", "cpu_ms", "flops")
TRUSTED_SPREAD = 0.25
"""Above this relative spread (the middle half of the rounds over their median) a measurement carries a warning."""

_MIN_ROUNDS, _MAX_ROUNDS = 7, 200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StageProfile:
    """Costs per sample of each exit at several batch sizes, in all units.

    `tables[unit]` is (batch sizes, K), cumulative; `spread[unit]` alike, relative; `parts_ms` (batch sizes, K, parts)
    is the wall time of each stage, head and scheduler step by itself.
    """

    batch_sizes: tuple[int, ...]
    tables: Mapping[str, Floats]
    spreads: Mapping[str, Floats]
    parts_ms: Floats
    device: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...] = ()

    def costs(self, unit: str = "ms", batch_size: int = 1) -> ExitCosts:
        """The costs of one unit at one of the measured batch sizes; warns where the spread is too large to trust."""
        _require_unit(unit)
        if batch_size not in self.batch_sizes:
            raise InvalidInputError(f"batch size {batch_size} was not measured; there are {list(self.batch_sizes)}")
        row = self.batch_sizes.index(batch_size)
        spread = self.spreads[unit][row]
        if spread.max() > TRUSTED_SPREAD:
            warnings.warn(
                f"the costs at batch size {batch_size} vary by {spread.max():.0%} between rounds; measure again on a "
                "quieter machine, or use unit='cpu_ms'",
                ReliabilityWarning,
                stacklevel=2,
            )
        return ExitCosts(
            self.tables[unit][row],
            unit,
            batch_size=batch_size,
            spread=spread,
            device=self.device,
            # A scheduler's step is a few dozen operations on the host: it takes time, but has no counted FLOPs.
            includes=tuple(part for part in self.includes if unit != "flops" or part != "scheduler"),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "costs": {unit: table.tolist() for unit, table in self.tables.items()},
            "spreads": {unit: table.tolist() for unit, table in self.spreads.items()},
            "parts_ms": self.parts_ms.tolist(),
            "device": dict(self.device),
            "includes": list(self.includes),
        }


def profile(
    model: MultiExitModel,
    example: Example,
    *,
    unit: str = "ms",
    batch_size: int = 1,
    scheduler: Scheduler | None = None,
    seconds: float = 2.0,
) -> ExitCosts:
    """The cost per sample of each exit: "ms" of wall time, "cpu_ms" of CPU time of all threads, or "flops".

    `example` is an input of any batch size, repeated or shortened to `batch_size`, and moved to the model's device.
    Exit heads on the way are included; with `scheduler` only those that it looks at, since the others do not run, and
    its steps too. `seconds` is about how long to measure.
    """
    _require_unit(unit)
    return measure(model, example, batch_sizes=(batch_size,), scheduler=scheduler, seconds=seconds).costs(
        unit, batch_size
    )


def measure(
    model: MultiExitModel,
    example: Example,
    *,
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    scheduler: Scheduler | None = None,
    seconds: float = 2.0,
    progress: Callable[[int], None] | None = None,
) -> StageProfile:
    """Profile a model at several batch sizes, about `seconds` for each; `progress` is told of each that is done.

    Milliseconds are medians over interleaved rounds after a warm-up; FLOPs are counted on the stages themselves, two
    for each multiply-add.
    """
    if not batch_sizes or not all(isinstance(size, int) and size >= 1 for size in batch_sizes):
        raise InvalidInputError(f"batch sizes {list(batch_sizes)}: expected at least one, each a whole number from 1")
    if scheduler is not None:
        scheduler.policy.require(model.num_exits, model.num_classes, "the model has")
    args, kwargs = arguments_of(example)
    inputs = model.staged.flatten_inputs(*args, **kwargs)
    if model.staged.batch_size_of(inputs) == 0:
        raise InvalidInputError("the example has batch size 0; give at least one sample, which is repeated as needed")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = tuple([tensor.to(device) for tensor in inputs])
    tables: dict[str, list[Floats]] = {unit: [] for unit in UNITS}
    spreads: dict[str, list[Floats]] = {unit: [] for unit in UNITS}
    parts = []
    with inferring(model):
        flops = _count_flops(model, inputs, scheduler)
        for size in batch_sizes:
            steps = _steps(model, inputs, size, scheduler)
            wall, cpu = _time_rounds(steps, device, seconds)
            for unit, rounds in (("ms", wall), ("cpu_ms", cpu)):
                cumulative = rounds.sum(axis=2).cumsum(axis=1) / size
                median = np.median(rounds, axis=0).sum(axis=1).cumsum() / size
                low, high = np.quantile(cumulative, [0.25, 0.75], axis=0)
                tables[unit].append(median)
                spreads[unit].append((high - low) / np.maximum(median, 1e-9))
            tables["flops"].append(flops)
            spreads["flops"].append(np.zeros(len(flops)))
            parts.append(np.median(wall, axis=0) / size)
            if progress is not None:
                progress(size)
    includes = ("stages", "heads", "scheduler") if scheduler is not None else ("stages", "heads")
    return StageProfile(
        tuple(batch_sizes),
        {unit: np.stack(rows) for unit, rows in tables.items()},
        {unit: np.stack(rows) for unit, rows in spreads.items()},
        np.stack(parts),
        fingerprint(device),
        includes,
    )


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What a timing depends on: processor, threads, accelerator, versions."""
    found = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


Step = Callable[[], Any]


def _steps(
    model: MultiExitModel, inputs: tuple[Tensor, ...], size: int, scheduler: Scheduler | None
) -> list[tuple[Step, ...]]:
    """For each exit what is timed apart: the stage, its head, and where given the scheduler's step."""
    rows = torch.arange(size, device=inputs[0].device) % model.staged.batch_size_of(inputs)
    live = model.staged.compact(inputs, rows, 0)
    steps: list[tuple[Step, ...]] = []
    trail, task = ExitHistory(), model.task
    stages = model.staged.inference_stages
    for k, step in enumerate(walk(stages, live)):
        run_stage = _bound(step.stage, *live)
        if k == len(stages) - 1:
            last: tuple[Step, ...] = (run_stage, _nothing)
            if scheduler is not None:
                last = (*last, _ensemble_step(scheduler, task, model.final_logits(step.outputs), trail))
            steps.append(last)
            break
        head, feature = model.heads[k], step.feature
        timed: tuple[Step, ...] = (run_stage, _bound(head, feature))
        if scheduler is not None and not scheduler.policy.observes(k):
            timed = (run_stage, _nothing, _nothing)  # the exit is off, and its head does not run
            trail.skip(size, model.num_classes)
        elif scheduler is not None:
            logits = head(feature)
            timed = (*timed, _scheduler_step(scheduler, task, logits, ExitHistory(trail.evidence, trail.scores)))
            trail.evidence.append(task.evidence(TENSORS.to_host(task.shown(logits)), trail.evidence))
            scheduler.policy.leaves(trail)
        steps.append(timed)
        live = step.live
    return steps


def _scheduler_step(scheduler: Scheduler, task: Task, logits: Tensor, before: ExitHistory) -> Step:
    """What a runtime does at an exit that is on, between the head and the compaction."""
    policy = scheduler.policy

    def step() -> None:
        trail = ExitHistory(before.evidence, before.scores)
        trail.evidence.append(task.evidence(TENSORS.to_host(task.shown(logits)), before.evidence))
        np.flatnonzero(policy.leaves(trail))

    return step


def _ensemble_step(scheduler: Scheduler, task: Task, logits: Tensor, before: ExitHistory) -> Step:
    """What a runtime does after the last exit: nothing, but for an ensemble, which answers in its place."""
    ensemble = scheduler.policy.ensemble
    if ensemble is None:
        return _nothing

    def step() -> None:
        trail = ExitHistory(before.evidence, before.scores)
        trail.evidence.append(task.evidence(TENSORS.to_host(task.shown(logits)), before.evidence))
        ensemble.answers(trail)

    return step


def _bound(function: Callable[..., Any], *args: Any) -> Step:
    return lambda: function(*args)


def _nothing() -> None:
    return None


def _time_rounds(steps: list[tuple[Step, ...]], device: torch.device, seconds: float) -> tuple[Floats, Floats]:
    """Wall and CPU milliseconds, (rounds, K, parts) each."""

    def one_round() -> tuple[list[list[float]], list[list[float]]]:
        wall: list[list[float]] = []
        cpu: list[list[float]] = []
        for parts in steps:
            wall.append([])
            cpu.append([])
            for step in parts:
                _synchronise(device)
                cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
                step()
                _synchronise(device)
                wall[-1].append((time.perf_counter_ns() - start) / 1e6)
                cpu[-1].append((time.process_time_ns() - cpu_start) / 1e6)
        return wall, cpu

    for _ in range(3):
        one_round()
    walls: list[list[list[float]]] = []
    cpus: list[list[list[float]]] = []
    start = time.perf_counter()
    while len(walls) < _MIN_ROUNDS or (time.perf_counter() - start < seconds and len(walls) < _MAX_ROUNDS):
        wall, cpu = one_round()
        walls.append(wall)
        cpus.append(cpu)
    return np.array(walls), np.array(cpus)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _count_flops(model: MultiExitModel, inputs: tuple[Tensor, ...], scheduler: Scheduler | None) -> Floats:
    """Cumulative FLOPs per sample of each exit, (K,), heads that run included."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for parts in _steps(model, inputs, 1, scheduler):
        with FlopCounterMode(display=False) as counter:
            for step in parts:
                step()
        counts.append(counter.get_total_flops())
    # A stage without a counted operation must still cost something for the exits to be in order.
    return np.maximum(np.array(counts, dtype=np.float64), 1.0).cumsum()


def _require_unit(unit: str) -> None:
    if unit not in UNITS:
        raise InvalidInputError(f"unit {unit!r} cannot be measured; choose from {list(UNITS)}")
