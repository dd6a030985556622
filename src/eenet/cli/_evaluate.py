"""`eenet evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli._console import output, print_json, with_unit

if TYPE_CHECKING:
    from eenet.evaluation import Evaluation
    from eenet.scheduler import Scheduler


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help=".npz or .safetensors")],
    scheduler: Annotated[Path, typer.Option(help="What eenet fit --out saved.")],
    budget: Annotated[str | None, typer.Option(help="Another budget of the scheduler, such as 60% or 3.5ms.")] = None,
    prefix: Annotated[str, typer.Option(help="Of the arrays' names, such as test_.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show what a fitted scheduler does with fresh predictions.

    One table: accuracy and cost on data the scheduler has not seen, next to the plain network, each exit, and what the
    budget allows without a scheduler: the best exit, the best mixture of exits, and the oracle, which knows the labels.
    PREDICTIONS is as for eenet fit; without labels only costs and exit shares are shown.

    Examples:

        eenet evaluate predictions.npz --prefix test_ --scheduler scheduler.safetensors

        eenet evaluate demo/test.safetensors --scheduler demo/schedulers/eenet-60.safetensors --budget 70% --json
    """
    from eenet.cli._inputs import read_predictions
    from eenet.evaluation import evaluate as run
    from eenet.scheduler import load_scheduler

    fitted = load_scheduler(scheduler)
    if budget is not None:
        fitted = fitted.at(with_unit(budget, fitted.costs))
    records, _ = read_predictions(predictions, prefix)
    evaluation = run(fitted, records)
    if json_output:
        print_json(_result(fitted, evaluation))
    else:
        output().print(str(evaluation), markup=False, soft_wrap=True)


def _result(scheduler: Scheduler, evaluation: Evaluation) -> dict[str, Any]:
    result = {
        "schema": 2,
        "scheduler": scheduler.name,
        "changes_predictions": scheduler.changes_predictions,
        "unit": scheduler.costs.unit,
        "samples": evaluation.samples,
        "budget": evaluation.budget,
        "table": evaluation.to_dict()["rows"],
        "notes": list(evaluation.notes),
    }
    if evaluation.budget is None:
        return result
    held_out = evaluation.row("held_out")
    return result | {
        "planned_cost": scheduler.planned_cost,
        "calibration_cost": scheduler.calibration_cost,
        "held_out_cost": held_out.cost,
        "held_out_cost_error": held_out.cost_error,
        "overspend": held_out.cost / evaluation.budget - 1,
        "exit_shares": list(held_out.exit_shares or ()),
        "handed_back": held_out.handed_back,
        "accuracy": held_out.accuracy,
        "accuracy_error": held_out.accuracy_error,
    }
