"""Wall-clock time of several ways to answer the same batches, taken in turns within one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Timings:
    """Milliseconds of `names` x rounds x batches, (P, R, B) each, and the first round's outputs by name."""

    names: tuple[str, ...]
    samples: int
    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]
    outputs: dict[str, list[Any]] = field(repr=False)

    def per_sample(self, name: str) -> dict[str, Any]:
        """Milliseconds per sample: `ms` and `cpu_ms` from each batch's median over the rounds; `rounds` each round's.

        `spread` is half the range of the rounds, relative to `ms`.
        """
        wall, cpu = (times[self.names.index(name)] / self.samples for times in (self.wall, self.cpu))
        rounds = wall.sum(axis=1)
        typical = float(np.median(wall, axis=0).sum())
        return {
            "ms": typical,
            "spread": float((rounds.max() - rounds.min()) / 2 / typical),
            "rounds": rounds.tolist(),
            "cpu_ms": float(np.median(cpu, axis=0).sum()),
        }

    def speed_up(self, name: str, reference: str) -> dict[str, Any]:
        """How many `times` as fast as `reference`; `rounds` the same of each round, compared within itself."""
        mine, other = (self.wall[self.names.index(n)] for n in (name, reference))
        typical = np.median(other, axis=0).sum() / np.median(mine, axis=0).sum()
        return {"times": float(typical), "rounds": (other.sum(axis=1) / mine.sum(axis=1)).tolist()}


def time_in_turns(
    runs: Mapping[str, Run], batches: Sequence[Tensor], *, rounds: int, seed: int, progress: Callable[[int], None]
) -> Timings:
    """Time every run on every batch, `rounds` times, in an order drawn anew for each batch.

    A machine that slows down or speeds up meanwhile does so to all of them. `progress` is told of each timed call.
    """
    names = tuple(runs)
    wall = np.zeros((len(names), rounds, len(batches)))
    cpu = np.zeros_like(wall)
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        for name in names:
            runs[name](batches[0])  # a warm-up
        for r in range(rounds):
            for b, batch in enumerate(batches):
                for p in rng.permutation(len(names)):
                    run = runs[names[p]]
                    cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
                    output = run(batch)
                    wall[p, r, b] = (time.perf_counter_ns() - start) / 1e6
                    cpu[p, r, b] = (time.process_time_ns() - cpu_start) / 1e6
                    if r == 0:
                        outputs[names[p]].append(output)
                progress(len(names))
    return Timings(names, sum(len(batch) for batch in batches), wall, cpu, outputs)
