"""Searched thresholds: nothing on the calibration set under the budget is better."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scores import scores_of

import eenet
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler import SCORES
from eenet.testing import toy_costs, toy_logits, toy_records


def policies(scores: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """The exits (N,) of every policy of thresholds on scores (K-1, N): each between two scores, or none at all."""
    early, samples = scores.shape
    choices = []
    for row in scores:
        ordered = np.sort(row)
        gaps = np.flatnonzero(np.diff(ordered) > 1e-5)
        choices.append([ordered[0] - 1, *((ordered[gaps] + ordered[gaps + 1]) / 2), np.inf])
    for thresholds in itertools.product(*choices):
        exits = np.full(samples, early)
        for k in reversed(range(early)):
            exits[scores[k] >= thresholds[k]] = k
        yield exits


@pytest.mark.parametrize(("exits", "samples"), [(2, 60), (3, 12), (4, 6)])
@given(seed=st.integers(0, 10**6), where=st.floats(0, 1), odd=st.booleans(), data=st.data())
@settings(max_examples=20)
def test_as_good_as_trying_everything(
    exits: int, samples: int, seed: int, where: float, odd: bool, data: st.DataObject
) -> None:
    records = toy_records(samples, exits, 3, seed, duplicates=0.3 if odd else 0.0)
    steps = data.draw(st.lists(st.floats(0.1, 5), min_size=exits, max_size=exits))
    costs = ExitCosts(np.cumsum(steps))
    budget = min(costs[0] + where * (costs[-1] - costs[0]), costs[-1])
    utility = records.require_utility().astype(np.float64)
    best = -1.0
    for taken in policies(scores_of(records, SCORES["max_prob"]())):
        if costs.values[taken].mean() <= budget * (1 + 1e-12):
            best = max(best, float(utility[taken, np.arange(samples)].mean()))
    decisions = eenet.SearchedThresholds().fit(records, costs, budget, fallback=False).replay(records)
    assert decisions.accuracy == pytest.approx(best, abs=1e-9)
    assert decisions.mean_cost <= budget * (1 + 1e-12)


@given(
    seed=st.integers(0, 10**6),
    exits=st.integers(2, 6),
    where=st.floats(0.02, 1),
    sharpness=st.sampled_from([1.0, 30.0, 1e4]),
)
@settings(max_examples=20)
@pytest.mark.filterwarnings("ignore:.*have the same score:eenet.errors.ReliabilityWarning")  # sharp outputs tie
def test_never_worse_than_the_geometric_rule_and_never_over_the_budget(
    seed: int, exits: int, where: float, sharpness: float
) -> None:
    records, costs = toy_records(120, exits, seed=seed, sharpness=sharpness), toy_costs(exits)
    budget = 1 + where * (exits - 1)
    geometric = eenet.MaxProbability().fit(records, costs, budget, fallback=False).replay(records)
    searched = eenet.SearchedThresholds().fit(records, costs, budget, fallback=False).replay(records)
    assert searched.accuracy >= geometric.accuracy
    assert searched.mean_cost <= budget * (1 + 1e-12)


def test_of_equally_good_policies_the_cheaper_is_taken() -> None:
    logits, labels = toy_logits(samples=100)
    logits[1:] = logits[0]  # the deeper exits add nothing
    scheduler = eenet.SearchedThresholds().fit(
        ExitRecords.from_logits(logits, labels), toy_costs(), 2.5, fallback=False
    )
    assert scheduler.calibration_cost == 1.0
    assert scheduler.planned_cost == 1.0


@pytest.mark.parametrize("score", ["max_prob", "entropy", "patience", "learned"])
def test_any_score_can_be_searched(score: str) -> None:
    records = toy_records(samples=200)
    scheduler = eenet.SearchedThresholds(score).fit(records, toy_costs(), 2.0, fallback=False)
    assert scheduler.calibration_cost <= 2.0
    assert scheduler.replay(records).accuracy > records.accuracies[0]


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(InvalidInputError, match=r"score 'telepathy' is not known; choose from .*'constant'"):
        eenet.SearchedThresholds("telepathy")
    unlabeled = ExitRecords.from_logits(toy_logits(samples=20)[0])
    with pytest.raises(InvalidInputError, match=r"have no labels: pass labels="):
        eenet.SearchedThresholds().fit(unlabeled, toy_costs(), 2.0, fallback=False)
