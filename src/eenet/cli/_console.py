"""What the user sees: tables on standard output, everything about the run on standard error."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.bundle import LoadedBundle
    from eenet.costs import ExitCosts

_PATIENCE = 2.0  # seconds before a command says what it is waiting for

_FILE_WIDTH = 120  # when the output goes to a file or a pipe, whose width is unknown


def output() -> Console:
    """The console for results; made again each time, so that a redirected standard output is respected."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def side() -> Console:
    """The console for progress and notes."""
    return Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """A progress bar on standard error, which goes away when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=side(),
        transient=True,
    )


@contextmanager
def steps(name: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done, by a function that takes it in words: in one line, or where that cannot be, in many."""
    console, start = side(), time.perf_counter()
    with console.status(name) as status:

        def show(step: str) -> None:
            text = f"{name}, {time.perf_counter() - start:.0f} s: {step}"
            if console.is_terminal:
                status.update(text)
            else:
                console.print(text, soft_wrap=True)

        yield show


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what is being done while the block runs, if that takes some seconds; nothing where no terminal is."""
    console = side()
    if not console.is_terminal:
        yield
        return
    status = console.status(text)
    timer = threading.Timer(_PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def show_error(message: str) -> None:
    """One red line on standard error."""
    _line("error: ", message, "bold red")


def show_warning(message: str) -> None:
    """One yellow line on standard error."""
    _line("warning: ", message, "yellow")


def _line(word: str, message: str, style: str) -> None:
    side().print(Text(word + " ".join(message.split()), style=style), soft_wrap=True)


def note_threads(bundle: LoadedBundle) -> None:
    """Say where a bundle runs with another number of threads than its costs were measured with."""
    note = bundle.other_threads
    if note is not None:
        show_warning(note)


def note_no_gain(costs: ExitCosts) -> None:
    """Say where no sample can be answered for less than the plain network takes."""
    if costs.plain is not None and costs[0] >= costs.plain:
        show_warning(
            f"exit 1 costs {costs.in_words(costs[0])} here: early exit saves nothing at this batch size; serve the "
            "plain network, or try larger batches, larger networks or cheaper heads"
        )


def print_json(value: Any) -> None:
    """The machine-readable result, alone on standard output."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def as_share(number: str) -> str:
    """The share that a number without a unit may mean: 60% for 0.6, which is a fraction, and for 60."""
    with suppress(ValueError):
        return f"{float(number) * 100:g}%" if float(number) <= 1 else f"{number}%"
    return "60%"


def with_unit(budget: str, costs: ExitCosts) -> str:
    """The budget as it was given; raises `InvalidInputError` with what it may mean where it has no unit."""
    if re.fullmatch(r"\s*[\d.]+\s*", budget):
        number = budget.strip()
        raise InvalidInputError(
            f"--budget {number} has no unit; give --budget {as_share(number)} (of {costs.reference_name}) or --budget "
            f"{number}{costs.unit}"
        )
    return budget
