"""The command line: its commands, and how errors, warnings and an interruption are shown."""

from __future__ import annotations

import errno
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from eenet._version import __version__
from eenet.cli._benchmark import benchmark
from eenet.cli._collect import collect
from eenet.cli._compare import compare
from eenet.cli._console import (
    output,
    print_json,
    settings,
    show_error,
    show_warning,
    shown_logs,
)
from eenet.cli._doctor import doctor
from eenet.cli._export import export
from eenet.cli._fit import evaluate, fit
from eenet.cli._models import current_folder_importable, module_at
from eenet.cli._options import Json
from eenet.cli._plan import plan
from eenet.cli._predict import predict
from eenet.cli._profile import profile
from eenet.cli._recipes import demo, reproduce, train
from eenet.cli._report import report
from eenet.cli._search import search
from eenet.cli._serve import serve
from eenet.cli._signals import stopped_by_signals
from eenet.cli._ui import ui
from eenet.errors import EENetError, InvalidInputError, ReliabilityWarning

USAGE_ERROR = 2

_HELP = """
Early exits that keep a budget: learned exit schedulers for multi-exit neural networks.

Start with `eenet demo`. `collect` writes what the exits of a model of your own say of your data. With these records, or
with predictions from whatever framework, `fit` learns which sample may stop at which exit so that the mean cost stays
within a budget, `evaluate` shows what that gives on fresh data, `compare` sets schedulers side by side, `search`
finds the best of several networks and their cascades, and `report` and `ui` show all of it on a page. `doctor` says
what works on this machine.

Examples:

    eenet fit predictions.npz --prefix val_ --budget 60% --out sched.safetensors
    eenet evaluate predictions.npz --prefix test_ --scheduler sched.safetensors
    eenet compare predictions.npz --prefix val_ --budgets 8

Every command takes `--json` for machines; and anywhere on the line `--quiet`, for no table, progress and notes,
`--verbose`, to see what the library chooses, `--debug`, for that in full and the traceback of an error, and
`--import MODULE`, for scores and schedulers of your own. Errors are one line and exit code 2. A command that is stopped
by Ctrl-C says how to go on; its exit code is 130, and 143 where SIGTERM stopped it.
"""

_EVERYWHERE = "Every command takes --quiet, --verbose, --debug and --import as well: eenet --help."
_ANYWHERE = ("--debug", "--verbose", "--quiet", "-q")
_IMPORT = "--import"
_JSON_FILE = ("benchmark", "report")
_WRITTEN = ("out", "json_file")  # the options that name a file to write
_LIBRARIES = ("torch", "numpy", "safetensors", "matplotlib", "mlxtend")
# What the command line refuses: typer has click inside or beside it, as its version is.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def version(json_output: Json = False) -> None:
    """Show the versions of eenet, Python and the libraries it uses.

    Example:

        eenet version --json
    """
    versions: dict[str, str | None] = {"eenet": __version__, "python": platform.python_version()}
    versions |= {name: _installed(name) for name in _LIBRARIES}
    if json_output:
        print_json(versions)
        return
    for name, number in versions.items():
        output().print(f"{name} {number or 'not installed'}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class _Group(TyperGroup):
    """Turns the errors eenet raises on purpose into one line, and takes some options anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        moved, rest, words = list[str](), list[str](), iter(options)
        for word in words:
            place = moved if word in _ANYWHERE or word.partition("=")[0] == _IMPORT else rest
            place += [word, *islice(words, int(word == _IMPORT))]
        rest += args[len(options) :]
        if not rest:
            return super().parse_args(ctx, args)
        with _one_line_for_wrong_usage(ctx):
            if moved[-1:] == [_IMPORT]:
                raise typer.BadParameter(f"{_IMPORT} is the last word; give the name of a module after it")
            return super().parse_args(ctx, [*moved, *_json_without_a_file(rest)])

    def invoke(self, ctx: Any) -> Any:
        debug, verbose = bool(ctx.params.get("debug")), bool(ctx.params.get("verbose"))
        with (
            warnings.catch_warnings(),
            settings(quiet=bool(ctx.params.get("quiet"))) as chosen,
            shown_logs(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING),
            stopped_by_signals(chosen.stop_with),
        ):
            _show_reliability_warnings()
            try:
                if modules := ctx.params.get("modules"):
                    ctx.with_resource(current_folder_importable())  # also of processes that the command starts
                    for name in modules:
                        module_at(name, name, "the name of a module")
                with _one_line_for_wrong_usage(ctx):
                    return super().invoke(ctx)
            except EENetError as error:
                if debug:
                    raise
                show_error(str(error))
                raise typer.Exit(USAGE_ERROR) from error
            except OSError as error:
                # A closed pipe is the reader's choice, and typer ends quietly then.
                if debug or error.errno == errno.EPIPE:
                    raise
                show_error(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
                raise typer.Exit(USAGE_ERROR) from error
            except KeyboardInterrupt as error:
                if debug:
                    raise
                show_error(f"stopped, nothing was half written; {chosen.if_stopped}")
                raise typer.Exit(chosen.stopped_code) from error


class _Command(TyperCommand):
    """Refuses to write over a file that it is given to read."""

    def invoke(self, ctx: Any) -> Any:
        for name in _WRITTEN:
            target = ctx.params.get(name)
            if target is None or not os.path.isfile(target):
                continue
            words = [word for other, value in ctx.params.items() if other not in _WRITTEN for word in _words(value)]
            read = [path for word in words for path in (word, word.partition("=")[2]) if os.path.isfile(path)]
            if any(os.path.samefile(target, path) for path in read):
                raise InvalidInputError(
                    f"{os.fspath(target)!r} is a file that is read, and would be overwritten; give another path to "
                    "write to"
                )
        return super().invoke(ctx)


def _words(value: Any) -> list[str]:
    """The words of an option or argument, of one or of several values."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [os.fspath(one) for one in values if isinstance(one, (str, os.PathLike))]


def _json_without_a_file(args: list[str]) -> list[str]:
    """The line with "-" after a --json that no file follows: two commands take a file there, the others do not."""
    if args[0] not in _JSON_FILE or "--json" not in args:
        return args
    after = args.index("--json") + 1
    bare = after == len(args) or (args[after].startswith("-") and args[after] != "-")
    return [*args[:after], "-", *args[after:]] if bare else args


@contextmanager
def _one_line_for_wrong_usage(ctx: Any) -> Iterator[None]:
    """What the command line does not take, in one line with the help to read."""
    try:
        yield
    except _UsageError as error:
        refused: Any = error
        where = getattr(refused, "ctx", None) or ctx
        command = "eenet" if where.parent is None else f"eenet {where.info_name}"
        show_error(f"{refused.format_message().rstrip('.')}; see {command} --help")
        raise typer.Exit(USAGE_ERROR) from error


def _show_reliability_warnings() -> None:
    """Each in one line, and once: a command may fit several times to the same records."""
    usual = warnings.showwarning
    shown: set[str] = set()

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ReliabilityWarning):
            if str(message) not in shown:
                show_warning(str(message))
            shown.add(str(message))
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show
    warnings.simplefilter("always", ReliabilityWarning)


app = typer.Typer(
    cls=_Group,
    name="eenet",
    help=_HELP,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No table, progress and notes; --json is printed.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the library chooses: its log.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the log in full, and the traceback of an error.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(_IMPORT, metavar="MODULE", help="Import a module that defines scores or schedulers of your own."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of every command; the help text of the application itself is `_HELP`."""


for command in (
    demo, train, reproduce, collect, profile, fit, evaluate, compare, search, benchmark, report, ui, export, predict,
    serve, plan, doctor, version,
):  # fmt: skip
    app.command(cls=_Command, epilog=_EVERYWHERE)(command)


def main() -> None:
    """Run the command line on `sys.argv`."""
    app()
