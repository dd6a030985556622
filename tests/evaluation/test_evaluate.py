"""The one table of what a scheduler does: what its rows are, and at which cost they are compared."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eenet
from eenet import ExitCosts, ExitRecords, MaxProbability, Static
from eenet.errors import FallbackWarning, InvalidInputError, ReliabilityWarning
from eenet.evaluation import compare, evaluate, oracle, random_mixture
from eenet.testing import toy_records

COSTS = ExitCosts([1.0, 2.0, 3.0], plain=2.8)
BUDGET = 0.6 * 2.8
CALIBRATION, FRESH = toy_records(seed=0), toy_records(seed=1)
FITTED = MaxProbability().fit(CALIBRATION, COSTS, "60%")


def test_rows_from_the_plain_network_to_the_policy() -> None:
    table = evaluate(FITTED, FRESH)
    assert [row.kind for row in table.rows] == [
        "plain", "exit", "exit", "exit", "single", "mixture", "oracle", "planned", "calibration", "held_out"
    ]  # fmt: skip
    assert (table.samples, table.held_out) == (600, True)
    assert table.budget == pytest.approx(BUDGET)
    plain, *exits = table.rows[:4]
    for k, row in enumerate(exits):
        assert row.cost == COSTS[k]
        assert row.share == pytest.approx(COSTS[k] / 2.8)
        assert row.accuracy == pytest.approx(FRESH.accuracies[k])
        assert row.accuracy_error == pytest.approx(FRESH.require_utility()[k].std() / np.sqrt(600), rel=1e-5)
    assert (plain.cost, plain.share, plain.speed_up, plain.accuracy) == (2.8, 1.0, 1.0, exits[-1].accuracy)
    decisions = FITTED.replay(FRESH)
    held_out = table.row("held_out")
    assert held_out.cost == pytest.approx(decisions.mean_cost)
    assert held_out.accuracy == pytest.approx(decisions.accuracy)
    assert held_out.cost_error == pytest.approx(decisions.sample_costs.std() / np.sqrt(600))
    assert held_out.exit_shares == tuple(decisions.exit_shares.tolist())
    assert held_out.speed_up == pytest.approx(2.8 / decisions.mean_cost)
    assert table.row("planned").cost == FITTED.planned_cost
    assert table.row("calibration").cost == FITTED.calibration_cost
    assert table.row("calibration").accuracy == FITTED.replay(CALIBRATION).accuracy


def test_a_row_of_one_exit_for_all_costs_what_full_batches_do() -> None:
    # In the policy's own costs the few samples that are left make the last exit many times as expensive.
    runs = [([8, n, n], [6.0, 4 + 0.5 * n, 8 + 0.25 * n]) for n in range(1, 9)]
    costs = ExitCosts([0.75, 1.75, 3.0], "ms", batch_size=8, runs=runs, plain=2.8)
    scheduler = MaxProbability().fit(CALIBRATION, costs, "45%", fallback=False)
    assert scheduler.costs[-1] > 1.2 * 3.0
    table = evaluate(scheduler, FRESH)
    assert [row.cost for row in table.rows[1:4]] == pytest.approx([0.75, 1.75, 3.0])
    assert table.row("held_out").cost == scheduler.replay(FRESH).mean_cost, "the policy's row is in its own"
    mixture = random_mixture(FRESH, costs, scheduler.budget)
    assert table.row("mixture").accuracy == pytest.approx(mixture.accuracy)
    statics = compare(FRESH, scheduler.costs, ["max_prob"], ["45%"], resplits=2).statics
    assert [one.cost for one in statics[:3]] == pytest.approx([0.75, 1.75, 3.0])


def test_the_loss_against_the_last_exit_stands_beside_what_was_promised_of_it() -> None:
    def said_of(scheduler: eenet.Scheduler) -> str:
        decisions = scheduler.replay(FRESH)
        assert decisions.utility is not None
        pairs = decisions.utility.astype(float) - FRESH.require_utility()[-1]
        error = pairs.std() / np.sqrt(len(pairs))
        said = f"same samples: {100 * pairs.mean():+.2f} ± {100 * error:.2f} points"
        (note,) = [one for one in evaluate(scheduler, FRESH).notes if said in one]
        return note

    assert said_of(FITTED).endswith("points.")
    large = toy_records(3000, seed=2)
    asked = MaxProbability().fit(large, COSTS, max_accuracy_drop=0.05)
    sure = MaxProbability().fit(large, COSTS, max_accuracy_drop=0.05, guarantee=0.9)
    mean = MaxProbability().fit(large, COSTS, max_accuracy_drop=0.05, guarantee="mean")
    assert said_of(asked).endswith("; at most 5.00 points of loss were promised, 0.95 sure.")
    assert said_of(sure).endswith("; at most 5.00 points of loss were promised, 0.9 sure.")
    assert said_of(mean).endswith("; at most 5.00 points of loss were promised on average over calibrations.")


def test_bounds_are_taken_at_the_budget_and_not_at_the_realized_cost() -> None:
    # Case S2: all samples leave at the first exit, which says nothing, and an oracle at that cost knew nothing either.
    budget = 2.5
    lazy = Static(0).fit(FRESH, COSTS, budget)
    table = evaluate(lazy, FRESH)
    assert table.row("held_out").cost == 1.0
    assert table.row("oracle").accuracy == oracle(FRESH, COSTS, budget).accuracy > oracle(FRESH, COSTS, 1.0).accuracy
    assert table.row("mixture").accuracy == random_mixture(FRESH, COSTS, budget).accuracy
    assert table.row("single").cost == 2.0
    assert table.row("single").accuracy == pytest.approx(FRESH.accuracies[1])
    assert table.row("held_out").accuracy == pytest.approx(FRESH.accuracies[0]), "that it is lazy cannot be overlooked"


@settings(max_examples=25)
@given(seed=st.integers(0, 99), share=st.floats(0, 1), exits=st.integers(2, 4))
def test_what_is_in_the_budget_costs_at_most_the_budget_and_bounds_are_in_order(
    seed: int, share: float, exits: int
) -> None:
    records = toy_records(samples=40, exits=exits, seed=seed)
    costs = ExitCosts(np.arange(1.0, exits + 1) ** 2, plain=exits**2 * 0.9)
    budget = costs[0] + share * (costs[-1] - costs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        table = evaluate(MaxProbability().fit(records, costs, budget), calibration=records)
    single, mixture, best = (table.row(kind) for kind in ("single", "mixture", "oracle"))
    for row in (single, mixture, best, table.row("calibration")):
        assert row.cost <= budget * (1 + 1e-9)
    low, middle, high = (row.accuracy or 0.0 for row in (single, mixture, best))
    assert low <= middle + 1e-9
    best_of_exits = random_mixture(records, ExitCosts(costs.values), budget).accuracy
    assert best_of_exits <= high + 1 / 40, "a mixture may divide a sample, the oracle does not"
    assert best_of_exits <= middle + 1e-9
    assert (table.row("calibration").accuracy or 0.0) <= high + 1e-9
    assert table.held_out is False


def test_a_budget_above_the_last_exit_is_compared_at_the_last_exit() -> None:
    with pytest.warns(ReliabilityWarning, match="above the last exit"):
        fitted = MaxProbability().fit(CALIBRATION, COSTS, 4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(fitted, FRESH).row("mixture").cost <= 3.0


def test_all_budgets_from_the_cheapest_to_the_most_expensive() -> None:
    fitted = MaxProbability().fit(CALIBRATION, COSTS)
    table = evaluate(fitted, FRESH)
    rows = [row for row in table.rows if row.kind == "frontier"]
    budgets = [row.budget for row in rows if row.budget is not None]
    assert budgets[0] == 1.0
    assert budgets[-1] == 3.0
    assert budgets == sorted(set(budgets))
    for row in rows:
        assert row.budget is not None
        assert row.accuracy == fitted.at(row.budget).replay(FRESH).accuracy
    assert table.budget is None
    assert "for all budgets" in str(table)
    with pytest.raises(InvalidInputError, match=r"no row 'oracle'; there are \['exit', 'frontier', 'plain'\]"):
        table.row("oracle")


def test_printed_it_says_what_percentages_are_of() -> None:
    text = str(evaluate(FITTED, FRESH))
    assert text.startswith(
        "MaxProbability for a budget of 1.68 ms (60% of the plain network), on 600 held-out samples\n"
    )
    for word in (
        "of plain",
        "plain network",
        "exit 2 (last)",
        "best in budget: exit 0",
        "best mixture: exit 0, exit 1",
        "107.1%",
        "±",
    ):
        assert word in text
    spent, planned = evaluate(FITTED, FRESH).row("held_out"), FITTED.planned_cost
    said = f"{spent.cost:.4g} ± {spent.cost_error:.2g} ms of a budget of 1.68 ms; {planned:.4g} ms was planned."
    assert f"Held-out cost: {said}" in text
    assert "Trained without exits it may have another" in text
    assert text.replace("<", "&lt;").count("%") > 10
    without = str(evaluate(MaxProbability().fit(CALIBRATION, ExitCosts([1, 2, 3]), "60%"), FRESH))
    assert "1.8 ms (60% of the last exit)" in without
    assert "The plain network's cost is not known, so shares are of the last exit" in without
    assert "of plain" not in without


def test_as_data_and_in_a_notebook() -> None:
    table = evaluate(FITTED, FRESH, calibration=CALIBRATION)
    data = json.loads(json.dumps(table.to_dict()))
    assert data["shares_of"] == "the plain network"
    assert len(data["rows"]) == len(table.rows)
    assert data["rows"][0]["speed_up"] == 1.0
    page = table._repr_html_()
    assert page.count("<tr>") == len(table.rows) + 1
    assert table.row("calibration").accuracy_error is not None


def test_records_without_labels_have_costs_and_shares() -> None:
    unlabeled = ExitRecords(FRESH.probabilities, FRESH.predictions)
    table = evaluate(FITTED, unlabeled)
    assert {row.kind for row in table.rows} == {"plain", "exit", "planned", "calibration", "held_out"}
    assert table.row("held_out").accuracy is None
    assert table.row("held_out").cost == pytest.approx(FITTED.replay(FRESH).mean_cost)
    assert "have no labels" in str(table)


def test_what_is_known_of_the_calibration_is_saved(tmp_path: object) -> None:
    path = f"{tmp_path}/scheduler.safetensors"
    FITTED.save(path)
    loaded = eenet.load_scheduler(path)
    assert loaded.calibration_accuracy == FITTED.calibration_accuracy == FITTED.replay(CALIBRATION).accuracy
    assert evaluate(loaded, FRESH) == evaluate(FITTED, FRESH)


@pytest.mark.parametrize("budget", ["60%", None])
def test_records_that_it_was_fitted_to_are_not_called_held_out(tmp_path: object, budget: str | None) -> None:
    fitted = MaxProbability().fit(CALIBRATION, COSTS, budget)
    fitted.save(f"{tmp_path}/scheduler.safetensors")
    loaded = eenet.load_scheduler(f"{tmp_path}/scheduler.safetensors")
    loaded.save(f"{tmp_path}/again.safetensors")
    shuffled = CALIBRATION.subset(np.random.default_rng(0).permutation(len(CALIBRATION)))
    for scheduler in (fitted, loaded, loaded.at("80%"), eenet.load_scheduler(f"{tmp_path}/again.safetensors")):
        for records in (CALIBRATION, shuffled):
            table = evaluate(scheduler, records)
            text = str(table)
            assert not table.held_out
            assert f"on the {len(CALIBRATION)} samples that it was fitted on\n" in text
            assert text.count("this says nothing about fresh data") == 1
            assert not re.search("held.out", text, re.IGNORECASE)
        for records in (FRESH, CALIBRATION.subset(np.arange(len(CALIBRATION) - 1))):
            table = evaluate(scheduler, records)
            assert table.held_out
            assert "fitted on" not in str(table)
    if budget is not None:
        table = evaluate(loaded, CALIBRATION)
        assert f"Cost on the samples that it was fitted on: {table.row('held_out').cost:.4g} ± " in str(table)


def test_records_of_other_exits_or_none_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"there are no records; give held_out=..., or calibration="):
        evaluate(FITTED)
    with pytest.raises(InvalidInputError, match="costs are for 3 exits, the records or the model have 2"):
        evaluate(FITTED, toy_records(exits=2))


def test_an_exit_that_says_nothing_is_shown_as_left_out() -> None:
    # Case S2: a head that gives one answer to all samples.
    records = toy_records(samples=300)
    probabilities = records.probabilities.copy()
    probabilities[0] = np.eye(5, dtype=np.float32)[4]
    dead = ExitRecords.from_probabilities(probabilities, records.labels)
    with pytest.warns(FallbackWarning, match="exit 0 says nothing"):
        table = evaluate(MaxProbability().fit(dead, COSTS, 2.5), calibration=dead)
    assert [row.name for row in table.rows if row.kind == "exit"] == ["exit 0 (left out)", "exit 1", "exit 2 (last)"]
    assert "Left out: exit 0 says nothing" in str(table)
    assert (table.row("calibration").exit_shares or (1,))[0] == 0


def test_a_simple_rule_in_the_place_of_the_method_is_shown() -> None:
    records = toy_records(samples=300, exits=2)
    probabilities = records.probabilities[[0, 1, 1]]  # the last exit says what the one before says, for much more
    same = ExitRecords.from_probabilities(probabilities, records.labels)
    with pytest.warns(FallbackWarning, match=r"Static\(1\)"):
        fitted = MaxProbability().fit(same, ExitCosts([0.1, 0.5, 10]), 3)
    table = evaluate(fitted, calibration=same)
    assert fitted.fallback is not None
    assert table.row("out_of_fold").accuracy == fitted.fallback.accuracy
    assert "Static(1)" in table.notes[0]
    assert str(table).startswith(
        "Static(1), in place of MaxProbability, for a budget of 3 ms (30% of the last exit), on"
    )
    assert (table.instead, table.to_dict()["instead"]) == ("Static(1)", "Static(1)")
    assert str(table).count("and is used instead") == 1


def test_what_is_no_time_says_what_shares_are_in() -> None:
    for unit, shown in (("flops", "FLOPs"), ("cents", "cents")):
        fitted = MaxProbability().fit(CALIBRATION, ExitCosts([1, 2, 3], unit, plain=2.8), 1.5)
        assert f"of plain, in {shown}  cheaper, in {shown}" in str(evaluate(fitted, FRESH))
    assert "of plain  speed" in str(evaluate(FITTED, FRESH))


def test_the_plain_network_is_the_best_where_the_budget_allows_it() -> None:
    # It has the last exit's answers at less cost, so whoever may spend that needs no policy to have them.
    fitted = MaxProbability().fit(CALIBRATION, COSTS, "100%", fallback=False)
    table = evaluate(fitted, FRESH)
    single, plain = table.row("single"), table.row("plain")
    assert single.name == "best in budget: plain"
    assert (single.cost, single.accuracy, single.accuracy_error) == (2.8, plain.accuracy, plain.accuracy_error)
    assert table.row("mixture").name == "best mixture: plain"
    assert table.row("mixture").accuracy == pytest.approx(FRESH.accuracies[-1])
    below = evaluate(fitted.at(2.5), FRESH).row("mixture")
    assert below.name == "best mixture: exit 1, plain"
    assert below.accuracy == pytest.approx((0.3 * FRESH.accuracies[1] + 0.5 * FRESH.accuracies[2]) / 0.8)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"max_error": 0.04},
            "Asked for: an error of at most 4.00% of those that are answered. As many are handed back",
        ),
        ({"abstain": 0.1}, "Asked for: at most 10.00% handed back."),
        ({"abstain": 0.1, "budget": 2.7}, "Asked for: at most 10.00% handed back."),
    ],
)
def test_a_table_of_a_policy_that_may_abstain_shows_what_is_handed_back(
    asked: dict[str, Any], said: str, tmp_path: Path
) -> None:
    scheduler = MaxProbability().fit(CALIBRATION, COSTS, **asked)
    scheduler.save(tmp_path / "s.safetensors")
    for table, records in (
        (evaluate(scheduler, calibration=CALIBRATION), CALIBRATION),
        (evaluate(eenet.load_scheduler(tmp_path / "s.safetensors"), FRESH), FRESH),
    ):
        rows = [row for row in table.rows if row.kind in ("frontier", "held_out", "calibration")]
        decided = [(scheduler if row.budget is None else scheduler.at(row.budget)).replay(records) for row in rows]
        for row, decisions in zip(rows, decided, strict=True):
            if row.kind == "calibration" and records is FRESH:
                decisions = scheduler.replay(CALIBRATION)
            assert row.handed_back == decisions.handed_back
            assert row.accuracy == pytest.approx(decisions.accuracy)
            line = next(line for line in str(table).splitlines() if line.startswith(row.name))
            assert f" {100 * decisions.handed_back:.2f}" in line
        assert any(row.handed_back for row in rows)
        assert "back %" in str(table)
        assert said in str(table)
        described = table.to_dict()
        assert (described["abstain"], described["max_error"]) == (asked.get("abstain"), asked.get("max_error"))
    assert "back %" not in str(evaluate(FITTED, FRESH))
    points = scheduler.frontier()
    assert [p.handed_back for p in points] == [
        pytest.approx(scheduler.at(p.budget).replay(CALIBRATION).handed_back) for p in points
    ]
    assert eenet.load_scheduler(tmp_path / "s.safetensors").frontier() == points


def test_a_comparison_shows_what_a_scheduler_of_ones_own_hands_back() -> None:
    class Careful(MaxProbability):
        """Hands back a tenth."""

        def fit(self, *args: Any, **options: Any) -> Careful:
            return super().fit(*args, **options, abstain=0.1)

    found = compare(CALIBRATION, COSTS, {"careful": Careful, "all": MaxProbability}, [2.7], resplits=1)
    careful, every = found.rows
    assert careful.handed_back is not None
    assert careful.handed_back > 0.02
    assert every.handed_back == 0.0
    assert f"{100 * careful.handed_back:.2f}\n" in found.to_text()
    assert found.to_dict()["rows"][0]["handed_back"] == careful.handed_back


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"max_error": 0.04}, "max_error=0.04 cannot be kept at this budget"),
        ({"max_error": 0.06, "abstain": 0.0001}, "abstain=0.0001 is not enough for max_error=0.06"),
        ({"max_accuracy_drop": 1e-4}, "max_accuracy_drop=0.0001 cannot be guaranteed"),
    ],
)
def test_what_a_scheduler_of_ones_own_cannot_do_is_a_row_with_a_reason(asked: dict[str, Any], reason: str) -> None:
    class Own(MaxProbability):
        """Asks for what cannot always be done."""

        def fit(self, *args: Any, **options: Any) -> Own:
            return super().fit(*args, **(options | asked))

    found = compare(CALIBRATION, COSTS, {"all": MaxProbability, "own": Own}, [1.05, 2.7], resplits=2)
    alone = compare(CALIBRATION, COSTS, {"all": MaxProbability}, [1.05, 2.7], resplits=2)
    assert [r.accuracy for r in found.rows if r.scheduler == "all"] == [r.accuracy for r in alone.rows]
    reasons = [row.reason for row in found.rows if row.scheduler == "own"]
    assert any(reason in str(one) for one in reasons)
    refused = next(row for row in found.rows if row.reason)
    assert (refused.accuracy, refused.held_out_cost, refused.handed_back) == (None, None, None)
    assert "of the fits: own at 1.05" in found.to_text()
    assert reason in found.to_text()
    with pytest.raises(eenet.errors.InfeasibleError):
        Own().fit(CALIBRATION, COSTS, fallback=False).at(1.05)


def test_the_error_of_an_accuracy_is_of_the_samples_that_are_answered() -> None:
    class Careful(MaxProbability):
        """Hands back a third."""

        def fit(self, *args: Any, **options: Any) -> Careful:
            return super().fit(*args, **options, abstain=0.33)

    found = compare(CALIBRATION, COSTS, {"careful": Careful, "all": MaxProbability}, [2.9], held_out=FRESH, resplits=1)
    row = found.rows[0]
    assert row.accuracy is not None
    assert row.handed_back is not None
    assert row.handed_back > 0.2
    answered = len(FRESH) * (1 - row.handed_back)
    error = found.accuracy_error("careful", 2.9)
    assert error == pytest.approx(np.sqrt(row.accuracy * (1 - row.accuracy) / answered), rel=0.1)
    assert found.differences("all")[0].standard_error > 0


def test_a_report_shows_a_scheduler_where_it_can_do_what_is_asked() -> None:
    scheduler = MaxProbability().fit(CALIBRATION, COSTS, max_error=0.04, fallback=False)
    charts = dict(eenet.report(FRESH, costs=COSTS, schedulers={"careful": scheduler}, budgets=5, draws=0).charts)
    frames = charts["reliability"]["frames"]["careful"]
    assert [frame is None for frame in frames] == [True, True, True, False, False]


def test_the_samples_that_test_a_guarantee_are_named_so_and_no_others_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        scheduler = eenet.OptimalStopping().fit(CALIBRATION, COSTS, 2.5, guarantee=0.9)
    fitted, later = evaluate(scheduler, calibration=CALIBRATION), evaluate(scheduler, FRESH)
    every = scheduler.replay(CALIBRATION)
    assert fitted.row("calibration").cost == pytest.approx(every.mean_cost)
    assert fitted.row("calibration").accuracy == pytest.approx(every.accuracy)
    assert fitted.row("tested").cost == scheduler.calibration_cost != pytest.approx(every.mean_cost)
    assert later.row("tested") == fitted.row("tested")
    assert "calibration" not in {row.kind for row in later.rows}, "only all the calibration records are called so"
    assert "Tested: the samples that the guarantee was tested on" in str(later)
