"""ExitCosts: what is accepted, what is refused and how, and what comes back."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from eenet import ExitCosts, ExitRecords, MaxProbability
from eenet.errors import InvalidInputError
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
