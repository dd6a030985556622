"""Writes docs/reference/published.md: published figures, each beside this repository's on the nearest data.

The published figures stand below with their sources. Ours are read from `results/` and `results/frontier.csv`, so the
page is written again when recipes are.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "reference" / "published.md"
MARKS = ("<!-- written by benchmarks/published.py -->", "<!-- end -->")
NEAR = 0.003  # as accurate as the last exit, to within

# network and data; what is published; where; the recipe beside it; how the data differ
FIGURES = (
    (
        "ResNet-56, CIFAR-10, no exits",
        "93.03 % (He et al. 2016), 93.39 % (the weights that our recipe starts from)",
        "[table](https://github.com/akamaster/pytorch_resnet_cifar10)",
        "cifar10-resnet56-taught",
        "JPEG copies; 1,667 pictures of the test file judge, 3,333 calibrate",
    ),
    (
        "ResNet-20, CIFAR-10, no exits",
        "91.25 % (He et al. 2016), 91.73 % (these weights)",
        "[table](https://github.com/akamaster/pytorch_resnet_cifar10)",
        "cifar10-resnet20-shared",
        "JPEG copies; 1,667 pictures of the test file judge, 3,333 calibrate",
    ),
    (
        "BERT-base, SST-2, patience (PABEE, 2020)",
        "92.0 % at 1.62 times the speed of BERT-base, which has 92.1 %",
        "[table](https://github.com/huggingface/transformers/blob/98ad48f2eee8e1ff50e153df239fe1d591dde386/examples/"
        "research_projects/bert-loses-patience/README.md)",
        "sst2-phrases-minilm",
        "GLUE's dev set there, 900 test sentences here; 12 layers there, MiniLM with 6 here; both trained on GLUE's "
        "phrases",
    ),
    (
        "BERT, GLUE, entropy (DeeBERT, 2020)",
        "saves up to about 40 % of the time with minimal loss (the abstract)",
        "[paper](https://aclanthology.org/2020.acl-main.204/)",
        "sst2-phrases-minilm",
        "as above",
    ),
    (
        "HRNet-W48, Cityscapes, exits per pixel (ADP-C, 2022)",
        "44.3, 60.1, 76.8, 81.3 % mean IoU at 41.9, 93.9, 259.3, 387.1 GFLOPs; without exits 80.7 % at 696.2",
        "[table](https://github.com/liuzhuang13/anytime)",
        "camvid-hrnet",
        "whole pictures exit here; CamVid at 240 x 180 with 307 training pictures and 11 classes, from random weights; "
        "milliseconds, not FLOPs",
    ),
)


def main() -> int:
    """Write the page between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    found = "\n".join([*shipped(), "", *others()])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{found}\n\n{MARKS[1]}{after}", encoding="utf-8")
    return 0


def shipped() -> list[str]:
    """Ours at the costs and budgets of the reference code, for the recipes that name them."""
    lines = [
        "| recipe | last exit | costs and budget of the reference, ms | EENet | max probability | random mixture |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted(RESULTS.glob("*/metrics.json")):
        metrics = json.loads(file.read_text(encoding="utf-8"))
        published = metrics.get("published")
        if not published:
            continue
        for budget in metrics["published_budgets"]:
            at = [row for row in published["rows"] if row["budget"] == budget and row["accuracy"] is not None]
            named = {
                name: [row["accuracy"] for row in at if row["scheduler"] == name] for name in ("eenet", "max_prob")
            }
            lot = [row["random_mixture"] for row in published["bounds"] if row["budget"] == budget]
            costs = ", ".join(f"{value:g}" for value in published["costs"]["values"])
            cells = [percent(values) for values in (named["eenet"], named["max_prob"], lot)]
            last = 100 * metrics["exits"][-1]["test_accuracy"]
            lines.append(
                f"| [{metrics['recipe']}](../../results/{file.parent.name}/README.md) | {last:.1f} % | {costs}; "
                f"{budget:g} | " + " | ".join(cells) + " |"
            )
    return lines


def percent(values: list[float]) -> str:
    """The mean, in %."""
    return f"{100 * statistics.fmean(values):.1f} %" if values else "not met"


def others() -> list[str]:
    """Figures of papers, and ours."""
    lines = ["| network, data, method | published | source | ours | the data differ |", "|---|---|---|---|---|"]
    for what, figure, source, recipe, differs in FIGURES:
        lines.append(f"| {what} | {figure} | {source} | {ours(recipe)} | {differs} |")
    return lines


def ours(recipe: str) -> str:
    """The exits of a recipe, and the smallest cost at which a simple rule is as good as the last one."""
    metrics = json.loads((RESULTS / recipe / "metrics.json").read_text(encoding="utf-8"))
    exits: list[dict[str, Any]] = metrics["exits"]
    mean_iou = "test_mean_iou" in exits[0]
    values = ", ".join(f"{100 * e['test_mean_iou' if mean_iou else 'test_accuracy']:.1f}" for e in exits)
    costs = ", ".join(f"{100 * e['cost'] / exits[-1]['cost']:.0f}" for e in exits)
    unit = "% mean IoU" if mean_iou else "%"
    text = f"[{recipe}](../../results/{recipe}/README.md): {values} {unit} at {costs} % of the last exit's time"
    if mean_iou:
        return text
    with (RESULTS / "frontier.csv").open(encoding="utf-8", newline="") as handle:
        rows = [
            row
            for row in csv.DictReader(handle)
            if (row["recipe"], row["test_set"], row["method"]) == (recipe, "test", "max_prob")
            and float(row["accuracy"]) >= exits[-1]["test_accuracy"] - NEAR
        ]
    if rows:
        best = min(rows, key=lambda row: float(row["spent"]))
        share = float(best["spent_of_budget"]) * float(best["budget_of_last"])
        text += f"; max probability {100 * float(best['accuracy']):.1f} % at {100 * share:.0f} %"
    return text


if __name__ == "__main__":
    sys.exit(main())
