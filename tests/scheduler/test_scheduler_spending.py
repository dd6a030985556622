"""The budget is a promise: on the calibration set it is met and never exceeded, whatever the records are like."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scores import largest_tie, scores_of

import eenet
from eenet import scheduler as schedulers
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import Scheduler, Static
from eenet.testing import toy_costs, toy_logits, toy_records

QUICK: dict[str, Any] = {"turns": 1, "target": "right", "weight_decay": 1e-4}
SPENDERS: dict[str, Callable[[], Scheduler]] = {
    "eenet": lambda: eenet.EENet(**QUICK),
    "max_prob": eenet.MaxProbability,
    "entropy": eenet.Entropy,
    "patience": eenet.Patience,
    "voting": schedulers.Voting,
    "margin": schedulers.Margin,
    "temperature": schedulers.TemperatureScaled,
    "ztw": schedulers.ZTW,
    "beem": schedulers.BEEM,
    "eero": schedulers.EERO,
    "gate": schedulers.LearnedGate,
    "max_prob, learned shares": lambda: Scheduler("max_prob", "learned"),
}
# Toy records often gain nothing by going further, and then the scheduler says that it leaves the rest of the budget.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
SPENDER = pytest.mark.parametrize("make", SPENDERS.values(), ids=list(SPENDERS))
ALL: dict[str, Callable[[], Scheduler]] = {
    **SPENDERS,
    "searched": eenet.SearchedThresholds,
    "searched entropy": lambda: eenet.SearchedThresholds("entropy"),
    "stopping": eenet.OptimalStopping,
}


@dataclass(frozen=True)
class Case:
    records: ExitRecords
    costs: ExitCosts
    budget: float


@st.composite
def cases(draw: st.DrawFn, *, odd: bool = False) -> Case:
    """Records, costs and a feasible budget; `odd` ones are full of ties, saturation and rows that are not finite."""
    exits = draw(st.integers(2, 6))
    records = toy_records(
        draw(st.integers(1, 250)),
        exits,
        draw(st.sampled_from([2, 3, 10])),
        draw(st.integers(0, 10**6)),
        sharpness=draw(st.sampled_from([0.0, 1.0, 30.0, 1e4, 1e30])) if odd else draw(st.sampled_from([0.5, 1.0, 2.0])),
        duplicates=draw(st.sampled_from([0.0, 0.5, 1.0])) if odd else 0.0,
        nonfinite=draw(st.sampled_from([0.0, 0.1, 0.7])) if odd else 0.0,
    )
    steps = draw(st.lists(st.floats(0.01, 10), min_size=exits, max_size=exits))
    costs = ExitCosts(np.cumsum(steps))
    where = draw(st.one_of(st.sampled_from([0.0, 1e-3, 0.999, 1.0]), st.floats(0, 1)))
    return Case(records, costs, min(costs[0] + where * (costs[-1] - costs[0]), costs[-1]))


def fitted_or_none(scheduler: Scheduler, case: Case) -> Scheduler | None:
    """The fitted scheduler; None where the records make the budget infeasible, after checking what was said."""
    try:
        return scheduler.fit(case.records, case.costs, case.budget, fallback=False)
    except InfeasibleBudgetError as error:
        smallest = error.smallest
    assert case.budget < smallest <= case.costs[-1] * (1 + 1e-12)
    again = scheduler.fit(case.records, case.costs, min(smallest, case.costs[-1]), fallback=False)
    assert again.calibration_cost <= smallest * (1 + 1e-12)
    return None


@SPENDER
@given(case=cases())
@settings(max_examples=40)
def test_the_budget_is_spent_to_the_last_sample(make: Callable[[], Scheduler], case: Case) -> None:
    scheduler = make().fit(case.records, case.costs, case.budget, fallback=False)
    spent = scheduler.replay(case.records).mean_cost
    assert spent <= case.budget * (1 + 1e-12)
    one_step = (case.costs[-1] - case.costs[0]) / len(case.records)
    slack = max(1e-3 * case.budget, largest_tie(case.records, scheduler.policy.score) * one_step)
    assert spent >= case.budget - slack * (1 + 1e-9)


@SPENDER
@given(case=cases(odd=True))
@settings(max_examples=40)
def test_ties_saturation_and_broken_rows_never_overspend(make: Callable[[], Scheduler], case: Case) -> None:
    scheduler = fitted_or_none(make(), case)
    if scheduler is None:
        return
    decisions = scheduler.replay(case.records)
    assert decisions.mean_cost <= case.budget * (1 + 1e-12)
    assert scheduler.calibration_cost == decisions.mean_cost
    assert np.isfinite(scheduler.policy.thresholds).all()


@given(case=cases(odd=True), name=st.sampled_from(sorted(ALL)))
@settings(max_examples=80)
def test_every_sample_leaves_once_and_costs_what_its_exit_costs(case: Case, name: str) -> None:
    scheduler = fitted_or_none(ALL[name](), case)
    if scheduler is None:
        return
    decisions = scheduler.replay(case.records)
    n = len(case.records)
    assert decisions.exits.shape == (n,)
    assert ((decisions.exits >= 0) & (decisions.exits < len(case.costs))).all()
    np.testing.assert_array_equal(decisions.sample_costs, case.costs.values[decisions.exits])
    np.testing.assert_allclose(decisions.mean_cost, decisions.sample_costs.mean(), rtol=1e-12)
    np.testing.assert_allclose(decisions.exit_shares @ case.costs.values, decisions.mean_cost, rtol=1e-12)
    np.testing.assert_allclose(decisions.exit_shares.sum(), 1, rtol=1e-12)
    if not scheduler.changes_predictions:
        np.testing.assert_array_equal(decisions.predictions, case.records.predictions[decisions.exits, np.arange(n)])
    assert case.records.labels is not None
    np.testing.assert_allclose(decisions.accuracy, (decisions.predictions == case.records.labels).mean(), rtol=1e-12)


@given(case=cases(odd=True), data=st.data(), name=st.sampled_from(sorted(ALL)))
@settings(max_examples=80)
def test_a_sample_is_decided_the_same_in_any_batch(case: Case, data: st.DataObject, name: str) -> None:
    scheduler = fitted_or_none(ALL[name](), case)
    if scheduler is None:
        return
    n = len(case.records)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=70)))
    exits = scheduler.replay(case.records).exits
    np.testing.assert_array_equal(scheduler.replay(case.records.subset(rows)).exits, exits[rows])


def test_a_sample_is_decided_the_same_alone_and_among_thousands() -> None:
    records = toy_records(samples=6000, classes=10, exits=4)
    for make in ALL.values():
        scheduler = make().fit(records, toy_costs(4), "55%", fallback=False)
        exits = scheduler.replay(records).exits
        shuffled = np.random.default_rng(0).permutation(6000)
        for rows in (np.arange(0, 6000, 7), shuffled, *np.arange(0, 6000, 300)[:, None]):
            np.testing.assert_array_equal(scheduler.replay(records.subset(rows)).exits, exits[rows])


@given(case=cases(odd=True), name=st.sampled_from(sorted(ALL)))
@settings(max_examples=60)
def test_who_is_not_finite_goes_on_to_the_last_exit(case: Case, name: str) -> None:
    scheduler = fitted_or_none(ALL[name](), case)
    if scheduler is None:
        return
    policy, exits = scheduler.policy, scheduler.replay(case.records).exits
    broken: NDArray[np.bool_] = np.asarray(np.isnan(case.records.probabilities).any(axis=2))
    for n in np.flatnonzero(broken.any(axis=0)):
        first = int(np.flatnonzero(broken[:, n])[0])
        # It may have left before; an exit that is off is not looked at.
        looked_at = [k for k in np.flatnonzero(broken[:, n]) if k == len(case.costs) - 1 or policy.observes(int(k))]
        if looked_at and exits[n] >= looked_at[0]:
            assert exits[n] == len(case.costs) - 1
        assert exits[n] != first or first == len(case.costs) - 1


@pytest.mark.parametrize("name", sorted(ALL))
def test_records_that_are_all_broken_can_only_go_to_the_last_exit(name: str) -> None:
    logits, labels = toy_logits(samples=20)
    records = ExitRecords.from_logits(np.full_like(logits, np.nan), labels)
    message = r"budget 2 ms cannot be met: 20 of 20 samples .* not finite .*; the smallest feasible budget is 3 ms"
    with pytest.raises(InfeasibleBudgetError, match=message) as caught:
        ALL[name]().fit(records, toy_costs(), 2.0, fallback=False)
    assert caught.value.smallest == 3.0
    scheduler = ALL[name]().fit(records, toy_costs(), 3.0, fallback=False)
    assert (scheduler.replay(records).exits == 2).all()


@pytest.mark.parametrize("name", sorted(ALL))
def test_some_broken_rows_raise_the_smallest_feasible_budget(name: str) -> None:
    logits, labels = toy_logits(samples=10)
    logits[:, 3] = np.nan
    records = ExitRecords.from_logits(logits, labels)
    with pytest.raises(InfeasibleBudgetError, match=r"1 of 10 samples .*smallest feasible budget is 1\.2 ms") as caught:
        ALL[name]().fit(records, toy_costs(), 1.1, fallback=False)
    assert caught.value.smallest == pytest.approx(1.2)
    scheduler = ALL[name]().fit(records, toy_costs(), caught.value.smallest, fallback=False)
    assert scheduler.replay(records).exits.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_smallest_and_the_largest_budget(name: str) -> None:
    records = toy_records(samples=200)
    cheapest = ALL[name]().fit(records, toy_costs(), 1.0, fallback=False)
    assert (cheapest.replay(records).exits == 0).all()
    assert cheapest.calibration_cost == 1.0
    if name not in {"searched", "searched entropy", "stopping"}:  # these need not spend where it does not pay
        largest = ALL[name]().fit(records, toy_costs(), 3.0, fallback=False)
        assert (largest.replay(records).exits == 2).all()
        assert not largest.policy.enabled.any()


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_single_sample(name: str) -> None:
    records = toy_records(samples=1, exits=2, classes=2)
    for budget, expected in ((1.0, {0}), (1.5, {0}), (2.0, {0, 1})):
        scheduler = ALL[name]().fit(records, toy_costs(2), budget, fallback=False)
        assert set(scheduler.replay(records).exits.tolist()) <= expected


@pytest.mark.parametrize("name", sorted(ALL))
def test_samples_that_no_score_tells_apart_stay_together(name: str) -> None:
    logits, _ = toy_logits(samples=1)
    records = ExitRecords.from_logits(np.repeat(logits, 50, axis=1), np.zeros(50, dtype=int))
    scheduler = ALL[name]().fit(records, toy_costs(), 2.5, fallback=False)
    assert len(set(scheduler.replay(records).exits.tolist())) == 1
    assert scheduler.calibration_cost <= 2.5


@SPENDER
def test_overconfident_records_still_spend_the_budget(make: Callable[[], Scheduler]) -> None:
    # Most max probabilities round to 1 here; the evidence still distinguishes the samples.
    records = toy_records(samples=3000, classes=10, sharpness=10.0)
    assert (records.probabilities.max(axis=2)[2] == 1).mean() > 0.5
    for where in (0.05, 0.5, 0.95, 0.99):
        budget = 1 + 2 * where
        scheduler = make().fit(records, toy_costs(), budget, fallback=False)
        assert budget * 0.999 <= scheduler.calibration_cost <= budget


def test_two_samples_do_not_make_a_ceiling() -> None:
    # Both are right at exit 3 and wrong at the last, exit 4; with a budget for the last they go there all the same.
    records = toy_records(2, 5, 3, 197)
    scheduler = eenet.MaxProbability().fit(records, toy_costs(5), 5.0, fallback=False)
    assert scheduler.calibration_cost == 5.0


@SPENDER
@given(seed=st.integers(0, 10**6), exits=st.integers(2, 5))
@settings(max_examples=12)
def test_the_cost_grows_with_the_budget(make: Callable[[], Scheduler], seed: int, exits: int) -> None:
    records, costs = toy_records(150, exits, seed=seed), toy_costs(exits)
    spent = [make().fit(records, costs, b, fallback=False).calibration_cost for b in np.linspace(1, exits, 8)]
    # Neighboring scores can tie, so a budget may be missed by a few samples; these differ by far more.
    assert (np.diff(spent) > 0).all()


@given(case=cases())
@example(case=Case(toy_records(samples=5), toy_costs(), 1.4))
@example(case=Case(toy_records(1, 5, 3, 54), toy_costs(5), 1.0))
@settings(max_examples=60)
def test_thresholds_lie_midway_between_neighbors(case: Case) -> None:
    for make in (eenet.MaxProbability, eenet.Entropy, eenet.Patience, eenet.SearchedThresholds):
        scheduler = make().fit(case.records, case.costs, case.budget, fallback=False)
        scores = scores_of(case.records, scheduler.policy.score)
        exits = scheduler.replay(case.records).exits
        for k in np.flatnonzero(scheduler.policy.enabled):
            t = scheduler.policy.thresholds[k]
            above = scores[k, exits == k] - t
            below = t - scores[k, exits > k]
            if not len(above):  # only the ceiling is on for no sample: whatever came that far would exit there
                assert k == np.flatnonzero(scheduler.policy.enabled)[-1]
                assert (scores[k] >= t).all()
                continue
            assert above.min() >= 5e-6
            if len(below):
                assert below.min() >= 5e-6
                assert above.min() == pytest.approx(below.min(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", sorted(ALL))
def test_rounding_flips_no_calibration_sample(name: str) -> None:
    logits, labels = toy_logits(samples=400, classes=10)
    records = ExitRecords.from_logits(logits, labels)
    rng = np.random.default_rng(0)
    for budget in np.linspace(1.1, 2.9, 5):
        scheduler = ALL[name]().fit(records, toy_costs(), budget, fallback=False)
        exits = scheduler.replay(records).exits
        for _ in range(5):
            noise = 1 + 1e-7 * rng.uniform(-1, 1, logits.shape)
            again = ExitRecords.from_logits((logits * noise).astype(np.float32))
            np.testing.assert_array_equal(scheduler.replay(again).exits, exits)


@pytest.mark.parametrize("exit_index", [0, 1, 2])
def test_static_sends_all_samples_to_one_exit_also_samples_never_seen(exit_index: int) -> None:
    records = toy_records(samples=50, sharpness=2.0)
    scheduler = Static(exit_index).fit(records, toy_costs())
    unsure = toy_records(samples=500, seed=1, sharpness=0.01)
    for some in (records, unsure):
        decisions = scheduler.replay(some)
        assert (decisions.exits == exit_index).all()
        assert decisions.mean_cost == exit_index + 1
    assert scheduler.planned_cost == scheduler.calibration_cost == exit_index + 1
    assert [scheduler.policy.observes(k) for k in range(3)] == [k in (exit_index, 2) for k in range(3)]


def test_static_keeps_to_the_budget() -> None:
    records = toy_records(samples=50)
    with pytest.raises(InfeasibleBudgetError, match=r"Static\(1\) costs 2 ms per sample, the budget is 1.5") as e:
        Static(1).fit(records, toy_costs(), 1.5)
    assert e.value.smallest == 2.0
    assert Static(1).fit(records, toy_costs(), "70%").calibration_cost == 2.0
    broken = toy_records(samples=50, nonfinite=0.5)
    with pytest.raises(InfeasibleBudgetError, match=r"Static\(0\) costs 1\.\d+ ms per sample"):
        Static(0).fit(broken, toy_costs(), 1.0)
    wrong: list[Any] = [-1, 3, 1.5, "1", True, None]
    for k in wrong:
        with pytest.raises(eenet.EENetError, match=rf"Static\({k!r}\): expected the number of an exit, 0 to 2"):
            Static(k).fit(records, toy_costs())


def test_a_middle_exit_that_is_worse_than_the_first_is_switched_off_by_the_search() -> None:
    logits, labels = toy_logits(samples=400, classes=4)
    logits[1] = np.random.default_rng(0).normal(size=logits[1].shape)  # knows nothing, and is often sure
    records = ExitRecords.from_logits(logits, labels)
    searched = eenet.SearchedThresholds().fit(records, toy_costs(), 2.0, fallback=False)
    geometric = eenet.MaxProbability().fit(records, toy_costs(), 2.0, fallback=False)
    assert searched.replay(records).exit_shares[1] < 0.05
    assert searched.replay(records).accuracy > geometric.replay(records).accuracy + 0.05


def test_patience_counts_first_and_breaks_ties_by_confidence() -> None:
    logits, _ = toy_logits(samples=300, exits=4, classes=3)
    records = ExitRecords.from_logits(logits)
    scheduler = eenet.Patience().fit(records, toy_costs(4), "60%", fallback=False)
    exits = scheduler.replay(records).exits
    history = records.all_evidence()
    for k in range(3):
        there, left = exits >= k, exits == k
        evidence = history[k]
        key = list(zip(evidence.streak, evidence.log_odds, strict=True))
        if left.any() and (there & ~left).any():
            assert min(key[n] for n in np.flatnonzero(left)) > max(key[n] for n in np.flatnonzero(there & ~left))
    np.testing.assert_array_equal(scheduler.replay(records).exits, exits)


def test_costs_other_than_those_fitted_with_can_be_replayed() -> None:
    records = toy_records(samples=60)
    scheduler = eenet.MaxProbability().fit(records, toy_costs(), 2.0, fallback=False)
    flops = ExitCosts([10, 30, 70], "flops")
    here, there = scheduler.replay(records), scheduler.replay(records, flops)
    np.testing.assert_array_equal(here.exits, there.exits)
    np.testing.assert_array_equal(there.sample_costs, flops.values[here.exits])


def test_no_warning_within_the_exits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ReliabilityWarning)  # of ties, of which saturated outputs are full
        for name, make in ALL.items():
            if name == "stopping":  # says that 40 samples are too few
                continue
            make().fit(toy_records(samples=40, sharpness=1e30, nonfinite=0.1), toy_costs(), 2.9, fallback=False)


@pytest.mark.parametrize("name", ["eenet", "max_prob", "patience", "voting", "eero"])
def test_where_the_last_exit_is_worse_more_is_not_spent_and_it_says_so(name: str) -> None:
    logits, labels = toy_logits(1000, classes=5, seed=3)
    records = ExitRecords.from_logits(logits[[0, 2, 1]], labels)  # the second exit is now the best
    fitted = ALL[name]().fit(records, toy_costs(), fallback=False)
    with pytest.warns(ReliabilityWarning, match=r"of the budget of 3 ms only [\d.]+ is spent: on the calibration"):
        scheduler = fitted.at(3.0)
    assert scheduler.calibration_cost < 2.5
    assert scheduler.replay(records).accuracy >= records.accuracies.max() - 0.005
    assert fitted.at(1.5).calibration_cost <= 1.5
    costs = [point.planned_cost for point in fitted.frontier()]
    assert costs == sorted(costs)


def test_a_budget_that_ties_leave_unspent_is_told_of() -> None:
    logits, labels = toy_logits(4, classes=5, seed=3)
    records = ExitRecords.from_logits(np.repeat(logits, 50, axis=1), np.repeat(labels, 50))
    with pytest.warns(
        ReliabilityWarning, match="many samples have the same score; they cannot be split at a threshold"
    ):
        eenet.MaxProbability().fit(records, toy_costs(), 1.9, fallback=False)
