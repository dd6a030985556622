"""`eenet profile`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from eenet._extras import require_extra
from eenet.cli._console import (
    if_stopped,
    new_table,
    note_no_gain,
    of_the_fit,
    output,
    print_json,
    progress,
    short,
    steps,
)
from eenet.cli._inputs import read_predictions, sizes_of
from eenet.cli._models import current_folder_importable, load_target
from eenet.cli._options import Allow, Backbone
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.models import MultiExitModel


def profile(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A bundle, a trained model by name, a saved one, a folder of eenet demo, or package.module:function.",
        ),
    ],
    batch_sizes: Annotated[
        str | None,
        typer.Option(help="Batch sizes to measure.", show_default="1,2,4,8,16,32; of a bundle 1,8,32"),
    ] = None,
    scheduler: Annotated[
        Path | None, typer.Option(help="A saved scheduler whose steps are to be counted as well.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.0, help="About how long to measure each batch size.", show_default="2; of a bundle 1"),
    ] = None,
    allow: Allow = None,
    backbone: Backbone = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads for torch, or for each stage of a bundle; 0 leaves them the choice.")
    ] = 0,
    update: Annotated[
        bool, typer.Option("--update", help="Of a bundle: write the costs, and the policy planned in them, to it.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Of a bundle: another budget, 60% of the plain network or like 3ms.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Of a bundle: the one to plan at.")
    ] = None,
    full_batches: Annotated[
        bool,
        typer.Option(
            "--full-batches", help="Of a network: all samples of a batch go to the same exit, for comparing exits."
        ),
    ] = False,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Of inputs of any length: the one to measure at, such as the mean of your texts."),
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Of a bundle: other calibration records to plan with, what eenet fit took.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the arrays' names in --records, such as val_.")] = "",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Machine-readable; what eenet fit --costs reads.")
    ] = False,
) -> None:
    """Measure what each exit of a network costs on this machine.

    Wall and CPU milliseconds and FLOPs per sample, the whole way to each exit with the exit heads, and of the plain
    network without exits, measured in turns at several batch sizes. TARGET is a folder that eenet demo made, one that
    save_pretrained or eenet train wrote, or package.module:function, looked up from the current folder, a function
    without arguments that returns a MultiExitModel or (model, example). Its code is run: name only what you trust.

    A bundle that eenet export wrote is measured in the runtime that runs it, without PyTorch where that is ONNX
    Runtime, and its budget is planned in these milliseconds, at the same share of the plain network. The command shows
    what that gives, and with --update writes it to the bundle.

    In batches samples exit on the way, and deeper stages run on the few that are left, which takes longer for each. So
    costs depend on how many samples exit where: a network's are shown for as many at each exit, and eenet fit takes
    those of the policy that it finds for the budget. A bundle is measured as its policy runs.

    Costs are of inputs of one length. Where the network takes any, --length chooses it, such as the mean length of your
    texts in tokens; otherwise it is that of the example.

    Examples:

        eenet profile digits

        eenet profile mypackage.networks:resnet_with_exits --batch-sizes 1,32 --json > costs.json

        eenet profile digits --batch-sizes 32 --json > costs.json

        eenet profile bundle --threads 2 --update

        eenet profile bundle --length 128 --update
    """
    if (Path(target) / "manifest.json").is_file():
        if scheduler is not None:
            raise InvalidInputError(f"{target!r} is a bundle, which has a scheduler of its own; leave out --scheduler")
        if full_batches:
            raise InvalidInputError(f"{target!r} is a bundle, measured as its policy runs; leave out --full-batches")
        data = _measured_bundle(
            target,
            batch_sizes=sizes_of("1,8,32" if batch_sizes is None else batch_sizes),
            batch_size=batch_size,
            seconds=1.0 if seconds is None else seconds,
            threads=threads or None,
            length=length,
            budget=budget,
            records=None if records is None else read_predictions(records, prefix)[0],
            update=update,
            allow=allow or (),
        )
        _give(data, out, json_output, _show_bundle)
        return
    only = {"--update": update, "--budget": budget, "--batch-size": batch_size, "--records": records}
    for option, value in only.items():
        if value:
            raise InvalidInputError(f"{option} is for a bundle, and {target!r} is none; see eenet export")
    sizes = sizes_of("1,2,4,8,16,32" if batch_sizes is None else batch_sizes)
    seconds = 2.0 if seconds is None else seconds
    require_extra("torch", "eenet profile")
    if threads:
        import torch

        torch.set_num_threads(threads)
    from eenet.profiling import measure
    from eenet.scheduler import load_scheduler

    fitted = None if scheduler is None else load_scheduler(scheduler)
    model, example = load_target(target, allow=allow or (), backbone=backbone)
    example = example if length is None else _of_length(model, example, length)
    if_stopped("there are no results yet; give the same command again")
    with progress() as bars:
        show = bars.task("measuring batch sizes", total=len(sizes))
        measured = measure(
            model,
            example,
            batch_sizes=sizes,
            scheduler=fitted,
            seconds=seconds,
            progress=lambda size: show(sizes.index(size) + 1),
            full_batches=full_batches,
        )
    for at in measured.batch_sizes:
        measured.costs("ms", at)  # says so where the spread is too large to trust
    joined = model.plain is not model.backbone
    data = {"schema": 1, "exits": list(model.exit_names), "cascade": joined, **measured.to_dict()}
    _give(data, out, json_output, _show)


def _give(data: dict[str, Any], out: Path | None, json_output: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if out is not None:
        from eenet._files import write_json

        write_json(out, data)
    if json_output:
        print_json(data)
    else:
        show(data)


def _of_length(model: MultiExitModel, example: Any, length: int) -> Any:
    """The example, repeated or cut to this length in all dimensions that may change."""
    import torch

    from eenet._sizes import not_of_length
    from eenet.stages import arguments_of
    from eenet.stages._example import MODEL_ERRORS

    args, kwargs = arguments_of(example)
    given = model.staged.flatten_inputs(*args, **kwargs)
    free = [
        (n, dim)
        for n, spec in enumerate(model.staged.inference_stages[0].inputs)
        for dim, size in enumerate(spec.shape)
        if isinstance(size, str) and dim != spec.batch_dim
    ]
    if not free:
        raise InvalidInputError(
            f"--length {length}: the network takes inputs of one size only; leave it out, or cut the network with "
            "dynamic={1: 'sequence'}"
        )

    def call_of(length: int) -> tuple[Any, Any]:
        live = list(given)
        for n, dim in free:
            rows = torch.arange(length, device=live[n].device) % live[n].shape[dim]
            live[n] = live[n].index_select(dim, rows)
        return model.staged.call_of(tuple(live))

    def failure(length: int) -> str | None:
        args, kwargs = call_of(length)
        try:
            with torch.no_grad():
                model.plain(*args, **kwargs)
        except MODEL_ERRORS as error:
            return str(error)
        return None

    why = failure(length)
    if why is not None:
        usual = max(given[n].shape[dim] for n, dim in free)
        raise InvalidInputError(not_of_length(length, usual, lambda n: failure(n) is None, why))
    args, kwargs = call_of(length)
    return args or kwargs


def _measured_bundle(folder: str, **options: Any) -> dict[str, Any]:
    """Measure a bundle and plan it: its costs as those of a network, and under "plan" what it had and what it has."""
    from eenet.bundle import measure
    from eenet.bundle._manifest import read_manifest

    before = read_manifest(folder).data
    if_stopped("the bundle is as it was; give the same command again")
    with steps("measuring") as report, current_folder_importable():
        bundle = measure(folder, progress=report, **options)
    scheduler = bundle.scheduler
    return {
        "schema": 1,
        **bundle.manifest.data["profile"],
        "plan": {
            "bundle": folder,
            "costs_before": before["costs"],
            "costs": bundle.costs.to_dict(),
            "costs_from": bundle.costs_from,
            "budget": scheduler.budget,
            "planned_cost": scheduler.planned_cost,
            "fitted_to_records": options["records"] is not None or before.get("records") is not None,
            "written": options["update"],
        },
    }


def _show_bundle(data: dict[str, Any]) -> None:
    from eenet.costs import ExitCosts

    plan, console = data["plan"], output()
    before, costs = ExitCosts.from_dict(plan["costs_before"]), ExitCosts.from_dict(plan["costs"])
    old: list[float | None] = [*before.values.tolist(), before.plain]
    at = data["batch_sizes"].index(costs.batch_size) if before.unit == "ms" else -1
    columns = {"before": lambda row, k: old[k] if row == at else None}
    console.print(_table(data, "cost per sample of the whole way to each exit, as the policy runs", columns))
    console.print(f"{plan['costs_from']}; the plain network is {data['plain_is']}", soft_wrap=True)
    how = "planned with its calibration records"
    if not plan["fitted_to_records"]:
        how = f"without calibration records: {of_the_fit(costs, plan['budget'], plan['planned_cost'])}"
    console.print(f"budget {costs.in_words(plan['budget'])}, {how}", soft_wrap=True)
    note_no_gain(costs)
    if plan["written"]:
        console.print(f"written to {plan['bundle']}", soft_wrap=True)
    else:
        console.print(f"nothing was written; eenet profile {plan['bundle']} --update writes it", soft_wrap=True)


def _table(data: dict[str, Any], title: str, more: dict[str, Callable[[int, int], float | None]]) -> Table:
    """Rows by batch size and exit, the plain network last; percentiles and spreads are of wall time."""
    table = new_table(title, left=("batch", "exit"))
    for heading in ("wall ms", "of plain", "p95", "p99", "CPU ms", *more, "spread"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = [*(f"{k} ({name})" for k, name in enumerate(data["exits"])), "plain network"]
    tails = data["percentiles"]["ms"]
    for row, size in enumerate(data["batch_sizes"]):
        wall, cpu = ([*data["costs"][unit][row], data["plain"][unit][row]] for unit in ("ms", "cpu_ms"))
        for k, name in enumerate(names):
            added = [value(row, k) for value in more.values()]
            table.add_row(
                str(size) if k == 0 else "",
                name,
                short(wall[k]),
                f"{wall[k] / wall[-1]:.0%}",
                *(short(tails[p][row][k]) for p in ("p95", "p99")),
                short(cpu[k]),
                *("" if value is None else short(value) for value in added),
                f"{data['spreads']['ms'][row][k]:.0%}" if k < len(names) - 1 else "",
                end_section=k == len(names) - 1,
            )
    return table


def _show(data: dict[str, Any]) -> None:
    from eenet.costs import ExitCosts

    flops = [[*costs, plain] for costs, plain in zip(data["costs"]["flops"], data["plain"]["flops"], strict=True)]
    columns = {"MFLOPs": lambda row, k: flops[row][k] / 1e6}
    console = output()
    few = ", in batches of which as many samples exit at each exit" if data["runs"] else ""
    console.print(_table(data, f"cost per sample of the whole way to each exit{few}", columns))
    device, threads = data["device"], data["device"]["threads"]
    plain = "is the last member by itself" if data["cascade"] else "has no exits"
    gpu = f"{device['accelerator']}; " if "accelerator" in device else ""
    console.print(
        f"{gpu}{device['processor']}, {threads} thread{'' if threads == 1 else 's'}, torch {device['torch']}; counted: "
        f"{', '.join(data['includes'])}; the plain network {plain}. p95 and p99 are of wall ms; a budget is about "
        "the mean"
    )
    of_inputs = ExitCosts(data["costs"]["ms"][0], device=device).of_inputs
    if of_inputs is not None:
        console.print(f"costs are {of_inputs}", soft_wrap=True)
