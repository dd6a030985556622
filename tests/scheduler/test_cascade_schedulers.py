"""Schedulers on cascades: costs far apart, and members whose agreement says more than any one's probability."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eenet
from eenet import ExitCosts, ExitRecords
from eenet.errors import ReliabilityWarning
from eenet.scheduler import Scheduler
from eenet.testing import toy_logits

CASES = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[3] / "shared")) / "cases"


def plain(predicted: Any, confidence: Any, labels: Any) -> ExitRecords:
    """Records of a plain network that predicts these classes with these probabilities."""
    samples = np.arange(len(labels))
    p = np.repeat(((1 - confidence) / 4)[:, None], 5, axis=1)
    p[samples, predicted] = confidence
    return ExitRecords.from_probabilities(p, labels)


def that_agree(seed: int, samples: int = 1500) -> ExitRecords:
    """Two small members and a large one.

    Both small ones are right on easy samples, and on hard ones each errs its own way; how sure they are says nothing.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, samples)
    easy = rng.random(samples) < 0.6
    members = []
    for right in (easy | (rng.random(samples) < 0.3), easy | (rng.random(samples) < 0.3), rng.random(samples) < 0.95):
        predicted = np.where(right, labels, (labels + rng.integers(1, 5, samples)) % 5)
        members.append(plain(predicted, rng.uniform(0.5, 0.9, samples), labels))
    return ExitRecords.cascade(members)


def toy(seed: int) -> ExitRecords:
    logits, labels = toy_logits(samples=2000, exits=3, seed=seed)
    return ExitRecords.cascade([ExitRecords.from_logits(one, labels) for one in logits])


def three_models(part: str) -> ExitRecords:
    path = CASES / f"three_sklearn_models_{part}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    arrays = np.load(path)
    return ExitRecords.cascade([ExitRecords.from_probabilities(p, arrays["labels"]) for p in arrays["probs"]])


def judged(scheduler: Scheduler, calibration: ExitRecords, test: ExitRecords, costs: ExitCosts, budget: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # a simple rule may be taken, and a budget left unspent
        return scheduler.fit(calibration, costs, budget).replay(test)


def test_agreement_of_members_decides_where_their_probabilities_say_nothing() -> None:
    calibration, test, costs = that_agree(0), that_agree(1), ExitCosts.cascade([1.0, 1.5, 10.0])
    simple = judged(eenet.MaxProbability(), calibration, test, costs, "60%")
    for learned in (eenet.EENet(turns=1), eenet.OptimalStopping()):
        found = judged(learned, calibration, test, costs, "60%")
        assert found.accuracy > simple.accuracy + 0.02
        assert found.mean_cost < 1.1 * 6
    assert found.accuracy > simple.accuracy + 0.08, "optimal stopping"


@pytest.mark.parametrize("budget", ["30%", "60%"])
@pytest.mark.parametrize("case", ["costs far apart", "three models of scikit-learn"])
def test_no_learned_scheduler_is_worse_than_max_probability_beyond_chance(case: str, budget: str) -> None:
    if case == "costs far apart":
        calibration, test, costs = toy(0), toy(1), ExitCosts.cascade([1.0, 1.0, 9.0])
    else:
        calibration, test = three_models("calibration"), three_models("test")
        costs = ExitCosts.cascade([0.1, 0.4, 11.5])
    simple = judged(eenet.MaxProbability(), calibration, test, costs, budget)
    for learned in (eenet.EENet(turns=1), eenet.OptimalStopping()):
        found = judged(learned, calibration, test, costs, budget)
        gained = found.utility - simple.utility
        assert gained.mean() > -3 * np.sqrt(gained.var() / len(gained) + 1e-9) - 1e-9
        best = max(a for a, cost in zip(test.accuracies, costs.values, strict=True) if cost <= found.costs.plain * 0.3)
        assert found.accuracy > best - 0.02, "nor than the best exit within the smaller budget"
