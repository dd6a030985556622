"""All schedulers on the exit predictions of trained networks, on fresh samples and at equal realised cost.

Reads `predictions/*.npz` in ../shared, or in the folder that EENET_SHARED names, and says so where there are none. Only
the `val_*` half is used: it is divided into two thirds for calibration and a third held out, several times. Also prints
how long fitting 5,000 samples x 3 exits x 10 classes takes, and how long one decision takes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from _machine import describe, machine, progress_bar
from eenet.evaluation import compare
from eenet.scheduler import Route, SearchedThresholds
from eenet.tasks import Evidence

SCHEDULERS: dict[str, Callable[[], eenet.Scheduler]] = {
    "MaxProbability": eenet.MaxProbability,
    "Entropy": eenet.Entropy,
    "Patience": eenet.Patience,
    "Searched(max_prob)": SearchedThresholds,
    "Searched(learned)": lambda: SearchedThresholds("learned"),
    "EENet": eenet.EENet,
}
REFERENCE = "MaxProbability"
FIT_TARGET = 10.0  # seconds, for 5,000 samples x 3 exits x 10 classes on one core


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, default=8, help="how many, between the first and the last exit's cost")
    parser.add_argument("--resplits", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = machine()
    print(describe(found) + "\n", flush=True)
    results: dict[str, Any] = {"machine": found, "comparisons": {}}

    folder = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[2] / "shared")) / "predictions"
    files = sorted(folder.glob("*.npz"))
    if not files:
        print(f"no predictions in {folder}: the comparison is skipped; name another folder with EENET_SHARED\n")
    for file in files:
        results["comparisons"][file.stem] = _compare(file, options.budgets, options.resplits)
    records, costs = _synthetic()
    results["fits"] = _fits(records, costs)
    results["decisions"] = _decisions(records, costs)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _compare(file: Path, budgets: int, resplits: int) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:  # the test_* half is left for the very end of a study
        records = eenet.ExitRecords.from_probabilities(arrays["val_probs"], arrays["val_labels"])
        costs = eenet.ExitCosts(arrays["costs"], unit="cpu_ms")
    amounts = np.linspace(costs[0], costs[-1], budgets + 2)[1:-1].tolist()
    with progress_bar() as bar:
        task = bar.add_task(file.stem)
        found = compare(
            records,
            costs,
            SCHEDULERS,
            amounts,
            resplits=resplits,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    exits = ", ".join(
        f"{c:.3g} {costs.unit} {100 * a:.2f} %" for c, a in zip(costs.values, records.accuracies, strict=True)
    )
    print(f"{file.stem}: {len(records)} samples, {records.num_classes} classes; exits: {exits}")
    print(found.to_text(REFERENCE) + "\n", flush=True)
    return found.to_dict(REFERENCE)


def _synthetic(samples: int = 5000, exits: int = 3, classes: int = 10) -> tuple[eenet.ExitRecords, eenet.ExitCosts]:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=samples)
    easy = rng.normal(size=samples)
    logits = rng.normal(size=(exits, samples, classes))
    for k in range(exits):
        logits[k, np.arange(samples), labels] += 1.0 + k + 1.5 * easy
    return eenet.ExitRecords.from_logits(logits.astype(np.float32), labels), eenet.ExitCosts([1.0, 2.0, 3.0])


def _fits(records: eenet.ExitRecords, costs: eenet.ExitCosts) -> dict[str, list[float]]:
    """Seconds of three fits of each scheduler."""
    shape = f"{len(records):,} samples x {records.num_exits} exits x {records.num_classes} classes"
    print(f"fit, {shape}, seconds: median (slowest) of 3; target at most {FIT_TARGET:g}")
    found = {}
    for name, make in SCHEDULERS.items():
        seconds = []
        for budget in ("50%", "65%", "80%"):
            start = time.perf_counter()
            make().fit(records, costs, budget=budget)
            seconds.append(time.perf_counter() - start)
        found[name] = seconds
        print(f"  {name:<20}{statistics.median(seconds):>8.3f} ({max(seconds):.3f})", flush=True)
    print()
    return found


def _decisions(records: eenet.ExitRecords, costs: eenet.ExitCosts, rounds: int = 300) -> dict[str, dict[str, float]]:
    """Microseconds per exit of what a runtime does on the host: from logits to who leaves; all schedulers in turns."""
    fitted = {name: make().fit(records, costs, budget="65%") for name, make in SCHEDULERS.items()}
    logits = np.log(np.maximum(records.probabilities, np.float32(1e-30)))
    print("a decision, from logits on the host to who leaves, microseconds per exit: median (quartiles)")
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
    """Seconds per exit that was looked at."""
    route = Route(scheduler.policy, logits.shape[1])
    looked = 0
    spent = 0.0
    for k in range(len(logits) - 1):
        if len(route.running) == 0:
            break
        if not scheduler.policy.observes(k):
            route.skip()
            continue
        rows = logits[k, route.running]
        start = time.perf_counter()
        route.observe(Evidence.from_logits(rows, route.earlier))
        spent += time.perf_counter() - start
        looked += 1
    return spent / looked


if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests: a benchmark with a warning is not to be trusted
    sys.exit(main())
