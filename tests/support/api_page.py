"""docs/reference/api.md: every public name with its first line; `python tests/support/api_page.py` rewrites it."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import eenet
from eenet.errors import kind_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api.md"

PACKAGES = (
    "records",
    "costs",
    "tasks",
    "preprocessing",
    "scheduler",
    "control",
    "stages",
    "networks",
    "models",
    "optimize",
    "runtime",
    "bundle",
    "bundle.onnx",
    "profiling",
    "evaluation",
    "benchmarking",
    "reporting",
    "reporting.figures",
    "training",
    "serving.engine",
    "serving.http",
    "serving.ray",
    "capacity",
    "predict",
    "experiments.data",
    "experiments.recipes",
    "errors",
    "testing",
)


def public_names(module: ModuleType) -> list[str]:
    """The names a module offers to users: those in `__all__`; what else can be imported from it is for eenet itself."""
    return sorted(module.__all__)


def summary(value: object) -> str:
    """The first line of the docstring; raises `AssertionError` where there is none."""
    if not (inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value)):
        return f"a constant: {kind_of(value)}"
    text = inspect.getdoc(value) or ""
    assert text, f"{value!r} has no docstring"
    return text.splitlines()[0].replace("|", "\\|")


def page() -> str:
    """The page as it should be."""
    lines = [
        "# Every public name",
        "",
        "One line each; `help(name)` has the rest: shapes, units, errors, sources. Written by",
        "`python tests/support/api_page.py`; a test says when it is out of date.",
        "",
        "## `eenet`",
        "",
        "| name | |",
        "|---|---|",
    ]
    names = [name for name in eenet.__all__ if name != "__version__"]
    lines += [f"| `{name}` | {summary(getattr(eenet, name))} |" for name in names]
    for package in PACKAGES:
        module = import_module(f"eenet.{package}")
        names = public_names(module)
        lines += ["", f"## `eenet.{package}`", "", summary(module), "", "| name | |", "|---|---|"]
        lines += [f"| `{name}` | {summary(getattr(module, name))} |" for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
