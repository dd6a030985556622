"""Whether a budget is kept in batches: costs of full batches, and of batches of which samples exit on the way.

The networks come with the package and run in PyTorch on one core, on images of digits, enlarged for the second network.
For each kind of cost a scheduler is fitted at several budgets to one half of the images, and run on the other half,
batch by batch, in turns with the plain network.

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
from torch import Tensor

import eenet
from eenet._pretrained import find_model
from eenet._timing import in_turns, timed
from eenet.errors import ReliabilityWarning

BUDGETS = {"digits": ("60%", "80%", "100%"), "cifar10-resnet20-shared": ("80%", "90%", "100%")}
KINDS = {"full batches": True, "batches as they run": False}


def images(model: eenet.MultiExitModel) -> Tensor:
    """Images of digits in the size that a network takes, with a little noise where they are enlarged."""
    with np.load(find_model("digits") / "samples.npz") as arrays:
        x = torch.from_numpy(arrays["x"]).float()
    x = x[torch.from_numpy(np.random.default_rng(0).permutation(len(x)))]
    channels, size = model.staged.example[0][0].shape[1:3]
    if x.shape[1:3] == (channels, size):
        return x
    larger = torch.nn.functional.interpolate(x, size=size, mode="bilinear").repeat(1, channels, 1, 1)
    return larger + 0.5 * torch.randn(larger.shape, generator=torch.Generator().manual_seed(0))


def measured(name: str, size: int, seconds: float, trials: int, samples: int) -> list[dict[str, Any]]:
    """Rows by kind of cost and budget: planned and measured cost over that of the plain network, medians of trials."""
    model = eenet.MultiExitModel.from_pretrained(find_model(name)).eval()
    calibration, x = torch.split(images(model), 500)
    x = x[: samples // size * size]
    records, of_samples = eenet.collect(model, [calibration]), eenet.collect(model, [x])
    found: dict[tuple[str, str], list[tuple[float, float]]] = {
        (kind, budget): [] for kind in KINDS for budget in BUDGETS[name]
    }
    for _ in range(trials):
        fitted: dict[tuple[str, str], eenet.Scheduler] = {}
        for kind, full in KINDS.items():
            costs = eenet.profile(model, x[:size], unit="cpu_ms", batch_size=size, full_batches=full, seconds=seconds)
            feasible = [budget for budget in BUDGETS[name] if float(budget[:-1]) / 100 * costs.reference > costs[0]]
            for budget in feasible:
                fitted[kind, budget] = eenet.MaxProbability().fit(records, costs, budget, fallback=False)
        ways: list[Any] = [*(eenet.AdaptiveModel(model, one) for one in fitted.values()), model.plain]
        steps = [partial(timed, way, batch) for batch in torch.split(x, size) for way in ways]
        with torch.inference_mode():
            times = np.median(in_turns(steps, seconds=seconds, least=3).cpu, axis=0)
        *spent, plain = times.reshape(-1, len(ways)).sum(axis=0).tolist()
        for (key, scheduler), one in zip(fitted.items(), spent, strict=True):
            planned = scheduler.replay(of_samples).mean_cost / scheduler.costs.reference
            found[key].append((planned, one / plain))
    rows = []
    for (kind, budget), pairs in found.items():
        row = {"network": name, "batch_size": size, "costs": kind, "budget": budget, "trials": len(pairs)}
        row |= dict.fromkeys(("planned", "measured", "over"))
        if pairs:
            planned, spent = np.array(pairs).T
            over = spent / planned - 1
            row |= {"planned": float(np.median(planned)), "measured": float(np.median(spent))}
            row |= {"over": float(np.median(over)), "lowest": float(over.min()), "highest": float(over.max())}
        rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 8])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| network | batch | costs of | budget | planned, of plain | measured, of plain | over | trials |")
    print("|---|---|---|---|---|---|---|---|")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        for name in given.networks:
            for size in given.batch_sizes:
                rows += measured(name, size, given.seconds, given.trials, given.samples)
                for row in rows[-len(KINDS) * len(BUDGETS[name]) :]:
                    start = f"| {name} | {size} | {row['costs']} | {row['budget']} |"
                    if row["planned"] is None:
                        print(f"{start} not feasible | | | |", flush=True)
                        continue
                    print(
                        f"{start} {row['planned']:.3f} | {row['measured']:.3f} | {row['over']:+.1%} | "
                        f"{row['lowest']:+.1%} to {row['highest']:+.1%} |",
                        flush=True,
                    )
    if given.json is not None:
        given.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
