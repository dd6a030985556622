"""All schedulers on the exit predictions of trained networks, on fresh samples and at equal realized cost.

Reads `predictions/*.npz` in ../shared, or in the folder that EENET_SHARED names, and says so where there are none. Only
the `val_*` half is used: it is divided into two thirds for calibration and a third held out, several times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress
from eenet.errors import ReliabilityWarning
from eenet.evaluation import compare
from eenet.scheduler import SearchedThresholds

SCHEDULERS: dict[str, Callable[[], eenet.Scheduler]] = {
    "MaxProbability": eenet.MaxProbability,
    "Entropy": eenet.Entropy,
    "Patience": eenet.Patience,
    "Searched(max_prob)": SearchedThresholds,
    "Searched(learned)": lambda: SearchedThresholds("learned"),
    "EENet": eenet.EENet,
    "OptimalStopping": eenet.OptimalStopping,
}
REFERENCE = "MaxProbability"


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
    print(describe_machine(found) + "\n", flush=True)
    results: dict[str, Any] = {"machine": found, "comparisons": {}}

    folder = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[2] / "shared")) / "predictions"
    files = sorted(folder.glob("*.npz"))
    if not files:
        print(f"no predictions in {folder}: the comparison is skipped; name another folder with EENET_SHARED\n")
    for file in files:
        results["comparisons"][file.stem] = _compare(file, options.budgets, options.resplits)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _compare(file: Path, budgets: int, resplits: int) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:  # the test_* half is left for the very end of a study
        records = eenet.ExitRecords.from_probabilities(arrays["val_probs"], arrays["val_labels"])
        costs = eenet.ExitCosts(arrays["costs"], unit="cpu_ms")
    amounts = np.linspace(costs[0], costs[-1], budgets + 2)[1:-1].tolist()
    with progress() as bars:
        update = bars.task(file.stem)
        found = compare(
            records,
            costs,
            SCHEDULERS,
            amounts,
            resplits=resplits,
            progress=update,
        )
    exits = ", ".join(
        f"{c:.3g} {costs.unit} {100 * a:.2f} %" for c, a in zip(costs.values, records.accuracies, strict=True)
    )
    print(f"{file.stem}: {len(records)} samples, {records.num_classes} classes; exits: {exits}")
    print(found.to_text(REFERENCE) + "\n", flush=True)
    return found.to_dict(REFERENCE)


if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests: a benchmark with a warning is not to be trusted
    warnings.simplefilter("default", ReliabilityWarning)  # what a fit says of small sets is shown
    sys.exit(main())
