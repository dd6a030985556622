"""Guarantees: how often a promise is broken on fresh data, and what is said where none can be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eenet
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler import Scheduler
from eenet.testing import toy_costs, toy_logits, toy_records

# Where toy records give nothing to learn, optimal stopping says that it falls back on the simple rule.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

MAKERS: dict[str, Callable[[], Scheduler]] = {
    "MaxProbability": eenet.MaxProbability,
    "OptimalStopping": eenet.OptimalStopping,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_guaranteed_budget_is_rarely_exceeded_where_a_plain_one_often_is(make: Callable[[], Scheduler]) -> None:
    pool, costs = toy_records(20_000, classes=4), toy_costs()
    rng = np.random.default_rng(0)
    draws, broken, plain = 40, 0, 0
    for draw in range(draws):
        calibration = pool.subset(rng.integers(0, len(pool), 400))
        fitted = make().fit(calibration, costs, "60%", guarantee=0.9)
        broken += fitted.replay(pool).mean_cost > fitted.budget
        plain += make().fit(calibration, costs, "60%").replay(pool).mean_cost > fitted.budget
        if draw == 0:
            assert fitted.guarantee == 0.9
            assert "guarantee=0.9" in repr(fitted)
    # Of 40 draws at 10 %, more than 9 would be seen once in 100 runs of a test whose draws were not fixed.
    assert broken <= 9
    assert plain > 10


def test_a_guaranteed_accuracy_is_rarely_missed_and_saves_cost() -> None:
    pool, costs = toy_records(20_000, classes=4), toy_costs()
    last = pool.accuracies[-1]
    rng = np.random.default_rng(1)
    missed, spent = 0, []
    for _ in range(40):
        calibration = pool.subset(rng.integers(0, len(pool), 1500))
        fitted = eenet.OptimalStopping().fit(calibration, costs, max_accuracy_drop=0.03, guarantee=0.9)
        decisions = fitted.replay(pool)
        missed += decisions.accuracy < last - 0.03
        spent.append(decisions.mean_cost)
        assert fitted.max_accuracy_drop == 0.03
    assert missed <= 9
    assert np.mean(spent) < 2.9


def test_unlabeled_records_test_the_budget_too() -> None:
    costs = toy_costs()
    labeled, fresh = toy_records(300), toy_records(5000, seed=2)
    unlabeled = ExitRecords.from_logits(toy_logits(3000, seed=1)[0])
    alone = eenet.MaxProbability().fit(labeled, costs, "60%", guarantee=0.95)
    helped = eenet.MaxProbability().fit(labeled, costs, "60%", guarantee=0.95, unlabeled=unlabeled)
    assert alone.calibration_cost < helped.calibration_cost <= helped.budget
    assert helped.replay(fresh).mean_cost <= helped.budget
    assert helped.replay(fresh).mean_cost > 0.95 * helped.budget


def test_one_fit_guarantees_every_budget_and_a_file_keeps_it(tmp_path: Path) -> None:
    records, costs = toy_records(1000), toy_costs()
    fitted = eenet.OptimalStopping().fit(records, costs, guarantee=0.95)
    plans = [fitted.at(budget) for budget in (1.5, 2.0, 2.5)]
    assert [p.guarantee for p in plans] == [0.95] * 3
    assert [p.planned_cost for p in plans] == sorted(p.planned_cost for p in plans)
    plans[1].save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert loaded.guarantee == 0.95
    assert repr(loaded) == repr(plans[1])
    assert loaded.at(2.5).calibration_cost <= 2.5


def test_what_no_sample_size_at_hand_can_promise_is_refused_with_what_can_be() -> None:
    costs = toy_costs()
    few = toy_records(60, nonfinite=0.3)
    with pytest.raises(
        InfeasibleBudgetError, match=r"cannot be guaranteed at 0.99 by the 60 samples that test"
    ) as caught:
        eenet.MaxProbability().fit(few, costs, 1.2, guarantee=0.99)
    assert 1.2 < caught.value.smallest < 3
    enough = eenet.MaxProbability().fit(few, costs, caught.value.smallest * 1.001, guarantee=0.99)
    assert enough.calibration_cost <= caught.value.smallest
    with pytest.raises(InvalidInputError, match=r"max_accuracy_drop=0.01 cannot be guaranteed at 0.95 .* about \d+"):
        eenet.OptimalStopping().fit(toy_records(200), costs, max_accuracy_drop=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": 95}, "guarantee=95: expected a probability between 0 and 1"),
        ({"guarantee": float("nan")}, "expected a probability between 0 and 1"),
        ({"max_accuracy_drop": 2.0}, "max_accuracy_drop=2.0: expected a share between 0 and 1"),
        (
            {"guarantee": "median"},
            "guarantee='median': expected a probability between 0 and 1, such as 0.95, or 'mean'",
        ),
        ({"unlabeled": toy_records(50)}, "unlabeled records are for a guaranteed budget"),
        ({"guarantee": 0.9, "unlabeled": toy_records(50, exits=4)}, "have 4 exits and 5 classes"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        eenet.MaxProbability().fit(toy_records(100), toy_costs(), **options)  # type: ignore[arg-type]


def test_equal_samples_cannot_test_each_other() -> None:
    one = toy_records(1)
    with pytest.raises(InvalidInputError, match="are the same sample, so that none is left to test a guarantee on"):
        eenet.MaxProbability().fit(one.subset(np.zeros(80, dtype=int)), toy_costs(), 2.0, guarantee=0.9)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.8])
def test_the_test_of_a_budget_errs_as_rarely_as_it_says(share: float) -> None:
    # At most one draw in ten may end above the budget, at cheap and at expensive ones.
    pool, costs = toy_records(20_000, classes=4), toy_costs(2 + 1)
    policy_cost = 1 + 2 * share
    rng = np.random.default_rng(0)
    draws, broken, useful = 100, 0, 0
    for _ in range(draws):
        labeled, unlabeled = pool.subset(rng.integers(0, len(pool), 100)), pool.subset(rng.integers(0, len(pool), 400))
        fitted = eenet.MaxProbability().fit(labeled, costs, policy_cost, guarantee=0.9, unlabeled=unlabeled)
        cost = fitted.replay(pool).mean_cost
        broken += cost > policy_cost
        useful += cost > policy_cost - 0.35
    assert broken <= 19  # at 10 % seen once in 400 runs of a test whose draws were not fixed
    assert useful > 80


@given(seed=st.integers(0, 1000), level=st.sampled_from([0.5, 0.9, 0.99]), nonfinite=st.sampled_from([0.0, 0.3]))
@settings(max_examples=30)
def test_the_smallest_budget_it_names_can_be_guaranteed_and_none_below_it(
    seed: int, level: float, nonfinite: float
) -> None:
    records, costs = toy_records(80, seed=seed, nonfinite=nonfinite), toy_costs()
    with pytest.raises(InfeasibleBudgetError) as caught:
        eenet.MaxProbability().fit(records, costs, 1.0, guarantee=level)
    smallest = caught.value.smallest
    eenet.MaxProbability().fit(records, costs, smallest * (1 + 1e-6), guarantee=level)
    with pytest.raises(InfeasibleBudgetError):
        eenet.MaxProbability().fit(records, costs, smallest * (1 - 1e-6), guarantee=level)


@given(
    seed=st.integers(0, 1000),
    level=st.sampled_from([0.5, 0.9, "mean"]),
    steps=st.lists(st.floats(1e-3, 100), min_size=3, max_size=3),
)
@settings(max_examples=20)
def test_the_smallest_budget_it_names_is_enough_to_the_last_digit(
    seed: int, level: float | str, steps: list[float]
) -> None:
    """Whatever is rounded on the way from costs to shares and back: tables for all budgets begin with this one."""
    records, costs = toy_records(40, seed=seed), eenet.ExitCosts(np.cumsum(steps).tolist())
    with pytest.raises(InfeasibleBudgetError) as caught:
        eenet.MaxProbability().fit(records, costs, costs[0], guarantee=level)
    smallest = caught.value.smallest
    fitted = eenet.MaxProbability().fit(records, costs, smallest, guarantee=level)
    assert fitted.table.budgets[0] == smallest
    assert fitted.at(smallest).budget == smallest


def test_a_score_that_is_not_fitted_is_tested_on_all_samples_and_says_where_the_budget_went() -> None:
    records, costs = toy_records(500), toy_costs()
    fitted = eenet.MaxProbability().fit(records, costs, max_accuracy_drop=0.03, guarantee=0.9)
    replayed = fitted.replay(records)
    assert fitted.table.samples == 500
    assert fitted.calibration_cost == pytest.approx(replayed.mean_cost)
    # One threshold for all exits: nothing but where to stop was chosen from the samples.
    assert len(set(fitted.policy.thresholds.tolist())) == 1


def test_500_images_promise_an_accuracy_for_less_than_the_last_exit_costs(shared: Path) -> None:
    with np.load(shared / "predictions" / "cifar10_resnet56_3.npz") as arrays:
        pool = ExitRecords.from_probabilities(arrays["val_probs"], arrays["val_labels"])
        costs = eenet.ExitCosts(arrays["costs"])
    rng = np.random.default_rng(0)
    missed, spent = 0, []
    for _ in range(40):
        calibration = pool.subset(rng.integers(0, len(pool), 500))
        fitted = eenet.MaxProbability().fit(calibration, costs, max_accuracy_drop=0.01, guarantee=0.9)
        decisions = fitted.replay(pool)
        missed += decisions.accuracy < pool.accuracies[-1] - 0.01
        spent.append(decisions.mean_cost / costs[-1])
    assert missed <= 9
    assert np.mean(spent) <= 0.93


def test_budget_and_accuracy_are_promised_together() -> None:
    pool, costs = toy_records(20_000, classes=4), toy_costs()
    rng = np.random.default_rng(2)
    broken, kept = 0, 0
    for _ in range(40):
        calibration = pool.subset(rng.integers(0, len(pool), 1000))
        try:
            fitted = eenet.MaxProbability().fit(calibration, costs, "88%", max_accuracy_drop=0.03, guarantee=0.95)
        except InfeasibleBudgetError:
            continue
        decisions = fitted.replay(pool)
        kept += 1
        assert fitted.budget == pytest.approx(2.64)
        assert (fitted.guarantee, fitted.max_accuracy_drop) == (0.95, 0.03)
        broken += decisions.mean_cost > fitted.budget or decisions.accuracy < pool.accuracies[-1] - 0.03
    assert broken <= 6  # of 40 at 5 %, seen once in 100 runs of a test whose draws were not fixed
    assert kept > 20


@given(seed=st.integers(0, 1000), drop=st.sampled_from([0.05, 0.1]), level=st.sampled_from([0.8, "mean"]))
@settings(max_examples=15)
def test_the_smallest_budget_named_for_a_drop_goes_with_it(seed: int, drop: float, level: float | str) -> None:
    records, costs = toy_records(300, seed=seed), toy_costs()
    with pytest.raises(InfeasibleBudgetError, match="cannot both be guaranteed") as caught:
        eenet.MaxProbability().fit(records, costs, 1.01, max_accuracy_drop=drop, guarantee=level)
    fitted = eenet.MaxProbability().fit(
        records, costs, caught.value.smallest * (1 + 1e-6), max_accuracy_drop=drop, guarantee=level
    )
    assert fitted.calibration_cost <= fitted.budget


def test_a_promise_in_the_mean_holds_on_average_and_spends_nearly_all_of_the_budget() -> None:
    pool, costs = toy_records(20_000, classes=4), toy_costs()
    rng = np.random.default_rng(3)
    spent, lost = [], []
    for _ in range(60):
        calibration = pool.subset(rng.integers(0, len(pool), 200))
        fitted = eenet.MaxProbability().fit(calibration, costs, 2.0, guarantee="mean")
        spent.append(fitted.replay(pool).mean_cost)
        careful = eenet.MaxProbability().fit(calibration, costs, max_accuracy_drop=0.05, guarantee="mean")
        lost.append(pool.accuracies[-1] - careful.replay(pool).accuracy)
    error = np.std(spent) / np.sqrt(len(spent))
    assert np.mean(spent) <= 2.0 + 2 * error
    assert np.mean(spent) > 1.95
    assert np.mean(lost) <= 0.05
    assert careful.guarantee == "mean"
    assert "guarantee=mean" in repr(careful)


def test_an_exit_that_is_sure_and_wrong_does_not_spoil_a_promise() -> None:
    records, costs = toy_records(3000, exits=3), toy_costs()
    probabilities = records.probabilities.copy()
    probabilities[0] = 0.001
    probabilities[0, :, 0] = 1 - 0.001 * (records.num_classes - 1)
    dead = ExitRecords.from_probabilities(probabilities, records.labels)
    fitted = eenet.MaxProbability().fit(dead, costs, max_accuracy_drop=0.03, guarantee=0.9)
    assert fitted.policy.enabled.tolist() == [False, True]
    assert fitted.calibration_cost < costs[-1]
    within = eenet.MaxProbability().fit(dead, costs, "90%", guarantee=0.9)
    assert within.policy.enabled.tolist() == [False, True]
