"""Never worse than the obvious, held out: every method against the best simple rule at equal cost.

Reads the records of `results/*`, and `predictions/*.npz` and `cases/*.npz` in ../shared, or in the folder that
EENET_SHARED names, where they are; of the predictions the `val_*` half alone. Each method is fitted on calibration
records, with and without fallbacks, and judged on others at nine budgets. The simple rules are one exit for all samples
or a mixture of two, max probability with geometric shares, and searched thresholds, each where it really costs as much
on the held-out samples as the method does: a rule that is planned for that cost would miss it by as much as the method
missed its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import eenet
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.scheduler import SearchedThresholds

SCHEDULERS: dict[str, Callable[[], eenet.Scheduler]] = {
    "EENet": eenet.EENet,
    "OptimalStopping": eenet.OptimalStopping,
    "MaxProbability": eenet.MaxProbability,
    "Entropy": eenet.Entropy,
    "Patience": eenet.Patience,
}
SHARES = np.linspace(0.1, 0.9, 9)
ALLOWED = 0.001
"""What a method may be below the best simple rule, in the mean over the budgets."""

Case = tuple[str, eenet.ExitRecords, eenet.ExitRecords, eenet.ExitCosts]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write JSON where asked; 1 where a method is below beyond chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    print("points of accuracy above the best simple rule at equal cost, mean of the budgets (standard error)")
    print(f"{'records':<26}{'method':<17}{'as it is':>15}{'with fallback':>16}{'spent':>8}{'taken':>7}{'left out':>10}")
    found: list[dict[str, Any]] = []
    for name, calibration, test, costs in cases(Path(__file__).parents[1]):
        simple = Simple(calibration, test, costs)
        for method, make in SCHEDULERS.items():
            row: dict[str, Any] = {"records": name, "method": method}
            row |= {"alone": judged(make, calibration, test, costs, simple, fallback=False)}
            row |= {"fallback": judged(make, calibration, test, costs, simple, fallback=True)}
            found.append(row)
            print(line(row), flush=True)
    below = [row for row in found if row["fallback"]["gap"] + 2 * row["fallback"]["error"] < -ALLOWED]
    print(f"below by more than {100 * ALLOWED:g} points beyond chance: {len(below)} of {len(found)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if below else 0


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{100 * row[k]['gap']:+.2f} ({100 * row[k]['error']:.2f})" for k in ("alone", "fallback")]
    with_it = row["fallback"]
    return (
        f"{row['records']:<26}{row['method']:<17}{cells[0]:>15}{cells[1]:>16}"
        f"{with_it['spent']:>8.2f}{with_it['taken']:>7}{with_it['left_out']:>10}"
    )


def cases(root: Path) -> Iterator[Case]:
    """Calibration records and others of the same network."""
    for file in sorted(root.glob("results/*/calibration.safetensors")):
        described = json.loads((file.parent / "costs.json").read_text(encoding="utf-8"))
        costs = eenet.ExitCosts(described["costs"]["ms"][0])
        yield (
            file.parent.name,
            eenet.ExitRecords.load(file),
            eenet.ExitRecords.load(file.parent / "test.safetensors"),
            costs,
        )
    shared = Path(os.environ.get("EENET_SHARED", root.parent / "shared"))
    for file in sorted(shared.glob("predictions/*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            records = eenet.ExitRecords.from_probabilities(arrays["val_probs"], arrays["val_labels"])
            costs = eenet.ExitCosts(arrays["costs"], unit="cpu_ms")
        yield (file.stem, *records.split(0.6, seed=0), costs)
    models = [shared / "cases" / f"three_sklearn_models_{part}.npz" for part in ("calibration", "test")]
    if all(file.is_file() for file in models):
        yield ("three models", _loaded(models[0]), _loaded(models[1]), eenet.ExitCosts([0.1, 0.5, 12.0]))
    dead = shared / "cases" / "two_dead_exits.npz"
    if dead.is_file():
        yield ("two dead exits", *_loaded(dead).split(0.6, seed=0), eenet.ExitCosts([13.0, 27.0, 40.0]))


def _loaded(file: Path) -> eenet.ExitRecords:
    with np.load(file, allow_pickle=False) as arrays:
        return eenet.ExitRecords.from_probabilities(arrays["probs"], arrays["labels"])


class Simple:
    """What the simple rules bring on held-out samples, at any cost that they really have there."""

    def __init__(self, calibration: eenet.ExitRecords, test: eenet.ExitRecords, costs: eenet.ExitCosts) -> None:
        self.utility = test.require_utility().astype(np.float64)
        self.accuracy, self.costs = calibration.accuracies, costs
        ends = [(costs[k], self.utility[k]) for k in (0, -1)]
        self.tried = []
        for rule in (eenet.MaxProbability(), SearchedThresholds()):
            fitted = rule.fit(calibration, costs, fallback=False)
            decided = [fitted.at(budget).replay(test) for budget in fitted.table.budgets[1:-1].tolist()]
            points = ends + [(d.mean_cost, d.utility) for d in decided]
            self.tried.append(sorted(points, key=lambda point: point[0]))

    def at(self, cost: float) -> list[Any]:
        """The utility of each sample, (N,), under each rule; between two policies in the mean of a draw by lot."""
        found = [self._mixture(cost)]
        for points in self.tried:
            known = [c for c, _ in points]
            high = int(np.clip(np.searchsorted(known, cost), 1, len(known) - 1))
            (c0, u0), (c1, u1) = points[high - 1], points[high]
            share = (cost - c0) / (c1 - c0) if c1 > c0 else 0.0
            found.append((1 - share) * u0 + share * u1)
        return found

    def _mixture(self, cost: float) -> Any:
        """Of exits that are drawn by lot in the best proportion, by the accuracies of the calibration records."""
        costs, best = self.costs, (-1.0, self.utility[0])
        for low in range(len(costs)):
            for high in range(low, len(costs)):
                if costs[low] <= cost * (1 + 1e-9) and (high == low or costs[high] > cost):
                    share = 0.0 if high == low else (cost - costs[low]) / (costs[high] - costs[low])
                    value = (1 - share) * self.accuracy[low] + share * self.accuracy[high]
                    if value > best[0]:
                        best = value, (1 - share) * self.utility[low] + share * self.utility[high]
        return best[1]


def judged(
    make: Callable[[], eenet.Scheduler],
    calibration: eenet.ExitRecords,
    test: eenet.ExitRecords,
    costs: eenet.ExitCosts,
    simple: Simple,
    *,
    fallback: bool,
) -> dict[str, Any]:
    """How far a method is above the best simple rule; budgets that only a dead exit fits count for nothing."""
    fitted = make().fit(calibration, costs, fallback=fallback)
    ahead, spent, taken = [], [], 0
    for budget in (costs[0] + SHARES * (costs[-1] - costs[0])).tolist():
        try:
            scheduler = fitted.at(budget)
        except InfeasibleBudgetError:
            continue
        decisions = scheduler.replay(test)
        cost = float(np.clip(decisions.mean_cost, costs[0], costs[-1]))
        ahead.append([decisions.utility - other for other in simple.at(cost)])
        spent.append(decisions.mean_cost / budget)
        taken += scheduler.fallback is not None
    if not ahead:
        return {"gap": 0.0, "error": 0.0, "spent": 1.0, "taken": 0, "left_out": len(fitted.left_out)}
    means = np.mean(ahead, axis=0)  # of each rule and sample
    worst = means[means.mean(axis=1).argmin()]
    return {
        "gap": float(worst.mean()),
        "error": float(worst.std() / np.sqrt(len(worst))),
        "spent": float(np.mean(spent)),
        "taken": taken,
        "left_out": len(fitted.left_out),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore", ReliabilityWarning)  # what fits say is in the table
    sys.exit(main())
