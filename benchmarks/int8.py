"""Exits and int8 together: the plain network in fp32 and in int8, exits in fp32, and exits with int8 stages, held out.

Takes networks that a recipe trained: RECIPE=FOLDER, the folder of `eenet reproduce` or `eenet demo` (recipe `digits`).
The calibration part of its data fits the schedulers and chooses the stages in int8 (`precision="auto"`), the test part
judges. All systems run in ONNX Runtime with one thread, in turns. For each number of exits in fp32 the quickest one
with int8 is shown that is at least as accurate on the test part, and for the plain network in int8 too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from eenet._timing import describe_machine, machine
from eenet.benchmarking import BenchmarkRow
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.experiments.data import ThreeWaySplit
from eenet.experiments.recipes import load_recipe
from eenet.experiments.recipes._data import RecipeData, checkpoint_folder

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {
    "fp32": ("30%", "40%", "50%", "65%", "80%", "100%"),
    "int8": ("10%", "15%", "20%", "25%", "30%", "40%", "50%"),
}
SIZES = (1, 8, 32)
_ALL = 1e12


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="RECIPE=FOLDER", help="a recipe and the folder it was run into")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure each batch size")
    parser.add_argument("--threads", type=int, default=1, help="for each stage")
    parser.add_argument("--most", type=int, default=2000, help="use at most so many samples of either part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    root = Path(os.environ.get("EENET_SHARED", ROOT.parent / "shared")) / "datasets"
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"machine": machine(), "threads": options.threads, "networks": {}}
    print(describe_machine(found["machine"]), flush=True)
    for word in options.networks:
        recipe, _, folder = word.partition("=")
        found["networks"][recipe] = compared(recipe, Path(folder), root, options)
        print(table(recipe, found["networks"][recipe]), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def compared(name: str, folder: Path, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All systems of one network: rows of the benchmark, and what was chosen."""
    model = eenet.MultiExitModel.from_pretrained(folder / "work" / "model").eval()
    recipe = load_recipe(name)
    data = RecipeData(recipe, root, tokenizer=checkpoint_folder(recipe, None, download=False))
    data.use(ThreeWaySplit.load(folder / "split.json"))
    parts = {part: data.samples(part, _ALL) for part in ("calibration", "test")}
    inputs = [one.name for one in model.staged.inference_stages[0].inputs]

    def batches(part: str) -> list[Any]:
        tensors, labels = parts[part]
        rows = range(0, min(len(labels), options.most), 32)
        made = [(tuple(one[n : n + 32][: options.most - n] for one in tensors), labels[n : n + 32]) for n in rows]
        return [(x if len(x) > 1 else x[0], y[: len(x[0])]) for x, y in made]

    def call(x: Any) -> Any:
        args, kwargs = model.staged.call_of(x if isinstance(x, tuple) else (x,))
        return kwargs if kwargs and not args else args

    calibration = [(call(x), y) for x, y in batches("calibration")]
    test = batches("test")
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # of a busy machine: what is reported is in turns
        records = eenet.collect(model, calibration)
        placeholder = eenet.ExitCosts(np.arange(1.0, model.num_exits + 1), batch_size=8)
        scheduler = eenet.OptimalStopping().fit(records, placeholder, "70%")
        bundles = {
            precision: eenet.export(
                model, scheduler, Path(temporary) / precision, example=call(test[0][0]), records=records,
                precision=asked, calibration=calibration, batch_sizes=SIZES, threads=options.threads,
            )
            for precision, asked in (("fp32", "fp32"), ("int8", "auto"))
        }  # fmt: skip
        systems = {f"exits {key}": (bundle, _feasible(bundle, BUDGETS[key])) for key, bundle in bundles.items()}
        order = {key: systems[key] for key in ("exits int8", "exits fp32")}
        arrays = [
            torch.cat(column).numpy()
            for column in zip(*(x if isinstance(x, tuple) else (x,) for x, _ in test), strict=True)
        ]
        labels = torch.cat([y for _, y in test]).numpy()
        given = dict(zip(inputs, arrays, strict=True)) if len(inputs) > 1 else arrays[0]
        result = eenet.benchmark(
            order, given, labels, batch_sizes=SIZES, seconds=options.seconds, threads=options.threads
        )
        return {
            "precision": bundles["int8"].precision,
            "quantization": bundles["int8"].info["quantization"],
            "samples": result.samples,
            "rows": result.to_dict()["rows"],
            "answers": {size: answers([row for row in result.rows if row.batch_size == size]) for size in SIZES},
        }


def _feasible(bundle: eenet.bundle.LoadedBundle, budgets: Sequence[str]) -> list[str]:
    """The budgets that the bundle can keep, and of those above its most expensive exit the smallest alone."""
    kept: list[str] = []
    for budget in budgets:
        with contextlib.suppress(InfeasibleBudgetError):
            limit = bundle.at(budget).scheduler.budget
            kept.append(budget)
            if limit >= bundle.costs[-1]:
                break
    return kept


def answers(rows: Sequence[BenchmarkRow]) -> dict[str, Any]:
    """Of one batch size: exits with int8 against exits in fp32 and the plain network in int8, as accurate at least."""
    in_int8 = [row for row in rows if row.system == "exits int8"]
    found: dict[str, Any] = {"against exits in fp32": []}
    for row in rows:
        if row.early_exit and row.system == "exits fp32":
            found["against exits in fp32"].append({"budget": row.budget, **_quicker(in_int8, row)})
        if row.system.endswith("plain int8"):
            found["against plain int8"] = _quicker(in_int8, row)
    return found


def _quicker(rows: Sequence[BenchmarkRow], than: BenchmarkRow) -> dict[str, Any]:
    least = than.accuracy
    assert least is not None
    fitting = [row for row in rows if row.accuracy is not None and row.accuracy >= least]
    found: dict[str, Any] = {"accuracy": least, "cpu_ms": than.cpu_ms_per_sample}
    if fitting:
        best = min(fitting, key=lambda row: row.cpu_ms_per_sample)
        found |= {"int8": best.budget, "int8_accuracy": best.accuracy, "int8_cpu_ms": best.cpu_ms_per_sample}
        found["times"] = than.cpu_ms_per_sample / best.cpu_ms_per_sample
    return found


def table(name: str, data: dict[str, Any]) -> str:
    """The rows of a network, and how many times as fast int8 with exits is."""
    int8 = ", ".join(part for part, precision in data["precision"].items() if precision == "int8")
    lines = [f"\n{name}: {data['samples']} test samples; int8: {int8 or 'nothing'}"]
    lines.append(f"{'system':<28}{'accuracy':>16}" + "".join(f"{f'CPU ms, batch {size}':>18}" for size in SIZES))
    whole = {(row["system"], row["budget"], row["batch_size"]): row for row in data["rows"]}
    for (system, budget, size), row in whole.items():
        if size != SIZES[0]:
            continue
        times = [whole[system, budget, one]["cpu_ms_per_sample"] for one in SIZES]
        accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_error']:.2f}"
        lines.append(f"{f'{system} {budget or str()}':<28}{accuracy:>16}" + "".join(f"{time:>18.3f}" for time in times))
    for size, found in data["answers"].items():
        fp32 = found["against exits in fp32"]
        lines += [f"batch {size}, exits fp32 {one['budget']}: {_said(one)}" for one in fp32]
        if "against plain int8" in found:
            lines.append(f"batch {size}, plain int8: {_said(found['against plain int8'])}")
    return "\n".join(lines)


def _said(one: dict[str, Any]) -> str:
    if "times" not in one:
        return f"{100 * one['accuracy']:.2f} %: no exits with int8 are as accurate"
    return (
        f"{100 * one['accuracy']:.2f} %: exits with int8 at {one['int8']} have {100 * one['int8_accuracy']:.2f} %, "
        f"{one['times']:.2f} times as fast"
    )


if __name__ == "__main__":
    sys.exit(main())
