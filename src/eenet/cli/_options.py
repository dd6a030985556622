"""Options that several commands have, and how a share is read in any of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from eenet.errors import InvalidInputError


def read_share(text: str) -> float:
    """A share, or a probability, of the command line: 0.02 or 2%; raises `InvalidInputError` for anything else."""
    found = re.fullmatch(r"\s*(\d*\.?\d+(?:e-?\d+)?)\s*(%?)\s*", text, flags=re.IGNORECASE)
    value = -1.0 if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 <= value <= 1:
        raise InvalidInputError(f"{text!r} is no share, expected a number from 0 to 1, or a percentage such as 2%")
    return value


def share(given: str | float) -> float:
    """`read_share` as the parser of an option, which may have a number as its default."""
    try:
        return read_share(given) if isinstance(given, str) else given
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error


def one_of(names: Iterable[str], name: str, option: str, more: str = "") -> str:
    """The name, which is one of these; raises `InvalidInputError`, which lists them, for any other."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidInputError(f"{option} {name!r} is not known; {hint}choose from {', '.join(names)}{more}")
    return name


def known_method(name: str, option: str) -> str:
    """The name of a method; raises `InvalidInputError` for one that is not known."""
    from eenet.scheduler import SCHEDULERS

    return one_of(SCHEDULERS, name, option, "; for one of your own give --import and the module that defines it")


Allow = Annotated[
    list[str] | None, typer.Option(help="An import path that a saved model may call to build its network.")
]
Backbone = Annotated[
    str | None,
    typer.Option(help="The network's weights, for a model saved without: timm:NAME, package:NAME, folder or file."),
]
Bundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A folder that eenet export wrote, or a trained model by its name.")
]
BundleAllow = Annotated[
    list[str] | None, typer.Option(help="An import path that a bundle of weights may call to build its network.")
]
Costs = Annotated[
    list[str] | None,
    typer.Option(
        help="Cost of the whole way to each exit, 2.3,4.1,4.9; or a .json file of eenet profile --json. Of several "
        "files: what each network costs by itself, 2.3,9.1, or --costs once for each file."
    ),
]
CostsBatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Which costs of a .json file to take.")]
ImageSize = Annotated[str | None, typer.Option(help="Read image files: 224, or 512x1024 (height x width).")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
JudgedByLast = Annotated[
    bool,
    typer.Option(
        "--judged-by-last",
        help="Labels are not read: an answer is right where it is the last exit's. Accuracy is the share that is.",
    ),
]
Labels = Annotated[Path | None, typer.Option(help="Class numbers or names: .npy, or .txt with one on each line.")]
ListeningJson = Annotated[bool, typer.Option("--json", help="Print one line when it listens, with the address.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens a text is cut at.", show_default="as the tokenizer's folder says")
]
Mean = Annotated[str, typer.Option(help="Of each channel, pixels scaled to 0..1.")]
Plain = Annotated[
    float | None, typer.Option(help="Cost of the plain network, without exits; 60% is of it. A .json file has it.")
]
Predictions = Annotated[
    list[Path], typer.Argument(metavar="PREDICTIONS...", help=".npz or .safetensors; several are a cascade")
]
Prefix = Annotated[str, typer.Option(help="Of the arrays' names, such as val_.")]
Resize = Annotated[
    int | None, typer.Option(min=1, help="Bring the shorter side to this, then cut the center; else stretch.")
]
Seconds = Annotated[float, typer.Option(min=0.0, help="About how long to measure each batch size.")]
Std = Annotated[str, typer.Option(help="As --mean; one number means gray images.")]
Tokenizer = Annotated[
    list[str] | None,
    typer.Option(
        help="Read texts: a folder with a tokenizer.json. Of a cascade PREFIX=FOLDER for each tokenizer, such as "
        "--tokenizer small=FOLDER --tokenizer big=FOLDER; its inputs are small_input_ids and so on."
    ),
]
Unit = Annotated[str | None, typer.Option(help="Of the costs: ms (the default), cpu_ms, flops or a word.")]
