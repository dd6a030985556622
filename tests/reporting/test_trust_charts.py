"""Section 3 of a report: every number against a slow and plain computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_results import COSTS, write_results

import eenet
from eenet.records import ExitRecords
from eenet.tasks import POOLED
from eenet.testing import toy_costs, toy_records

Charts = dict[str, dict[str, Any]]

some_records = st.builds(
    toy_records,
    samples=st.integers(12, 60),
    exits=st.integers(2, 4),
    classes=st.integers(2, 4),
    seed=st.integers(0, 10_000),
    duplicates=st.sampled_from([0.0, 0.5]),
    nonfinite=st.sampled_from([0.0, 0.2]),
)


def charts_of(records: ExitRecords, *, draws: int = 0, **options: Any) -> Charts:
    costs = toy_costs(records.num_exits)
    calibration = toy_records(100, records.num_exits, records.num_classes, seed=7)
    fitted = [eenet.MaxProbability().fit(calibration, costs)]
    return dict(eenet.report(records, costs=costs, schedulers=fitted, budgets=4, draws=draws, **options).charts)


@given(some_records)
@settings(max_examples=15, deadline=None)
def test_calibration_and_its_error_are_those_of_bins_counted_one_by_one(records: ExitRecords) -> None:
    chart = charts_of(records)["reliability"]
    for k, evidence in enumerate(records.all_evidence()):
        bins: dict[int, list[tuple[float, float]]] = {}
        for n in np.flatnonzero(evidence.finite):
            confidence = float(evidence.max_probability[n])
            bins.setdefault(min(9, int(confidence * 10)), []).append(
                (confidence, float(records.require_utility()[k, n]))
            )
        points = [np.mean(bins[key], axis=0) for key in sorted(bins)]
        sizes = [len(bins[key]) for key in sorted(bins)]
        ece = sum(size * abs(c - a) for size, (c, a) in zip(sizes, points, strict=True)) / max(1, sum(sizes))
        series = chart["series"][k]
        np.testing.assert_allclose(series["x"], [c for c, _ in points], atol=1e-5)
        np.testing.assert_allclose(series["y"], [a for _, a in points], atol=1e-5)
        assert series["samples"] == sizes
        assert chart["numbers"][f"ECE of exit {k}"] == pytest.approx(ece, abs=1e-9)


@given(some_records)
@settings(max_examples=15, deadline=None)
def test_area_below_the_risk_is_the_mean_risk_of_all_shares(records: ExitRecords) -> None:
    chart = charts_of(records)["risk-coverage"]
    for k, evidence in enumerate(records.all_evidence()):
        score = np.where(evidence.finite, evidence.log_odds, -np.inf)
        loss = 1 - records.require_utility()[k].astype(float)
        total, risks = 0.0, list[float]()
        for value in sorted(set(score.tolist()), reverse=True):
            tied = loss[score == value]
            for _ in tied:  # of samples that cannot be told apart any may come first
                total += tied.mean()
                risks.append(total / (len(risks) + 1))
        assert chart["numbers"][f"AURC of exit {k}"] == pytest.approx(np.mean(risks))
        assert chart["series"][k]["y"][-1] == pytest.approx(loss.mean(), abs=1e-5)


@given(some_records)
@settings(max_examples=15, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order(records: ExitRecords) -> None:
    chart = charts_of(records)["failure-prediction"]
    assert chart["rows"] == ["largest probability", "Max probability"]
    for k, evidence in enumerate(records.all_evidence()[:-1]):
        score = np.where(evidence.finite, evidence.log_odds, -np.inf)
        right = records.require_utility()[k] > 0
        pairs = [float(a > b) + 0.5 * float(a == b) for a in score[right] for b in score[~right]]
        assert chart["values"][0][k] == (pytest.approx(np.mean(pairs)) if pairs else None)


@given(some_records)
@settings(max_examples=10, deadline=None)
def test_agreement_and_confusion_count_answers(records: ExitRecords) -> None:
    charts = charts_of(records)
    said = records.predictions
    for j, k in np.ndindex(len(said), len(said)):
        assert charts["agreement"]["values"][j][k] == pytest.approx(np.mean(said[j] == said[k]), abs=1e-5)
    assert charts["agreement"]["rows"][-1] == "the answers"
    confusion = charts["confusion-0"]
    for a, b in np.ndindex(records.num_classes, records.num_classes):
        assert confusion["counts"][a][b] == int(((said[0] == a) & (said[-1] == b)).sum())
    for a, row in enumerate(confusion["values"]):
        assert sum(row) == pytest.approx(1.0 if (said[0] == a).any() else 0.0)


def test_what_the_last_exit_changes_is_of_the_chosen_scheduler_at_each_budget() -> None:
    records, costs = toy_records(300, seed=3), toy_costs()
    fitted = {"one": eenet.MaxProbability().fit(toy_records(), costs), "two": eenet.Entropy().fit(toy_records(), costs)}
    made = eenet.report(records, costs=costs, schedulers=fitted, budgets=5, draws=0)
    chart, budgets = dict(made.charts)["changes"], made.data["runs"][0]["budgets"]
    last = records.require_utility()[-1].astype(float)
    for title, scheduler in fitted.items():
        for budget, frame in zip(budgets, chart["frames"][title], strict=True):
            mine = scheduler.at(budget).replay(records).utility
            assert mine is not None
            mended = next(one for one in frame["series"] if one["name"] == "the last exit mends it")["values"]
            assert mended[-1] == pytest.approx(float(((1 - mine) * last).mean()), abs=1e-4)
            assert np.sum([one["values"] for one in frame["series"]], axis=0) == pytest.approx(1.0, abs=1e-4)


def test_spending_is_that_of_the_replays() -> None:
    records, costs = toy_records(200, seed=2), toy_costs()
    scheduler = eenet.MaxProbability().fit(toy_records(), costs)
    made = eenet.report(records, costs=costs, schedulers=[scheduler], budgets=5, draws=0)
    series = dict(made.charts)["adherence"]["series"][0]
    for budget, spent in zip(series["x"], series["y"], strict=True):
        assert spent == pytest.approx(scheduler.at(budget).replay(records).mean_cost / budget)


def test_resplits_show_the_rows_of_the_comparison(tmp_path: Path) -> None:
    rows = write_results(tmp_path / "toys")["comparison"]["rows"]
    charts = dict(eenet.report(tmp_path / "toys", budgets=3, draws=0).charts)
    kept, spent = charts["budget-kept"], charts["adherence-resplits"]
    assert kept["rows"] == ["Margin", "Max probability", "Entropy"]
    for r, name in enumerate(("margin", "max_prob", "entropy")):
        for b, budget in enumerate((1.5, 2.0, 2.5)):
            ratios = [
                row["held_out_cost"] / budget for row in rows if (row["scheduler"], row["budget"]) == (name, budget)
            ]
            assert kept["values"][r][b] == pytest.approx(np.mean([ratio <= 1 for ratio in ratios]))
            series = spent["series"][r]
            assert series["x"][b] == budget
            assert (series["low"][b], series["y"][b], series["high"][b]) == pytest.approx(
                (min(ratios), np.mean(ratios), max(ratios))
            )


def test_a_guarantee_holds_more_often_than_none() -> None:
    chart = charts_of(toy_records(120, seed=5), draws=12)["guarantee"]
    promised, plain = (one["values"] for one in chart["series"])
    assert [one["name"] for one in chart["series"]] == ["guarantee=0.95", "no guarantee"]
    assert min(promised) >= 0.9
    assert all(mine >= other for mine, other in zip(promised, plain, strict=True))
    assert "guarantee" not in charts_of(toy_records(60))


def test_dead_exits_are_named() -> None:
    records = toy_records(400, deceptive_class=0)
    probabilities = records.probabilities.copy()
    probabilities[1] = np.random.default_rng(0).dirichlet(np.ones(5), 400)
    broken = ExitRecords.from_probabilities(probabilities, records.labels)
    made = eenet.report(broken, costs=COSTS, calibration=broken, budgets=3, draws=0)
    notes = made.data["runs"][0]["sections"][2]["notes"]
    assert any(note.startswith("Exit 1 says nothing") for note in notes)


def test_without_labels_the_sections_say_what_is_missing() -> None:
    records = toy_records(80, seed=1)
    bare = ExitRecords(records.probabilities, records.predictions)
    scheduler = eenet.MaxProbability().fit(toy_records(), COSTS)
    made = eenet.report(bare, costs=COSTS, schedulers=[scheduler], budgets=3, draws=0)
    sections = {section["id"]: section for section in made.data["runs"][0]["sections"]}
    assert {"agreement", "adherence"} <= {chart["name"] for chart in sections["trust"]["charts"]}
    assert "reliability" not in dict(made.charts)
    for name in ("trust", "compare", "paper"):
        assert any("label" in note for note in sections[name]["notes"]), name


def test_segmentation_has_the_figures_that_need_no_single_answer() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), (3, 40))
    utility = np.sort(rng.random((3, 40)), axis=0)
    pooled = {name: rng.random((3, 40)) for name in POOLED}
    records = ExitRecords(
        probabilities, probabilities.astype(np.float32).argmax(axis=2), utility=utility, pooled=pooled
    )
    scheduler = eenet.MaxProbability().fit(records, toy_costs(), fallback=False)
    made = eenet.report(records, costs=toy_costs(), schedulers=[scheduler], budgets=3, draws=0)
    charts = dict(made.charts)
    assert {"reliability", "risk-coverage", "changes", "adherence", "paper-accuracy-budget"} <= set(charts)
    assert not {"agreement", "confusion-0"} & set(charts)
    known = [one for one in charts["risk-coverage"]["series"] if one["name"] == "exit 2"]
    assert known[0]["y"][-1] == pytest.approx(1 - records.require_utility()[2].mean(), abs=1e-5)
