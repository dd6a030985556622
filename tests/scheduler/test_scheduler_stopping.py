"""Optimal stopping, and one fit for every budget: what both promise on any records, and where data are poor."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eenet
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError, NotFittedError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import Scheduler, Static
from eenet.testing import toy_costs, toy_logits, toy_records

# Where toy records give nothing to learn, optimal stopping says that it falls back on the simple rule.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

FAMILIES: dict[str, Callable[[], Scheduler]] = {
    "OptimalStopping": eenet.OptimalStopping,
    "MaxProbability": eenet.MaxProbability,
    "Patience": eenet.Patience,
    "EENet": lambda: eenet.EENet(turns=1, target="right", weight_decay=1e-4),
    "SearchedThresholds": eenet.SearchedThresholds,
}
FAMILY = pytest.mark.parametrize("make", FAMILIES.values(), ids=list(FAMILIES))


@FAMILY
def test_one_fit_answers_every_budget(make: Callable[[], Scheduler]) -> None:
    records, costs = toy_records(400, classes=4), toy_costs()
    fitted = make().fit(records, costs)
    with pytest.raises(NotFittedError, match=r"is fitted for all budgets: choose one with \.at\(budget\)"):
        _ = fitted.policy
    for budget in (1.2, "60%", "2.5ms"):
        at = fitted.at(budget)
        alone = make().fit(records, costs, budget)
        np.testing.assert_array_equal(at.policy.thresholds, alone.policy.thresholds)
        assert (at.budget, at.planned_cost, at.calibration_cost) == (
            alone.budget,
            alone.planned_cost,
            alone.calibration_cost,
        )
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget is 1 ms"):
        fitted.at(0.5)


@FAMILY
def test_a_larger_budget_never_plans_less_and_the_frontier_rises(make: Callable[[], Scheduler]) -> None:
    records = toy_records(1500, classes=6)
    points = make().fit(records, toy_costs()).frontier()
    budgets, costs, accuracies = (np.array(column) for column in zip(*map(_columns, points), strict=True))
    assert budgets[0] == 1.0
    assert budgets[-1] == 3.0
    assert (np.diff(budgets) > 0).all()
    assert (np.diff(costs) >= 0).all()
    assert (costs <= budgets * (1 + 1e-9)).all()
    noise = 3 * np.sqrt(0.25 / len(records))
    assert (accuracies - np.maximum.accumulate(accuracies) > -noise).all()


def _columns(point: eenet.scheduler.FrontierPoint) -> tuple[float, float, float]:
    assert point.accuracy is not None
    return point.budget, point.planned_cost, point.accuracy


@FAMILY
def test_a_file_knows_other_budgets_too(make: Callable[[], Scheduler], tmp_path: Path) -> None:
    calibration, fresh, costs = toy_records(300), toy_records(400, seed=1, nonfinite=0.03), toy_costs()
    fitted = make().fit(calibration, costs, "60%")
    fitted.save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(loaded.replay(fresh).exits, fitted.replay(fresh).exits)
    assert loaded.frontier() == fitted.frontier()
    for point, policy in zip(fitted.table.frontier, fitted.table.policies, strict=True):
        exits = eenet.scheduler.replay(policy, fresh, costs).exits
        np.testing.assert_array_equal(loaded.at(point.budget).replay(fresh).exits, exits)
    step = fitted.table.budgets[1] - fitted.table.budgets[0]
    between = float(fitted.table.budgets[3] + step / 2)
    assert loaded.at(between).calibration_cost <= between
    every = make().fit(calibration, costs)
    every.save(tmp_path / "any.safetensors")
    again = eenet.load_scheduler(tmp_path / "any.safetensors")
    assert repr(again) == repr(every)
    assert again.at("60%").budget == pytest.approx(1.8)


def test_it_beats_thresholds_where_a_class_is_deceptive() -> None:
    gains = []
    for seed in range(3):
        calibration = toy_records(1500, classes=6, seed=seed, deceptive_class=2)
        fresh = toy_records(3000, classes=6, seed=seed + 100, deceptive_class=2)
        plain = eenet.SearchedThresholds().fit(calibration, toy_costs(), 2.0).replay(fresh)
        stopping = eenet.OptimalStopping(seed=seed).fit(calibration, toy_costs(), 2.0).replay(fresh)
        assert stopping.mean_cost == pytest.approx(2.0, rel=0.03)
        gains.append(stopping.accuracy - plain.accuracy)
    assert min(gains) > 0
    assert np.mean(gains) > 0.02


def test_the_hopeless_leave_early() -> None:
    # Unsure and never right: max probability sends them to the last exit, where they are as wrong as before.
    logits, labels = toy_logits(3000, classes=6)
    hopeless = np.random.default_rng(0).permutation(3000) < 1000
    logits[:, hopeless] *= 0.05
    logits[:, hopeless, labels[hopeless]] = -1.0
    records = ExitRecords.from_logits(logits, labels)
    calibration, fresh = records.subset(np.arange(1500)), records.subset(np.arange(1500, 3000))
    decisions = eenet.OptimalStopping().fit(calibration, toy_costs(), 2.0).replay(fresh)
    plain = eenet.MaxProbability().fit(calibration, toy_costs(), 2.0, fallback=False).replay(fresh)
    out = hopeless[1500:]
    assert decisions.exits[out].mean() < 0.5
    assert plain.exits[out].mean() > 1.5
    assert decisions.accuracy > plain.accuracy + 0.05


@given(
    exits=st.integers(2, 5),
    classes=st.sampled_from([2, 3, 10]),
    samples=st.integers(60, 200),
    seed=st.integers(0, 1000),
    sharpness=st.sampled_from([0.0, 1.0, 30.0, 1e30]),
    nonfinite=st.sampled_from([0.0, 0.1, 0.7]),
    duplicates=st.sampled_from([0.0, 0.5, 1.0]),
    where=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_any_records_can_be_fitted(
    exits: int,
    classes: int,
    samples: int,
    seed: int,
    sharpness: float,
    nonfinite: float,
    duplicates: float,
    where: float,
) -> None:
    records = toy_records(
        samples, exits, classes, seed, sharpness=sharpness, nonfinite=nonfinite, duplicates=duplicates
    )
    costs = toy_costs(exits)
    fitted = eenet.OptimalStopping().fit(records, costs)
    budget = 1 + where * (exits - 1)
    try:
        scheduler = fitted.at(budget)
    except InfeasibleBudgetError as error:
        scheduler = fitted.at(error.smallest)
        budget = error.smallest
    decisions = scheduler.replay(records)
    assert decisions.mean_cost <= budget * (1 + 1e-9)
    assert decisions.mean_cost == scheduler.calibration_cost
    np.testing.assert_array_equal(scheduler.replay(records.subset([0])).exits, decisions.exits[:1])


def test_where_the_last_exit_is_worse_the_best_exit_is_the_ceiling_and_it_says_so() -> None:
    logits, labels = toy_logits(2000, classes=5, seed=3)
    logits = logits[[0, 2, 1]]  # the second exit is now the best
    records = ExitRecords.from_logits(logits, labels)
    assert records.accuracies.argmax() == 1
    fitted = eenet.OptimalStopping().fit(records, toy_costs(), fallback=False)
    with pytest.warns(ReliabilityWarning, match="of the budget of 3 ms only .* is spent: .* gains nothing"):
        scheduler = fitted.at(3.0)
    assert scheduler.calibration_cost < 2.3
    assert scheduler.replay(records).accuracy >= records.accuracies.max() - 0.005


def test_exits_that_are_all_the_same_cost_as_little_as_possible() -> None:
    logits, labels = toy_logits(300, classes=5)
    records = ExitRecords.from_logits(np.repeat(logits[:1], 3, axis=0), labels)
    with pytest.warns(ReliabilityWarning, match="only 1 is spent"):
        scheduler = eenet.OptimalStopping().fit(records, toy_costs(), "80%")
    assert (scheduler.replay(records).exits == 0).all()


def test_where_nothing_is_learned_the_simple_rule_is_used_and_it_says_so() -> None:
    # Answers that are right or wrong by chance: no evidence tells which, and regressions on it fit noise.
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(10), (3, 250))
    labels = rng.integers(0, 10, 250)
    records = ExitRecords.from_probabilities(p, labels)
    with pytest.warns(ReliabilityWarning, match=r"on the 250 calibration samples optimal stopping gains nothing over"):
        scheduler = eenet.OptimalStopping(seed=1).fit(records, toy_costs(), "60%")
    plain = eenet.MaxProbability().fit(records, toy_costs(), "60%")
    np.testing.assert_array_equal(scheduler.replay(records).exits, plain.replay(records).exits)


def test_too_few_samples_get_the_simple_rule_and_hear_of_it() -> None:
    records = toy_records(40)
    with pytest.warns(ReliabilityWarning, match="40 calibration samples are too few to learn from"):
        scheduler = eenet.OptimalStopping().fit(records, toy_costs(), "60%")
    plain = eenet.MaxProbability().fit(records, toy_costs(), "60%")
    np.testing.assert_array_equal(scheduler.replay(records).exits, plain.replay(records).exits)


def test_a_class_that_calibration_lacks_is_decided_like_the_rest() -> None:
    records = toy_records(600, classes=5)
    known = records.subset(np.flatnonzero((records.predictions != 4).all(axis=0)))
    scheduler = eenet.OptimalStopping().fit(known, toy_costs(), 2.0)
    decisions = scheduler.replay(records)
    assert np.isfinite(scheduler.policy.thresholds).all()
    assert len(np.unique(decisions.exits[(records.predictions == 4).any(axis=0)])) > 1


def test_labels_are_needed_and_options_checked() -> None:
    records = ExitRecords.from_logits(toy_logits(100)[0])
    with pytest.raises(InvalidInputError, match="these records have no labels"):
        eenet.OptimalStopping().fit(records, toy_costs(), 2.0)
    with pytest.raises(InvalidInputError, match=r"OptimalStopping\(prices=1\): expected a whole number, 3 or more"):
        eenet.OptimalStopping(prices=1)
    with pytest.raises(InvalidInputError, match="expected 0 < lowest < highest"):
        eenet.OptimalStopping(lowest=2.0, highest=1.0)


def test_fitting_for_all_budgets_is_quick_and_any_budget_quicker() -> None:
    records = toy_records(5000, classes=10)
    start = time.process_time()
    fitted = eenet.OptimalStopping().fit(records, toy_costs())
    fit = time.process_time() - start
    start = time.process_time()
    fitted.at("60%")
    at = time.process_time() - start
    print(f"5,000 samples x 3 exits x 10 classes: fit {fit:.2f} s, one budget {1e3 * at:.0f} ms")
    assert fit < 10
    assert at < 1


def test_one_exit_for_all_has_one_policy(tmp_path: Path) -> None:
    records = toy_records(50)
    fixed = Static(1).fit(records, toy_costs())
    assert fixed.at("80%").planned_cost == 2.0
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget is 2 ms"):
        fixed.at(1.5)
    fixed.save(tmp_path / "s.safetensors")
    assert eenet.load_scheduler(tmp_path / "s.safetensors").at(2.4).planned_cost == 2.0


def test_costs_of_any_size_give_the_same_decisions() -> None:
    records = toy_records(500)
    exits = [
        eenet.OptimalStopping()
        .fit(records, ExitCosts(np.array([1.0, 2.0, 3.0]) * scale, "flops"), "70%")
        .replay(records)
        for scale in (1e-6, 1.0, 1e9)
    ]
    np.testing.assert_array_equal(exits[0].exits, exits[1].exits)
    np.testing.assert_array_equal(exits[1].exits, exits[2].exits)
