"""ResNet-20 and ResNet-56 with exits on CIFAR-10, and their cascades: what `eenet.search` finds, judged held out.

Reads the records and costs of `results/cifar10-resnet20-shared` and `results/cifar10-resnet56-shared`. Both are of the
same 5,000 images, none of which trained a network, in the orders of their own splits: the splits are made again from
the labels of the data set (in ../shared, or the folder that EENET_SHARED names), which puts the records in one order.
The images on which the recipe of ResNet-20 calibrates choose and fit here, the others judge. Costs are the measured
milliseconds; those of the plain networks leave the early heads out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eenet
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"ResNet-20": "cifar10-resnet20-shared", "ResNet-56": "cifar10-resnet56-shared"}
BUDGETS = ("30%", "40%", "50%", "65%", "80%", "100%")

Candidates = dict[str, eenet.ExitRecords]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    shared = Path(os.environ.get("EENET_SHARED", ROOT.parent / "shared")) / "datasets"
    if not (shared / "cifar10").is_dir():
        print(f"no cifar10 in {shared}: name the folder with EENET_SHARED", file=sys.stderr)
        return 2
    calibration, test = aligned(shared)
    everything: dict[str, Any] = {"samples": {"calibration": size(calibration), "test": size(test)}, "batches": {}}
    for batch in (1, 32):
        costs = {name: costs_of(ROOT / "results" / folder, batch) for name, folder in NETWORKS.items()}
        found = eenet.search(calibration, costs, list(BUDGETS))
        print(f"\nBatches of {batch}. Calibration, {size(calibration):,} images:\n\n{found}")
        rows = [row(system, test, calibration, costs) for system in found.frontier]
        print(f"\nHeld out, {size(test):,} images:\n")
        print(f"{'budget':<8}{'best system':<24}{'promised':>9}{'held out':>16}{'spent':>8}", end="")
        print("".join(f"{name + ' exits':>17}" for name in NETWORKS))
        for one in rows:
            print(line(one))
        for name, records in test.items():
            print(f"{name} by itself: {100 * records.accuracies[-1]:.2f} % at {costs[name].reference:.3f} ms")
        everything["batches"][str(batch)] = {"calibration": found.to_dict(), "test": rows}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 0


def aligned(datasets: Path) -> tuple[Candidates, Candidates]:
    """The records of both networks on the same images in the same order: those to calibrate on, and the others."""
    from eenet.experiments.data import load, three_way_split

    published = {split: load("cifar10", str(datasets), split=split) for split in ("train", "test")}
    whole: Candidates = {}
    chosen: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
    for name, folder in NETWORKS.items():
        recipe = json.loads((ROOT / "results" / folder / "metrics.json").read_text(encoding="utf-8"))
        takes = recipe["settings"]["data"]
        split = three_way_split(
            published, train=takes["train"], calibration=tuple(takes["calibration"]), test=takes["test"],
            seed=recipe["seed"], duplicates=False,
        )  # fmt: skip
        parts = [
            eenet.ExitRecords.load(ROOT / "results" / folder / f"{p}.safetensors") for p in ("calibration", "test")
        ]
        rows = np.concatenate([split.indices["calibration"], split.indices["test"]])
        probabilities = np.concatenate([part.probabilities for part in parts], axis=1)
        predictions = np.concatenate([part.predictions for part in parts], axis=1)
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
        assert np.array_equal(labels, np.asarray(published["test"].labels)[rows]), f"{folder} is of another split"
        order = np.argsort(rows)
        whole[name] = eenet.ExitRecords(probabilities[:, order], predictions[:, order], labels[order])
        if not len(chosen):
            chosen = np.isin(rows[order], split.indices["calibration"])
    return (
        {name: records.subset(chosen) for name, records in whole.items()},
        {name: records.subset(~chosen) for name, records in whole.items()},
    )


def size(candidates: Candidates) -> int:
    """How many samples there are."""
    return len(next(iter(candidates.values())))


def costs_of(folder: Path, batch: int) -> eenet.ExitCosts:
    """The measured milliseconds of the exits, and those of the network without its early heads."""
    data = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    number = data["batch_sizes"].index(batch)
    parts = data["parts_ms"][number]  # of each exit the stage before it, and its head
    plain = sum(stage for stage, _ in parts) + parts[-1][1]
    return eenet.ExitCosts(data["costs"]["ms"][number], "ms", batch_size=batch, plain=plain)


def row(
    system: eenet.evaluation.System, test: Candidates, calibration: Candidates, costs: Mapping[str, eenet.ExitCosts]
) -> dict[str, Any]:
    """What was promised of a system and what held-out images say, beside each network with exits by itself."""
    decisions = system.replay(test)
    alone: dict[str, Any] = {}
    for name, records in calibration.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)
            try:
                fitted = eenet.OptimalStopping().fit(records, costs[name], system.budget)
            except InfeasibleBudgetError:
                alone[name] = None
                continue
        judged = fitted.replay(test[name])
        alone[name] = {"accuracy": judged.accuracy, "cost": judged.mean_cost}
    return {
        "budget": system.budget,
        "system": system.name,
        "promised": system.accuracy,
        "accuracy": decisions.accuracy,
        "accuracy_error": math.sqrt(decisions.accuracy * (1 - decisions.accuracy) / size(test)),
        "cost": decisions.mean_cost,
        "alone": alone,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    held = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_error']:.2f}"
    alone = [f"{100 * one['accuracy']:.2f}" if one else "-" for one in row["alone"].values()]
    return (
        f"{row['budget']:<8.3f}{row['system']:<24}{100 * row['promised']:>9.2f}{held:>16}{row['cost']:>8.3f}"
        + "".join(f"{one:>17}" for one in alone)
    )


if __name__ == "__main__":
    sys.exit(main())
