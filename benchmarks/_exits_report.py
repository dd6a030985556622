"""How `exits.py` judges a variant, and the tables it writes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import eenet
from eenet._files import atomic_path, write_json
from eenet._timing import describe_machine
from eenet.scheduler import SearchedThresholds
from eenet.scheduler._out_of_fold import out_of_fold, pooled

REFERENCES = {"heads": "conv", "joint": "uniform"}
TITLES = {
    "heads": "Exit heads on the frozen backbone",
    "joint": "Joint training, from the heads {base} above",
}


@dataclass(frozen=True)
class Row:
    """A variant and what `judge` found for each of its seeds."""

    name: str
    what: str
    stage: str
    runs: tuple[Mapping[str, Any], ...]

    @property
    def means(self) -> list[float]:
        """Accuracy over all budgets, of each seed."""
        return [run["mean"] for run in self.runs]


def judge(records: eenet.ExitRecords, costs: eenet.ExitCosts, budgets: Sequence[float], folds: int) -> dict[str, Any]:
    """Accuracy at each budget under thresholds searched on other images, and how often each image was right.

    The images are divided in halves `folds` times, the same for all variants, and each half is judged under the
    thresholds of the other. `right` (N,) counts over folds and budgets: variants are compared image by image.
    """
    images = len(records)
    right, spent = np.zeros((len(budgets), images)), np.zeros(len(budgets))
    for fold in range(folds):
        order = np.random.default_rng(fold).permutation(images)
        halves = order[: images // 2], order[images // 2 :]
        points = pooled(halves, out_of_fold(SearchedThresholds(), records, costs, halves, budgets, fallback=False))
        right += [point.utility for point in points]
        spent += [point.cost for point in points]
    accuracies = (right.mean(axis=1) / folds).tolist()
    mean = statistics.fmean(accuracies)
    shown = "  ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies)
    return {
        "accuracies": accuracies,
        "mean": mean,
        "cost_over_budget": (spent / folds / np.asarray(budgets)).tolist(),
        "right": right.sum(axis=0).astype(int).tolist(),
        "judgements": folds * len(budgets),
        "summary": f"{shown} % at the three budgets, mean {100 * mean:.2f} %",
    }


def report(out: Path, rows: Sequence[Row], settings: Mapping[str, Any], shares: Sequence[float], command: str) -> str:
    """Write `results.json` and `README.md` to a folder; gives the tables as text."""
    runs = [run for row in rows for run in row.runs]
    machines = {describe_machine({k: v for k, v in run["machine"].items() if k != "load_before"}): None for run in runs}
    loads = [run["machine"].get("load_before", 0.0) for run in runs]
    seen = _flattered(rows)
    percent = ", ".join(f"{share:.0%}" for share in shares)
    seconds = sum(run["cpu_seconds"] for run in runs)
    write_json(
        out / "results.json",
        {
            "schema": 1,
            "command": command,
            "settings": dict(settings),
            "budgets": list(shares),
            "variants": [
                {
                    "name": row.name,
                    "what": row.what,
                    "stage": row.stage,
                    "difference": difference(row, reference(rows, row.stage)),
                    "runs": [{k: v for k, v in run.items() if k not in ("right", "summary")} for run in row.runs],
                }
                for row in rows
            ],
        },
    )
    stages = [stage for stage in TITLES if any(row.stage == stage for row in rows)]
    tables = "\n\n".join(_table(rows, stage, settings, shares) for stage in stages)
    text = f"""# Exit heads and loss weightings on CIFAR-10, by the frontier they give

```
{command}
```

{"; ".join(" ".join(found.split()) for found in machines)}; load {min(loads)} to {max(loads)} before the starts.
{seconds / 60:.0f} CPU minutes of training.

The network is the ResNet-56 of `recipes/cifar10-resnet56-shared.yaml`: published weights, batch norms re-estimated,
exits after blocks 9 and 18. {settings["images"]:,} training images of the JPEG copies; {settings["validation"]:,} more
chose the epoch; {settings["head_epochs"]} epochs of heads on cached features (without augmentation),
{settings["joint_epochs"]} of joint training (with it).

**Judged on {settings["calibration"]:,} images of the published test file, the calibration part of the recipe.** The
published weights have seen every training image, so held-out training images would flatter the later exits{seen}.
The rest of the test file, on which the recipe reports, was not read. Accuracy in % at budgets of {percent} of the plain
network's FLOPs per image, heads included in what is spent; thresholds on the largest probability are searched on one
half of the images and judged on the other, both ways, {settings["folds"]} times.

`mean` is over the budgets, with the lowest and highest seed in brackets. `difference` is to the row that says
"reference", in points, image by image: its standard error is that of the images, not of the training, whose spread is
in the brackets. `exits` are the accuracies of the three exits alone, `cost` what they cost in % of the plain network.

{tables}
"""
    with atomic_path(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return tables


def _flattered(rows: Sequence[Row]) -> str:
    """How much better the last exit of the network as published looks on images that it has seen."""
    runs = [run for row in rows if row.stage == "heads" for run in row.runs]
    if not runs:
        return ""
    there, here = 100 * runs[0]["validation"][-1], 100 * runs[0]["exits"][-1]
    return f" (the last one, as published, has {there:.1f} % there and {here:.1f} % here)"


def reference(rows: Sequence[Row], stage: str) -> Row | None:
    """The variant that the others of a comparison are held against."""
    return next((row for row in rows if row.name == REFERENCES[stage]), None)


def difference(row: Row, other: Row | None) -> tuple[float, float] | None:
    """Mean accuracy of a variant minus another's, in [-1, 1], and its standard error over the images; paired."""
    if other is None or other is row:
        return None
    pairs = [
        (np.array(a["right"]) - np.array(b["right"])) / a["judgements"]
        for a, b in zip(row.runs, other.runs, strict=False)
    ]
    by_image = np.mean(pairs, axis=0)
    return float(by_image.mean()), float(by_image.std(ddof=1) / math.sqrt(len(by_image)))


def _table(rows: Sequence[Row], stage: str, settings: Mapping[str, Any], shares: Sequence[float]) -> str:
    against = reference(rows, stage)
    shown = [row for row in rows if row.stage == stage]
    if stage == "joint":
        shown = [row for row in rows if row.name == settings["base"]] + shown
    head = ["variant", "what", "exits", "cost", *(f"{share:.0%}" for share in shares), "mean", "difference"]
    lines = [f"## {TITLES[stage].format(base=settings['base'])}", "", _cells(head), _cells(["---"] * len(head))]
    for row in shown:
        found = difference(row, against)
        cells = [
            row.name if row.stage == stage else "not trained jointly",
            row.what,
            _joined(row, "exits", 1),
            _joined(row, "costs", 0),
            *(f"{value:.2f}" for value in _averages(row, "accuracies")),
            f"{100 * statistics.fmean(row.means):.2f} ({100 * min(row.means):.2f}-{100 * max(row.means):.2f})",
            "reference"
            if row is against
            else "-"
            if found is None
            else f"{100 * found[0]:+.2f} ± {100 * found[1]:.2f}",
        ]
        lines.append(_cells(cells))
    seeds = sorted({len(row.runs) for row in shown})
    lines += ["", f"Seeds per variant: {' or '.join(map(str, seeds))}." if seeds else "No variant yet."]
    return "\n".join(lines)


def _averages(row: Row, key: str) -> list[float]:
    """Mean over the seeds, in per cent."""
    return [100 * statistics.fmean(values) for values in zip(*(run[key] for run in row.runs), strict=True)]


def _joined(row: Row, key: str, digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in _averages(row, key))


def _signed(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{100 * found[0]:+.2f} ± {100 * found[1]:.2f}"


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
