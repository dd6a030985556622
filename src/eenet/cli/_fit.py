"""`eenet fit` and `eenet evaluate`: a scheduler fitted, and judged on fresh predictions; one table for both."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli._console import if_stopped, output, print_json, waiting, with_unit
from eenet.cli._options import (
    Costs,
    CostsBatchSize,
    Json,
    JudgedByLast,
    Plain,
    Predictions,
    Prefix,
    Unit,
    known_method,
    read_share,
    share,
)
from eenet.cli._trained import without_rules_taken
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.evaluation import Evaluation
    from eenet.records import ExitRecords
    from eenet.scheduler import Scheduler


def fit(
    predictions: Predictions,
    budget: Annotated[
        str | None,
        typer.Option(help="Mean cost per sample: 60% of the plain network, or like 3.5ms. Without it: for all."),
    ] = None,
    costs: Costs = None,
    plain: Plain = None,
    unit: Unit = None,
    batch_size: CostsBatchSize = None,
    method: Annotated[
        str,
        typer.Option(
            help="eenet, stopping, max_prob, entropy, patience, voting, margin, temperature, eero, gate, searched; or "
            "ztw, beem, which change predictions."
        ),
    ] = "eenet",
    guarantee: Annotated[
        str | None,
        typer.Option(
            help="Keep what is promised on fresh data with this probability, 0.95 or 95%; or mean: on average."
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            "--max-accuracy-drop",
            parser=share,
            help="The cheapest policy at most so much, 0.01 or 1%, below the last exit's accuracy; with a budget: in "
            "it too.",
        ),
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            parser=share, help="Hand back at most this share of samples, of which no exit is sure: 0.02 or 2%."
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            parser=share,
            help="The highest error, 0.05 or 5%, of those that are answered; the others are handed back.",
        ),
    ] = None,
    fallback: Annotated[
        bool,
        typer.Option("--fallback/--no-fallback", help="Take a simple rule in place of the method where it is better."),
    ] = True,
    prefix: Prefix = "",
    judged_by_last: JudgedByLast = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the methods that learn or search.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to save the scheduler (.safetensors).")] = None,
    json_output: Json = False,
) -> None:
    """Fit an exit scheduler to a network's predictions, from whatever framework.

    PREDICTIONS holds 'probs' (or 'probabilities') or 'logits', of shape (exits, samples, classes), and 'labels', of
    shape (samples,): what a multi-exit network says of held-out data at each exit. It may hold 'costs' too. Files of
    eenet's ExitRecords.save are read as well.

    Several files are a cascade: the networks are asked in this order, the cheapest first, until one is sure. A plain
    network's file holds an array (samples, classes). 60% is then of the last network by itself.

    A trained model, by its name or folder, stands for its calibration records and the costs of its results.

    One table shows what there is without a scheduler, and what its policy does: the plain network, each exit, the best
    of these and the best mixture of them in the budget, and the oracle, which knows the labels. Without a budget it
    shows what the policies for several budgets do, from the cheapest to the most expensive.

    Examples:

        eenet fit digits --budget 40% --method max_prob --out scheduler.safetensors

        eenet fit predictions.npz --costs 2.3,4.1,4.9 --plain 4.5 --budget 60% --out scheduler.safetensors

        eenet fit predictions.npz --prefix val_ --budget 3.5ms --method max_prob --json

        eenet fit small.npz big.npz --costs 2.3,9.1 --budget 60% --out cascade.safetensors

        eenet fit predictions.npz --prefix val_ --method stopping --budget 60% --guarantee 0.95

        eenet fit predictions.npz --prefix val_ --method stopping --max-accuracy-drop 0.01

        eenet fit predictions.npz --prefix val_ --budget 60% --abstain 0.02 --guarantee 0.95

        eenet fit log.npz --costs 2.3,4.1,4.9 --judged-by-last --max-accuracy-drop 2% --guarantee 0.95

        eenet fit demo/calibration.safetensors --costs demo/costs.json --batch-size 32 --budget 40%
    """
    from eenet.cli._inputs import read_member_costs, read_members
    from eenet.cli._models import records_of
    from eenet.evaluation import evaluate as judge

    scheduler = scheduler_of(method, seed)
    predictions, costs = records_of(predictions, costs, "calibration")
    records, in_files, counts = read_members(predictions, prefix, judged_by_last=judged_by_last)
    table = read_member_costs(costs, unit, batch_size, in_files, counts, plain)
    amount = None if budget is None else with_unit(budget, table)
    if_stopped("there are no results yet; give the same command again")
    with waiting(f"fitting {method} to {len(records):,} samples"), without_rules_taken():  # notes say them
        scheduler.fit(
            records,
            table,
            amount,
            guarantee=_level(guarantee),
            max_accuracy_drop=max_accuracy_drop,
            abstain=abstain,
            max_error=max_error,
            fallback=fallback,
        )
    if out is not None:
        scheduler.save(out)
    evaluation = _by_last(judge(scheduler, calibration=records), judged_by_last)
    if json_output:
        result = _result(scheduler, method, records, evaluation, out) | {"judged_by_last": judged_by_last}
        print_json(result | _members(predictions, counts))
    else:
        _show_members(predictions, counts)
        _show(scheduler, evaluation, out, in_budget=amount is not None)


def _by_last(evaluation: Evaluation, judged_by_last: bool) -> Evaluation:
    """An evaluation that says what its accuracies are where they are not of labels."""
    from eenet.cli._inputs import JUDGED_BY_LAST

    return replace(evaluation, notes=(JUDGED_BY_LAST, *evaluation.notes)) if judged_by_last else evaluation


def _members(files: list[Path], counts: list[int]) -> dict[str, Any]:
    """For the JSON of a cascade: which exits are those of which file."""
    if len(files) == 1:
        return {}
    ends = list(accumulate(counts))
    members = zip(files, counts, ends, strict=True)
    return {"members": [{"file": str(file), "exits": list(range(end - n, end))} for file, n, end in members]}


def _show_members(files: list[Path], counts: list[int]) -> None:
    shown = []
    for one in _members(files, counts).get("members", []):
        first, last = one["exits"][0], one["exits"][-1]
        shown.append(f"{f'exit {first}' if first == last else f'exits {first} to {last}'} of {one['file']}")
    if shown:
        output().print(f"Cascade: {', '.join(shown)}.", soft_wrap=True)


def _level(guarantee: str | None) -> float | str | None:
    """What `fit` takes, which refuses what is neither a probability nor "mean"."""
    with suppress(InvalidInputError):
        return None if guarantee is None else read_share(guarantee)
    return guarantee


def scheduler_of(method: str, seed: int) -> Scheduler:
    """The method of this name, not fitted."""
    from eenet.scheduler import SCHEDULERS

    scheduler = SCHEDULERS[known_method(method, "--method")]()
    return scheduler.set_params(seed=seed) if "seed" in scheduler.get_params() else scheduler


def _result(
    scheduler: Scheduler, method: str, records: ExitRecords, evaluation: Evaluation, out: Path | None
) -> dict[str, Any]:
    costs = scheduler.costs
    result = {
        "schema": 1,
        "method": method,
        "instead": evaluation.instead,
        "unit": costs.unit,
        "costs": costs.to_dict(),
        "budget": evaluation.budget,
        "calibration_samples": len(records),
        "guarantee": scheduler.guarantee,
        "max_accuracy_drop": scheduler.max_accuracy_drop,
        "abstain": scheduler.abstain,
        "max_error": scheduler.max_error,
        "changes_predictions": scheduler.changes_predictions,
        "table": evaluation.to_dict()["rows"],
        "notes": list(evaluation.notes),
        "out": None if out is None else str(out),
    }
    if evaluation.budget is None:
        return result
    policy, decisions = scheduler.policy, evaluation.row("calibration")
    pairs = zip(policy.thresholds.tolist(), policy.enabled.tolist(), strict=True)
    return result | {
        "planned_cost": scheduler.planned_cost,
        "calibration_cost": scheduler.calibration_cost,
        "calibration_accuracy": decisions.accuracy,
        "exit_shares": list(decisions.exit_shares or ()),
        "handed_back": decisions.handed_back,
        "score": policy.score.name,
        "thresholds": [threshold if enabled else None for threshold, enabled in pairs],
    }


def _show(scheduler: Scheduler, evaluation: Evaluation, out: Path | None, *, in_budget: bool) -> None:
    console = output()
    console.print(str(evaluation), soft_wrap=True)
    if scheduler.guarantee is not None:
        promised = []
        if in_budget or scheduler.max_accuracy_drop is None:
            promised.append("mean cost within the budget" + ("" if evaluation.budget else " (of one policy at a time)"))
        if scheduler.max_accuracy_drop is not None:
            promised.append(f"accuracy within {scheduler.max_accuracy_drop:.2%} of the last exit's")
        if scheduler.abstain is not None:
            promised.append(f"at most {scheduler.abstain:.2%} handed back")
        if scheduler.max_error is not None:
            promised.append(f"an error of at most {scheduler.max_error:.2%} of those that are answered")
        level = scheduler.guarantee
        how = "on average over calibrations" if isinstance(level, str) else f"with probability {level:g}"
        console.print(f"Guaranteed on fresh data: {' and '.join(promised)}, {how}.", soft_wrap=True)
    if evaluation.budget is not None:
        policy = scheduler.policy
        pairs = zip(policy.thresholds.tolist(), policy.enabled.tolist(), strict=True)
        readable = policy.score.readable
        shown = ", ".join(f"{readable(threshold):.4f}" if enabled else "off" for threshold, enabled in pairs)
        console.print(f"Thresholds ({policy.score.name} score): {shown}; the last exit takes the rest.", soft_wrap=True)
    if evaluation.budget is not None:
        what = "The budget is met" if in_budget else "What was asked for is kept"
        guaranteed = scheduler.guarantee is not None
        console.print(
            f"{'The table is of' if guaranteed else f'{what} on'} the samples that it was fitted on"
            f"{'' if guaranteed else ' only'}. For fresh ones: eenet evaluate HELD_OUT --scheduler {out or 'SAVED'}"
            f"{'' if guaranteed else '; or fit with --guarantee 0.95'}.",
            soft_wrap=True,
        )
    if out is None:
        console.print("Not saved: give --out scheduler.safetensors to keep it.")
        return
    console.print(f"Saved to {out}", soft_wrap=True)
    if evaluation.budget is None:
        console.print(
            f"It has a policy for every budget: eenet evaluate FRESH --scheduler {out} --budget 60%, or in Python "
            "eenet.load_scheduler(...).at('60%'); for a bundle fit it with --budget.",
            soft_wrap=True,
        )


def evaluate(
    predictions: Predictions,
    scheduler: Annotated[Path, typer.Option(help="What eenet fit --out saved.")],
    budget: Annotated[str | None, typer.Option(help="Another budget of the scheduler, such as 60% or 3.5ms.")] = None,
    prefix: Annotated[str, typer.Option(help="Of the arrays' names, such as test_.")] = "",
    judged_by_last: JudgedByLast = False,
    json_output: Json = False,
) -> None:
    """Show what a fitted scheduler does with fresh predictions.

    One table: accuracy and cost on data the scheduler has not seen, next to the plain network, each exit, and what the
    budget allows without a scheduler: the best of these, the best mixture of them, and the oracle, which knows the
    labels. PREDICTIONS is as for eenet fit, several files in the same order; without labels only costs and exit shares
    are shown. A trained model, by its name or folder, stands for its test records.

    Examples:

        eenet evaluate digits --scheduler scheduler.safetensors

        eenet evaluate predictions.npz --prefix test_ --scheduler scheduler.safetensors

        eenet evaluate small-test.npz big-test.npz --scheduler cascade.safetensors

        eenet evaluate demo/test.safetensors --scheduler demo/schedulers/eenet-60.safetensors --budget 70% --json
    """
    from eenet.cli._inputs import read_members
    from eenet.cli._models import records_of
    from eenet.evaluation import evaluate as run
    from eenet.scheduler import load_scheduler

    fitted = load_scheduler(scheduler)
    if budget is not None:
        fitted = fitted.at(with_unit(budget, fitted.costs))
    predictions, _ = records_of(predictions, None, "test")
    records, _, counts = read_members(predictions, prefix, judged_by_last=judged_by_last)
    evaluation = _by_last(run(fitted, records), judged_by_last)
    if json_output:
        result = _judged(fitted, evaluation) | {"judged_by_last": judged_by_last}
        print_json(result | _members(predictions, counts))
    else:
        _show_members(predictions, counts)
        output().print(str(evaluation), soft_wrap=True)


def _judged(scheduler: Scheduler, evaluation: Evaluation) -> dict[str, Any]:
    result = {
        "schema": 2,
        "scheduler": scheduler.name,
        "instead": evaluation.instead,
        "changes_predictions": scheduler.changes_predictions,
        "unit": scheduler.costs.unit,
        "samples": evaluation.samples,
        "held_out": evaluation.held_out,
        "budget": evaluation.budget,
        "abstain": evaluation.abstain,
        "max_error": evaluation.max_error,
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
