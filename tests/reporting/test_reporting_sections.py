"""Sections 3 to 6 and benchmarks on the page: drawn from the data, moved by the slider, nothing cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_results import profile, write_results

import eenet
from eenet.benchmarking import Benchmark, BenchmarkRow

SECTIONS = {"trust", "costs", "compare", "paper", "benchmarks"}
MOVED = {
    "reliability", "risk-coverage", "failure-prediction", "changes", "agreement", "adherence", "adherence-resplits",
    "exit-times", "batch-sizes", "compaction", "differences", "differences-resplits", "fates", "paper-accuracy-budget",
    "paper-scores-0",
}  # fmt: skip
HOSTILE = "<script>alert(1)</script>"


def row(system: str, speed: float, size: int, *, early: bool = False) -> BenchmarkRow:
    same: dict[str, Any] = {
        "p50_ms": 1.0,
        "p95_ms": 1.0,
        "p99_ms": 1.0,
        "ms_per_sample": 1.0,
        "samples_per_second": 1.0,
    }
    return BenchmarkRow(
        system=system, budget=None, early_exit=early, batch_size=size, calls=9, spread=0.1, cpu_spread=0.1,
        cpu_ms_per_sample=1.0, speed=speed, speed_error=0.05, cpu_speed=speed, cpu_speed_error=0.05, accuracy=0.8,
        accuracy_error=0.01, **same,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sections")
    write_results(folder / "toys")
    costs = profile()
    costs["plain"]["ms"][0] = 0.9
    (folder / "toys" / "costs.json").write_text(json.dumps(costs))
    rows = [
        row(name, speed, size, early=speed != 1)
        for size in (1, 8)
        for name, speed in (("plain", 1.0), ("<b>x</b>", 0.7))
    ]
    benchmark = Benchmark(tuple(rows), f"No. {HOSTILE}", (), 100, True, {})
    made = eenet.report(folder / "toys", benchmark, budgets=6, draws=2, out=folder / "report.html")
    return folder / "report.html", made.data


@pytest.fixture(scope="module")
def page(browser: Any, data: tuple[Path, dict[str, Any]]) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("dialog", lambda dialog: wrong.append(dialog.message))
    opened.goto(data[0].as_uri())
    opened.wait_for_selector("html[data-ready=yes]")
    yield opened
    opened.close()
    assert wrong == []


def charts_of(data: dict[str, Any]) -> dict[str, Any]:
    sections = [*data["runs"][0]["sections"], *data["sections"]]
    assert {section["id"] for section in sections} >= SECTIONS
    return {chart["name"]: chart for section in sections if section["id"] in SECTIONS for chart in section["charts"]}


def drawn(page: Any, name: str) -> Any:
    """What Plotly draws in a figure, once it has been in view at the budget and the scheduler that are chosen."""
    figure = page.locator(f'[id="figure-{name}"]')
    figure.scroll_into_view_if_needed()
    page.wait_for_function(
        """id => { const figure = document.getElementById(id), at = document.getElementById("budget").value;
            return figure.dataset.at === at && figure.querySelector(".plot").data; }""",
        arg=f"figure-{name}",
    )
    return figure.locator(".plot").evaluate("plot => ({ traces: plot.data, shapes: plot.layout.shapes })")


def move(page: Any, at: int) -> None:
    page.locator("#budget").evaluate(
        "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input', { bubbles: true })); }", at
    )


def test_every_figure_draws_the_numbers_of_the_data(page: Any, data: tuple[Path, dict[str, Any]]) -> None:
    at = int(page.locator("#budget").input_value())
    first = next(iter(data[1]["runs"][0]["styles"]))
    for name, chart in charts_of(data[1]).items():
        traces = drawn(page, name)["traces"]
        frames = chart.get("frames", {}).get(first)
        shown = chart if frames is None else {**chart, **frames[0 if len(frames) == 1 else at]}
        if shown["kind"] == "heat":
            assert traces[0]["z"] == shown["values"], name
            continue
        key = "x" if shown["kind"] == "bars" else "y"
        found = [trace[key] for trace in traces]
        for series in shown["series"]:
            assert (series["values"] if shown["kind"] == "bars" else series["y"]) in found, (name, series["name"])


def test_the_slider_moves_the_figures_that_depend_on_the_budget(page: Any) -> None:
    seen = []
    for at in (1, 4):
        move(page, at)
        seen.append({name: drawn(page, name) for name in MOVED})
        numbers = page.locator("#figure-failure-prediction .numbers").inner_text()
        seen[-1]["failure-prediction"] = numbers
    assert {name for name in MOVED if seen[0][name] != seen[1][name]} == MOVED


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off(page: Any, data: tuple[Path, dict[str, Any]], width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for name in charts_of(data[1]):
        drawn(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".plot text")].filter(text => {
            const inner = text.getBoundingClientRect(), outer = text.closest("figure").getBoundingClientRect();
            return inner.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1);
        }).map(text => `${text.closest("figure").id}: ${text.textContent}`)"""
    )
    assert outside == []
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")


def test_notes_and_tables_show_names_of_the_data_as_text(page: Any, data: tuple[Path, dict[str, Any]]) -> None:
    notes = page.locator("#benchmarks .note").inner_text()
    assert "at batch 1, slower than plain: <b>x</b> (0.70 times as fast)" in notes
    assert HOSTILE in notes
    assert "Early exit cannot pay" in page.locator("#costs .note").inner_text()
    tables = [table for section in data[1]["runs"][0]["sections"] for table in section.get("tables", ())]
    assert tables
    for table, shown in zip(tables, page.locator("#compare details.table").all(), strict=True):
        shown.locator("summary").click()
        rows = [[cell.inner_text() for cell in line.locator("td").all()] for line in shown.locator("tbody tr").all()]
        assert rows == table["rows"]
    assert page.locator("script").count() == 4  # the data, Plotly twice, and the page's own
