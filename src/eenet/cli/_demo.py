"""`eenet demo`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eenet._extras import require_extra
from eenet.cli._console import output


def demo(
    out: Annotated[Path, typer.Option(help="The folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the schedulers.")] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads for torch; 0: one or torch's choice, what is faster.")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes; accuracy means nothing.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train even if OUT holds a trained model.")] = False,
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

    run_demo(out, seed=seed, threads=threads, quick=quick, retrain=retrain, console=output(), command=_command())


def _command() -> str:
    return shlex.join(["eenet", *sys.argv[1:]])
