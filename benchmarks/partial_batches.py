"""Whether a budget is kept in batches: costs of full batches, and of batches of which samples exit on the way.

The network is `digits`, which comes with the package, in PyTorch on one core. For each kind of cost a scheduler is
fitted to its calibration records at several budgets and run on its samples, batch by batch, in turns with the plain
network.

    python benchmarks/partial_batches.py
"""

from __future__ import annotations

import argparse
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from eenet._pretrained import find_model
from eenet._timing import in_turns, timed
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning

SAMPLES = 512


def measured(size: int, fewer: int, seconds: float, trials: int) -> list[dict[str, Any]]:
    """Rows by kind of cost and budget: planned and measured cost over that of the plain network, medians of trials."""
    torch.set_num_threads(1)
    folder = find_model("digits")
    model = eenet.MultiExitModel.from_pretrained(folder).eval()
    records = eenet.ExitRecords.load(folder / "calibration.safetensors")
    with np.load(folder / "samples.npz") as arrays:
        order = np.random.default_rng(0).permutation(len(arrays[arrays.files[0]]))[:SAMPLES]
        x = torch.from_numpy(arrays[arrays.files[0]][order]).float()
    of_samples = eenet.collect(model, [x])
    rows = []
    for costs_are, partial_batch in (("full batches", None), ("partial batches", fewer)):
        for budget in ("60%", "80%", "100%"):
            found = []
            for _ in range(trials):
                costs = eenet.profile(
                    model, x[:size], unit="cpu_ms", batch_size=size, partial_batch=partial_batch, seconds=seconds
                )
                try:
                    scheduler = eenet.MaxProbability().fit(records, costs, budget, fallback=False)
                except InfeasibleBudgetError:
                    continue
                fast = eenet.AdaptiveModel(model, scheduler)
                steps = [partial(timed, way, batch) for batch in torch.split(x, size) for way in (fast, model.plain)]
                with torch.inference_mode():
                    times = np.median(in_turns(steps, seconds=seconds, least=3).cpu, axis=0).reshape(-1, 2).sum(axis=0)
                found.append((scheduler.replay(of_samples).mean_cost / costs.reference, times[0] / times[1]))
            planned, spent = np.median(found, axis=0).tolist() if found else (None, None)
            rows.append({"costs": costs_are, "budget": budget, "planned": planned, "measured": spent})
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--partial-batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        rows = measured(given.batch_size, given.partial_batch, given.seconds, given.trials)
    print("| costs of | budget | planned, of plain | measured, of plain | over |\n|---|---|---|---|---|")
    for row in rows:
        if row["planned"] is None:
            print(f"| {row['costs']} | {row['budget']} | not feasible | | |")
            continue
        over = row["measured"] / row["planned"] - 1
        print(f"| {row['costs']} | {row['budget']} | {row['planned']:.3f} | {row['measured']:.3f} | {over:+.0%} |")
    if given.json is not None:
        given.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
