"""The results of a run: metrics, predictions, and a README made from the metrics."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import write_json
from eenet._version import __version__
from eenet.costs import ExitCosts, parse_budget
from eenet.evaluation import Comparison, compare, oracle, random_mixture
from eenet.experiments.recipes._schema import Recipe
from eenet.records import ExitRecords
from eenet.scheduler import (
    EENet,
    Entropy,
    MaxProbability,
    OptimalStopping,
    Patience,
    Scheduler,
    SearchedThresholds,
    load_scheduler,
)
from eenet.tasks import mean_iou

METRICS, README, SPLIT, COSTS = "metrics.json", "README.md", "split.json", "costs.json"
CALIBRATION, TEST = "calibration.safetensors", "test.safetensors"
SCHEDULER_FOLDER = "schedulers"
_SCHEMA = 1
_LIMIT = 5_000_000
"""Bytes of predictions, of both parts together, that may be kept."""

_OF_THE_MODEL = (
    "schema", "recipe", "title", "about", "smoke", "command", "eenet", "seed", "machine", "costs", "exits",
)  # fmt: skip
_OF_THE_TRAINING = ("machines", "seconds")
_FRACTION = 2 / 3
NAMES = {
    "eenet": "EENet",
    "stopping": "optimal stopping",
    "max_prob": "max probability (MSDNet)",
    "entropy": "entropy (BranchyNet)",
    "patience": "patience (PABEE)",
    "searched": "searched thresholds",
}


def schedulers(seed: int) -> dict[str, Callable[[], Scheduler]]:
    """EENet and every baseline, unfitted, by the names of the command line."""
    return {
        "eenet": partial(EENet, seed=seed),
        "stopping": partial(OptimalStopping, seed=seed),
        "max_prob": MaxProbability,
        "entropy": Entropy,
        "patience": Patience,
        "searched": partial(SearchedThresholds, seed=seed),
    }


def scheduler_file(method: str, budget: str) -> str:
    """The name of the file of a fitted scheduler."""
    return f"{method}-{budget.removesuffix('%')}.safetensors"


def machine(device: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on: the profiler's fingerprint, the processors there are, and the version of eenet."""
    here = {"processors": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
    return {**device, **here, "eenet": __version__}


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two machines are the same, as far as a README says what they are."""
    return _described(one) == _described(other)


def write_predictions(
    out: Path, calibration: ExitRecords, test: ExitRecords, *, limit: float = _LIMIT
) -> dict[str, NDArray[np.intp]]:
    """Keep the records of both parts; where they are too large, as many evenly spaced samples as fit: those given."""
    sizes = [_bytes(records) for records in (calibration, test)]
    share = min(1.0, 0.95 * limit / sum(sizes))
    rows = {}
    for records, name in ((calibration, CALIBRATION), (test, TEST)):
        count = max(1, int(len(records) * share))
        rows[name] = np.arange(count) * len(records) // count
        kept = records if count == len(records) else records.subset(rows[name])
        kept.save(out / name)
    return rows


def summary(metrics: Mapping[str, Any], kept: Mapping[str, int]) -> dict[str, Any]:
    """What of the metrics goes with a model that ships: of the network, its training, its data, costs and exits.

    `kept` has the numbers of samples of the records beside it, by part; they are named where they are fewer than all.
    """
    data = {key: metrics["data"][key] for key in ("samples", "classes")}
    if any(count < data["samples"][part] for part, count in kept.items()):
        data["kept"] = dict(kept)
    training = {key: metrics["training"][key] for key in _OF_THE_TRAINING if key in metrics["training"]}
    return {key: metrics[key] for key in _OF_THE_MODEL} | {"data": data, "training": training}


def _bytes(records: ExitRecords) -> int:
    arrays: list[NDArray[Any] | None] = [records.probabilities, records.predictions, records.labels, records.utility]
    return sum(array.nbytes for array in [*arrays, records.pixel_counts, *records.pooled.values()] if array is not None)


def write_results(
    recipe: Recipe,
    out: Path,
    calibration: ExitRecords,
    test: ExitRecords,
    *,
    steps: Mapping[str, Any],
    measured: Mapping[str, Any] | None,
    command: str,
    smoke: bool,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Judge everything on the test part, write metrics.json and README.md, and give the metrics."""
    costs = ExitCosts.from_dict(steps["profile"]["result"]["costs"])
    settings = recipe.evaluation
    amounts = [parse_budget(budget, costs) for budget in settings.budgets if _feasible(budget, costs)]
    tables = [(costs, amounts)]
    published = recipe.published
    if published is not None:
        theirs = ExitCosts(published.costs, published.unit)
        theirs.require_exits(test.num_exits)
        grid = np.linspace(theirs[0], theirs[-1], published.grid + 2)[1:-1].tolist()
        tables.append((theirs, sorted({*published.budgets, *grid})))
    methods = schedulers(recipe.seed)
    done_before, total = 0, settings.resplits * len(methods) * sum(len(budgets) for _, budgets in tables)
    comparisons: list[Comparison | None] = []
    for table, budgets in tables:
        if not budgets or not settings.resplits:
            comparisons.append(None)
            continue
        before = done_before
        comparisons.append(
            compare(
                calibration,
                table,
                methods,
                budgets,
                held_out=test,
                resplits=settings.resplits,
                fraction=_FRACTION,
                seed=recipe.seed,
                progress=partial(_shifted, progress, before, total),
            )
        )
        done_before += settings.resplits * len(methods) * len(budgets)
    metrics: dict[str, Any] = {
        "schema": _SCHEMA,
        "recipe": recipe.name,
        "title": recipe.title,
        "about": recipe.about,
        "smoke": smoke,
        "command": command,
        "eenet": __version__,
        "seed": recipe.seed,
        "machine": steps["profile"]["result"]["machine"],
        "seconds": {step: marker["seconds"] for step, marker in steps.items()},
        "data": steps["data"]["result"],
        "training": steps["train"]["result"],
        "costs": costs.to_dict(),
        "exits": _exits(steps["train"]["result"]["exits"], costs, calibration, test),
        "schedulers": _fitted(out, settings.budgets, test) + steps["fit"]["result"]["infeasible"],
        "notes": [note for step in ("collect", "profile") for note in steps[step]["result"].get("notes", [])],
        "measured": measured,
        "comparison": None if comparisons[0] is None else comparisons[0].to_dict("eenet"),
        "published": None if published is None or comparisons[-1] is None else comparisons[-1].to_dict("eenet"),
        "published_budgets": None if published is None else list(published.budgets),
        "settings": dict(recipe.settings),
    }
    write_json(out / METRICS, metrics)
    (out / README).write_text(readme(metrics), encoding="utf-8")
    return metrics


def _shifted(progress: Callable[[int, int], None], before: int, total: int, done: int, _total: int) -> None:
    progress(before + done, total)


def _feasible(budget: str, costs: ExitCosts) -> bool:
    return float(budget.removesuffix("%")) / 100 * costs.reference >= costs[0]


def _exits(names: list[str], costs: ExitCosts, calibration: ExitRecords, test: ExitRecords) -> list[dict[str, Any]]:
    rows = []
    for k, (name, cost) in enumerate(zip(names, costs.static.tolist(), strict=True)):
        row: dict[str, Any] = {
            "name": name,
            "cost": cost,
            "calibration_accuracy": float(calibration.accuracies[k]),
            "test_accuracy": float(test.accuracies[k]),
        }
        if test.pixel_counts is not None:
            row["test_mean_iou"] = mean_iou(test.pixel_counts[k])
        rows.append(row)
    return rows


def _fitted(out: Path, budgets: tuple[str, ...], test: ExitRecords) -> list[dict[str, Any]]:
    """What each saved scheduler does on the test part, in the costs that it was fitted in."""
    rows = []
    for budget in budgets:
        for method in NAMES:
            path = out / SCHEDULER_FOLDER / scheduler_file(method, budget)
            if not path.is_file():
                continue
            scheduler = load_scheduler(path)
            decisions, costs = scheduler.replay(test), scheduler.costs
            spent = max(decisions.mean_cost, costs[0])
            mixture = random_mixture(test, costs, spent)
            row: dict[str, Any] = {
                "method": method,
                "budget": budget,
                "planned_cost": scheduler.planned_cost,
                "calibration_cost": scheduler.calibration_cost,
                "test_cost": decisions.mean_cost,
                "test_accuracy": decisions.accuracy,
                "exit_shares": decisions.exit_shares.tolist(),
                "random_mixture": mixture.accuracy,
                "mixture_of": list(mixture.of),
                "oracle": oracle(test, costs, spent).accuracy,
            }
            if test.pixel_counts is not None:
                row["test_mean_iou"] = mean_iou(test.pixel_counts[decisions.exits, np.arange(len(test))])
            rows.append(row)
    return rows


def readme(metrics: Mapping[str, Any]) -> str:
    """The README of a results folder, made from its metrics alone."""
    samples = metrics["data"]["samples"]
    unit = metrics["costs"]["unit"]
    images = "test_mean_iou" in metrics["exits"][0]
    lines = [
        f"# {metrics['title']}",
        "",
        *(["**A smoke run: tiny made-up data, the numbers mean nothing.**", ""] if metrics["smoke"] else []),
        metrics["about"],
        "",
        "```",
        metrics["command"],
        "```",
        "",
        f"{_made_on(metrics)} {samples['train']:,} samples were trained on, {samples['validation']:,} chose the "
        f"checkpoint, {samples['calibration']:,} calibrated the schedulers, {samples['test']:,} judged them.",
        "",
        "## Exits",
        "",
    ]
    costs = ExitCosts.from_dict(metrics["costs"])
    head = ["exit", f"cost ({unit})", f"of {costs.reference_name}", "calibration", "test"]
    head += ["test mIoU"] if images else []
    rows = []
    for exit_ in metrics["exits"]:
        cells = [exit_["name"], f"{exit_['cost']:.4g}", f"{exit_['cost'] / costs.reference:.0%}"]
        cells += [_percent(exit_["calibration_accuracy"]), _percent(exit_["test_accuracy"])]
        rows.append(cells + ([_percent(exit_["test_mean_iou"])] if images else []))
    lines += _table(head, rows)
    what = "pixel accuracy" if images else "accuracy"
    own = " Each scheduler is fitted and judged in the costs that its own policy makes." if costs.runs else ""
    lines += [
        "",
        f"Columns `calibration` and `test` are {what} in %. Costs are per sample at batch size "
        f"{metrics['costs']['batch_size']}, the whole way to an exit with the heads passed.{own}",
        "",
        "## Schedulers fitted on the calibration part, judged once on the test part",
        "",
    ]
    head = ["budget", "scheduler", f"test cost ({unit})", "of budget", "test", *(["test mIoU"] if images else [])]
    head += ["random mixture", "oracle", "exit shares in %"]
    rows = []
    for row in metrics["schedulers"]:
        name = NAMES[row["method"]]
        if "reason" in row:
            rows.append([row["budget"], name, "cannot be met", *[""] * (len(head) - 3)])
            continue
        limit = float(row["budget"].removesuffix("%")) / 100 * costs.reference
        cells = [row["budget"], name, f"{row['test_cost']:.4g}", f"{row['test_cost'] / limit:.1%}"]
        cells.append(_percent(row["test_accuracy"]))
        cells += [_percent(row["test_mean_iou"])] if images else []
        cells += [_percent(row["random_mixture"]), _percent(row["oracle"])]
        rows.append([*cells, " ".join(f"{share:.0%}".removesuffix("%") for share in row["exit_shares"])])
    lines += _table(head, rows)
    lines += [
        "",
        f"A budget is a share of the cost of {costs.reference_name}, {costs.reference:.4g} {unit}. `random mixture` is "
        "the best that exits and the plain network drawn by lot give at the cost that was really spent, `oracle` "
        "what knowing the labels would.",
    ]
    if metrics.get("measured") is not None:
        lines += ["", "## Every scheduler run for real on the test part", "", *_measured(metrics["measured"], unit)]
    for key, title in (
        ("comparison", f"Resplits at the measured costs ({unit})"),
        ("published", "Resplits at the costs that the paper published"),
    ):
        if metrics[key] is not None:
            lines += ["", f"## {title}", "", *_resplits(metrics[key], metrics["published_budgets"])]
    lines += [
        "",
        "## Files",
        "",
        f"- `{METRICS}`: everything above, and each epoch of the training",
        f"- `{CALIBRATION}`, `{TEST}`: what the network says at each exit, for `eenet fit` and `eenet evaluate`",
        f"- `{COSTS}`: the measured costs at all batch sizes; `{SCHEDULER_FOLDER}/`: the fitted schedulers",
        f"- `{SPLIT}`: which samples are in which part",
    ]
    return "\n".join(lines) + "\n"


def _made_on(metrics: Mapping[str, Any]) -> str:
    """Where the costs were measured and how long all of it took, and where it was trained if that was elsewhere."""
    training = metrics["training"]
    costs = {**metrics["machine"], "eenet": metrics["machine"].get("eenet", metrics["eenet"])}
    whole, trained = _duration(sum(metrics["seconds"].values())), _duration(training["seconds"])
    epochs = f"{len(training['history'])} epochs, the best by its frontier is number {training['best_epoch']}"
    machines = training.get("machines", [])  # early versions did not note them
    if all(same_machine(one, costs) for one in machines):
        return f"{_described(costs)}, seed {metrics['seed']}; {whole} in all, {trained} of it training ({epochs})."
    return (
        f"Trained on {', then on '.join(map(_described, machines))}: {trained} ({epochs}). Costs measured on "
        f"{_described(costs)}. Seed {metrics['seed']}; all steps took {whole}."
    )


def _described(found: Mapping[str, Any]) -> str:
    gpu = f"{found['accelerator']}; " if "accelerator" in found else ""
    return (
        f"{gpu}{found['processor']}, {found['threads']} thread(s) of {found['processors']} processors, torch "
        f"{found['torch']}, eenet {found['eenet']}"
    )


def _measured(measured: Mapping[str, Any], unit: str) -> list[str]:
    """Time per sample against the plain network."""
    sizes = list(measured["rows"][0]["time"])
    head = ["budget", "scheduler", f"limit ({unit})", "planned", "calibration", "test", "accuracy"]
    for size in sizes:
        head += [f"ms a sample, batch {size}", "times as fast"]
    rows = []
    for row in measured["rows"]:
        name = f"exit {row['budget']}" if row["method"] == "exit" else NAMES.get(row["method"], "plain network")
        cells = [row["budget"] if "limit" in row else "", name]
        costs = (row.get(key) for key in ("limit", "planned_cost", "calibration_cost", "test_cost"))
        cells += ["" if cost is None else f"{cost:.4g}" for cost in costs]
        cells.append(_percent(row["accuracy"]))
        for size in sizes:
            time = row["time"][size]
            cells += [f"{time['ms']:.4g} ± {time['spread']:.0%}", f"{time['times']:.2f}"]
        rows.append(cells)
    return [
        *_table(head, rows),
        "",
        f"In turns with the network without exits, on {measured['samples']:,} test samples, {measured['rounds']} "
        "rounds; ± is half the range of the rounds.",
    ]


def _resplits(comparison: Mapping[str, Any], published: list[float] | None) -> list[str]:
    """Accuracies, then differences at equal realized cost."""
    budgets = list(dict.fromkeys(row["budget"] for row in comparison["rows"]))
    methods = list(dict.fromkeys(row["scheduler"] for row in comparison["rows"]))
    resplits = 1 + max(row["resplit"] for row in comparison["rows"])
    whole = ExitCosts.from_dict(comparison["costs"]).reference
    titles = [
        f"{'**' if published and budget in published else ''}{budget:.3g} ({budget / whole:.0%})"
        f"{'**' if published and budget in published else ''}"
        for budget in budgets
    ]
    lines = [
        f"Each of {resplits} times the schedulers are fitted on a random {comparison['fraction']:.0%} of the "
        "calibration part and judged on the test part. Accuracy in %, the mean of these:",
        "",
    ]
    rows = []
    for method in methods:
        cells = [NAMES[method]]
        for budget in budgets:
            values = [
                row["accuracy"]
                for row in comparison["rows"]
                if (row["scheduler"], row["budget"]) == (method, budget) and row["accuracy"] is not None
            ]
            cells.append(_percent(statistics.fmean(values)) if values else "-")
        rows.append(cells)
    for name in ("random_mixture", "oracle"):
        cells = ["best random mixture" if name == "random_mixture" else name]
        for budget in budgets:
            values = [bound[name] for bound in comparison["bounds"] if bound["budget"] == budget]
            cells.append(_percent(statistics.fmean(values)) if values else "-")
        rows.append(cells)
    lines += _table(["budget", *titles], rows)
    lines += ["", "Difference to EENet at the same realized cost, in points, with its standard error:", ""]
    rows = []
    for method in methods:
        if method == comparison["reference"]:
            continue
        by_budget = {item["budget"]: item for item in comparison["differences"] if item["scheduler"] == method}
        rows.append([NAMES[method], *(_signed(by_budget.get(budget)) for budget in [*budgets, None])])
    return [*lines, *_table(["budget", *titles, "all"], rows)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _signed(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "-"
    error = difference["standard_error"]
    return f"{100 * difference['mean']:+.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
