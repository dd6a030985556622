"""Budgets: how they are written, and what is said about those that cannot be."""

from __future__ import annotations

import decimal
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eenet
from eenet.costs import ExitCosts, parse_budget
from eenet.errors import EENetError, InfeasibleBudgetError, InvalidInputError, NotFittedError, ReliabilityWarning
from eenet.testing import toy_costs, toy_records

COSTS = ExitCosts([2.0, 4.0, 5.0], unit="ms")


@pytest.mark.parametrize(
    ("budget", "value"),
    [
        (3.5, 3.5),
        (3, 3.0),
        (np.float32(3.5), 3.5),
        (np.int64(4), 4.0),
        ("3.5ms", 3.5),
        (" 3.5 MS ", 3.5),
        ("+3.5ms", 3.5),
        ("35e-1ms", 3.5),
        ("3500us", 3.5),
        ("3500 \u00b5s", 3.5),  # the micro sign, and the Greek letter
        ("3500\u03bcs", 3.5),
        ("0.0035s", 3.5),
        ("0.0035 seconds", 3.5),
        ("3.5e6ns", 3.5),
        ("60%", 3.0),
        ("60 %", 3.0),
        ("100%", 5.0),
        ("40%", 2.0),
        (2.0, 2.0),
        (5.0, 5.0),
    ],
)
def test_good_budgets(budget: Any, value: float) -> None:
    assert parse_budget(budget, COSTS) == pytest.approx(value, rel=1e-12)


NO_NUMBER = r"is not a number; give a number in ms, '60%', or '3ms'"
NOT_POSITIVE = r"is not a positive, finite number; try '60%' or 3"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (float("nan"), "budget nan " + NOT_POSITIVE),
        (float("inf"), "budget inf " + NOT_POSITIVE),
        (0, "budget 0 " + NOT_POSITIVE),
        (-3.5, "budget -3.5 " + NOT_POSITIVE),
        ("-60%", "budget '-60%' " + NOT_POSITIVE),
        ("0ms", NOT_POSITIVE),
        ("nan%", NOT_POSITIVE),
        ("nan ms", NOT_POSITIVE),
        ("1e999ms", NOT_POSITIVE),
        (
            "3.5cpu_ms",
            r"budget '3.5cpu_ms' is in 'cpu_ms', the costs are in 'ms'; give a number in ms, '60%', or '3ms'",
        ),
        ("3.5flops", r"is in 'flops', the costs are in 'ms'"),
        ("60", r"budget '60' is text without a unit; write '60%' for a share of the last exit, or '60ms'"),
        ("0.6", r"budget '0.6' is text without a unit; write '60%' for a share of the last exit, or '0.6ms'"),
        ("p95<5ms", r"'p95<5ms' limits a percentile, and a budget is the mean cost per sample: .* give a number in ms"),
        ("p99 5ms", r"limits a percentile, and a budget is the mean .* eenet plan --p99-ms"),
        ("5 ms p99.9", r"limits a percentile, and a budget is the mean"),
        ("95th percentile of 5 ms", r"limits a percentile, and a budget is the mean"),
        (
            "60% of plain",
            r"is a share of the plain network, whose cost is not known: measure it with eenet.profile, or give it, "
            r"ExitCosts\(..., plain=...\) or --plain; a share of the last exit is '60%'",
        ),
        ("60% of plane", r"cannot be read"),
        ("", r"budget '' cannot be read; give"),
        ("fast", r"budget 'fast' cannot be read; give a number in ms"),
        ("60%%", r"cannot be read"),
        ("3,5ms", r"cannot be read"),
        ("0x3ms", r"cannot be read|is in"),
        ("\u0663ms", r"cannot be read"),
        (True, "budget True " + NO_NUMBER),
        (np.True_, NO_NUMBER),
        (None, "budget None " + NO_NUMBER),
        (b"3", NO_NUMBER),
        ([3.0], NO_NUMBER),
        (3j, NO_NUMBER),
        (decimal.Decimal(3), NO_NUMBER),
    ],
)
def test_bad_budgets(budget: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_budget(budget, COSTS)


def test_a_scheduler_that_spends_needs_a_budget_to_decide() -> None:
    fitted = eenet.MaxProbability().fit(toy_records(samples=10), toy_costs())
    with pytest.raises(NotFittedError, match=r"fitted for all budgets: choose one with .at\(budget\), such as"):
        fitted.replay(toy_records(samples=10))


@pytest.mark.parametrize("budget", [1.99, "39%", "1.5ms", 1e-9])
def test_below_the_first_exit_names_the_smallest_feasible(budget: Any) -> None:
    message = r"below the first exit's cost: the smallest feasible budget is 2 ms"
    with pytest.raises(InfeasibleBudgetError, match=message) as e:
        parse_budget(budget, COSTS)
    assert e.value.smallest == 2.0
    assert isinstance(e.value, EENetError)
    assert isinstance(e.value, ValueError)


@pytest.mark.parametrize(
    ("unit", "budget", "value"),
    [
        ("flops", "250 MFLOPs", 250e6),
        ("flops", "0.25gflops", 250e6),
        ("MFLOPs", "0.25 GFLOPs", 250.0),
        ("cpu_ms", "250000cpu_us", 250.0),
        ("s", "250000ms", 250.0),
        ("Joule", "250joule", 250.0),
    ],
)
def test_units_of_the_same_kind_are_converted(unit: str, budget: str, value: float) -> None:
    costs = ExitCosts([value / 2, 2 * value], unit=unit)
    assert parse_budget(budget, costs) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "budget"),
    [
        ("cpu_ms", "3ms"),
        ("cpu_ms", "3s"),
        ("flops", "3ms"),
        ("joule", "3kjoule"),
        ("ms", "3 cpu_us"),
        ("Ms", "3flops"),
    ],
)
def test_units_of_another_kind_are_refused(unit: str, budget: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"is in '.*', the costs are in '{unit}'; give a number in {unit}"):
        parse_budget(budget, ExitCosts([1.0, 5.0], unit=unit))


def test_a_number_that_is_probably_a_share_is_answered_with_the_percentage() -> None:
    hint = r"; if you mean a share of the last exit, write '60%'$"
    with pytest.raises(InfeasibleBudgetError, match=hint):
        parse_budget(0.6, COSTS)
    with pytest.warns(ReliabilityWarning, match=hint):
        parse_budget(60, COSTS)
    for budget in (1.5, "0.6ms", "0.6%"):
        with pytest.raises(InfeasibleBudgetError, match=r"smallest feasible budget is 2 ms, or 40% of the last exit$"):
            parse_budget(budget, COSTS)
    with pytest.warns(ReliabilityWarning, match=r"budget '3.5s' is 3500 ms, above the last exit's .* cannot be spent$"):
        parse_budget("3.5s", COSTS)


@pytest.mark.parametrize(
    ("budget", "value"),
    [
        ("60%", 2.7),
        ("60% of plain", 2.7),
        ("60 % of the plain network's cost", 2.7),
        ("60% of last", 3.0),
        ("60% OF THE LAST EXIT", 3.0),
        ("3ms", 3.0),
    ],
)
def test_a_percentage_is_of_the_plain_network_where_that_is_known(budget: str, value: float) -> None:
    costs = ExitCosts([2.0, 4.0, 5.0], unit="ms", plain=4.5)
    assert parse_budget(budget, costs) == pytest.approx(value, rel=1e-12)
    assert eenet.MaxProbability().fit(toy_records(samples=10), costs, budget).budget == pytest.approx(value)
    assert eenet.MaxProbability().fit(toy_records(samples=10), costs).at(budget).budget == pytest.approx(value)


def test_messages_say_what_a_percentage_is_of() -> None:
    costs = ExitCosts([2.0, 4.0, 5.0], unit="ms", plain=4.5)
    message = r"'30%' is 30% of the plain network, 1.35 ms, below .* budget is 2 ms, or 44.5% of the plain network$"
    with pytest.raises(InfeasibleBudgetError, match=message):
        parse_budget("30%", costs)
    assert parse_budget("44.5%", costs) >= 2.0, "what a message names is feasible as it is written"
    with pytest.raises(InfeasibleBudgetError, match=r"'30% of last' is 30% of the last exit, 1.5 ms, below"):
        parse_budget("30% of last", costs)
    with pytest.warns(ReliabilityWarning, match=r"'120%' is 120% of the plain network, 5.4 ms, above the last exit's"):
        parse_budget("120%", costs)
    hint = r"; if you mean a share of the plain network, write '60%'$"
    with pytest.raises(InfeasibleBudgetError, match=hint):
        parse_budget(0.6, costs)


def test_all_of_a_plain_network_that_costs_more_than_the_last_exit_is_no_reason_to_warn() -> None:
    costs = ExitCosts([2.0, 4.0, 5.0], unit="ms", plain=5.1)  # the early heads take 2% less than the noise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_budget("100%", costs) == 5.1
        assert (eenet.MaxProbability().fit(toy_records(), costs, "100%").replay(toy_records()).exits == 2).all()
    with pytest.warns(ReliabilityWarning, match="above the last exit's cost"):
        parse_budget(5.1, costs)


def test_above_the_last_exit_says_so_and_works() -> None:
    records = toy_records(samples=50)
    with pytest.warns(ReliabilityWarning, match=r"budget 7.5 is above the last exit's cost of 3 ms: all of it cannot"):
        fitted = eenet.MaxProbability().fit(records, toy_costs(), 7.5)
    assert fitted.budget == 7.5
    assert (fitted.planned_cost, fitted.calibration_cost) == (3.0, 3.0)
    assert (fitted.replay(records).exits == 2).all()


@given(fraction=st.floats(0, 1), first=st.floats(1e-6, 1e12), gap=st.floats(1e-6, 1e3))
def test_a_feasible_number_is_taken_as_it_is(fraction: float, first: float, gap: float) -> None:
    costs = ExitCosts([first, first * (1 + gap)])
    budget = min(first + fraction * (costs[-1] - first), costs[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_budget(budget, costs) == budget


def test_rounding_below_the_first_exit_is_forgiven() -> None:
    costs = ExitCosts([0.1 + 0.2, 1.0])
    records = toy_records(samples=20, exits=2)
    fitted = eenet.MaxProbability().fit(records, costs, 0.3 * (1 - 1e-13))
    assert fitted.budget == costs[0]
    assert (fitted.replay(records).exits == 0).all()
