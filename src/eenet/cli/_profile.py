"""`eenet profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eenet._extras import require_extra
from eenet.cli._console import output, print_json, side
from eenet.cli._inputs import load_target
from eenet.errors import InvalidInputError


def profile(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A folder of eenet demo, a saved model, or package.module:function."),
    ],
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to measure.")] = "1,2,4,8,16,32",
    scheduler: Annotated[
        Path | None, typer.Option(help="A saved scheduler whose steps are to be counted as well.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="About how long to measure each batch size.")] = 2.0,
    allow: Annotated[
        list[str] | None, typer.Option(help="An import path that a saved model may call to build its network.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads for torch; 0 leaves it the choice.")] = 0,
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

    Examples:

        eenet profile demo

        eenet profile mypackage.networks:resnet_with_exits --batch-sizes 1,32 --json > costs.json
    """
    sizes = _sizes(batch_sizes)
    require_extra("torch", "eenet profile")
    if threads:
        import torch

        torch.set_num_threads(threads)
    from eenet.profiling import measure
    from eenet.scheduler import load_scheduler

    fitted = None if scheduler is None else load_scheduler(scheduler)
    model, example = load_target(target, allow=allow or ())
    with side().status("measuring") as status:
        measured = measure(
            model,
            example,
            batch_sizes=sizes,
            scheduler=fitted,
            seconds=seconds,
            progress=lambda size: status.update(f"measuring; batch {size} is done"),
        )
    for size in sizes:
        measured.costs("ms", size)  # says so where the spread is too large to trust
    data = {"schema": 1, "exits": list(model.exit_names), **measured.to_dict()}
    if out is not None:
        from eenet._files import write_json

        write_json(out, data)
    if json_output:
        print_json(data)
    else:
        _show(data)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise InvalidInputError(f"--batch-sizes {text!r} cannot be read; give numbers such as 1,8,32") from error
    if min(sizes) < 1:
        raise InvalidInputError(f"--batch-sizes {text!r}: a batch has at least 1 sample")
    return tuple(sorted(set(sizes)))


def _show(data: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="cost per sample of the whole way to each exit", title_justify="left")
    headings = ("batch", "exit", "wall ms", "of plain", "p50", "p95", "p99", "CPU ms", "MFLOPs", "of plain", "spread")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "exit" else "right")
    costs, plain, tails = data["costs"], data["plain"], data["percentiles"]["ms"]
    for row, size in enumerate(data["batch_sizes"]):
        columns = [[*costs[unit][row], plain[unit][row]] for unit in ("ms", "cpu_ms", "flops")]
        names = [f"{k + 1} ({name})" for k, name in enumerate(data["exits"])]
        for k, name in enumerate([*names, "plain network"]):
            wall, cpu, flops = (column[k] for column in columns)
            table.add_row(
                str(size) if k == 0 else "",
                name,
                f"{wall:.4f}",
                f"{wall / columns[0][-1]:.0%}",
                *(f"{tails[p][row][k]:.4f}" for p in ("p50", "p95", "p99")),
                f"{cpu:.4f}",
                f"{flops / 1e6:.2f}",
                f"{flops / columns[2][-1]:.0%}",
                f"{data['spreads']['ms'][row][k]:.0%}" if k < len(names) else "",
                end_section=k == len(names),
            )
    console = output()
    console.print(table)
    device, threads = data["device"], data["device"]["threads"]
    gpu = f"{device['accelerator']}; " if "accelerator" in device else ""
    console.print(
        f"{gpu}{device['processor']}, {threads} thread{'' if threads == 1 else 's'}, torch {device['torch']}; counted: "
        f"{', '.join(data['includes'])}; the plain network has no exits. p50, p95 and p99 are of wall ms; a budget is "
        "about the mean"
    )
