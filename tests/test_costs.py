"""ExitCosts: what is accepted, what is refused and how, and what comes back."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eenet import ExitCosts, ExitRecords, MaxProbability, load_costs
from eenet.errors import FileFormatError, InfeasibleBudgetError, InvalidInputError, ReliabilityWarning
from eenet.testing import toy_records


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 3.0, 3.0], r"\[1.0, 3.0, 3.0\] must increase: exit 2 costs 3 after 3; give cumulative costs"),
        ([1.0, 3.0, 2.0], r"must increase: exit 2 costs 2 after 3"),
        ([-1.0, 2.0], r"costs \[-1.0, 2.0\] must be finite and above 0"),
        ([0.0, 2.0], r"must be finite and above 0"),
        ([1.0, np.nan], r"costs \[1.0, nan\] must be finite"),
        ([1.0, np.inf], r"must be finite"),
        ([1.0], r"costs \[1.0\] have 1 exits, expected at least 2"),
        ([], r"have 0 exits"),
        ([[1.0, 2.0]], r"expected a list of numbers, one for each exit"),
        (["1", "2"], r"costs are \['1', '2'\], expected a list of numbers"),
        ([1.0, None], r"expected a list of numbers"),
        (3.0, r"costs are 3.0, expected a list of numbers"),
        ([True, False], r"expected a list of numbers"),
    ],
)
def test_bad_costs_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ExitCosts(values)


@pytest.mark.parametrize("unit", ["", "%", "3ms", "m s", None, 5])
def test_a_unit_is_a_word(unit: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"is not a word; use 'ms', 'cpu_ms', 'flops' or one of your own"):
        ExitCosts([1, 2], unit=unit)


def test_one_spread_for_each_exit() -> None:
    with pytest.raises(InvalidInputError, match=r"spread has shape \(3,\), expected \(2,\): one for each exit"):
        ExitCosts([1, 2], spread=[0.1, 0.1, 0.1])


@pytest.mark.parametrize("plain", [0, -1.0, np.nan, np.inf, True, "3", [3.0]])
def test_the_plain_network_has_one_cost(plain: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"plain is .*, expected the cost of the plain network in ms: one pos"):
        ExitCosts([1, 2], plain=plain)


def test_percentages_are_of_the_plain_network_where_it_is_known() -> None:
    costs = ExitCosts([2.0, 4.0, 5.0], plain=4)
    assert (costs.plain, costs.reference, costs.reference_name) == (4.0, 4.0, "the plain network")
    assert costs.in_words(3.0) == "3 ms (75% of the plain network)"
    assert repr(costs) == "ExitCosts([2, 4, 5], unit='ms', plain=4)"
    without = ExitCosts([2.0, 4.0, 5.0])
    assert (without.plain, without.reference, without.in_words(3.0)) == (None, 5.0, "3 ms (60% of the last exit)")
    assert without != costs


def test_percentiles_are_of_each_exit_and_of_the_plain_network() -> None:
    costs = ExitCosts([1, 2], plain=1.5, percentiles={"p50": [1, 2, 1.5], "p99": np.array([3, 4, 3])})
    assert costs.percentiles == {"p50": (1.0, 2.0, 1.5), "p99": (3.0, 4.0, 3.0)}
    with pytest.raises(
        InvalidInputError, match=r"percentiles\['p50'\] has shape \(3,\), expected \(2,\): one for each"
    ):
        ExitCosts([1, 2], percentiles={"p50": [1, 2, 1.5]})
    with pytest.raises(InvalidInputError, match=r"expected \(3,\): one for each exit, and one for the plain network"):
        ExitCosts([1, 2], plain=1.5, percentiles={"p50": [1, 2]})


def test_costs_that_were_saved_before_the_plain_network_was_measured_load() -> None:
    old: dict[str, Any] = {
        "values": [1.5, 2.5],
        "unit": "ms",
        "batch_size": None,
        "spread": None,
        "device": {},
        "includes": [],
    }
    assert ExitCosts.from_dict(old) == ExitCosts([1.5, 2.5])


def test_one_cost_for_each_exit() -> None:
    with pytest.raises(InvalidInputError, match=r"costs are for 2 exits, the records or the model have 3; give one"):
        MaxProbability().fit(toy_records(samples=10, exits=3), ExitCosts([1, 2]), "60%")
    fitted = MaxProbability().fit(toy_records(samples=10, exits=3), ExitCosts([1, 2, 3]), "60%")
    with pytest.raises(InvalidInputError, match=r"costs are for 4 exits"):
        fitted.replay(toy_records(samples=10, exits=3), ExitCosts([1, 2, 3, 4]))


def test_integers_arrays_and_records_of_any_kind_are_taken() -> None:
    costs = ExitCosts(np.array([10, 20, 40], dtype=np.int32), unit="flops")
    assert (len(costs), costs[1], costs[-1], costs.unit) == (3, 20.0, 40.0, "flops")
    assert repr(costs) == "ExitCosts([10, 20, 40], unit='flops')"
    assert isinstance(toy_records(samples=3), ExitRecords)


def test_values_are_a_copy_that_cannot_be_written() -> None:
    given = np.array([1.0, 2.0])
    costs = ExitCosts(given)
    given[0] = 5
    assert costs[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        costs.values[0] = 5


def test_a_description_in_json_reads_back_equal() -> None:
    costs = ExitCosts(
        [1.5, 2.5], "cpu_ms", batch_size=8, spread=[0.1, 0.2], device={"cpu": "x"}, includes=("heads",), plain=2.0,
        percentiles={"p95": [2, 3, 2.5]},
    )  # fmt: skip
    again = ExitCosts.from_dict(json.loads(json.dumps(costs.to_dict())))
    assert again == costs
    assert again != ExitCosts([1.5, 2.5], "ms")
    other: object = [1.5, 2.5]
    assert again != other
    with pytest.raises(InvalidInputError, match=r"costs need 'unit'; found \['values'\]"):
        ExitCosts.from_dict({"values": [1, 2]})


def test_equal_costs_are_equal_and_have_one_hash_also_after_a_copy_or_a_pickle() -> None:
    costs = ExitCosts([1.5, 2.5], "cpu_ms", batch_size=8, spread=[0.1, 0.2], device={"cpu": "x"}, includes=("heads",))
    unpickled = pickle.loads(pickle.dumps(costs))  # noqa: S301
    for again in (copy.deepcopy(costs), unpickled, ExitCosts.from_dict(costs.to_dict())):
        assert again == costs
        assert hash(again) == hash(costs)
        with pytest.raises(ValueError, match="read-only"):
            again.values[0] = 5
    assert len({costs, ExitCosts([1.5, 2.5]), ExitCosts([1.5, 2.5])}) == 2


def test_costs_within_costs_are_refused() -> None:
    nested: Any = [1, [2, 3]]
    with pytest.raises(InvalidInputError, match=r"costs are \[1, \[2, 3\]\], expected a list of numbers, one for each"):
        ExitCosts(nested)


def test_costs_say_of_which_length_of_inputs_they_are() -> None:
    costs = ExitCosts([1.0, 2.0], device={"processor": "one", "sizes": {"sequence": 32}})
    assert costs.of_inputs == "of inputs of length 32 (sequence); longer ones cost more"
    assert ExitCosts.from_dict(json.loads(json.dumps(costs.to_dict()))).of_inputs == costs.of_inputs
    images = ExitCosts([1.0, 2.0], device={"sizes": {"height": 64, "width": 96}})
    assert images.of_inputs == "of inputs of size 64 (height) and 96 (width); larger ones cost more"
    without: list[dict[str, Any]] = [{}, {"processor": "one"}, {"sizes": {}}]
    for device in without:  # of one size only, or written before this was recorded
        assert ExitCosts([1.0, 2.0], device=device).of_inputs is None


def times_of(samples: Any) -> NDArray[np.float64]:
    """Milliseconds of three stages for these numbers of samples: a fixed part, a part for each, and one that bends."""
    n = np.asarray(samples, dtype=np.float64)
    took = np.array([4.0, 6.0, 2.0]) + n * [0.5, 0.25, 1.0] + np.sqrt(n)
    return np.where(n > 0, took, 0.0)


def in_batches(size: int, numbers: Any = None, **options: Any) -> ExitCosts:
    """Costs with runs of batches of this size; all stages after the first had these numbers of samples."""
    numbers = range(1, size + 1) if numbers is None else numbers
    runs = [([size, n, n], times_of([size, n, n])) for n in numbers]
    return ExitCosts(times_of([size] * 3).cumsum() / size, "ms", batch_size=size, runs=runs, **options)


def test_costs_at_shares_are_the_mean_time_of_batches_divided_by_their_size() -> None:
    shares, size = np.array([0.5, 0.3, 0.2]), 4
    expected = 0.0
    for exits in itertools.product(range(3), repeat=size):
        reached = [sum(exit_index >= k for exit_index in exits) for k in range(3)]
        expected += shares[list(exits)].prod() * times_of(reached).sum() / size
    costs = in_batches(size).at_shares(shares)
    assert float(shares @ costs.values) == pytest.approx(expected)
    assert costs.values[0] == pytest.approx(times_of([4, 1, 1])[0] / 4), "all samples are in the first stage"
    assert (costs.unit, costs.batch_size, costs.runs) == ("ms", size, in_batches(size).runs)


def test_where_all_samples_take_one_exit_the_costs_are_those_of_full_batches() -> None:
    for last in range(3):
        shares = np.eye(3)[last]
        costs = in_batches(8, plain=2.0, percentiles={"p50": [1.0, 2.0, 3.0, 5.0]}).at_shares(shares)
        full = times_of([8, 8, 8]).cumsum() / 8
        np.testing.assert_allclose(costs.values[: last + 1], full[: last + 1])
        np.testing.assert_allclose(costs.static, full)
        assert costs.plain == 2.0
        np.testing.assert_allclose(costs.percentiles["p50"], [*(np.array([1, 2, 3]) * costs.values / full), 5.0])


def test_between_measured_numbers_of_samples_times_lie_on_a_line() -> None:
    shares = [0.4, 0.3, 0.3]
    runs = [([8, n, n], np.array([3.0, 1.0, 2.0]) + np.array([8, n, n]) * 0.5) for n in range(1, 9)]
    all_of_them = ExitCosts([1, 2, 3], batch_size=8, runs=runs).at_shares(shares)
    two = ExitCosts([1, 2, 3], batch_size=8, runs=[runs[0], runs[-1]]).at_shares(shares)
    np.testing.assert_allclose(two.values, all_of_them.values)
    twice = ExitCosts([1, 2, 3], batch_size=8, runs=[runs[0], runs[-1], runs[-1]]).at_shares(shares)
    np.testing.assert_allclose(twice.values, all_of_them.values)


def test_costs_with_runs_come_back_from_json_and_those_without_are_the_same_at_all_shares() -> None:
    costs = in_batches(4)
    assert ExitCosts.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs
    assert copy.deepcopy(costs) == costs
    alone = ExitCosts([1, 2, 3])
    assert alone.at_shares([0.2, 0.3, 0.5]) is alone


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.5, 0.6, 0.5], [-0.5, 1.0, 0.5], [np.nan, 0.5, 0.5]])
def test_shares_are_one_for_each_exit_and_sum_to_one(shares: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="expected 3 numbers from 0 that sum to 1"):
        in_batches(4).at_shares(shares)


@pytest.mark.parametrize("samples", [[4, 4], [4, 4, 0], [4, 5, 1]])
def test_runs_that_cannot_be_of_such_batches_are_refused(samples: list[int]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected 3 each, one for each stage, and from 1 to 4 samples"):
        ExitCosts([1, 2, 3], batch_size=4, runs=[(samples, [1.0, 1.0, 1.0])])
    with pytest.raises(InvalidInputError, match="give their batch_size too"):
        ExitCosts([1, 2, 3], runs=[([4, 4, 4], [1.0, 1.0, 1.0])])


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_budget_is_kept_in_batches_whose_samples_exit_at_different_exits(size: int, share: float) -> None:
    records, fresh = toy_records(samples=4000), toy_records(samples=32000, seed=1)
    costs = in_batches(size, numbers=sorted({1, size // 4, size // 2, size}))
    budget = float(costs[0] + share * (costs[-1] - costs[0]))
    scheduler = MaxProbability().fit(records, costs, budget, fallback=False)

    def spent(scheduler: MaxProbability) -> float:
        exits = scheduler.replay(fresh).exits.reshape(-1, size)
        reached = np.stack([(exits >= k).sum(axis=1) for k in range(3)], axis=1)
        return float(times_of(reached).sum() / exits.size)

    assert spent(scheduler) == pytest.approx(budget, rel=0.02)
    assert scheduler.budget == budget
    assert scheduler.planned_cost == pytest.approx(budget, rel=0.003)
    own = costs.at_shares(scheduler.replay(records).exit_shares)
    np.testing.assert_allclose(scheduler.costs.values, own.values, rtol=0.02)
    full = ExitCosts(costs.values, "ms", batch_size=size)
    assert spent(MaxProbability().fit(records, full, budget, fallback=False)) > 1.02 * budget


def drawn_in_batches(seed: int, samples: int, exits: int, size: int) -> tuple[ExitRecords, ExitCosts, float]:
    """Records, costs with runs, and a budget, all drawn at random."""
    rng = np.random.default_rng(seed)
    fixed, each = rng.uniform(0, 8, exits), rng.uniform(0.1, 1, exits)
    numbers = [np.r_[size, np.sort(rng.integers(1, size + 1, exits - 1))[::-1]] for _ in range(6)]
    runs = [(some, fixed + each * some) for some in (*numbers, np.full(exits, size))]
    costs = ExitCosts((fixed + each * size).cumsum() / size, "ms", batch_size=size, runs=runs)
    budget = float(costs[0] + rng.uniform(0.2, 0.9) * (costs[-1] - costs[0]))
    return toy_records(samples=samples, exits=exits, classes=3, seed=seed), costs, budget


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), samples=st.integers(4, 40), exits=st.integers(2, 3), size=st.sampled_from([2, 4, 8])
)
def test_the_cost_in_batches_is_kept_within_half_a_percent_or_the_fit_warns(
    seed: int, samples: int, exits: int, size: int
) -> None:
    records, costs, budget = drawn_in_batches(seed, samples, exits, size)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            scheduler = MaxProbability().fit(records, costs, budget, fallback=False)
        except InvalidInputError:  # of few samples, such as a budget that cannot be met
            return
    shares = scheduler.replay(records).exit_shares
    planned, spent = (float(one.values @ shares) for one in (scheduler.costs, scheduler.costs.at_shares(shares)))
    warned = [str(one.message) for one in said if "after 6 fits the mean cost in batches" in str(one.message)]
    assert bool(warned) == (abs(spent / planned - 1) > 0.005)
    for message in warned:
        figures = f"is {spent:.6g} ms, {spent / planned - 1:+.1%} from the {planned:.6g} that it was fitted for"
        assert figures in message
        assert (f"a budget that is {1 - planned / spent:.1%} smaller" in message) == (spent > planned)
        assert "full_batches=True" in message


def test_a_fit_in_batches_that_goes_to_and_fro_warns() -> None:
    records, costs, budget = drawn_in_batches(5, 27, 3, 8)
    with pytest.warns(ReliabilityWarning, match=r"after 6 fits the mean cost in batches of its policy is .*\+\d"):
        MaxProbability().fit(records, costs, budget, fallback=False)


def test_a_fit_in_batches_says_what_it_has_to_once() -> None:
    costs = in_batches(8)
    with pytest.warns(ReliabilityWarning, match="above the last exit's cost") as said:
        MaxProbability().fit(toy_records(), costs, 2.0 * costs[-1])
    assert len(said) == 1


def test_another_budget_in_batches_is_fitted_again_in_the_costs_of_its_own_policy() -> None:
    records, costs = toy_records(), in_batches(8)
    low, high = (float(costs[0] + share * (costs[-1] - costs[0])) for share in (0.3, 0.8))
    fitted = MaxProbability().fit(records, costs, low, fallback=False)
    again = fitted.fitted_at(high)
    shares = again.replay(records).exit_shares
    assert float(shares @ costs.at_shares(shares).values) == pytest.approx(high, rel=0.006)
    assert (again.budget, fitted.budget) == (high, low)
    assert fitted.at(high).costs == fitted.costs
    assert abs(again.costs[-1] / fitted.costs[-1] - 1) > 0.02, "of as few samples the last stage costs more for each"
    alone = MaxProbability().fit(records, ExitCosts([1, 2, 3]), 1.5, fallback=False)
    assert alone.fitted_at(2.0) == alone.at(2.0)


def test_a_budget_that_is_not_feasible_in_batches_names_the_smallest_that_is() -> None:
    costs = in_batches(8)
    with pytest.raises(InfeasibleBudgetError, match="the smallest feasible budget is") as caught:
        MaxProbability().fit(toy_records(), costs, 0.5 * costs[0])
    smallest = caught.value.smallest
    assert smallest == costs[0]
    assert MaxProbability().fit(toy_records(), costs, smallest, fallback=False).planned_cost == pytest.approx(smallest)


def test_costs_are_read_from_a_profile_from_one_measurement_and_from_a_recipe(tmp_path: Path) -> None:
    one = ExitCosts([1.0, 2.0, 3.0], "cpu_ms", plain=2.5, batch_size=8)
    tables = {"ms": [[1.0, 2.0, 3.0], [0.5, 1.0, 1.5]], "flops": [[10, 20, 30]] * 2}
    measured = {"batch_sizes": [1, 8], "costs": tables, "spreads": {k: [[0.0] * 3] * 2 for k in tables}}
    files = {}
    for name, data in (("one", one.to_dict()), ("metrics", {"costs": one.to_dict(), "exits": []}), ("many", measured)):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(data), encoding="utf-8")
    assert load_costs(files["one"]) == load_costs(files["metrics"], "cpu_ms") == one
    assert load_costs(files["many"], batch_size=8).values.tolist() == [0.5, 1.0, 1.5]
    flops = load_costs(files["many"], "flops", 1)
    assert (flops.values.tolist(), flops.unit, flops.batch_size) == ([10, 20, 30], "flops", 1)
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("one", {"unit": "ms"}, "are in 'cpu_ms', not in 'ms'"),
        ("many", {}, r"has costs at batch sizes \[1, 8\], no batch size was given; choose one of them"),
        ("many", {"batch_size": 2}, "batch size 2 was given; choose one of them"),
        ("many", {"unit": "joules"}, r"has no costs in 'joules'; there are \['flops', 'ms'\]"),
    ]
    for path, options, said in refusals:
        with pytest.raises(InvalidInputError, match=said):
            load_costs(files[path], **options)
    files["one"].write_text("{}", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"one\.json' is not what eenet profile --json prints"):
        load_costs(files["one"])
