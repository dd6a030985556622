"""`eenet demo`, `train` and `reproduce`: the commands that run recipes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet._extras import require_extra
from eenet.cli._console import if_stopped, new_table, output, print_json, side
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.experiments.recipes import Recipe, RunOptions


DataRoot = Annotated[Path | None, typer.Option(help="The folder that holds the data set, or its folder.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Texts: the folder of an encoder and its tokenizer.")]
Weights = Annotated[Path | None, typer.Option(help="Published weights to start from, in safetensors.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, as train.epochs=5; repeatable."),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads for torch; 0 leaves it the choice.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data and checkpoints from Hugging Face.")]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave out files that cannot be read, which are counted and named.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="Run the recipe on tiny made-up data; under a minute.")]
StartFrom = Annotated[
    str | None, typer.Option("--from", metavar="STEP", help="Run this step and those after it again.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a training that was interrupted.")]


def reproduce(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.")] = None,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the results; results/RECIPE.")] = None,
    resume: Resume = False,
    start_from: StartFrom = None,
    smoke: Smoke = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="Show the recipes and end.")] = False,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    changes: Changes = None,
    threads: Threads = 0,
    download: Download = False,
    skip_corrupt: SkipCorrupt = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the metrics, machine-readable.")] = False,
) -> None:
    """Reproduce one of the paper's benchmarks, from data to a folder of results.

    The steps are data, train, collect, profile, fit and evaluate. A step that is complete is not run again; a training
    that was stopped goes on after its last finished epoch with --resume. OUT holds metrics, predictions, costs,
    schedulers and a README; OUT/work holds checkpoints and may be deleted.

    Examples:

        eenet reproduce --list

        eenet reproduce cifar10-resnet56 --smoke

        eenet reproduce sst2-minilm --data-root datasets --out results/sst2-minilm --threads 1
    """
    require_extra("train", "eenet reproduce")
    from eenet.experiments.recipes import load_recipe
    from eenet.experiments.recipes import reproduce as run

    if list_recipes:
        _show_recipes(json_output=json_output)
        return
    if recipe is None:
        raise InvalidInputError("which recipe? Give a name; eenet reproduce --list shows them")
    loaded = load_recipe(recipe, changes=changes or (), smoke=smoke)
    place = _run_options(
        loaded, out, data_root, checkpoint, weights, resume=resume, start_from=start_from, smoke=smoke, threads=threads,
        download=download, skip_corrupt=skip_corrupt,
    )  # fmt: skip
    metrics = run(loaded, place, console=side())
    if not metrics:  # of a process that only helped to train
        return
    if json_output:
        print_json(metrics)
    else:
        output().print((place.out / "README.md").read_text(encoding="utf-8"), soft_wrap=True)


def _run_options(
    recipe: Recipe,
    out: Path | None,
    data_root: Path | None,
    checkpoint: Path | None,
    weights: Path | None,
    *,
    resume: bool,
    start_from: str | None,
    smoke: bool,
    threads: int,
    download: bool,
    skip_corrupt: bool,
) -> RunOptions:
    """Where and how a recipe is run, from the options of a command; a stop then says how to go on."""
    from eenet.experiments.recipes import RunOptions

    command = _command(sys.argv[1:])
    if_stopped(f"complete steps and finished epochs are kept; to go on: {command} --resume")
    return RunOptions(
        out=out or Path("results") / (f"{recipe.name}-smoke" if smoke else recipe.name),
        data_root=data_root,
        checkpoint=checkpoint,
        weights=weights,
        resume=resume,
        start_from=start_from,
        smoke=smoke,
        download=download,
        on_corrupt="skip" if skip_corrupt else "refuse",
        threads=threads,
        command=command,
        progress=not side().quiet,
    )


def _command(words: list[str]) -> str:
    """The command that gives the same results in a new folder: without what only says where to go on."""
    kept: list[str] = []
    for number, word in enumerate(words):
        follows = number > 0 and words[number - 1] == "--from"
        if word not in ("--resume", "--from") and not word.startswith("--from=") and not follows:
            kept.append(word)
    return shlex.join(["eenet", *kept])


def _show_recipes(*, json_output: bool) -> None:
    from eenet.experiments.recipes import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    rows: list[dict[str, Any]] = [
        {"name": recipe.name, "title": recipe.title, "data": recipe.data.name, "network": recipe.model.name}
        for recipe in recipes
    ]
    if json_output:
        print_json(rows)
        return
    table = new_table(left=("recipe", "what", "network"))
    for row in rows:
        table.add_row(row["name"], row["title"], row["network"])
    output().print(table)


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
    place = _run_options(
        loaded, out, data_root, checkpoint, weights, resume=resume, start_from=start_from, smoke=smoke, threads=threads,
        download=download, skip_corrupt=skip_corrupt,
    )  # fmt: skip
    result = run(loaded, place, console=side(), steps=("data", "train"))
    if not result:  # of a process that only helped to train
        return
    if json_output:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    best = result["history"][result["best_epoch"] - 1]
    table = new_table(f"epoch {result['best_epoch']}, on validation data", left=("exit", ""), right=("accuracy",))
    for k, (name, accuracy) in enumerate(zip(result["exits"], best["accuracies"], strict=True)):
        table.add_row(str(k), name, f"{accuracy:.2%}")
    headings = ("budget", "realized cost", "accuracy")
    budgets = new_table("the frontier, under searched thresholds", left=(), right=headings)
    for budget, cost, accuracy in zip(best["budgets"], best["frontier_costs"], best["frontier"], strict=True):
        budgets.add_row(f"{budget:.4g}", f"{cost:.4g}", f"{accuracy:.2%}")
    console = output()
    console.print(table)
    console.print(budgets)


def demo(
    out: Annotated[Path, typer.Option(help="The folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the schedulers.")] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads for torch; 0: one or torch's choice, what is faster.")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes; accuracy means nothing.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train even if OUT holds a trained model.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the metrics, machine-readable.")] = False,
) -> None:
    """Train, measure, schedule and run a multi-exit network on real digits.

    Runs the recipe `digits`: trains a small residual network with three exits on 3,000 MNIST digits, measures what
    each exit costs on this machine, fits every scheduler at several budgets on 1,000 further digits and runs them
    on the last 1,000, in turns with the plain network. Prints one table, draws report.png, and writes to OUT all
    that the other commands need. Takes about two minutes on two cores.

    Examples:

        eenet demo

        eenet demo --out /tmp/demo --seed 1 --threads 2
    """
    require_extra("demo", "eenet demo")
    from eenet.experiments.demo import run_demo

    command = _command(sys.argv[1:])
    if_stopped(f"complete steps and finished epochs are kept; to go on: {command}")
    console = side() if json_output else output()
    metrics = run_demo(out, seed=seed, threads=threads, quick=quick, retrain=retrain, console=console, command=command)
    if json_output:
        print_json(metrics)
