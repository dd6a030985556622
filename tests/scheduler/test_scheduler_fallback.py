"""Never worse than the obvious: a simple rule that is better is taken, exits that say nothing are left out."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import eenet
from eenet.bundle._plan import planned_again  # private: what `load` does for the costs of another machine
from eenet.costs import ExitCosts
from eenet.errors import FallbackWarning, InfeasibleBudgetError
from eenet.evaluation import evaluate
from eenet.records import ExitRecords
from eenet.scheduler import SCHEDULERS, Scheduler, SearchedThresholds, Static, dead_exits
from eenet.testing import toy_costs, toy_logits, toy_records

CASES = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[3] / "shared")) / "cases"
QUICK: dict[str, Any] = {"turns": 1, "target": "right", "weight_decay": 1e-3}
METHODS: dict[str, Callable[[], Scheduler]] = {
    **SCHEDULERS,
    "eenet": lambda: eenet.EENet(**QUICK),
}
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
EACH = pytest.mark.parametrize("make", METHODS.values(), ids=list(METHODS))


def case(name: str) -> ExitRecords:
    path = CASES / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"there is no {path}: name the folder above `cases` with EENET_SHARED")
    with np.load(path, allow_pickle=False) as arrays:
        return ExitRecords.from_probabilities(arrays["probs"], arrays["labels"])


def models(samples: int = 900, seed: int = 0) -> tuple[ExitRecords, ExitCosts]:
    """Three models: a poor one that is sure of itself, a good one, and one as good for twenty times the cost."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, samples)
    logits = rng.normal(size=(3, samples, 5))
    logits[:, np.arange(samples), labels] += np.array([0.5, 2.5, 0.0])[:, None]
    logits[0] *= 5
    logits[2] = logits[1]
    return ExitRecords.from_logits(logits, labels), ExitCosts([0.1, 0.5, 10.0])


def test_one_exit_is_taken_where_it_is_as_good_for_a_twentieth_of_the_cost() -> None:
    (records, costs), (fresh, _) = models(), models(seed=1)
    for name, make in METHODS.items():
        scheduler = make().fit(records, costs, "30%")
        decisions = scheduler.replay(fresh)
        assert decisions.accuracy >= fresh.accuracies[1] - 0.02
        if name not in {"ztw", "eero"}:  # which seem to gain a little
            assert decisions.mean_cost <= 0.5


def test_one_exit_is_not_taken_where_the_method_saves_as_much_with_a_smaller_budget() -> None:
    # The last exit is as accurate as exit 1, and so is EENet from two fifths of the budget on: it stays itself.
    folder = Path(__file__).parents[2] / "results" / "agnews-minilm"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    calibration, test = (ExitRecords.load(folder / f"{part}.safetensors") for part in ("calibration", "test"))
    costs = ExitCosts([7.4, 14.4, 21.3])
    scheduler = eenet.EENet().fit(calibration, costs)
    cheaper = scheduler.at(21.2).cheaper
    assert cheaper is not None
    assert cheaper.budget < 0.5 * costs[-1]
    for budget in (15.0, 20.0, 21.2):
        there = scheduler.at(budget)
        assert there.fallback is None
        assert there.replay(test).accuracy >= scheduler.at(14.5).replay(test).accuracy


def test_it_says_so_with_figures() -> None:
    records, costs = models()
    with pytest.warns(
        FallbackWarning, match=r"MaxProbability at 3 ms: Static\(1\) is .*, and is used instead: "
    ) as said:
        scheduler = eenet.MaxProbability().fit(records, costs, 3.0)
    taken = scheduler.fallback
    assert taken is not None
    assert str(said[0].message).endswith(str(taken))
    assert (taken.taken, taken.unit, taken.samples) == ("Static(1)", "ms", 900)
    assert taken.accuracy == pytest.approx(records.accuracies[1])
    assert taken.cost == 0.5
    own = eenet.MaxProbability().fit(records, costs, 3.0, fallback=False)
    assert own.fallback is None
    assert taken.asked_accuracy == pytest.approx(own.replay(records).accuracy, abs=0.01)
    assert taken.asked_cost == pytest.approx(own.calibration_cost, rel=0.01)
    assert scheduler.calibration_cost == scheduler.replay(records).mean_cost == 0.5
    assert repr(scheduler) == "<MaxProbability() fitted: budget=3 ms, 3 exits, Static(1) in its place>"


@EACH
def test_it_is_kept_in_tables_and_files_and_with_guarantees(make: Callable[[], Scheduler], tmp_path: Path) -> None:
    records, costs = models()
    fitted = make().fit(records, costs)
    by_budget = {point.budget: point.fallback for point in fitted.frontier()}
    for scheduler in (fitted.at("30%"), fitted):
        scheduler.save(tmp_path / "s.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it was said when it was fitted
            loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
            assert loaded == scheduler
            assert loaded.fallback == scheduler.fallback
            assert {point.budget: point.fallback for point in loaded.frontier()} == by_budget
            for budget in (0.3, 0.5, 3.0, 9.9):
                again = loaded.at(budget)
                row = loaded.table.index(budget)
                assert again.fallback == list(by_budget.values())[row]
                assert again.policy == loaded.table.policies[row]
    promised = make().fit(records, costs, "40%", guarantee=0.9)
    assert promised.replay(records).mean_cost <= 4.0


def test_a_score_that_was_given_is_kept_where_no_policy_has_it(tmp_path: Path) -> None:
    records, costs = models()
    score = eenet.EENet(**QUICK).fit(records, costs, 0.3, fallback=False).policy.score
    scheduler = Scheduler(score, "geometric").fit(records, costs, "30%")
    assert scheduler.fallback is not None
    scheduler.save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert loaded.policy == scheduler.policy
    assert loaded.get_params()["score"] == score


@pytest.mark.parametrize("name", ["max_prob", "searched"])
def test_a_simple_rule_that_is_as_good_as_the_others_is_kept(name: str) -> None:
    records = [toy_records(3000, classes=10, seed=seed) for seed in range(3)]
    taken = [METHODS[name]().fit(of_seed, toy_costs(), "50%").fallback for of_seed in records]
    assert taken.count(None) >= 2


@pytest.mark.parametrize("name", ["eenet", "stopping"])
def test_what_is_learned_is_kept_where_it_is_better_and_costs_nothing_where_it_is_not(name: str) -> None:
    for deceptive, kept in ((2, True), (None, False)):  # none is better on calibrated logits
        records, fresh = (toy_records(3000, seed=seed, deceptive_class=deceptive) for seed in (0, 1))
        scheduler, plain = (
            make().fit(records, toy_costs(), "50%") for make in (METHODS[name], lambda: eenet.MaxProbability())
        )
        assert scheduler.fallback is None or not kept
        gained = scheduler.replay(fresh).accuracy - plain.replay(fresh).accuracy
        assert gained > 0.01 if kept else gained > -0.005


def test_few_samples_get_the_simple_rule_and_hear_why() -> None:
    records = toy_records(120)
    plain = eenet.MaxProbability().fit(records, toy_costs(), "60%")
    for make in (eenet.EENet, eenet.OptimalStopping):
        with pytest.warns(FallbackWarning, match="120 calibration samples are too few to learn from .fewer than 200"):
            scheduler = make().fit(records, toy_costs(), "60%")
        assert scheduler.fallback is not None
        assert (scheduler.fallback.taken, scheduler.fallback.reason) == ("MaxProbability", "fit")
        np.testing.assert_array_equal(scheduler.replay(records).exits, plain.replay(records).exits)


def test_a_fit_without_fallback_is_remembered(tmp_path: Path) -> None:
    records, costs = models()
    for fallback in (True, False):
        fitted = eenet.MaxProbability().fit(records, costs, 3.0, fallback=fallback)
        fitted.save(tmp_path / "s.safetensors")
        for scheduler in (fitted, eenet.load_scheduler(tmp_path / "s.safetensors")):
            again = planned_again(scheduler, ExitCosts([0.2, 1.0, 20.0]), records)
            assert (again.fallback is None) == (not fallback)
            assert again.budget == pytest.approx(6.0)


def test_policies_that_are_only_priced_again_tell_their_fallback() -> None:
    records, costs = models()
    fitted = eenet.MaxProbability().fit(records, costs, 3.0)
    priced = planned_again(fitted, ExitCosts([0.2, 1.0, 20.0]), None)
    assert fitted.fallback is not None
    assert priced.fallback == dataclasses.replace(fitted.fallback, unit="ms where it was fitted")
    assert {point.fallback and point.fallback.taken for point in priced.frontier()} >= {"Static(1)"}
    cheapest = planned_again(fitted, ExitCosts([0.2, 1.0, 20.0]), None, 0.4)
    assert cheapest.fallback == cheapest.frontier()[cheapest.table.index(0.4)].fallback


@pytest.mark.parametrize("name", ["eenet", "patience", "searched"])
def test_a_loaded_policy_has_its_own_cost_not_that_of_a_dearer_one_before(name: str, tmp_path: Path) -> None:
    logits, labels = toy_logits(600)
    logits[:, np.arange(600), labels] += np.array([2, 1.8, 1.8])[:, None]  # going on gains little: cheap rules stand in
    records, costs = ExitRecords.from_logits(logits, labels), ExitCosts([0.3, 0.6, 1.0])
    METHODS[name]().fit(records, costs).save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    spent = [loaded.at(budget).replay(records).mean_cost for budget in loaded.table.budgets.tolist()]
    assert min(np.diff(spent)) < -0.01  # more budget, and less spent
    for budget, cost, point in zip(loaded.table.budgets.tolist(), spent, loaded.frontier(), strict=True):
        at = loaded.at(budget)
        assert (at.planned_cost, at.calibration_cost, point.planned_cost) == pytest.approx((cost,) * 3, rel=1e-5)


def test_a_smaller_budget_that_is_as_accurate_is_named(tmp_path: Path) -> None:
    logits, labels = toy_logits(1000)
    logits[:, np.arange(1000), labels] += np.array([2, 1.8, 1.8])[:, None]  # most samples are easy
    records, costs = ExitRecords.from_logits(logits, labels), ExitCosts([0.3, 0.6, 1.0])
    alone = eenet.Patience().fit(records, costs, "100%", fallback=False)
    assert alone.cheaper is None  # nothing was tried out of fold
    scheduler = eenet.MaxProbability().fit(records, costs, "60%")
    smaller = scheduler.cheaper
    assert smaller is not None
    assert smaller.cost <= 0.9 * smaller.given_cost
    assert smaller.given_accuracy - smaller.accuracy <= smaller.standard_error
    there = scheduler.at(smaller.budget)
    assert there.planned_cost == pytest.approx(smaller.cost, rel=0.02)
    table = evaluate(scheduler, calibration=records)
    row = table.row("cheaper")
    assert (row.budget, row.cost, row.accuracy) == (smaller.budget, smaller.cost, smaller.accuracy)
    assert table.notes[0].startswith(f"A budget of {smaller.budget:.4g} ms loses no accuracy that can be seen: ")
    assert smaller.samples == 1000
    assert smaller.unseen == max(2 * smaller.standard_error, 0.003)
    said = f"; differences below about {100 * smaller.unseen:.2g} points cannot be seen with 1000 samples)"
    assert said in table.notes[0]
    few = dataclasses.replace(smaller, standard_error=0.0, samples=300)  # none of the samples differs
    assert "differences below about 1 points cannot be seen with 300 samples" in str(few)
    assert there.cheaper is None or there.cheaper.budget < smaller.budget
    scheduler.save(tmp_path / "s.safetensors")
    assert eenet.load_scheduler(tmp_path / "s.safetensors").cheaper is None


# Exits that are left out


def with_exit(logits: NDArray[np.float32], k: int, kind: str, seed: int) -> NDArray[np.float32]:
    """Logits with one exit made dead, constant, reversed, a duplicate or overconfident."""
    rng = np.random.default_rng(seed)
    changed: NDArray[np.float32] = logits.copy()
    if kind == "dead":
        changed[k] = rng.normal(size=logits.shape[1:])
    elif kind == "constant":
        changed[k] = rng.normal(size=logits.shape[2])
    elif kind == "reversed":  # the right class as before, and the surer the less it was
        top = logits[k].max(axis=1, keepdims=True)
        margin = top - np.sort(logits[k], axis=1)[:, -2:-1]
        changed[k] = np.where(logits[k] == top, 1 / (0.1 + margin), 0)
    elif kind == "duplicated" and k:
        changed[k] = changed[k - 1]
    elif kind == "overconfident":
        changed[k] *= 20
    return changed


@EACH
@pytest.mark.parametrize("kind", ["dead", "constant"])
def test_no_sample_exits_where_the_exit_says_nothing(make: Callable[[], Scheduler], kind: str) -> None:
    logits, labels = toy_logits(1500, exits=4, seed=1)
    records = ExitRecords.from_logits(with_exit(logits, 1, kind, 0), labels)
    with pytest.warns(FallbackWarning, match=r"exit 1 says nothing: it is right on .* left out"):
        scheduler = make().fit(records, toy_costs(4), "60%")
    (dead,) = scheduler.left_out
    assert (dead.exit_index, dead.accuracy, dead.samples) == (1, records.accuracies[1], 1500)
    assert dead.common == pytest.approx(np.bincount(labels).max() / 1500)
    decisions = scheduler.replay(records)
    assert decisions.exit_shares[1] == 0
    assert decisions.mean_cost <= 2.4 * (1 + 1e-12)
    assert decisions.mean_cost == scheduler.calibration_cost
    at_least = make().fit(records, toy_costs(4), "100%")
    assert at_least.replay(records).accuracy >= records.accuracies[-1] - 0.01


def test_where_no_exit_that_says_anything_fits_the_budget_the_error_says_so(tmp_path: Path) -> None:
    logits, labels = toy_logits(800, seed=1)
    for k in (0, 1):
        logits = with_exit(logits, k, "constant", k)
    records = ExitRecords.from_logits(logits, labels)
    message = (
        r"budget 2\.1 ms cannot be met: exit 0 says nothing: .*; exit 1 says nothing: .* smallest feasible .* 3 ms"
    )
    for make in METHODS.values():
        with pytest.raises(InfeasibleBudgetError, match=message) as caught:
            make().fit(records, toy_costs(), "70%")
        assert caught.value.smallest == 3.0
        scheduler = make().fit(records, toy_costs(), 3.0)
        assert (scheduler.replay(records).exits == 2).all()
        fitted = make().fit(records, toy_costs())
        fitted.save(tmp_path / "s.safetensors")
        assert eenet.load_scheduler(tmp_path / "s.safetensors").left_out == fitted.left_out
    assert Static(1).fit(records, toy_costs()).replay(records).mean_cost == 2.0  # as it was asked for by name


def test_the_smallest_budget_counts_samples_that_are_not_finite_at_the_first_exit_that_is_used(tmp_path: Path) -> None:
    logits, labels = toy_logits(900, seed=1)
    logits = with_exit(logits, 0, "constant", 0)
    logits[1, :90] = np.nan
    records, costs = ExitRecords.from_logits(logits, labels), toy_costs()
    for make in METHODS.values():
        fitted = make().fit(records, costs)
        assert [dead.exit_index for dead in fitted.left_out] == [0]
        with pytest.raises(
            InfeasibleBudgetError, match=r"exit 1 is the first .* smallest feasible budget is 2\.1 ms"
        ) as caught:
            fitted.at(1.0)
        assert caught.value.smallest == pytest.approx(2.1)
        assert fitted.at(caught.value.smallest).replay(records).mean_cost == pytest.approx(2.1)
    saved = eenet.MaxProbability().fit(records, costs)
    saved.save(tmp_path / "s.safetensors")
    assert eenet.load_scheduler(tmp_path / "s.safetensors").at(2.1).calibration_cost == pytest.approx(2.1)
    found = eenet.search({"net": records}, {"net": costs}, [2.5])
    assert found.frontier[0].budget == 2.5


def test_an_exit_that_two_others_drawn_by_lot_outdo_does_not_pay() -> None:
    logits, labels = toy_logits(3000, seed=2)
    logits[1] = np.random.default_rng(0).normal(size=logits[1].shape)
    logits[1, np.arange(3000), labels] += 0.5  # better than naming one class, and far worse than the first exit
    (dead,) = dead_exits(ExitRecords.from_logits(logits, labels), toy_costs())
    assert (dead.exit_index, dead.common, dead.better_exits) == (1, None, (0, 2))
    assert str(dead).startswith("exit 1 does not pay: it is right on ")


@given(seed=st.integers(0, 10**6), samples=st.integers(1, 400), exits=st.integers(2, 6), classes=st.integers(2, 10))
@settings(max_examples=40, deadline=None)
def test_exits_that_say_something_are_not_left_out(seed: int, samples: int, exits: int, classes: int) -> None:
    assert dead_exits(toy_records(samples, exits, classes, seed), toy_costs(exits)) == ()


def test_an_exit_that_names_one_class_but_knows_when_it_is_right_is_used() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(3000) < 0.1).astype(int)
    sure = np.where(labels == 0, rng.normal(4, 1, 3000), rng.normal(1, 0.5, 3000)).clip(0.1)
    right = np.where(labels == 0, 6.0, -6.0)
    logits = np.stack([np.stack([z, -z], axis=1) for z in (sure, right)])
    records = ExitRecords.from_logits(logits, labels)
    assert (records.predictions[0] == 0).all()
    assert dead_exits(records, toy_costs(2)) == ()
    assert eenet.MaxProbability().fit(records, toy_costs(2), "60%").replay(records).accuracy > 0.99


def test_without_labels_nothing_is_known_and_nothing_taken() -> None:
    records = ExitRecords.from_logits(toy_logits(300)[0])
    scheduler = eenet.MaxProbability().fit(records, toy_costs(), "60%")
    assert (scheduler.fallback, scheduler.left_out, dead_exits(records)) == (None, (), ())


# Held out


@given(
    seed=st.integers(0, 10**6),
    exits=st.integers(2, 5),
    kinds=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["dead", "reversed", "constant", "duplicated", "overconfident"])),
        max_size=2,
    ),
    steps=st.lists(st.sampled_from([0.1, 1.0, 10.0]), min_size=5, max_size=5),
    name=st.sampled_from(["max_prob", "entropy", "patience", "voting", "stopping", "searched"]),
)
@settings(max_examples=15, deadline=None)
def test_held_out_no_method_is_below_the_best_simple_rule_at_equal_cost(
    seed: int, exits: int, kinds: list[tuple[int, str]], steps: list[float], name: str
) -> None:
    logits, labels = toy_logits(3500, exits, 5, seed)
    for k, kind in kinds:
        logits = with_exit(logits, min(k, exits - 2), kind, seed)
    both = ExitRecords.from_logits(logits, labels)
    records, fresh = both.subset(np.arange(1500)), both.subset(np.arange(1500, 3500))
    costs = ExitCosts(np.cumsum(steps[:exits]))
    fitted, below = METHODS[name]().fit(records, costs), []
    rules = [rule.fit(records, costs, fallback=False) for rule in (eenet.MaxProbability(), SearchedThresholds())]
    simple = [frontier(rule, fresh) for rule in rules if not fitted.left_out]
    assert fresh.utility is not None
    for budget in np.linspace(costs[0], costs[-1], 6)[1:-1].tolist():
        try:
            mine = fitted.at(budget).replay(fresh)
        except InfeasibleBudgetError:
            assert fitted.left_out
            continue
        assert mine.utility is not None
        others = [at_cost(points, mine.mean_cost) for points in simple]
        # As Static does, each exit spends the budget or less: none is drawn by lot.
        others += [fresh.utility[k] for k in range(exits) if costs[k] <= mine.mean_cost]
        below.append([other - mine.utility for other in others])
    for differences in zip(*below, strict=False):
        mean = np.mean(differences, axis=0)
        # By 0.1 points at most, and what chance hides on 1,500 samples to fit on and 2,000 to judge by.
        assert mean.mean() <= 0.001 + 3 * mean.std() * np.sqrt(1 / 1500 + 1 / 2000)


def frontier(rule: Scheduler, fresh: ExitRecords) -> list[tuple[float, NDArray[np.float64]]]:
    """What a rule really costs on fresh samples and the utility of each, by the cost, from one end to the other."""
    assert fresh.utility is not None
    first, last = rule.costs[0], rule.costs[-1]
    decided = [rule.at(budget).replay(fresh) for budget in np.linspace(first, last, 9)[1:-1].tolist()]
    points = [(d.mean_cost, d.utility.astype(float)) for d in decided if d.utility is not None]
    points += [(rule.costs[k], fresh.utility[k].astype(float)) for k in (0, -1)]
    return sorted(points, key=lambda point: point[0])


def at_cost(points: list[tuple[float, NDArray[np.float64]]], cost: float) -> NDArray[np.float64]:
    """The utility of each sample at a cost: in the mean, where one of two neighboring policies is drawn by lot."""
    high = next(i for i, (c, _) in enumerate(points) if i and (c >= cost or i == len(points) - 1))
    (below, one), (above, other) = points[high - 1], points[high]
    share = np.clip((cost - below) / (above - below), 0, 1) if above > below else 0.0
    mixed: NDArray[np.float64] = (1 - share) * one + share * other
    return mixed


def test_the_three_models_of_a_user() -> None:
    calibration, test = case("three_sklearn_models_calibration"), case("three_sklearn_models_test")
    costs = ExitCosts([0.1, 0.5, 12.0])
    for name, make in SCHEDULERS.items():
        decisions = make().fit(calibration, costs, "30%").replay(test)
        assert decisions.accuracy >= 0.96, name
        assert decisions.mean_cost < 3.6 * 1.1


def test_the_two_dead_exits_of_a_user() -> None:
    records, costs = case("two_dead_exits"), ExitCosts([13.0, 27.0, 40.0])
    for make in SCHEDULERS.values():
        with pytest.raises(InfeasibleBudgetError, match=r"exit 0 says nothing: it is right on 46\.6 % .* 94\.0 %"):
            make().fit(records, costs, "70%")
        assert make().fit(records, costs, 40.0).replay(records).accuracy == pytest.approx(0.94)
