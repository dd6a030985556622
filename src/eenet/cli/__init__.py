"""The command line: its commands, and how errors, warnings and an interruption are shown."""

from __future__ import annotations

import errno
import platform
import warnings
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from eenet._version import __version__
from eenet.cli._benchmark import benchmark
from eenet.cli._collect import collect
from eenet.cli._compare import compare
from eenet.cli._console import output, print_json, show_error, show_warning
from eenet.cli._export import export
from eenet.cli._fit import evaluate, fit
from eenet.cli._plan import plan
from eenet.cli._predict import predict
from eenet.cli._profile import profile
from eenet.cli._recipes import demo, reproduce, train
from eenet.cli._report import report
from eenet.cli._serve import serve
from eenet.errors import EENetError, ReliabilityWarning

USAGE_ERROR = 2
INTERRUPTED = 130

_HELP = """
Early exits that keep a budget: learned exit schedulers for multi-exit neural networks.

Start with `eenet demo`. `collect` writes what the exits of a model of your own say of your data. With these records, or
with predictions from whatever framework, `fit` learns which sample may stop at which exit so that the mean cost stays
within a budget, `evaluate` shows what that gives on fresh data, `compare` sets schedulers side by side.

Examples:

    eenet fit predictions.npz --prefix val_ --budget 60% --out sched.safetensors
    eenet evaluate predictions.npz --prefix test_ --scheduler sched.safetensors
    eenet compare predictions.npz --prefix val_ --budgets 8

Errors are one line and exit code 2; `--debug` shows the traceback.
"""

_LIBRARIES = ("torch", "numpy", "safetensors", "matplotlib", "mlxtend")


def version(json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
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
    """Turns the errors eenet raises on purpose into one line, and takes `--debug` anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        if "--debug" in options:
            at = options.index("--debug")
            args = ["--debug", *args[:at], *args[at + 1 :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        with warnings.catch_warnings():
            _show_reliability_warnings()
            try:
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
                show_error("stopped; what is on disk is whole, nothing was half written")
                raise typer.Exit(INTERRUPTED) from error


def _show_reliability_warnings() -> None:
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ReliabilityWarning):
            show_warning(str(message))
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of every command; the help text of the application itself is `_HELP`."""


for command in (
    demo, train, reproduce, collect, profile, fit, evaluate, compare, benchmark, report, export, predict, serve, plan,
    version,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Run the command line on `sys.argv`."""
    app()
