"""`eenet search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet.cli._console import if_stopped, output, part_width, print_json, progress
from eenet.cli._options import CostsBatchSize, Json, Prefix, Unit
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.evaluation import SearchResult, System


def search(
    predictions: Annotated[
        list[Path], typer.Argument(metavar="PREDICTIONS...", help=".npz or .safetensors, one for each candidate")
    ],
    budget: Annotated[
        str | None,
        typer.Option(help="Mean cost per sample: 60% of the most accurate candidate, or like 3.5ms."),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Several, 40%,60%,3.5ms. Without any: eight, from the cheapest exit on.")
    ] = None,
    costs: Annotated[
        list[str] | None,
        typer.Option(
            help="What each candidate costs by itself: 2.3,9.1 (a number for each exit, the files in order); or "
            "--costs for each file, with numbers or a .json file of eenet profile --json."
        ),
    ] = None,
    unit: Unit = None,
    batch_size: CostsBatchSize = None,
    prefix: Prefix = "",
    method: Annotated[
        str | None,
        typer.Option(
            help="Of all systems that have a choice, as for eenet fit.",
            show_default="stopping; max_prob for cascades where each pixel has a class",
        ),
    ] = None,
    max_members: Annotated[
        int, typer.Option("--max-members", min=1, help="The most networks of a cascade; 1 for no cascades.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds and of methods that learn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where to save the scheduler of the best system for BUDGET (.safetensors).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Find the best system for each budget, of several networks and their cascades.

    PREDICTIONS are files as for eenet fit, one for each candidate: plain networks, networks with exits, int8 copies,
    all of the same held-out samples in the same order. A system is a plain network, one exit, a network with a
    scheduler, or a cascade of candidates. The table has the best for each budget, with what it gains over the
    runner-up, over the best that computes the same for all samples, and over the plain network: the most accurate
    candidate by itself.

    Accuracies are of samples that neither a scheduler was fitted to nor the choice was made on, so that a search among
    many candidates does not look better than it is. Candidates that are less accurate at no lower cost are dropped, and
    named.

    With BUDGET, OUT gets the scheduler. Give the files of its members, in the order of the table, to eenet evaluate.

    Examples:

        eenet search small.npz big.npz --costs 2.3,9.1

        eenet search small.npz exits.npz big.npz --costs 2.3 --costs exits.json --costs 9.1 --batch-size 1 --budget 60%
        --out best.safetensors

        eenet search small.npz big.npz --prefix val_ --budgets 40%,60%,80% --json
    """
    from eenet.cli._fit import scheduler_of
    from eenet.cli._inputs import each_costs, read_candidates
    from eenet.evaluation import search as run

    if budget is not None and budgets is not None:
        raise InvalidInputError("--budget and --budgets were given; give one of them")
    if out is not None and budget is None:
        raise InvalidInputError("--out saves the scheduler of one budget; give --budget too, such as --budget 60%")
    scheduler = None if method is None else scheduler_of(method, seed)
    candidates, in_files = read_candidates(predictions, prefix)
    of_each = each_costs(costs, unit, batch_size, in_files, [records.num_exits for records in candidates.values()])
    named = dict(zip(candidates, of_each, strict=True))
    common = next((one.unit for one in of_each if not isinstance(one, float)), unit or "ms")
    amounts = [budget] if budget is not None else [word.strip() for word in budgets.split(",")] if budgets else None
    if_stopped("there are no results yet; give the same command again")
    with progress() as bars:
        update = bars.task("judging systems")
        found = run(
            candidates, named, amounts, scheduler=scheduler, max_members=max_members, unit=common, seed=seed,
            progress=update,
        )  # fmt: skip
    if out is not None:
        found.frontier[0].save(out)
    if json_output:
        print_json(found.to_dict())
        return
    console = output()
    console.print(found.to_text(width=part_width(console)), soft_wrap=True)
    if out is not None:
        console.print(
            _saved(found, found.frontier[0], dict(zip(candidates, predictions, strict=True)), out), soft_wrap=True
        )


def _saved(found: SearchResult, system: System, files: dict[str, Path], out: Path) -> str:
    """What was saved, and how to judge it on fresh samples."""
    members = " ".join(str(files[name]) for name in system.members)
    return (
        f"{out} has the scheduler of {system.name} for {system.budget:.4g} {found.scale.unit}; its networks are those "
        f"of {members}, in this order"
    )
