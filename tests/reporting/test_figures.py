"""The Matplotlib twins: every number of a chart is drawn, on given axes or new ones, without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_results import write_results

import eenet
from eenet.errors import InvalidInputError, MissingExtraError
from eenet.reporting import figures

Chart = dict[str, Any]


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chart]:
    folder = tmp_path_factory.mktemp("results") / "toys"
    write_results(folder)
    return dict(eenet.report(folder, budgets=4, draws=2).charts)


def of_kind(charts: dict[str, Chart], kind: str) -> list[Chart]:
    found = [chart for chart in charts.values() if chart["kind"] == kind]
    assert found
    return found


def known(values: Any) -> list[float]:
    return [np.nan if value is None else value for value in values]


def test_lines_are_the_numbers_of_the_chart(charts: dict[str, Chart]) -> None:
    for chart in of_kind(charts, "lines"):
        lines = figures.draw(chart).get_lines()
        for series in chart["series"]:
            drawn = [line for line in lines if len(np.asarray(line.get_xdata())) == len(series["x"])]
            assert any(
                np.array_equal(np.asarray(line.get_xdata(), float), known(series["x"]), equal_nan=True)
                and np.array_equal(np.asarray(line.get_ydata(), float), known(series["y"]), equal_nan=True)
                and line.get_color() == series["style"]["color"]
                for line in drawn
            ), (chart["name"], series["name"])


def test_bands_and_errors_are_drawn(charts: dict[str, Chart]) -> None:
    for chart in of_kind(charts, "lines"):
        ax = figures.draw(chart)
        bands = [one for one in ax.collections if type(one).__name__ in ("FillBetweenPolyCollection", "PolyCollection")]
        known = sum("low" in series for series in chart["series"])
        assert len(bands) == (known if known <= 3 else 1)  # more would cover each other
        errors = [series for series in chart["series"] if "x_error" in series or "y_error" in series]
        assert len(ax.containers) == len(errors)


def test_bars_are_as_long_as_the_numbers(charts: dict[str, Chart]) -> None:
    for chart in of_kind(charts, "bars"):
        ax = figures.draw(chart)
        bars = [one for one in ax.containers if type(one).__name__ == "BarContainer"]
        for container, series in zip(bars, chart["series"], strict=True):
            assert [bar.get_height() for bar in container] == pytest.approx(known(series["values"]))
        if chart["stacked"]:
            tops = [bar.get_y() + bar.get_height() for bar in bars[-1]]
            assert tops == pytest.approx(np.sum([known(series["values"]) for series in chart["series"]], axis=0))
        names = [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()]
        assert names == chart["categories"]


def test_histograms_and_heat_maps_hold_the_numbers(charts: dict[str, Chart]) -> None:
    for chart in of_kind(charts, "steps"):
        steps: Any = figures.draw(chart).patches
        for number, series in enumerate(chart["series"]):
            values, edges, _ = steps[2 * number].get_data()
            assert list(values) == series["values"]
            assert list(edges) == series["edges"]
    for chart in of_kind(charts, "heat"):
        (image,) = figures.draw(chart).get_images()
        shown: Any = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        assert np.array_equal(shown, [known(row) for row in chart["values"]], equal_nan=True)


def test_figure_is_drawn_on_the_axes_that_are_given(charts: dict[str, Chart]) -> None:
    from matplotlib.figure import Figure

    for chart in charts.values():
        given = Figure().subplots()
        assert figures.draw(chart, ax=given) is given
        assert given.get_title(loc="left")


def test_scheduler_and_budget_choose_the_frame(charts: dict[str, Chart]) -> None:
    chart = charts["changes"]
    titles = list(chart["frames"])
    for title in titles:
        for number, frame in enumerate(chart["frames"][title]):
            ax = figures.draw(chart, scheduler=title, budget=number)
            heights = [bar.get_height() for bar in ax.containers[0]]
            assert heights == pytest.approx(frame["series"][0]["values"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "none"}, "no scheduler 'none'; choose from"),
        ({"budget": 99}, "budget 99 of .* choose a number from 0 to 3"),
    ],
)
def test_frame_that_is_not_there_is_refused(charts: dict[str, Chart], options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        figures.draw(charts["changes"], **options)
    with pytest.raises(InvalidInputError, match="the same for all budgets"):
        figures.draw(charts["confusion-0"], **options)


def test_what_is_no_chart_is_refused(tmp_path: Path, charts: dict[str, Chart]) -> None:
    with pytest.raises(InvalidInputError, match="kind None"):
        figures.draw({})
    with pytest.raises(InvalidInputError, match=r"end it with \.png, \.svg or \.pdf"):
        figures.save(charts["agreement"], tmp_path / "figure.gif")
    assert list(tmp_path.iterdir()) == []


def test_saved_figures_are_vectors_with_text_and_the_same_twice(tmp_path: Path, charts: dict[str, Chart]) -> None:
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
        figures.save(charts["confusion-0"], first)
        figures.save(charts["confusion-0"], second)
        assert first.read_bytes().startswith(start)
        assert first.read_bytes() == second.read_bytes()
    assert "&lt;script&gt;alert(1)" in (tmp_path / "a.svg").read_text()  # a class of the toy results, as text


def test_dollar_signs_in_names_are_no_formula(charts: dict[str, Chart], tmp_path: Path) -> None:
    chart = {**charts["agreement"], "title": "$x_{", "rows": ["$a$", "b", "c"]}
    figures.save(chart, tmp_path / "a.svg")
    assert "$x_{" in (tmp_path / "a.svg").read_text()


def test_missing_matplotlib_names_the_extra(charts: dict[str, Chart], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"\[report\]'"):
        figures.draw(charts["agreement"])


def test_drawing_does_not_load_pyplot() -> None:
    code = (
        "import sys, eenet; from eenet.reporting import figures; from eenet.testing import *; "
        "s = eenet.MaxProbability().fit(toy_records(60), toy_costs()); "
        "made = eenet.report(toy_records(60), costs=toy_costs(), schedulers=[s], budgets=2, draws=0); "
        "[figures.draw(chart) for _, chart in made.charts]; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
