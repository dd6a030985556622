"""The examples in docstrings run and show what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import eenet
from eenet import ExitCosts, ExitRecords, evaluation
from eenet.costs import parse_budget
from eenet.tasks import Classification, Evidence
from eenet.testing import toy_costs, toy_logits, toy_records

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_EXAMPLE = [
    Classification,
    Evidence,
    ExitCosts,
    ExitRecords,
    ExitRecords.from_logits,
    ExitRecords.from_probabilities,
    evaluation.compare,
    evaluation.oracle,
    evaluation.random_mixture,
    parse_budget,
    toy_costs,
    toy_logits,
    toy_records,
]


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


@pytest.mark.parametrize("documented", WITH_EXAMPLE, ids=lambda value: value.__qualname__)
def test_an_entry_point_has_parameters_and_an_example(documented: object) -> None:
    text = documented.__doc__ or ""
    assert "Parameters\n" in text or documented is Classification
    assert "Examples\n" in text
    assert ">>> " in text
