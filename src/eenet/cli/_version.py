"""`eenet version`."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated

import typer

from eenet._version import __version__
from eenet.cli._console import output, print_json

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
