"""Bounds against brute force, and the comparison of schedulers on fresh data."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eenet import ExitCosts, ExitRecords, InfeasibleBudgetError, MaxProbability, Patience, Scheduler, Static
from eenet.errors import InvalidInputError
from eenet.evaluation import Comparison, compare, oracle, random_mixture
from eenet.scheduler import ZTW

COSTS = ExitCosts([1.0, 2.5, 4.0])


def _records(samples: int, *, exits: int = 3, classes: int = 4, seed: int = 0) -> ExitRecords:
    """Records whose exits are better the deeper, and surer where they are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    easy = rng.normal(size=samples)
    logits = rng.normal(size=(exits, samples, classes))
    for k in range(exits):
        logits[k, np.arange(samples), labels] += 1.2 * (k + 1) + 1.5 * easy
    return ExitRecords.from_logits(logits.astype(np.float32), labels)


def _with_utility(utility: NDArray[Any]) -> ExitRecords:
    exits, samples = utility.shape
    probabilities = np.full((exits, samples, 2), 0.5, dtype=np.float32)
    predictions = np.zeros((exits, samples), dtype=np.intp)
    return ExitRecords(probabilities, predictions, np.zeros(samples, dtype=np.intp), utility.astype(np.float32))


def _best_by_hand(records: ExitRecords, costs: ExitCosts, budget: float) -> float:
    utility = records.require_utility().astype(np.float64)
    best = -1.0
    for choice in itertools.product(range(len(costs)), repeat=len(records)):
        if costs.values[list(choice)].mean() <= budget * (1 + 1e-9):
            best = max(best, float(utility[list(choice), range(len(records))].mean()))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [1.0, 1.2, 1.9, 2.5, 3.1, 4.0])
def test_oracle_is_the_best_of_all_choices(seed: int, budget: float) -> None:
    records = _records(7, seed=seed)
    found = oracle(records, COSTS, budget)
    assert found.accuracy == pytest.approx(_best_by_hand(records, COSTS, budget))
    assert found.cost <= budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [1.3, 2.2, 3.3])
def test_oracle_of_fractional_utility_is_within_one_gain_of_the_best(seed: int, budget: float) -> None:
    records = _with_utility(np.random.default_rng(seed).random((3, 7)))
    found = oracle(records, COSTS, budget)
    best = _best_by_hand(records, COSTS, budget)
    assert best - 1 / 7 < found.accuracy <= best + 1e-6
    assert found.cost <= budget * (1 + 1e-9)


def test_oracle_spends_no_more_than_it_needs() -> None:
    records = _with_utility(np.array([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]))
    found = oracle(records, COSTS, 4.0)
    assert found.accuracy == 0.75
    assert found.cost == pytest.approx((1 + 2.5 + 1 + 1) / 4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1.0, 1.4, 2.5, 2.9, 3.7, 4.0])
def test_random_mixture_is_the_best_of_all_shares(seed: int, budget: float) -> None:
    # Accuracies in any order: a deeper exit may be worse.
    records = _with_utility(np.random.default_rng(seed).random((3, 5)))
    found = random_mixture(records, COSTS, budget)
    grid = np.linspace(0, 1, 301)
    first, second = np.meshgrid(grid, grid)
    shares = np.stack([first, second, 1 - first - second])
    cost = np.tensordot(COSTS.values, shares, 1)
    accuracy = np.tensordot(records.accuracies, shares, 1)
    allowed = (shares[2] >= -1e-9) & (cost <= budget + 1e-9)
    best = float(accuracy[allowed].max())
    assert best - 1e-6 <= found.accuracy <= best + 5e-3
    assert found.cost <= budget


def test_random_mixture_does_not_pay_for_a_worse_exit() -> None:
    records = _with_utility(np.array([[0, 0], [1, 1], [0, 1]]))
    found = random_mixture(records, COSTS, 3.9)
    assert (found.accuracy, found.cost) == (1.0, 2.5)


@pytest.mark.parametrize("bound", [oracle, random_mixture])
def test_bounds_refuse_a_budget_below_the_first_exit(bound: Any) -> None:
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget is 1 ms"):
        bound(_records(5), COSTS, 0.5)


@pytest.mark.parametrize("bound", [oracle, random_mixture])
def test_bounds_need_labels_and_matching_costs(bound: Any) -> None:
    records = _records(5)
    with pytest.raises(InvalidInputError, match="costs are for 3 exits"):
        bound(_records(5, exits=2), COSTS, 2.0)
    with pytest.raises(InvalidInputError, match="no labels"):
        bound(ExitRecords.from_probabilities(records.probabilities), COSTS, 2.0)


def test_bounds_enclose_schedulers() -> None:
    records = _records(400)
    for budget in (1.3, 2.0, 3.0):
        decisions = MaxProbability().fit(records, COSTS, budget).replay(records)
        assert random_mixture(records, COSTS, budget).accuracy < decisions.accuracy
        assert decisions.accuracy <= oracle(records, COSTS, budget).accuracy


def _timeless(comparison: Comparison) -> dict[str, Any]:
    found = comparison.to_dict()
    for row in found["rows"]:
        assert (row["fit_seconds"] is None) == (row["reason"] is not None)
        del row["fit_seconds"]
    return found


def test_compare_is_deterministic_and_its_seed_matters() -> None:
    records = _records(300)
    schedulers = {"max_prob": MaxProbability, "patience": Patience}
    first, again, other = (
        _timeless(compare(records, COSTS, schedulers, [1.5, 2.5], resplits=2, seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_compare_reports_all_costs_apart_and_tells_of_progress() -> None:
    calls: list[tuple[int, int]] = []
    found = compare(
        _records(300),
        COSTS,
        {"max_prob": MaxProbability},
        [1.5, 2.2],
        resplits=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i + 1, 6) for i in range(6)]
    assert [(row.resplit, row.budget) for row in found.rows] == list(itertools.product(range(3), (1.5, 2.2)))
    for row in found.rows:
        assert row.planned_cost == row.budget
        assert row.calibration_cost is not None
        assert row.calibration_cost <= row.budget
        assert row.accuracy is not None
    # On fresh samples the cost is another one; by chance it can be the same on some.
    assert any(row.held_out_cost != row.calibration_cost for row in found.rows)
    assert len(found.bounds) == 6
    assert all(bound.random_mixture < bound.oracle for bound in found.bounds)


def test_an_infeasible_budget_is_a_row_with_a_reason() -> None:
    schedulers = {"max_prob": MaxProbability, "middle": lambda: Static(1)}
    found = compare(_records(200), COSTS, schedulers, [0.5, 2.0, 3.0], resplits=1)
    reasons = {(row.scheduler, row.budget): row.reason for row in found.rows}
    assert "below the first exit's cost" in str(reasons["max_prob", 0.5])
    assert "Static(1) costs 2.5" in str(reasons["middle", 2.0])
    assert reasons["max_prob", 2.0] is None
    assert reasons["middle", 3.0] is None
    missing = next(row for row in found.rows if row.reason)
    assert (missing.accuracy, missing.held_out_cost, missing.fit_seconds) == (None, None, None)
    text = found.to_text()
    assert "below the first exit's cost" in text
    assert "Static(1) costs 2.5" in text
    found.to_dict()


def test_a_scheduler_that_meets_no_budget_is_shown_all_the_same() -> None:
    text = compare(
        _records(200), COSTS, {"all": MaxProbability, "last": lambda: Static(2)}, [2.0], resplits=1
    ).to_text()
    row = next(line for line in text.splitlines() if line.startswith("last"))
    assert row.split() == ["last", "-", "-", "-"]


class _Scaled(Scheduler):
    """A scheduler that spends more, or less, than the budget it is given."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        super().__init__("max_prob", "geometric")

    def at(self, budget: Any) -> _Scaled:
        return super().at(float(budget) * self.factor)


@pytest.mark.parametrize("factor", [0.93, 1.07])
def test_spending_more_is_no_advantage_at_equal_cost(factor: float) -> None:
    budgets = np.linspace(1.2, 3.4, 9).tolist()
    found = compare(
        _records(3000), COSTS, {"max_prob": MaxProbability, "scaled": lambda: _Scaled(factor)}, budgets, resplits=3
    )
    by_scheduler = {
        name: np.mean([row.accuracy for row in found.rows if row.scheduler == name and row.accuracy is not None])
        for name in found.schedulers
    }
    apparent = by_scheduler["scaled"] - by_scheduler["max_prob"]
    assert (apparent > 0.01) if factor > 1 else (apparent < -0.01)
    overall = next(d for d in found.differences("max_prob") if d.scheduler == "scaled" and d.budget is None)
    assert abs(overall.mean) < 0.003
    assert overall.standard_error is not None
    assert overall.standard_error < 0.003


def test_a_scheduler_does_not_differ_from_itself() -> None:
    schedulers = {"one": MaxProbability, "same": MaxProbability}
    found = compare(_records(300), COSTS, schedulers, [1.5, 2.0, 3.0], resplits=3)
    differences = found.differences("one")
    assert {d.budget for d in differences} == {1.5, 2.0, 3.0, None}
    assert all(d.mean == pytest.approx(0) and d.standard_error == pytest.approx(0) for d in differences)


def test_differences_are_means_of_pairs_at_the_cost_that_was_spent() -> None:
    schedulers = {"max_prob": MaxProbability, "patience": Patience}
    found = compare(_records(300), COSTS, schedulers, [2.0], resplits=4, fraction=0.5)
    curves = [found.curve("max_prob", r) for r in range(4)]
    values = [
        (row.accuracy or 0) - np.interp(row.held_out_cost or 0, *curves[row.resplit])
        for row in found.rows
        if row.scheduler == "patience"
    ]
    difference = next(d for d in found.differences("max_prob") if d.scheduler == "patience" and d.budget == 2.0)
    assert difference.mean == pytest.approx(np.mean(values))
    assert difference.resplits == 4
    assert compare(_records(300), COSTS, schedulers, [2.0], resplits=1).differences("max_prob")[2].standard_error > 0


def test_the_standard_error_is_that_of_resampling_the_pool() -> None:
    """By hand: draw samples, weigh every resplit's held-out samples by how often they came, take the differences."""
    records, budgets = _records(240), [1.5, 2.5]
    schedulers = {"max_prob": MaxProbability, "patience": Patience}
    found = compare(records, COSTS, schedulers, budgets, resplits=3, fraction=0.5)
    utility = records.require_utility()
    exits = {}
    for resplit in range(3):
        calibration, held = records.split(0.5, seed=resplit)
        for name, make in schedulers.items():
            for budget in budgets:
                exits[name, resplit, budget] = make().fit(calibration, COSTS, budget, fallback=False).replay(held).exits
    rng, spread = np.random.default_rng(5), []
    for _ in range(400):
        times = np.bincount(rng.integers(0, 240, 240), minlength=240)
        means = []
        for resplit in range(3):
            rows = records.split_rows(0.5, seed=resplit)[1]
            weights = times[rows] / times[rows].sum()

            def mean(values: NDArray[Any], weights: NDArray[Any] = weights) -> float:
                return float(values @ weights)

            def point(name: str, budget: float, resplit: int = resplit, rows: Any = rows) -> tuple[float, float]:
                left = exits[name, resplit, budget]
                return mean(COSTS.values[left]), mean(utility[left, rows])

            curve = [
                (1.0, mean(utility[0, rows])),
                *(point("max_prob", b) for b in budgets),
                (4.0, mean(utility[2, rows])),
            ]
            xs, ys = zip(*sorted(curve), strict=True)
            for budget in budgets:
                cost, accuracy = point("patience", budget)
                means.append(accuracy - np.interp(cost, xs, ys))
        spread.append(np.mean(means))
    overall = next(d for d in found.differences("max_prob") if d.scheduler == "patience" and d.budget is None)
    assert overall.standard_error == pytest.approx(np.std(spread, ddof=1), rel=0.15)


def test_the_curve_of_an_ensemble_ends_where_its_answers_do() -> None:
    records = _records(600, exits=4)
    costs = ExitCosts([1.0, 2.0, 3.0, 4.0])
    found = compare(records, costs, ["max_prob", "ztw"], [1.5, 3.0], resplits=2)
    assert found.changing == {"ztw"}
    for resplit in range(2):
        calibration, held = records.split(2 / 3, seed=resplit)
        scheduler = ZTW().fit(calibration, costs, 4.0, fallback=False)
        assert found.ends("ztw", resplit)[1] == pytest.approx(scheduler.replay(held).accuracy)
        assert found.ends("max_prob", resplit) == pytest.approx(tuple(held.accuracies[[0, -1]]))
        assert found.ends("ztw", resplit) != found.ends("max_prob", resplit)
    text = found.to_text()
    assert "ztw *" in text
    assert "max_prob *" not in text
    assert "* changes predictions" in text
    assert found.to_dict()["changing_predictions"] == ["ztw"]


def test_to_text_has_a_line_for_everything_compared() -> None:
    schedulers = {"max_prob": MaxProbability, "patience": Patience}
    text = compare(_records(300), COSTS, schedulers, [1.5, 2.0], resplits=2).to_text(reference="patience")
    for name in ("max_prob", "patience", "oracle", "best random mixture", "difference to patience"):
        assert name in text


def test_compare_refuses_what_it_cannot_compare() -> None:
    records = _records(50)
    with pytest.raises(InvalidInputError, match="0 schedulers"):
        compare(records, COSTS, {}, [2.0])
    with pytest.raises(InvalidInputError, match="0 budgets"):
        compare(records, COSTS, {"max_prob": MaxProbability}, [])
    with pytest.raises(InvalidInputError, match="0 resplits"):
        compare(records, COSTS, {"max_prob": MaxProbability}, [2.0], resplits=0)
    with pytest.raises(InvalidInputError, match="repeat"):
        compare(records, COSTS, {"max_prob": MaxProbability}, [2.0, 2.0])
    unlabeled = ExitRecords.from_probabilities(records.probabilities)
    with pytest.raises(InvalidInputError, match="no labels"):
        compare(unlabeled, COSTS, {"max_prob": MaxProbability}, [2.0])
    with pytest.raises(InvalidInputError, match="unknown"):
        compare(records, COSTS, {"max_prob": MaxProbability}, [2.0], resplits=1).differences("unknown")


def test_nothing_is_fitted_on_records_that_are_held_out() -> None:
    calibration, fresh = _records(300), _records(200, seed=1)
    makers = {"max": MaxProbability, "first": lambda: Static(0)}
    found = compare(calibration, COSTS, makers, [2.0, 3.0], resplits=4, held_out=fresh)
    assert found.separate
    assert found.pool == 200
    assert not compare(calibration, COSTS, makers, [2.0]).separate
    # Labels of the held-out records change what is found, but no decision.
    assert fresh.labels is not None
    other = ExitRecords(fresh.probabilities, fresh.predictions, fresh.labels, np.zeros_like(fresh.require_utility()))
    blind = compare(calibration, COSTS, makers, [2.0, 3.0], resplits=4, held_out=other)
    assert [row.held_out_cost for row in blind.rows] == [row.held_out_cost for row in found.rows]
    assert all(row.accuracy == 0 for row in blind.rows)
    # Every resplit is judged on all of them.
    assert all(found.ends("max", r) == pytest.approx(tuple(fresh.accuracies[[0, -1]])) for r in range(4))


def test_the_error_on_held_out_records_does_not_vanish_with_more_resplits() -> None:
    calibration, fresh = _records(300), _records(200, seed=1)
    makers = {"max": MaxProbability, "patience": Patience}

    def error(resplits: int) -> float:
        found = compare(calibration, COSTS, makers, [2.0], resplits=resplits, held_out=fresh)
        return next(d.standard_error for d in found.differences("max") if d.scheduler == "patience")

    assert error(40) > 0.6 * error(8) > 0


def test_held_out_records_of_another_network_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="costs are for 3 exits"):
        compare(_records(60), COSTS, {"max": MaxProbability}, [2.0], held_out=_records(60, exits=4))


def test_the_plain_network_is_one_of_what_is_the_same_for_all_samples() -> None:
    # The last exit of a network costs more than the plain network, which has its answers without any early head.
    records = _with_utility(np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]))
    costs = ExitCosts([1.5, 2.3, 4.9], plain=4.5)
    whole = random_mixture(records, costs, "100%")
    assert whole.accuracy == pytest.approx(0.8)
    assert (whole.cost, whole.of) == (4.5, ("plain",))
    alone = random_mixture(records, ExitCosts(costs.values), 4.5)
    assert alone.accuracy == pytest.approx(0.4 + 0.4 * 2.2 / 2.6), "exits 1 and 2"
    half = random_mixture(records, costs, 3.4)
    assert half.accuracy == pytest.approx(0.6), "half of the samples by exit 1, half by the plain network"
    assert (half.cost, half.of) == (3.4, ("exit 1", "plain"))
    # A plain network that is more expensive than the last exit is of no use: the last exit has its answers.
    assert random_mixture(records, ExitCosts(costs.values, plain=5.5), 4.9).of == ("exit 2",)


def test_compare_mixes_the_plain_network_too() -> None:
    records = _records(300)
    costs = ExitCosts(COSTS.values, plain=3.4)
    found = compare(records, costs, ["max_prob"], [2.0, 3.4], resplits=2)
    for resplit in range(2):
        last = found.ends("max_prob", resplit)[1]
        assert [b.random_mixture for b in found.bounds if (b.budget, b.resplit) == (3.4, resplit)] == [
            pytest.approx(last)
        ]
    assert "best random mixture, with plain" in found.to_text()
    assert "with plain" not in compare(records, COSTS, ["max_prob"], [2.0], resplits=1).to_text()
