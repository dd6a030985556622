"""What the user sees: tables on standard output, everything about the run on standard error."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eenet._progress import EVERY, Bars, duration, nothing_by_itself
from eenet.cli._signals import INTERRUPTED
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.bundle import LoadedBundle
    from eenet.costs import ExitCosts

_PATIENCE = 2.0  # seconds before a command says what it is waiting for

_FILE_WIDTH = 120  # when the output goes to a file or a pipe, whose width is unknown: names are not folded there
_PART_WIDTH = 80  # of tables that are written in parts, there


@dataclass
class Settings:
    """What the options of all commands say, and how to go on and with which exit code if the command is stopped."""

    quiet: bool = False
    if_stopped: str = "give the same command again"
    stopped_code: int = INTERRUPTED

    def stop_with(self, code: int) -> None:
        """Take this exit code where the command is stopped."""
        self.stopped_code = code


_settings: ContextVar[Settings] = ContextVar("settings")
_usual = Settings()


@contextmanager
def settings(*, quiet: bool) -> Iterator[Settings]:
    """The settings of one command, while it runs."""
    chosen = Settings(quiet=quiet)
    token = _settings.set(chosen)
    try:
        with nothing_by_itself():
            yield chosen
    finally:
        _settings.reset(token)


def if_stopped(words: str) -> None:
    """Say how to go on where this command is stopped from now on by Ctrl-C or SIGTERM."""
    _settings.get(_usual).if_stopped = words


def stopped_code() -> int:
    """The exit code of this command where it was stopped: by Ctrl-C or by SIGTERM."""
    return _settings.get(_usual).stopped_code


def output() -> Console:
    """The console for results; made again each time, so that a redirected standard output is respected."""
    quiet = _settings.get(_usual).quiet
    console = Console(highlight=False, markup=False, quiet=quiet)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_FILE_WIDTH, quiet=quiet)


def part_width(console: Console) -> int:
    """How wide a table may be that is written in parts where it is wider."""
    return console.width if console.is_terminal else _PART_WIDTH


def side() -> Console:
    """The console for progress and notes."""
    return Console(stderr=True, highlight=False, markup=False, quiet=_settings.get(_usual).quiet)


def new_table(title: str | None = None, *, left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """A table without a frame, so that it fits a terminal of 80 columns; text is on the left, numbers on the right."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def of_the_fit(costs: ExitCosts, budget: float, planned: float) -> str:
    """What thresholds that were fitted to other costs have to do with a budget in these, without records to fit to."""
    if planned < budget * (1 - 1e-9):
        return (
            f"its thresholds are those of the fit that cost most within the budget, {short(planned)} {costs.unit} here"
        )
    return "its thresholds are those of the fit, and the budget is what they cost here"


def short(value: float) -> str:
    """A number of four digits."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def progress() -> Bars:
    """Progress on standard error."""
    return Bars(side())


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
    """Say what is being done while the block runs, if that takes some seconds; or a line now and then."""
    console, ended, start = side(), threading.Event(), time.monotonic()
    status = console.status(text)

    def say() -> None:
        if console.is_terminal:
            if not ended.wait(_PATIENCE):
                status.start()
            return
        while not ended.wait(EVERY):
            console.print(f"{text}, {duration(time.monotonic() - start)} so far", soft_wrap=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        status.stop()


class _OneLine(logging.Handler):
    """Shows a log on standard error, above what is running there."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        Console(stderr=True, highlight=False).print(Text(self.format(record), style=style), soft_wrap=True)


@contextmanager
def shown_logs(level: int) -> Iterator[None]:
    """The log of the library, from this level on, on standard error."""
    logger, handler = logging.getLogger("eenet"), _OneLine()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def show_error(message: str) -> None:
    """One red line on standard error."""
    _line("error: ", message, "bold red")


def show_warning(message: str) -> None:
    """One yellow line on standard error."""
    _line("warning: ", message, "yellow")


def _line(word: str, message: str, style: str) -> None:
    text = Text(word + " ".join(message.split()), style=style)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def note_threads(bundle: LoadedBundle) -> None:
    """Say where a bundle runs with another number of threads than its costs were measured with."""
    note = bundle.other_threads
    if note is not None:
        show_warning(note)


def note_no_gain(costs: ExitCosts) -> None:
    """Say where no sample can be answered for less than the plain network takes."""
    if costs.plain is not None and costs[0] >= costs.plain:
        show_warning(
            f"exit 0 costs {costs.in_words(costs[0])} here: early exit saves nothing at this batch size; serve the "
            "plain network, or try larger batches, larger networks or cheaper heads"
        )


def print_json(value: Any, *, indent: int | None = 1) -> None:
    """The machine-readable result, alone on standard output."""
    typer.echo(json.dumps(value, indent=indent, allow_nan=False))


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
