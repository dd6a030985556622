"""`eenet compare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet.cli._console import as_share, if_stopped, output, part_width, print_json, progress, show_warning
from eenet.cli._options import (
    Costs,
    CostsBatchSize,
    Json,
    JudgedByLast,
    Plain,
    Prefix,
    Unit,
    known_method,
    one_of,
    share,
)
from eenet.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from eenet.costs import ExitCosts
    from eenet.evaluation import Comparison
    from eenet.records import ExitRecords

_ALL = "all"


def compare(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS...", help=".npz or .safetensors, with labels; several are a cascade"),
    ],
    costs: Costs = None,
    plain: Plain = None,
    unit: Unit = None,
    batch_size: CostsBatchSize = None,
    prefix: Prefix = "",
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            help="Predictions to judge on instead of the rest of each resplit; of a cascade once for each file."
        ),
    ] = None,
    held_out_prefix: Annotated[str, typer.Option(help="Of the names of the arrays in HELD_OUT.")] = "",
    judged_by_last: JudgedByLast = False,
    methods: Annotated[str, typer.Option(help="Names as for eenet fit --method, with commas; or all.")] = _ALL,
    budgets: Annotated[
        str, typer.Option(help="A number of budgets between the first and the last exit's cost, or 50%,60%,3.5ms.")
    ] = "8",
    reference: Annotated[str | None, typer.Option(help="The method to compare with; the first one named.")] = None,
    resplits: Annotated[int, typer.Option(min=1, help="How often the predictions are divided again.")] = 5,
    fraction: Annotated[float, typer.Option(parser=share, help="Of the predictions, to calibrate on: 0.5 or 50%.")] = 2
    / 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the resplits, the methods and the bootstrap.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for tables, figure and finished work.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Continue what OUT holds, or discard it and begin again.")
    ] = True,
    json_output: Json = False,
) -> None:
    """Compare schedulers on fresh samples, at equal realized cost.

    Each method is fitted to each budget on a random part of PREDICTIONS (as for eenet fit) and tried on the rest,
    RESPLITS times. Differences to the reference are taken at the cost that was really spent, as pairs, with standard
    errors by a bootstrap over the samples. Rows where early exit loses are shown like all others. The results do not
    depend on JOBS.

    With OUT, finished work is kept there as it comes: the same command again goes on where it was stopped, and other
    methods or more resplits add to it. OUT then holds table.txt, table.tex (LaTeX), rows.csv,
    differences.csv, comparison.json and comparison.png.

    A trained model, by its name or folder, stands for its calibration records, its test records as HELD_OUT, and the
    costs of its results.

    Examples:

        eenet compare digits --methods max_prob,stopping,eenet --budgets 20%,40%,60%

        eenet compare predictions.npz --prefix val_ --unit cpu_ms --methods max_prob,margin,searched --budgets 8

        eenet compare small.npz big.npz --costs 2.3,9.1 --methods eenet,max_prob --budgets 30%,60%

        eenet compare demo/calibration.safetensors --costs demo/costs.json --held-out demo/test.safetensors
        --budgets 40%,60%,80% --jobs 2 --out comparison
    """
    from eenet.cli._inputs import JUDGED_BY_LAST, read_member_costs, read_members
    from eenet.cli._models import file_beside, records_of
    from eenet.evaluation import compare as run

    if held_out is None and len(predictions) == 1:
        tested = file_beside(predictions[0], "test.safetensors")
        held_out = None if tested is None else [tested]
    predictions, costs = records_of(predictions, costs, "calibration")
    records, in_files, counts = read_members(predictions, prefix, judged_by_last=judged_by_last)
    names = _methods(methods, records)
    against = one_of(names, reference, "--reference") if reference else names[0]
    table = read_member_costs(costs, unit, batch_size, in_files, counts, plain)
    fresh = read_members(held_out, held_out_prefix, judged_by_last=judged_by_last)[0] if held_out else None
    amounts = _budgets(budgets, table)
    if_stopped(
        "nothing was kept: give --out FOLDER, and finished work is kept there"
        if out is None
        else f"finished work is kept in {out}; the same command {'' if resume else 'without --restart '}goes on"
    )
    with progress() as bars:
        update = bars.task("fitting", total=len(names) * len(amounts) * resplits)
        comparison = run(
            records, table, names, amounts, resplits=resplits, fraction=fraction, seed=seed, held_out=fresh, jobs=jobs,
            out=out, restart=not resume, progress=update,
        )  # fmt: skip
    written = None if out is None else _write(comparison, against, out)
    if json_output:
        print_json({**comparison.to_dict(against), "judged_by_last": judged_by_last})
        return
    console = output()
    if judged_by_last:
        console.print(JUDGED_BY_LAST, soft_wrap=True)
    console.print(comparison.to_text(against, width=part_width(console)), soft_wrap=True)
    if written is not None:
        console.print(f"{written} are in {out}", soft_wrap=True)


def _methods(text: str, records: ExitRecords) -> list[str]:
    import numpy as np

    from eenet.scheduler import SCHEDULERS
    from eenet.tasks import VOTES

    if text == _ALL:
        pooled = bool(records.pooled)
        unknown = [np.isnan(records.pooled[name][:-1]).any() for name in VOTES if name in records.pooled]
        made = {name: make() for name, make in SCHEDULERS.items()}
        parts = [name for name in made if pooled and made[name].whole_samples]
        votes = [name for name in made if any(unknown) and name not in parts and made[name]._score_class.uses_history]
        if parts:
            show_warning(f"left out, since they cannot read evidence pooled over pixels: {', '.join(parts)}")
        if votes:
            show_warning(
                f"left out, since on how many pixels exits agree is not known for records that were joined or cut: "
                f"{', '.join(votes)}; give one file of eenet collect, of the cascade or the model with these exits"
            )
        return [name for name in made if name not in (*parts, *votes)]
    names = [known_method(word.strip(), "--methods") for word in text.split(",")]
    if len(set(names)) < len(names):
        raise InvalidInputError(f"--methods {text} names a method twice; give each once")
    return names


def _budgets(text: str, costs: ExitCosts) -> list[float]:
    """A number of budgets evenly between the first and the last exit's cost, or those that are listed."""
    import numpy as np

    from eenet.costs import parse_budget

    if re.fullmatch(r"\s*\d+\s*", text):
        if int(text) < 1:
            raise InvalidInputError("--budgets 0: expected at least 1, or a list such as 50%,60%")
        between: list[float] = np.linspace(costs[0], costs[-1], int(text) + 2)[1:-1].tolist()
        return between
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if re.fullmatch(r"[\d.]+", word):
            raise InvalidInputError(
                f"--budgets {text}: {word} has no unit; write {as_share(word)} or {word}{costs.unit}, or a single "
                "whole number, which is how many budgets"
            )
    return [parse_budget(word, costs) for word in words]


def _write(comparison: Comparison, reference: str, out: Path) -> str:
    """Write everything that can be written, and say in words what that is."""
    comparison.write(out, reference)
    try:
        comparison.write_figure(out / "comparison.png", reference)
    except MissingExtraError as error:
        show_warning(f"no figure: {error}")
        return "tables"
    return "tables and figure"
