"""What each method reaches at each budget on every recipe of `results/`: results/frontier.csv, what learning is worth.

For each `results/NAME` with records and costs the schedulers are fitted on five random two thirds of the calibration
part, at eight budgets between the first and the last exit's cost, and judged on the test part. On a processor the
costs are CPU ms at batch 1. A row of the file is a recipe, a test set, a method, a budget and a machine; differences to
max probability are at equal realized cost, with a standard error by a bootstrap over the samples. Rows of shifted test
sets, which `shift.py` has in `results/shift/frontier.csv`, are added at the end.

The table that is printed, and written to `results/learning/README.md`, has the mean over the budgets: of methods that
learn from labeled samples, against max probability and against the best simple rule of each recipe. That rule is chosen
by the very differences that it is judged by, so it has an advantage.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import eenet
from eenet._files import atomic_path
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress
from eenet.errors import ReliabilityWarning
from eenet.evaluation import Comparison, compare
from eenet.scheduler import SCHEDULERS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
REFERENCE = "max_prob"
RULES = ("max_prob", "entropy", "margin", "patience", "voting")
LEARNED = {
    "eenet": "EENet",
    "stopping": "OptimalStopping",
    "gate": "LearnedGate",
    "temperature": "TemperatureScaled",
    "eero": "EERO",
    "searched": "SearchedThresholds",
    "ztw": "ZTW *",
    "beem": "BEEM *",
}
BUDGETS = 8
COLUMNS = (
    "recipe", "test_set", "samples_fitted", "samples_test", "machine", "unit", "method", "budget",
    "budget_of_last", "spent", "spent_of_budget", "accuracy", "last_exit_accuracy", "difference", "difference_error",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="NAME", help="folders of results/; all that have records")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="(default: results/)")
    parser.add_argument("--resplits", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    options = parser.parse_args(argv)
    print(describe_machine(machine()) + "\n", flush=True)
    names = options.recipes or recipes()
    rows: list[dict[str, Any]] = []
    found: dict[str, Comparison] = {}
    fitted: dict[str, int] = {}
    with progress() as bars:
        update = bars.task("recipes", len(names))
        for number, name in enumerate(names, start=1):
            calibration, test, costs, where = read(RESULTS / name)
            methods = [m for m in SCHEDULERS if not (calibration.pooled and SCHEDULERS[m]().whole_samples)]
            found[name] = compared(calibration, test, costs, methods, options.resplits, options.jobs)
            fitted[name] = round(found[name].fraction * len(calibration))
            rows += rows_of(found[name], test, {"recipe": name, "test_set": "test", "machine": where}, fitted[name])
            update(number)
    shifted = RESULTS / "shift" / "frontier.csv"
    if shifted.is_file():
        with shifted.open(encoding="utf-8", newline="") as handle:
            rows += list(csv.DictReader(handle))
    write_csv(options.out / "frontier.csv", rows)
    text = learning(found, fitted)
    print(text)
    (options.out / "learning").mkdir(exist_ok=True)
    with atomic_path(options.out / "learning" / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def recipes() -> list[str]:
    """The folders of results/ that hold records and costs."""
    wanted = ("calibration.safetensors", "test.safetensors", "costs.json", "metrics.json")
    return sorted(
        path.name for path in RESULTS.iterdir() if path.is_dir() and all((path / file).is_file() for file in wanted)
    )


def read(folder: Path) -> tuple[eenet.ExitRecords, eenet.ExitRecords, eenet.ExitCosts, str]:
    """The records of a recipe, what its exits cost, and where that was measured."""
    calibration, test = (eenet.ExitRecords.load(folder / f"{part}.safetensors") for part in ("calibration", "test"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    where = metrics["machine"].get("accelerator")
    if where is not None:
        return calibration, test, eenet.ExitCosts.from_dict(metrics["costs"]), where
    measured = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    values = measured["costs"]["cpu_ms"][measured["batch_sizes"].index(1)]
    where = f"{metrics['machine']['processor']}, {metrics['machine']['threads']} thread(s)"
    return calibration, test, eenet.ExitCosts(values, "cpu_ms", batch_size=1), where


def compared(
    calibration: eenet.ExitRecords,
    test: eenet.ExitRecords,
    costs: eenet.ExitCosts,
    methods: Sequence[str],
    resplits: int = 5,
    jobs: int = 1,
) -> Comparison:
    """Methods at the budgets between the first and the last exit's cost, judged on the test part."""
    budgets = np.linspace(costs[0], costs[-1], BUDGETS + 2)[1:-1].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        return compare(calibration, costs, methods, budgets, resplits=resplits, held_out=test, jobs=jobs)


def rows_of(
    comparison: Comparison, test: eenet.ExitRecords, named: Mapping[str, str], samples: int
) -> list[dict[str, Any]]:
    """The rows of the file of one comparison."""
    differences = {(d.scheduler, d.budget): d for d in comparison.differences(REFERENCE)}
    costs, rows = comparison.costs, []
    for method in comparison.schedulers:
        for budget in comparison.budgets:
            met = [
                row
                for row in comparison.rows
                if (row.scheduler, row.budget) == (method, budget) and row.accuracy is not None
            ]
            if not met:
                continue
            spent = statistics.fmean(row.held_out_cost or 0.0 for row in met)
            difference = differences[method, budget]
            values: dict[str, Any] = {
                **named,
                "samples_fitted": samples,
                "samples_test": len(test),
                "unit": costs.unit,
                "method": method,
                "budget": f"{budget:.4g}",
                "budget_of_last": f"{budget / costs[-1]:.4f}",
                "spent": f"{spent:.4g}",
                "spent_of_budget": f"{spent / budget:.4f}",
                "accuracy": f"{statistics.fmean(row.accuracy or 0.0 for row in met):.4f}",
                "last_exit_accuracy": f"{test.accuracies[-1]:.4f}",
                "difference": f"{difference.mean:.5f}",
                "difference_error": f"{difference.standard_error:.5f}",
            }
            rows.append({column: values[column] for column in COLUMNS})
    return rows


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of COLUMNS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def learning(found: Mapping[str, Comparison], fitted: Mapping[str, int]) -> str:
    """The table of what learning is worth, in Markdown."""
    lines = [
        "# What learning is worth",
        "",
        "Points of accuracy on the test part at equal realized cost, mean over eight budgets, with the standard error",
        "of the paired difference; bold beyond two of them. The command: `python benchmarks/frontier.py`.",
    ]
    best = {name: best_rule(comparison) for name, comparison in found.items()}
    for title, references in (
        ("Against max probability", dict.fromkeys(found, REFERENCE)),
        ("Against the best simple rule of each recipe, chosen by the same test part", best),
    ):
        titles = ("recipe", "samples to fit, to judge", "rule", *LEARNED.values())
        lines += ["", f"## {title}", "", "| " + " | ".join(titles) + " |"]
        lines.append("|---|---|---|" + "---|" * len(LEARNED))
        columns: dict[str, list[tuple[float, float]]] = {name: [] for name in LEARNED}
        for name, comparison in found.items():
            differences = {d.scheduler: d for d in comparison.differences(references[name]) if d.budget is None}
            cells = []
            for method in LEARNED:
                d = differences.get(method)
                instead = len({row.resplit for row in comparison.rows if row.scheduler == method and row.note})
                mark = f" ({instead} of {comparison.resplits})" if instead else ""
                cells.append("-" if d is None else shown(d.mean, d.standard_error) + mark)
                if d is not None:
                    columns[method].append((d.mean, d.standard_error))
            samples = f"{fitted[name]:,}, {comparison.pool:,}"
            lines.append(f"| {name} | {samples} | {references[name]} | " + " | ".join(cells) + " |")
        means = []
        for values in columns.values():
            error = math.sqrt(sum(e * e for _, e in values)) / max(1, len(values))
            means.append(shown(statistics.fmean(m for m, _ in values), error) if values else "-")
        lines.append("| mean of the recipes | | | " + " | ".join(means) + " |")
    lines += ["", "\\* answers with the exits combined: their predictions change, not only where samples exit."]
    lines += [
        "",
        "(n of 5): on n of the five resplits the method found that it gains nothing over max probability,",
        "and used that in its place.",
        "",
    ]
    return "\n".join(lines)


def best_rule(comparison: Comparison) -> str:
    """The rule that needs no learning with the highest mean difference to max probability."""
    means = {d.scheduler: d.mean for d in comparison.differences(REFERENCE) if d.budget is None}
    return max((rule for rule in RULES if rule in means), key=lambda rule: means[rule])


def shown(mean: float, error: float) -> str:
    """A difference in points, in bold where it is two standard errors or more above or below 0."""
    text = f"{100 * mean:+.2f} ± {100 * error:.2f}"
    return f"**{text}**" if abs(mean) >= 2 * error and error > 0 else text


if __name__ == "__main__":
    sys.exit(main())
