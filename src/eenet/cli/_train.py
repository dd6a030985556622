"""`eenet train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eenet._extras import require_extra
from eenet.cli._console import output, print_json, side
from eenet.cli._reproduce import (
    Changes,
    Checkpoint,
    DataRoot,
    Download,
    Resume,
    SkipCorrupt,
    Smoke,
    StartFrom,
    Threads,
    Weights,
    run_options,
)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.")],
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run; results/RECIPE.")] = None,
    resume: Resume = False,
    start_from: StartFrom = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Train the early exit heads alone, on cached features.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    precision: Annotated[str | None, typer.Option(help="32, bf16 or 16; the latter two are mixed.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Batches to one step of the optimizer.")] = None,
    devices: Annotated[str | None, typer.Option(help="How many devices, auto, or a list such as 0,1.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="cpu, cuda, or auto.")] = None,
    smoke: Smoke = False,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    changes: Changes = None,
    threads: Threads = 0,
    download: Download = False,
    skip_corrupt: SkipCorrupt = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the report of each epoch, machine-readable.")
    ] = False,
) -> None:
    """Train all exits of a recipe's network: its data and train steps alone.

    Each epoch reports the accuracy of every exit and the frontier: accuracy at three budgets under searched thresholds,
    on held-out data, by which the checkpoint is chosen. A run that was stopped, even killed, goes on with --resume.
    OUT/work/model then holds the whole model; eenet reproduce with the same OUT does the other steps.

    Examples:

        eenet train sst2-minilm --data-root datasets --out runs/sst2

        eenet train my-recipe.yaml --data-root datasets --freeze-backbone --set train.batch_size=256
    """
    require_extra("train", "eenet train")
    from eenet.experiments.recipes import load_recipe
    from eenet.experiments.recipes import reproduce as run

    flags = {"epochs": epochs, "precision": precision, "accumulate": accumulate, "accelerator": accelerator}
    given = [f"train.{name}={value!r}" for name, value in flags.items() if value is not None]
    if devices is not None:
        given.append(f"train.devices={devices if devices.isdecimal() else repr(devices)}")
    if freeze_backbone:
        given.append("train.freeze_backbone=true")
    loaded = load_recipe(recipe, changes=[*(changes or ()), *given], smoke=smoke)
    folder = out or Path("results") / (f"{loaded.name}-smoke" if smoke else loaded.name)
    place = run_options(
        folder, data_root, checkpoint, weights, resume=resume, start_from=start_from, smoke=smoke, threads=threads,
        download=download, skip_corrupt=skip_corrupt,
    )  # fmt: skip
    result = run(loaded, place, console=side(), steps=("data", "train"))
    if json_output:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    best = result["history"][result["best_epoch"] - 1]
    table = Table(title=f"epoch {result['best_epoch']}, on validation data", title_justify="left")
    for heading in ("exit", "accuracy"):
        table.add_column(heading)
    for name, accuracy in zip(result["exits"], best["accuracies"], strict=True):
        table.add_row(name, f"{accuracy:.2%}")
    budgets = Table(title="the frontier, under searched thresholds", title_justify="left")
    for heading in ("budget", "realized cost", "accuracy"):
        budgets.add_column(heading)
    for budget, cost, accuracy in zip(best["budgets"], best["frontier_costs"], best["frontier"], strict=True):
        budgets.add_row(f"{budget:.4g}", f"{cost:.4g}", f"{accuracy:.2%}")
    console = output()
    console.print(table)
    console.print(budgets)
