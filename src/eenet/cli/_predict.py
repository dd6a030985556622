"""`eenet predict`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet._extras import require_extra
from eenet.cli._console import (
    if_stopped,
    new_table,
    note_threads,
    output,
    print_json,
    progress,
    short,
    show_error,
    show_warning,
)  # fmt: skip
from eenet.cli._models import current_folder_importable
from eenet.cli._options import Bundle, BundleAllow, Json
from eenet.cli._trained import bundle_of

if TYPE_CHECKING:
    from eenet.bundle import LoadedBundle
    from eenet.predict import Summary

NONE_ANSWERED = 1


def predict(
    bundle: Bundle,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="A folder of images, .parquet, .npy, .npz, or texts in .txt, .csv, .tsv or .jsonl."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The parquet file of the results.")],
    budget: Annotated[str | None, typer.Option(help="Another of the bundle's budgets, such as 50%.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that enter the network together.")] = 32,
    column: Annotated[
        str | None, typer.Option(help="The column of a table to read.", show_default="a usual name, such as text")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads for each stage; 0 leaves it the choice.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Do not go on with a run that was stopped.")] = False,
    allow: BundleAllow = None,
    ray: Annotated[bool, typer.Option("--ray", help="By Ray Data, on all machines of a Ray cluster.")] = False,
    address: Annotated[str | None, typer.Option(help="With --ray: the cluster; without, one is started here.")] = None,
    replicas: Annotated[int, typer.Option(min=0, help="With --ray: processes; 0 is as many as fit.")] = 0,
    piece: Annotated[
        int, typer.Option(min=1, help="Inputs whose results are kept together; what a stop can cost.")
    ] = 1024,
    json_output: Json = False,
) -> None:
    """Run a bundle over a folder or a file, results as parquet.

    A row for each input, in order: id, exit, prediction, class name, confidence; what cannot be read has an error
    instead of an answer, and the exit code is 1 where that is all of them. A run that was stopped goes on where it was
    when the same command is given again. Of a trained model, such as `digits`, a bundle is made first, and kept: see
    eenet serve.

    Examples:

        eenet predict bundle photos --out answers.parquet

        eenet predict digits photos --out answers.parquet --budget 50%

        eenet predict bundle reviews.csv --column text --out answers.parquet --batch-size 64

        eenet predict bundle photos --out answers.parquet --ray --address auto
    """
    require_extra("ray" if ray else "predict", "eenet predict")
    from eenet.bundle import load
    from eenet.errors import InvalidInputError
    from eenet.predict import open_items, predict_on_ray
    from eenet.predict import predict as here

    if address is not None and not ray:
        raise InvalidInputError("--address is for a Ray cluster; add --ray")
    run = here
    if not source.exists():
        raise InvalidInputError(f"there is no {str(source)!r}; give a folder or a file")
    used = threads or (1 if ray else None)  # a replica has its own share of the machine
    bundle = bundle_of(bundle, threads=used, allow=allow or ())
    if ray:  # the other processes start in folders of their own
        bundle, source = bundle.resolve(), source.resolve()
        run = partial(
            predict_on_ray, address=address, replicas=replicas or None, threads=threads or 1, allow=allow or ()
        )
    with current_folder_importable():
        loaded = load(bundle, threads=used, allow=allow or ())
    note_threads(loaded)
    loaded = loaded if budget is None else loaded.at(budget)
    items = open_items(source, loaded.preprocessing.kind, column=column)
    if_stopped(f"what is done is kept beside {out}; the same command {'without --restart ' if restart else ''}goes on")
    with progress() as bars:
        update = bars.task("predicting", total=len(items))
        summary = run(
            loaded,
            items,
            out,
            batch_size=batch_size,
            piece=piece,
            restart=restart,
            progress=update,
        )
    result: dict[str, Any] = {
        "schema": 1,
        "out": str(out),
        "items": summary.items,
        "resumed": summary.resumed,
        "failed": summary.failed,
        "first_error": summary.first_error,
        "exits": list(loaded.exit_names),
        "exit_shares": list(summary.exit_shares),
        "mean_cost": summary.mean_cost,
        "budget": loaded.scheduler.budget,
        "unit": loaded.costs.unit,
        "costs_from": loaded.costs_from,
        "measured_ms": summary.measured_ms,
        "measured_cpu_ms": summary.measured_cpu_ms,
        "runtime": loaded.runtime,
        "notes": list(summary.notes),
    }
    if json_output:
        print_json(result)
    else:
        _show(summary, loaded, out, batch_size)
    if summary.failed == summary.items:
        show_error(f"none of the {summary.items} inputs could be read; the first: {summary.first_error}")
        raise typer.Exit(NONE_ANSWERED)
    if summary.failed:
        show_warning(
            f"{summary.failed} of {summary.items} inputs could not be read, and have an error in {out} instead of an "
            f"answer; the first: {summary.first_error}"
        )


def _show(summary: Summary, bundle: LoadedBundle, out: Path, batch_size: int) -> None:
    console, costs = output(), bundle.costs
    table = new_table(left=("exit", ""), right=("share", f"cost ({costs.unit})"))
    for k, name in enumerate(bundle.exit_names):
        table.add_row(str(k), name, f"{summary.exit_shares[k]:.1%}", short(costs[k]))
    if summary.mean_cost is not None:
        table.add_section()
        table.add_row("mean", "", "", short(summary.mean_cost))
        table.add_row("budget", "", "", short(bundle.scheduler.budget))
    console.print(table)
    if summary.mean_cost is not None:
        console.print(f"costs {bundle.costs_from}", soft_wrap=True)
    if summary.measured_ms is not None:
        cpu = "" if summary.measured_cpu_ms is None else f", {short(summary.measured_cpu_ms)} ms of CPU time,"
        console.print(
            f"measured {short(summary.measured_ms)} ms{cpu} per item in {bundle.runtime}, batches of {batch_size}",
            soft_wrap=True,
        )
    for note in summary.notes:
        show_warning(note)
    resumed = f", {summary.resumed} of them from before" if summary.resumed else ""
    console.print(
        f"{summary.items} rows{resumed}, {summary.failed} of them could not be read; written to {out}",
        soft_wrap=True,
    )
