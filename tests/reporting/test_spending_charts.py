"""Section 4 of a report: times beside the plain network, overheads, and in words where early exit does not pay."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from report_results import profile, write_results

import eenet
from eenet.benchmarking import Benchmark, BenchmarkRow


def section_of(folder: Path, costs: dict[str, Any], **metrics: Any) -> tuple[dict[str, Any], list[str]]:
    write_results(folder, samples=80, resplits=1, **metrics)
    (folder / "costs.json").write_text(json.dumps(costs))
    section = eenet.report(folder, budgets=2, draws=0).data["runs"][0]["sections"][3]
    return {chart["name"]: chart for chart in section["charts"]}, section["notes"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return section_of(tmp_path_factory.mktemp("results") / "toys", profile())


def test_exits_are_shares_of_the_plain_network(measured: tuple[dict[str, Any], list[str]]) -> None:
    chart, costs = measured[0]["exit-times"], profile()
    assert [rule["at"] for rule in chart["rules"]] == [1.0]
    for k, series in enumerate(chart["series"]):
        assert series["x"] == [1, 8, 32]
        for row in range(3):
            share = costs["costs"]["ms"][row][k] / costs["plain"]["ms"][row]
            assert series["y"][row] == pytest.approx(share)
            assert series["high"][row] - series["low"][row] == pytest.approx(share * costs["spreads"]["ms"][row][k])


def test_parts_add_up_to_the_whole_way(measured: tuple[dict[str, Any], list[str]]) -> None:
    stages, costs = measured[0]["stage-times"], profile()
    for row in range(3):
        assert sum(one["values"][row] for one in stages["series"]) == pytest.approx(costs["costs"]["ms"][row][-1])
    added = {one["name"]: one["values"] for one in measured[0]["overheads"]["series"]}
    plain = costs["plain"]["ms"]
    assert added["early heads"] == pytest.approx([0.4 / plain[0], 0.1 / plain[1], 0.06 / plain[2]])
    assert added["scheduler"] == pytest.approx([0.3 / plain[0], 0.03 / plain[1], 0.015 / plain[2]])
    assert added["the network in stages"] == pytest.approx([3 / plain[0] - 1, 1.5 / plain[1] - 1, 1.2 / plain[2] - 1])


def test_flops_stand_beside_times(measured: tuple[dict[str, Any], list[str]]) -> None:
    chart, costs = measured[0]["flops-and-time"], profile()["costs"]
    columns = {one["name"]: one["values"] for one in chart["series"]}
    assert columns["FLOPs"] == pytest.approx([1 / 3, 2 / 3, 1])
    assert columns["time, batch 1"] == pytest.approx([ms / costs["ms"][0][-1] for ms in costs["ms"][0]])
    assert set(columns) == {"FLOPs", "time, batch 1", "time, batch 32"}


def test_compaction_compares_a_smaller_batch_with_a_full_one(measured: tuple[dict[str, Any], list[str]]) -> None:
    chart = measured[0]["compaction"]
    assert [one["name"] for one in chart["series"]] == ["stage 1", "stage 2"]  # before stage 0 no sample has left
    for one in chart["series"]:
        assert one["x"] == pytest.approx([1 / 32, 8 / 32, 1])
        assert one["y"] == pytest.approx([1 * 1.0 / (32 * 0.4), 8 * 0.5 / (32 * 0.4), 1])


def test_it_says_from_which_share_of_early_exits_on_it_pays(measured: tuple[dict[str, Any], list[str]]) -> None:
    costs = profile()
    first, last, plain = costs["costs"]["ms"][0][0], costs["costs"]["ms"][0][-1], costs["plain"]["ms"][0]
    share = (last - plain) / (last - first)
    assert any("Early exit pays" in note and f"{share:.0%} at batch 1 (" in note for note in measured[1])
    assert any("eenet benchmark" in note for note in measured[1])


def test_it_says_where_early_exit_cannot_pay_and_where_it_always_does(tmp_path: Path) -> None:
    costs = profile()
    costs["plain"]["ms"] = [1.0, 10.0, 1.2]
    _, notes = section_of(tmp_path / "toys", costs)
    assert any(note.startswith("Early exit cannot pay") and "at batch 1 exit 0 takes" in note for note in notes)
    assert any("At batch 8 no exit costs more" in note for note in notes)


def test_what_early_versions_did_not_measure_is_named(tmp_path: Path) -> None:
    charts, notes = section_of(tmp_path / "toys", profile(plain=False, decisions=False))
    assert charts["exit-times"]["rules"][0]["name"] == "all stages without the early heads"
    assert any("plain network was not measured" in note for note in notes)
    assert any("scheduler's own time was not measured" in note for note in notes)
    assert [one["name"] for one in charts["overheads"]["series"]] == ["early heads"]


def test_a_bundle_has_no_parts_and_no_flops(tmp_path: Path) -> None:
    costs = profile()
    del costs["parts_ms"], costs["costs"]["flops"], costs["spreads"]["flops"]
    charts, notes = section_of(tmp_path / "toys", costs)
    assert set(charts) == {"exit-times", "batch-sizes", "flops-and-time", "compaction"}
    assert any("are of a bundle" in note for note in notes)
    times = costs["costs"]["ms"]
    part = (times[0][1] - times[0][0]) / ((times[2][1] - times[2][0]) * 32)
    assert charts["compaction"]["series"][0]["y"][0] == pytest.approx(part)


def test_costs_that_are_no_profile_leave_a_note(tmp_path: Path) -> None:
    charts, notes = section_of(tmp_path / "toys", {"values": [1.0, 2.0, 3.0], "unit": "ms"})
    assert charts == {}
    assert any("eenet profile TARGET" in note for note in notes)


def row(system: str, speed: float, size: int, **more: Any) -> BenchmarkRow:
    known: dict[str, Any] = {
        "budget": None, "early_exit": False, "calls": 10, "p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0,
        "ms_per_sample": 1.0, "spread": 0.1, "cpu_spread": 0.1, "samples_per_second": 1.0, "cpu_ms_per_sample": 1.0,
        "speed_error": 0.02, "cpu_speed": speed, "cpu_speed_error": 0.02, "agreement": 1.0, "accuracy": 0.9,
        "accuracy_error": 0.01,
    }  # fmt: skip
    return BenchmarkRow(system=system, batch_size=size, speed=speed, **{**known, **more})


def test_a_benchmark_shows_speeds_and_says_what_is_slower() -> None:
    rows = [row("plain", 1.0, size) for size in (1, 8)]
    rows += [row("early", speed, size, early_exit=True, budget="60%") for size, speed in ((1, 0.8), (8, 1.5))]
    rows += [row("close", 1.01, size, early_exit=True) for size in (1, 8)]
    benchmark = Benchmark(tuple(rows), "Worth it at batch 8.", (), 100, True, {})
    made = eenet.report(benchmark)
    charts, section = dict(made.charts), made.data["sections"][0]
    (speeds,) = (chart for name, chart in charts.items() if name.startswith("speeds-"))
    assert {one["name"]: one["y"] for one in speeds["series"]} == {"early 60%": [0.8, 1.5], "close": [1.01, 1.01]}
    points = [chart for name, chart in charts.items() if name.startswith("speed-and-accuracy-")]
    assert [sorted(one["x"][0] for one in chart["series"]) for chart in points] == [[0.8, 1.0, 1.01], [1.0, 1.01, 1.5]]
    notes = "\n".join(section["notes"])
    assert "at batch 1, slower than plain: early 60% (0.80 times as fast)" in notes
    assert "at batch 8, slower" not in notes
    assert "two standard errors of the speed of plain: close" in notes
    assert "Worth it at batch 8." in notes
    assert asdict(rows[0])["speed"] == 1.0


def test_what_a_recipe_measured_is_shown_like_a_benchmark(tmp_path: Path) -> None:
    def of(method: str, budget: str | None, times: float) -> dict[str, Any]:
        time = {"ms": 1.0, "spread": 0.1, "times": times, "rounds": [times - 0.1, times + 0.1]}
        return {"method": method, "budget": budget, "accuracy": 0.8, "time": {"1": time}}

    rows = [of("plain", None, 1.0), of("exit", "1", 2.0), of("exit", "2", 1.5), of("entropy", "60%", 1.6)]
    measured = {"batch_size": 1, "samples": 100, "rounds": 2, "rows": rows}
    charts, notes = section_of(tmp_path / "toys", profile(), measured=measured)
    (speeds,) = (chart for name, chart in charts.items() if name.startswith("speeds-"))
    names = [one["name"] for one in speeds["series"]]
    assert names == ["one exit for all exit 0", "one exit for all exit 1", "Entropy 60%"]
    assert [one["y"] for one in speeds["series"]] == [[2.0], [1.5], [1.6]]
    assert speeds["series"][0]["y_error"] == pytest.approx([0.1])
    assert not any("eenet benchmark" in note for note in notes)
