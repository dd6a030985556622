"""Warnings are at the line of the caller's, whatever lies between it and the place that warns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eenet
from eenet.errors import ReliabilityWarning
from eenet.testing import toy_costs, toy_records


def of_profile(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("eenet._timing.TRUSTED_SPREAD", -1.0)  # as on a busy machine
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    return eenet.profile(model, torch.randn(2, 4), seconds=0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda _: eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=99.0),
        lambda _: eenet.MaxProbability().fit(toy_records(), toy_costs()).at(99.0),
        lambda _: eenet.BudgetController(eenet.MaxProbability().fit(toy_records(), toy_costs()), 99.0),
        lambda _: eenet.ExitCosts.cascade([3.0, 2.0]),
        of_profile,
    ],
)
def test_a_warning_names_the_line_of_the_caller(
    call: Callable[[pytest.MonkeyPatch], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(ReliabilityWarning) as said:
        call(monkeypatch)
    assert {Path(one.filename) for one in said if issubclass(one.category, ReliabilityWarning)} == {Path(__file__)}


def test_everything_warns_by_the_one_helper() -> None:
    source = Path(eenet.__file__).parent
    direct = [path.name for path in source.rglob("*.py") if "warnings.warn(" in path.read_text(encoding="utf-8")]
    assert direct == ["_warn.py"]
