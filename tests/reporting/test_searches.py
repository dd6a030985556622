"""A report of a search: the numbers of the search in its charts, tables and page, from the object and from the file."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import run

import eenet
from eenet.errors import FileFormatError
from eenet.testing import toy_logits


@pytest.fixture(scope="module")
def found() -> Any:
    logits, labels = toy_logits(samples=300)
    small, big = eenet.ExitRecords.from_logits(logits[:2], labels), eenet.ExitRecords.from_logits(logits[2])
    candidates = {"small": small, "big": big, "<b>worse</b>": eenet.ExitRecords.from_logits(logits[0])}
    costs: dict[str, eenet.ExitCosts | float] = {"small": eenet.ExitCosts([1.0, 2.0]), "big": 9.0, "<b>worse</b>": 9.5}
    scheduler = eenet.MaxProbability()
    return eenet.search(candidates, costs, [1.0, 3.0, 9.0], scheduler=scheduler, max_members=2)


def only_section(report: Any) -> dict[str, Any]:
    (section,) = report.data["sections"]
    return dict(section)


def test_charts_and_tables_have_the_numbers_of_the_search(found: Any) -> None:
    report = eenet.report(found)
    section = only_section(report)
    assert section["id"] == "searches"
    assert [name for name, _ in report.charts] == ["search", "search-gains"]
    frontier, gains = section["charts"]
    drawn = {one["name"]: one for one in frontier["series"]}
    assert drawn["best system"]["x"] == [system.cost for system in found.frontier]
    assert drawn["best system"]["y"] == [system.accuracy for system in found.frontier]
    assert drawn["best system"]["y_error"] == [2 * system.accuracy_error for system in found.frontier]
    for system in found.to_dict()["systems"]:
        if system["kind"] in ("exits", "cascade"):
            assert drawn[system["name"]]["x"] == system["costs"]
            assert drawn[system["name"]]["y"] == system["accuracies"]
        else:
            assert system["name"] in drawn["the same for all samples"]["text"]
    for key, title in (("runner_up", "over the runner-up"), ("plain", "over big")):
        rows = [system.gains[key] for system in found.frontier if key in system.gains]
        (one,) = [one for one in gains["series"] if one["name"] == title]
        assert one["y"] == [gain.mean for gain in rows]
        assert one["y_error"] == [2 * gain.standard_error for gain in rows]
    best, dropped = section["tables"]
    assert [row[1] for row in best["rows"]] == [system.name for system in found.frontier]
    assert [row[5] for row in best["rows"]] == [
        system.gains["runner_up"].other if "runner_up" in system.gains else "-" for system in found.frontier
    ]
    assert [row[0] for row in dropped["rows"]] == ["<b>worse</b>"]
    assert any("is dropped" in note for note in section["notes"])


def test_the_command_draws_the_file_alone_and_beside_records(found: Any, tmp_path: Path) -> None:
    found.save(tmp_path / "search.json")
    run("report", tmp_path / "search.json", "--out", tmp_path / "page.html", "--json", tmp_path / "data.json")
    assert json.loads((tmp_path / "data.json").read_text())["sections"] == eenet.report(found).data["sections"]
    records, costs = eenet.testing.toy_records(60), eenet.testing.toy_costs()
    beside = eenet.report(tmp_path / "search.json", found, records, costs=costs, budgets=2, draws=0)
    names = [name for name, _ in beside.charts]
    assert len(names) == len(set(names))
    assert {"0-search", "1-search"} <= set(names)


def test_a_file_that_was_changed_is_refused_by_what_is_wrong(found: Any, tmp_path: Path) -> None:
    for key, wrong in (("frontier", [{"budget": 1}]), ("systems", 3), ("plain", "big"), ("samples", "many")):
        data = copy.deepcopy(found.to_dict())
        data[key] = wrong
        path = tmp_path / "search.json"
        path.write_text(json.dumps(data))
        with pytest.raises(FileFormatError, match=r"search\.json: JSON there holds what its command does not write"):
            eenet.report(path)
    failed = run("report", path, "--out", tmp_path / "page.html", code=2)
    assert "search.json: JSON there holds what its command does not write" in failed.stderr.replace("\n", " ")
    assert not (tmp_path / "page.html").exists()


def test_the_page_shows_both_figures_and_the_tables(browser: Any, found: Any, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="needs plotly: pip install 'eenet[report]'")
    eenet.report(found, out=tmp_path / "page.html")
    page = browser.new_page(viewport={"width": 375, "height": 800})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".plot .main-svg").first.wait_for()
    text = page.locator("body").inner_text()
    assert "<b>worse</b>" in text
    assert all(system.name in text for system in found.frontier)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator("details.table[open] summary").all_inner_texts() == ["The best system for each budget"]
    seen = page.evaluate("document.querySelector('figure .plot')._fullLayout.xaxis.range")  # powers of ten
    costs = [cost for one in found.to_dict()["systems"] for cost in one["costs"]]
    assert math.log10(min(costs)) - 0.2 < seen[0] < seen[1] < math.log10(max(costs)) + 0.2
    assert wrong == []
    page.close()
