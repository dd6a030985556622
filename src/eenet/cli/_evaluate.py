"""`eenet evaluate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli._console import output, print_json

if TYPE_CHECKING:
    from eenet.records import ExitRecords
    from eenet.scheduler import Scheduler


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help=".npz or .safetensors")],
    scheduler: Annotated[Path, typer.Option(help="What eenet fit --out saved.")],
    prefix: Annotated[str, typer.Option(help="Of the arrays' names, such as test_.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show what a fitted scheduler does with fresh predictions.

    Accuracy and cost on data the scheduler has not seen, against its budget, next to each single exit and, at the same
    cost, to the best random mixture of exits and to the oracle, which knows the labels. PREDICTIONS is as for eenet
    fit; without labels only cost and exit shares are shown.

    Examples:

        eenet evaluate predictions.npz --prefix test_ --scheduler scheduler.safetensors

        eenet evaluate demo/test.safetensors --scheduler demo/schedulers/eenet-60.safetensors --json
    """
    from eenet.cli._inputs import read_predictions
    from eenet.scheduler import load_scheduler

    fitted = load_scheduler(scheduler)
    records, _ = read_predictions(predictions, prefix)
    result = _result(fitted, records)
    if json_output:
        print_json(result)
    else:
        _show(result)


def _result(scheduler: Scheduler, records: ExitRecords) -> dict[str, Any]:
    from eenet.evaluation import oracle, random_mixture

    decisions = scheduler.replay(records)
    costs, samples = scheduler.costs, len(records)
    result: dict[str, Any] = {
        "schema": 1,
        "scheduler": scheduler.name,
        "changes_predictions": scheduler.changes_predictions,
        "unit": costs.unit,
        "samples": samples,
        "budget": scheduler.budget,
        "planned_cost": scheduler.planned_cost,
        "calibration_cost": scheduler.calibration_cost,
        "held_out_cost": decisions.mean_cost,
        "held_out_cost_error": float(decisions.sample_costs.std() / math.sqrt(samples)),
        "overspend": decisions.mean_cost / scheduler.budget - 1,
        "exit_shares": decisions.exit_shares.tolist(),
        "accuracy": None,
        "accuracy_error": None,
        "comparison": [],
    }
    if decisions.utility is None:
        return result
    result["accuracy"] = decisions.accuracy
    result["accuracy_error"] = float(decisions.utility.std(dtype="float64") / math.sqrt(samples))
    rows = [(f"exit {k + 1} only", costs[k], float(a)) for k, a in enumerate(records.accuracies)]
    for name, bound in (
        ("best random mixture of exits", random_mixture(records, costs, decisions.mean_cost)),
        ("oracle (knows the labels)", oracle(records, costs, decisions.mean_cost)),
    ):
        rows.append((name, bound.cost, bound.accuracy))
    result["comparison"] = [{"name": name, "cost": cost, "accuracy": value} for name, cost, value in rows]
    return result


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    console, unit = output(), result["unit"]
    shares = ", ".join(f"{share:.1%}" for share in result["exit_shares"])
    changes = ", changing predictions" if result["changes_predictions"] else ""
    console.print(f"[bold]{result['scheduler']}[/bold] on {result['samples']} samples{changes}")
    console.print(f"budget           {result['budget']:.6g} {unit} per sample")
    console.print(f"planned cost     {result['planned_cost']:.6g} {unit}")
    console.print(f"calibration cost {result['calibration_cost']:.6g} {unit}")
    over = result["overspend"]
    against = f"[red]{over:.1%} over the budget[/red]" if over > 0 else f"{abs(over):.1%} under the budget"
    console.print(
        f"held-out cost    {result['held_out_cost']:.6g} {unit} (standard error {result['held_out_cost_error']:.2g}), "
        f"{against}"
    )
    console.print(f"exit shares      {shares}")
    if result["accuracy"] is None:
        console.print("accuracy         unknown: the predictions have no labels")
        return
    table = Table("", f"cost ({unit})", "accuracy")
    error = f"{result['accuracy']:.2%} ± {result['accuracy_error']:.2%}"
    table.add_row(result["scheduler"], f"{result['held_out_cost']:.6g}", error, style="bold", end_section=True)
    for row in result["comparison"]:
        table.add_row(row["name"], f"{row['cost']:.6g}", f"{row['accuracy']:.2%}")
    console.print(table)
