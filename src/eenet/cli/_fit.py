"""`eenet fit`."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli._console import as_share, output, print_json
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.costs import ExitCosts
    from eenet.records import ExitRecords
    from eenet.scheduler import Scheduler


def fit(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help=".npz or .safetensors")],
    budget: Annotated[
        str | None, typer.Option(help="Mean cost per sample: 60% of the plain network, or like 3.5ms.")
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(help="Cost of the whole way to each exit, 2.3,4.1,4.9; or a .json file of eenet profile --json."),
    ] = None,
    plain: Annotated[
        float | None,
        typer.Option(help="Cost of the plain network, without exits; 60% is of it. A .json file has it."),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Of the costs: ms (the default), cpu_ms, flops or a word.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Which costs of a .json file to take.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="eenet, stopping, max_prob, entropy, patience, voting, margin, temperature, eero, gate, searched; or "
            "ztw, beem, which change predictions."
        ),
    ] = "eenet",
    guarantee: Annotated[
        float | None, typer.Option(help="Keep the budget on fresh data with this probability, such as 0.95.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            "--max-accuracy-drop",
            help="In place of a budget: the cheapest policy at most so much below the last exit's accuracy.",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the arrays' names, such as val_.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the methods that learn or search.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to save the scheduler (.safetensors).")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Fit an exit scheduler to a network's predictions, from whatever framework.

    PREDICTIONS holds 'probs' (or 'probabilities') or 'logits', of shape (exits, samples, classes), and 'labels', of
    shape (samples,): what a multi-exit network says of held-out data at each exit. It may hold 'costs' too. Files of
    eenet's ExitRecords.save are read as well.

    Examples:

        eenet fit predictions.npz --costs 2.3,4.1,4.9 --plain 4.5 --budget 60% --out scheduler.safetensors

        eenet fit predictions.npz --prefix val_ --budget 3.5ms --method max_prob --json

        eenet fit predictions.npz --prefix val_ --method stopping --budget 60% --guarantee 0.95

        eenet fit predictions.npz --prefix val_ --method stopping --max-accuracy-drop 0.01

        eenet fit demo/calibration.safetensors --costs demo/costs.json --batch-size 32 --budget 40%
    """
    from eenet.cli._inputs import read_costs, read_predictions

    scheduler = _scheduler(method, seed)
    records, in_file = read_predictions(predictions, prefix)
    table = read_costs(costs, unit, batch_size, in_file, plain)
    if (budget is None) == (max_accuracy_drop is None):
        raise InvalidInputError("give one of --budget, such as --budget 60%, and --max-accuracy-drop, such as 0.01")
    amount = None if budget is None else _with_unit(budget, table)
    scheduler.fit(records, table, amount, guarantee=guarantee, max_accuracy_drop=max_accuracy_drop)
    if out is not None:
        scheduler.save(out)
    result = _result(scheduler, method, records, out)
    if json_output:
        print_json(result)
    else:
        _show(result)


def _scheduler(method: str, seed: int) -> Scheduler:
    from eenet.scheduler import SCHEDULERS

    if method not in SCHEDULERS:
        near = difflib.get_close_matches(method.lower(), SCHEDULERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidInputError(f"--method {method!r} is not known; {hint}choose from {', '.join(SCHEDULERS)}")
    scheduler = SCHEDULERS[method]()
    return scheduler.set_params(seed=seed) if "seed" in scheduler.get_params() else scheduler


def _with_unit(budget: str, costs: ExitCosts) -> str:
    if re.fullmatch(r"\s*[\d.]+\s*", budget):
        number = budget.strip()
        share = as_share(number)
        raise InvalidInputError(
            f"--budget {number} has no unit; give --budget {share} or --budget {number}{costs.unit}"
        )
    return budget


def _result(scheduler: Scheduler, method: str, records: ExitRecords, out: Path | None) -> dict[str, Any]:
    policy = scheduler.policy
    decisions = scheduler.replay(records)
    pairs = zip(policy.thresholds.tolist(), policy.enabled.tolist(), strict=True)
    return {
        "schema": 1,
        "method": method,
        "unit": scheduler.costs.unit,
        "costs": scheduler.costs.to_dict(),
        "budget": scheduler.budget,
        "planned_cost": scheduler.planned_cost,
        "calibration_cost": scheduler.calibration_cost,
        "calibration_accuracy": None if decisions.utility is None else decisions.accuracy,
        "calibration_samples": len(records),
        "guarantee": scheduler.guarantee,
        "max_accuracy_drop": scheduler.max_accuracy_drop,
        "exit_shares": decisions.exit_shares.tolist(),
        "score": policy.score.name,
        "changes_predictions": scheduler.changes_predictions,
        "thresholds": [threshold if enabled else None for threshold, enabled in pairs],
        "out": None if out is None else str(out),
    }


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    console, unit = output(), result["unit"]
    console.print(f"[bold]{result['method']}[/bold] fitted to {result['calibration_samples']} calibration samples")
    console.print(f"budget           {result['budget']:.6g} {unit} per sample")
    console.print(f"planned cost     {result['planned_cost']:.6g} {unit}")
    console.print(f"calibration cost {result['calibration_cost']:.6g} {unit}")
    if result["max_accuracy_drop"] is not None:
        drop = result["max_accuracy_drop"]
        console.print(f"guaranteed       accuracy within {drop:.2%} of the last exit's, at {result['guarantee']:g}")
    elif result["guarantee"] is not None:
        console.print(f"guaranteed       mean cost within the budget on fresh data, at {result['guarantee']:g}")
    if result["calibration_accuracy"] is not None:
        console.print(f"calibration accuracy {result['calibration_accuracy']:.2%}")
    table = Table("exit", f"cost ({unit})", "share", f"threshold ({result['score']} score)")
    last = len(result["exit_shares"]) - 1
    for k, share in enumerate(result["exit_shares"]):
        threshold = None if k == last else result["thresholds"][k]
        shown = "takes the rest" if k == last else "off" if threshold is None else f"{threshold:.4f}"
        table.add_row(str(k + 1), f"{result['costs']['values'][k]:.6g}", f"{share:.1%}", shown)
    console.print(table)
    if result["changes_predictions"]:
        console.print("it changes predictions: samples are answered by the exits so far combined")
    if result["out"] is None:
        console.print("not saved: give --out scheduler.safetensors to keep it")
    else:
        console.print(f"saved to {result['out']}", soft_wrap=True)
