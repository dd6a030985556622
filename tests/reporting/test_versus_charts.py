"""Sections 5 and 6 of a report: differences in pairs at the same cost, fates, and the paper's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused
from report_results import COSTS, profile, write_results

import eenet
from eenet.errors import InvalidInputError
from eenet.scheduler import Decisions, Scheduler
from eenet.testing import toy_costs, toy_records

BUDGETS = 6


@pytest.fixture(scope="module")
def schedulers() -> dict[str, Scheduler]:
    kinds = {"Max probability": eenet.MaxProbability(), "Entropy": eenet.Entropy(), "Patience": eenet.Patience()}
    return {title: scheduler.fit(toy_records(), toy_costs(), fallback=False) for title, scheduler in kinds.items()}


@pytest.fixture(scope="module")
def made(schedulers: dict[str, Scheduler]) -> eenet.reporting.Report:
    records = toy_records(400, seed=4)
    return eenet.report(records, costs=toy_costs(), schedulers=schedulers, budgets=BUDGETS, draws=0)


def replays(made: Any, schedulers: dict[str, Scheduler], title: str) -> list[Decisions]:
    records = toy_records(400, seed=4)
    return [schedulers[title].at(budget).replay(records) for budget in made.data["runs"][0]["budgets"]]


def test_differences_are_to_the_reference_at_the_same_cost(made: Any, schedulers: dict[str, Scheduler]) -> None:
    chart = dict(made.charts)["differences"]
    theirs = replays(made, schedulers, "Max probability")
    costs, accuracies = [one.mean_cost for one in theirs], [one.accuracy for one in theirs]
    for series in chart["series"]:
        mine = [one for one in replays(made, schedulers, series["name"]) if one.mean_cost <= costs[-1]]
        assert series["x"] == pytest.approx([one.mean_cost for one in mine])
        expected = [one.accuracy - np.interp(one.mean_cost, costs, accuracies) for one in mine]
        assert series["y"] == pytest.approx(expected, abs=1e-9)
        assert chart["overall"][series["name"]]["mean"] == pytest.approx(np.mean(expected), abs=1e-9)


def test_the_error_of_a_difference_is_that_of_samples_drawn_again(made: Any, schedulers: dict[str, Scheduler]) -> None:
    chart = dict(made.charts)["differences"]
    theirs, mine = (replays(made, schedulers, title) for title in ("Max probability", "Patience"))
    series = next(one for one in chart["series"] if one["name"] == "Patience")
    number = 2
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        rows = rng.integers(0, 400, 400)
        costs = [one.sample_costs[rows].mean() for one in theirs]
        means = [one.utility[rows].mean() for one in theirs if one.utility is not None]
        one = mine[number]
        assert one.utility is not None
        found.append(one.utility[rows].mean() - np.interp(one.sample_costs[rows].mean(), costs, means))
    half = (series["high"][number] - series["low"][number]) / 2
    assert half / 2 == pytest.approx(np.std(found), rel=0.25)


def test_a_scheduler_cannot_be_told_from_itself(schedulers: dict[str, Scheduler]) -> None:
    twice = {"one": schedulers["Entropy"], "two": schedulers["Entropy"]}
    made = eenet.report(toy_records(150, seed=4), costs=toy_costs(), schedulers=twice, budgets=4, draws=0)
    charts, section = dict(made.charts), made.data["runs"][0]["sections"][4]
    assert charts["differences"]["series"][0]["y"] == pytest.approx([0.0] * 4)
    assert all(np.sum([one["values"] for one in frame["series"]]) == 0 for frame in charts["fates"]["frames"]["one"])
    assert section["tables"] == []
    assert any(note.startswith("Not to be told from one") and "two (+0.00" in note for note in section["notes"])


def test_fates_add_up_to_the_difference_in_accuracy(made: Any, schedulers: dict[str, Scheduler]) -> None:
    chart = dict(made.charts)["fates"]
    for title in schedulers:
        theirs = replays(made, schedulers, title)
        for number, frame in enumerate(chart["frames"][title]):
            values = {one["name"]: one["values"] for one in frame["series"]}
            assert frame["categories"] == [other for other in schedulers if other != title]
            for n, other in enumerate(frame["categories"]):
                mine = replays(made, schedulers, other)[number]
                gained = values["only this one right"][n] - values["only the chosen one right"][n]
                assert gained == pytest.approx(mine.accuracy - theirs[number].accuracy, abs=2e-4)
                moved = np.mean((mine.exits != theirs[number].exits) & (mine.utility == theirs[number].utility))
                assert values["worth the same, at another exit"][n] == pytest.approx(moved, abs=1e-4)


def test_tables_list_samples_that_only_one_gets_right(made: Any, schedulers: dict[str, Scheduler]) -> None:
    middle = BUDGETS // 2
    for table in made.data["runs"][0]["sections"][4]["tables"]:
        one, other = (replays(made, schedulers, table["columns"][c].removesuffix(": exit"))[middle] for c in (2, 4))
        assert table["rows"]
        for row in table["rows"]:
            n = int(row[0])
            assert [row[2], row[4]] == [str(one.exits[n]), str(other.exits[n])]
            assert one.utility is not None
            assert other.utility is not None
            assert one.utility[n] != other.utility[n]


def test_resplits_show_the_differences_of_the_comparison(tmp_path: Path) -> None:
    comparison = write_results(tmp_path / "toys")["comparison"]
    chart = dict(eenet.report(tmp_path / "toys", budgets=3, draws=0).charts)["differences-resplits"]
    for series, name in zip(chart["series"], ("max_prob", "entropy"), strict=True):
        rows = [row for row in comparison["differences"] if row["scheduler"] == name and row["budget"] is not None]
        assert series["y"] == pytest.approx([row["mean"] for row in rows])
        assert series["y_error"] == pytest.approx([2 * row["standard_error"] for row in rows])


def test_runs_of_the_same_samples_are_compared_in_pairs(tmp_path: Path) -> None:
    write_results(tmp_path / "toys")
    made = eenet.report(tmp_path / "toys", tmp_path / "toys", budgets=4, draws=0)
    charts = dict(made.charts)
    assert charts["runs-differences"]["series"][0]["y"] == pytest.approx([0.0] * 4)
    other = toy_records(150, seed=9)
    apart = eenet.report(tmp_path / "toys", other, costs=COSTS, budgets=4, draws=0)
    assert "runs-differences" not in dict(apart.charts)
    assert any("same samples" in note for note in apart.data["sections"][0]["notes"])


def test_the_papers_figures_have_its_names_and_its_numbers(made: Any, schedulers: dict[str, Scheduler]) -> None:
    charts = dict(made.charts)
    series = charts["paper-accuracy-budget"]["series"]
    assert [one["name"] for one in series] == ["Max probability (MSDNet)", "Entropy (BranchyNet)", "Patience (PABEE)"]
    for one, title in zip(series, schedulers, strict=True):
        assert one["y"] == pytest.approx([decisions.accuracy for decisions in replays(made, schedulers, title)])
    for name, chart in charts.items():
        if name.startswith("paper-exits-"):
            number = int(name.removeprefix("paper-exits-"))
            for n, title in enumerate(schedulers):
                shares = replays(made, schedulers, title)[number].exit_shares
                assert [one["values"][n] for one in chart["series"]] == pytest.approx(shares, abs=1e-4)


def test_scores_by_rank_keep_every_sample(made: Any) -> None:
    accuracies = toy_records(400, seed=4).accuracies
    for k, series in enumerate(dict(made.charts)["paper-scores-0"]["series"]):
        assert len(series["x"]) == 10
        assert np.mean(series["y"]) == pytest.approx(accuracies[k], abs=1e-6)  # of distinct scores the parts are equal
        assert series["x"] == pytest.approx((np.arange(10) + 0.5) / 10)


def test_results_at_the_costs_of_the_paper(tmp_path: Path) -> None:
    rows = write_results(tmp_path / "toys")["published"]["rows"]
    chart = dict(eenet.report(tmp_path / "toys", budgets=3, draws=0).charts)["paper-published"]
    assert [rule["at"] for rule in chart["rules"]] == [2.0]
    entropy = next(one for one in chart["series"] if one["name"] == "Entropy (BranchyNet)")
    for budget, mean in zip(entropy["x"], entropy["y"], strict=True):
        of = [row["accuracy"] for row in rows if (row["scheduler"], row["budget"]) == ("entropy", budget)]
        assert mean == pytest.approx(np.mean(of))
    assert {"oracle", "random mixture"} <= {one["name"] for one in chart["series"]}


def test_a_comparison_and_a_profile_may_stand_beside_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = write_results(tmp_path / "toys", samples=100, resplits=2)["comparison"]
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(profile()))
    scheduler = eenet.MaxProbability().fit(toy_records(), COSTS)
    options: dict[str, Any] = {"costs": COSTS, "schedulers": [scheduler], "budgets": 3, "draws": 0}
    records = toy_records(60, seed=1)
    charts = dict(eenet.report(records, comparison, file, **options).charts)
    assert {"resplits", "budget-kept", "differences-resplits", "exit-times", "compaction"} <= set(charts)
    assert not {"budget-kept", "exit-times"} & set(dict(eenet.report(records, **options).charts))
    in_cpu_ms = eenet.ExitCosts(COSTS.values, "cpu_ms")
    monkeypatch.setattr(eenet.EENet, "fit", lambda *_, **__: pytest.fail("fitted before the costs were compared"))
    with pytest.raises(InvalidInputError, match=r"the unit differs: a comparison is at the costs .* ms, .* in cpu_ms"):
        eenet.report(records, comparison, costs=in_cpu_ms, methods=["eenet"])
    records.save(tmp_path / "test.safetensors")
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    words = ("--costs", ",".join(map(str, COSTS.values)), "--unit", "cpu_ms", "--methods", "eenet")
    said = refused("report", tmp_path / "test.safetensors", tmp_path / "comparison.json", *words)
    assert "the unit differs" in said
    comparison["costs"]["values"] = [1.0, 2.0, 4.0]
    with pytest.raises(InvalidInputError, match=r"at the costs .* which nothing else here has"):
        eenet.report(records, comparison, **options)
    with pytest.raises(InvalidInputError, match="a profile is of 3 exits, which nothing else here has"):
        eenet.report(file)
    with pytest.raises(InvalidInputError, match="nothing that a report can be made of"):
        eenet.report(records, {"rows": []}, **options)


def test_a_method_that_a_simple_rule_stands_in_for_is_named() -> None:
    scheduler = eenet.Patience().fit(toy_records(), COSTS)
    made = eenet.report(toy_records(60, seed=1), costs=COSTS, schedulers=[scheduler], budgets=4, draws=0)
    notes = made.data["runs"][0]["sections"][5]["notes"]
    assert any("stands in for Patience: the figures show that. Give calibration records" in note for note in notes)


@pytest.mark.filterwarnings("ignore::eenet.errors.FallbackWarning")
def test_the_figures_of_the_paper_are_of_the_methods_themselves() -> None:
    calibration, records = toy_records(), toy_records(60, seed=1)
    scheduler, itself = eenet.Patience().fit(calibration, COSTS), eenet.Patience()
    itself.fit(calibration, COSTS, fallback=False)
    made = eenet.report(records, calibration=calibration, costs=COSTS, schedulers=[scheduler], budgets=4, draws=0)
    (line,) = dict(made.charts)["paper-accuracy-budget"]["series"]
    assert line["x"] == [1.0, pytest.approx(5 / 3), pytest.approx(7 / 3), 3.0]
    assert line["y"] == pytest.approx([itself.at(budget).replay(records).accuracy for budget in line["x"]], abs=1e-4)
    assert line["y"] != pytest.approx([scheduler.at(b).replay(records).accuracy for b in line["x"]], abs=1e-4)
    notes = made.data["runs"][0]["sections"][5]["notes"]
    assert any("stands in for Patience above. Here it is the method itself" in note for note in notes)
