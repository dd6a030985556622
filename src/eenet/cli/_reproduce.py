"""`eenet reproduce`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet._extras import require_extra
from eenet.cli._console import output, print_json, side
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.experiments.recipes import RunOptions

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
    folder = out or Path("results") / (f"{loaded.name}-smoke" if smoke else loaded.name)
    place = run_options(
        folder, data_root, checkpoint, weights, resume=resume, start_from=start_from, smoke=smoke, threads=threads,
        download=download, skip_corrupt=skip_corrupt,
    )  # fmt: skip
    metrics = run(loaded, place, console=side())
    if json_output:
        print_json(metrics)
    else:
        output().print((folder / "README.md").read_text(encoding="utf-8"), markup=False, soft_wrap=True)


def run_options(
    out: Path,
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
    """Where and how a recipe is run, from the options of a command."""
    from eenet.experiments.recipes import RunOptions

    return RunOptions(
        out=out,
        data_root=data_root,
        checkpoint=checkpoint,
        weights=weights,
        resume=resume,
        start_from=start_from,
        smoke=smoke,
        download=download,
        on_corrupt="skip" if skip_corrupt else "refuse",
        threads=threads,
        command=_command(sys.argv[1:]),
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
    from rich.table import Table

    from eenet.experiments.recipes import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    rows: list[dict[str, Any]] = [
        {"name": recipe.name, "title": recipe.title, "data": recipe.data.name, "network": recipe.model.name}
        for recipe in recipes
    ]
    if json_output:
        print_json(rows)
        return
    table = Table("recipe", "what", "data set", "network")
    for row in rows:
        table.add_row(*row.values())
    output().print(table)
