"""How long a fit for all budgets takes and how much memory, and how long a decision takes.

Fits are of made-up records, each in a process of its own, on one core: 5,000 samples x 3 exits x 10 classes,
10,000 x 4 x 100 and 50,000 x 5 x 1,000. `fit` is given no budget; the policies of a table of budgets are then planned
separately, and one more budget after that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from eenet._timing import describe_machine, machine
from eenet.errors import ReliabilityWarning
from eenet.scheduler import DecisionState
from eenet.tasks import Evidence, softmax

SCHEDULERS: dict[str, Callable[[], eenet.Scheduler]] = {
    "MaxProbability": eenet.MaxProbability,
    "Patience": eenet.Patience,
    "EENet": eenet.EENet,
    "OptimalStopping": eenet.OptimalStopping,
}
SIZES = {"small": (5_000, 3, 10), "middle": (10_000, 4, 100), "large": (50_000, 5, 1_000)}
TARGETS = {"small": 1.0, "middle": 8.0, "large": 60.0}
"""Seconds for a fit of `OptimalStopping`."""
MEMORY_TARGET = 6.0
"""GiB, the records included."""


@dataclass(frozen=True)
class Fit:
    """Seconds of one fit, by the processor and by the clock, of a table of budgets after it, and of one more budget."""

    fit_cpu: float
    fit: float
    table: float
    one_more: float
    records_gib: float
    peak_gib: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS), default=["OptimalStopping", "EENet"])
    parser.add_argument("--fits", type=int, default=3, help="of each; one of the large size (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that fit: one core each
    found = machine()
    print(describe_machine(found) + "\n", flush=True)
    results: dict[str, Any] = {"machine": found, "fits": {}}
    print(f"{'fit of':<34}{'CPU s (slowest)':>18}{'s':>8}{'target':>8}{'table s':>9}{'at() ms':>9}{'peak GiB':>10}")
    for name in options.schedulers:
        for size in options.sizes:
            times = 1 if size == "large" else options.fits
            fits = [_apart(name, size) for _ in range(times)]
            results["fits"][f"{name} {size}"] = [asdict(fit) for fit in fits]
            cpu = [fit.fit_cpu for fit in fits]
            target = f"{TARGETS[size]:g}" if name == "OptimalStopping" else "-"
            shape = " x ".join(f"{n:,}" for n in SIZES[size])
            print(
                f"{name + ' ' + shape:<34}{f'{statistics.median(cpu):.2f} ({max(cpu):.2f})':>18}"
                f"{statistics.median(fit.fit for fit in fits):>8.2f}{target:>8}"
                f"{statistics.median(fit.table for fit in fits):>9.2f}"
                f"{1000 * statistics.median(fit.one_more for fit in fits):>9.1f}"
                f"{f'{max(fit.peak_gib for fit in fits):.2f}':>10}",
                flush=True,
            )
    print(f"peak: of the whole process, of which the large records are the most; target at most {MEMORY_TARGET:g}\n")
    results["decisions"] = _decisions(*_made_up(*SIZES["small"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _apart(name: str, size: str) -> Fit:
    """A fit in a process of its own, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_fit, name, size).result()


def _fit(name: str, size: str) -> Fit:
    warnings.simplefilter("ignore", ReliabilityWarning)
    torch.set_num_threads(1)
    records, costs = _made_up(*SIZES[size])
    held = _peak()
    start, cpu = time.perf_counter(), time.process_time()
    fitted = SCHEDULERS[name]().fit(records, costs)
    taken, cpu_taken = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    fitted.frontier()
    table = time.perf_counter() - start
    start = time.perf_counter()
    _ = fitted.at("61.803%").policy
    return Fit(cpu_taken, taken, table, time.perf_counter() - start, held, _peak())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _made_up(samples: int, exits: int, classes: int) -> tuple[eenet.ExitRecords, eenet.ExitCosts]:
    """Records of exits that get better, on samples of which some are easy."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=samples)
    easy = rng.normal(size=samples).astype(np.float32)
    probabilities = np.empty((exits, samples, classes), dtype=np.float32)
    rows = np.arange(samples)
    for k in range(exits):
        logits = rng.standard_normal((samples, classes), dtype=np.float32)
        logits[rows, labels] += np.float32(0.5 * np.log(classes)) + k + 1.5 * easy
        probabilities[k] = softmax(logits)
    return eenet.ExitRecords.from_probabilities(probabilities, labels), eenet.ExitCosts(list(range(1, exits + 1)))


def _decisions(records: eenet.ExitRecords, costs: eenet.ExitCosts, rounds: int = 300) -> dict[str, dict[str, float]]:
    """Microseconds per exit on the host, from logits to which samples exit; all schedulers in turns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        fitted = {name: make().fit(records, costs, budget="65%") for name, make in SCHEDULERS.items()}
    logits = np.log(np.maximum(records.probabilities, np.float32(1e-30)))
    print("a decision, from logits on the host to which samples exit, microseconds per exit: median (quartiles)")
    print(f"  {'':<20}{'batch 1':>22}{'batch 32':>22}")
    taken: dict[str, dict[int, list[float]]] = {name: {1: [], 32: []} for name in fitted}
    for turn in range(rounds):
        for name, scheduler in fitted.items():
            for size, spent in taken[name].items():
                start = turn * size % (len(records) - size)
                spent.append(_decide(scheduler, logits[:, start : start + size]))
    found = {}
    for name, by_size in taken.items():
        quartiles = {size: np.quantile(spent, [0.5, 0.25, 0.75]) * 1e6 for size, spent in by_size.items()}
        cells = "".join(f"{f'{m:.0f} ({low:.0f}-{high:.0f})':>22}" for m, low, high in quartiles.values())
        print(f"  {name:<20}{cells}", flush=True)
        found[name] = {f"batch_{size}_us": float(values[0]) for size, values in quartiles.items()}
    return found


def _decide(scheduler: eenet.Scheduler, logits: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Seconds per exit that was looked at; the best of three, since one run is too short to time."""
    return min(_decide_once(scheduler, logits) for _ in range(3))


def _decide_once(scheduler: eenet.Scheduler, logits: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    state = DecisionState(scheduler.policy, logits.shape[1])
    looked = 0
    spent = 0.0
    for k in range(len(logits) - 1):
        if len(state.running) == 0:
            break
        if not scheduler.policy.observes(k):
            state.skip()
            continue
        rows = logits[k, state.running]
        start = time.perf_counter()
        state.observe(Evidence.from_logits(rows, state.earlier))
        spent += time.perf_counter() - start
        looked += 1
    return spent / looked


if __name__ == "__main__":
    sys.exit(main())
