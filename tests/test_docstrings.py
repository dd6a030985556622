"""The examples in docstrings run and show what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_page import PACKAGES, public_names

import eenet

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> Iterator[str]:
    for module in pkgutil.walk_packages(eenet.__path__, "eenet."):
        source = Path(eenet.__path__[0], *module.name.split(".")[1:])
        path = source / "__init__.py" if module.ispkg else source.with_suffix(".py")
        if ">>> " in path.read_text(encoding="utf-8"):
            yield module.name


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert failed == 0
    assert tried > 0


def public_values() -> list[Any]:
    """Every public class and function, once."""
    found: dict[int, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(f"eenet.{package}")
        values = (getattr(module, name) for name in public_names(module))
        found.update({id(value): value for value in values if callable(value) and hasattr(value, "__module__")})
    return [value for value in found.values() if inspect.isclass(value) or inspect.isroutine(value)]


def test_every_public_name_has_an_example() -> None:
    values = public_values()
    assert len(values) > 140
    missing = [f"{value.__module__}.{value.__qualname__}" for value in values if ">>> " not in (value.__doc__ or "")]
    assert missing == []


def test_every_public_function_describes_its_parameters() -> None:
    missing = [
        f"{value.__module__}.{value.__qualname__}: {name}"
        for value in public_values()
        if inspect.isroutine(value)
        for name in inspect.signature(value).parameters
        if not re.search(
            rf"^(\w+, )*\*{{0,2}}{name}(, \*{{0,2}}\w+)*( : .*)?$", inspect.getdoc(value) or "", flags=re.MULTILINE
        )
    ]
    assert missing == []
