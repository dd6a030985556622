"""The page of a report in a browser: its numbers are those of the replay, and every figure follows the slider."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eenet
from eenet.scheduler import ZTW, Margin, Voting
from eenet.testing import toy_costs, toy_records

HOSTILE = ["<script>alert(1)</script>", "<b>bold</b> & co", "a-name-of-one-very-long-word-" * 3, "plain"]
STILL = {"exit-accuracy-by-class", "failure-prediction", "confusion-0", "guarantee"}
"""The figures that depend on neither the budget nor the scheduler; those of the paper are of three budgets, or of one
scheduler each."""

RECORDS = toy_records(400, classes=4, seed=1)
TEXTS = [f"text {n} </script><script>alert({n})</script> \u2028" for n in range(400)]


def fitted(*schedulers: Any, **options: Any) -> list[Any]:
    return [scheduler.fit(toy_records(500, classes=4), toy_costs(), **options) for scheduler in schedulers]


@pytest.fixture(scope="module")
def schedulers() -> dict[str, Any]:
    plain, combined = fitted(eenet.MaxProbability(), ZTW(), fallback=False)
    (unsure,) = fitted(eenet.Entropy(), fallback=False, abstain=0.1)
    return {"max probability": plain, "ZTW": combined, "<i>unsure</i>": unsure}


@pytest.fixture(scope="module")
def file(schedulers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    eenet.report(
        RECORDS,
        costs=eenet.ExitCosts([1.0, 2.0, 3.0], plain=2.8),
        schedulers=schedulers,
        data=TEXTS,
        classes=HOSTILE,
        smaller=[{"name": "tiny </script>", "cost": 1.5, "accuracy": 0.5}],
        ordered=True,
        title="A <title> & </script>",
        budgets=7,
        draws=2,
        out=path,
    )
    return path


@pytest.fixture(scope="module")
def opened(browser: Any, file: Path) -> Iterator[tuple[Any, list[str]]]:
    """The open page, and what went wrong on it: any error, and any request beyond the file itself."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    own = (file.as_uri(), "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    show(page, file)
    yield page, wrong
    page.close()


@pytest.fixture
def page(opened: tuple[Any, list[str]]) -> Iterator[Any]:
    """The open page as it was at first; the test fails on anything that goes wrong there."""
    page, wrong = opened
    page.emulate_media(color_scheme="light", media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.select_option("#scheduler", index=0)
    for select in page.locator(".filters select").all():
        select.select_option("")
    move(page, 2)
    yield page
    assert wrong == []


def show(page: Any, file: Path) -> None:
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")


def drawn(page: Any) -> dict[str, str]:
    """What every figure shows, by its name, after each has been in view."""
    found = {}
    at = page.locator("#budget").input_value()
    scheduler = page.locator("#scheduler").input_value()
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        name = str(figure.get_attribute("id"))
        page.wait_for_function(
            """([id, at, name]) => { const of = document.getElementById(id).dataset;
                return of.at === at && of.scheduler === name; }""",
            arg=[name, at, scheduler],
        )
        plot = "plot => JSON.stringify([plot.data, plot.layout && plot.layout.shapes, plot.textContent])"
        found[name.removeprefix("figure-")] = str(figure.locator(".plot").evaluate(plot))
    return found


def move(page: Any, at: int) -> None:
    page.locator("#budget").evaluate(
        "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input', { bubbles: true })); }", at
    )


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)]


def test_the_label_of_a_smaller_network_is_shown_whole(page: Any) -> None:
    drawn(page)
    whole = page.locator("#figure-frontier .plot").evaluate(
        """plot => { const frame = plot.getBoundingClientRect(), texts = [...plot.querySelectorAll(".textpoint text")];
            const box = texts.find(text => text.textContent === "tiny </script>").getBoundingClientRect();
            return box.width > 0 && box.left >= frame.left && box.right <= frame.right && box.top >= frame.top
                && box.bottom <= frame.bottom; }"""
    )
    assert whole


def test_the_numbers_are_those_of_the_replay(page: Any, schedulers: dict[str, Any]) -> None:
    costs = eenet.ExitCosts([1.0, 2.0, 3.0], plain=2.8)
    for title, scheduler in schedulers.items():
        page.select_option("#scheduler", title)
        for at, budget in ((1, 1 + 1 / 3), (4, 2 + 1 / 3), (6, 3.0)):
            move(page, at)
            decisions = scheduler.at(budget).replay(RECORDS, costs)
            assert numbers(page.locator("#accuracy").inner_text())[0] == pytest.approx(
                100 * decisions.accuracy, abs=0.01
            )
            assert numbers(page.locator("#realized").inner_text())[0] == pytest.approx(decisions.mean_cost, rel=1e-3)
            assert numbers(page.locator("#speed-up").inner_text())[0] == pytest.approx(
                2.8 / decisions.mean_cost, abs=0.01
            )
            answered = ~decisions.abstained
            assert RECORDS.utility is not None
            lost = (decisions.utility[answered] - RECORDS.utility[-1][answered]).mean()  # said beside the speed
            for place in ("#speed-up", "#sentence", "#said"):
                said = re.search(r"([+-]\S+) ± \S+ points of accuracy", page.locator(place).inner_text())
                assert said is not None, place
                assert float(said[1]) == pytest.approx(100 * lost, abs=0.01)
            shares = numbers(page.locator("#shares").inner_text())[1::2]
            assert shares == pytest.approx((100 * decisions.exit_shares).tolist(), abs=0.06)
            planned = numbers(page.locator("#planned").inner_text())[0]
            assert planned == pytest.approx(scheduler.at(budget).planned_cost, rel=1e-3)
            if decisions.handed_back:
                back = numbers(page.locator("#handed-back").inner_text())[0]
                assert back == pytest.approx(100 * decisions.handed_back, abs=0.01)
            else:
                assert page.locator("#handed-back").count() == 0
    assert page.locator("#about").inner_text().count("exits so far combined") == 1
    assert "early exit does not pay" in page.locator("#sentence").inner_text()  # 3 ms where the plain network takes 2.8
    move(page, 1)
    assert "early exit does not pay" not in page.locator("#sentence").inner_text()


def test_the_slider_and_the_scheduler_move_every_figure(page: Any) -> None:
    move(page, 2)
    first = drawn(page)
    assert {"frontier", "exit-shares", "exits-by-class", "difficulty", "over-time", "scores-exit-0"} <= set(first)
    move(page, 5)
    second = drawn(page)
    still = {name for name in first if first[name] == second[name]}
    assert {name for name in still if not name.startswith("paper-")} == STILL
    assert "paper-scores-0" not in still
    page.select_option("#scheduler", "ZTW")
    third = drawn(page)
    still = {name for name in third if third[name] == second[name]}
    assert {name for name in still if not name.startswith("paper-")} <= STILL


def test_keys_move_the_slider_and_open_a_sample(page: Any) -> None:
    page.focus("#budget")
    for key, at in (("Home", "0"), ("ArrowRight", "1"), ("End", "6"), ("ArrowLeft", "5")):
        page.keyboard.press(key)
        assert page.locator("#budget").input_value() == at
    assert "2.667 ms" in str(page.locator("#budget").get_attribute("aria-valuetext"))
    outline = "element => getComputedStyle(element).outlineStyle"
    assert page.locator("#budget").evaluate(outline) != "none"
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#sample").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#sample").is_visible()


def test_a_typed_budget_is_the_nearest_one_that_is_not_above(page: Any) -> None:
    def type_in(text: str) -> str:
        page.fill("#typed", text)
        page.keyboard.press("Enter")
        return str(page.locator("#said").inner_text())

    assert "2.1 ms was typed" in type_in("2.1")
    assert page.locator("#budget").input_value() == "3"
    assert "nearest one that is not above it: 2 ms" in page.locator("#said").inner_text()
    type_in("100%")  # of the plain network, 2.8
    assert page.locator("#budget").input_value() == "5"
    assert "below the cost of the first exit" in type_in("0.2 ms")
    assert "is no budget" in type_in("<b>much</b>")
    assert page.locator("#budget").input_value() == "5"


def test_what_comes_from_data_is_text(page: Any) -> None:
    assert page.title() == "A <title> & </script>"
    assert page.locator("#title").inner_text() == "A <title> & </script>"
    assert page.locator("b, i, main script").count() == 0
    drawn(page)
    heat = page.locator("#figure-exits-by-class svg").first
    assert "<script>alert(1)</scr" in heat.evaluate("svg => svg.parentElement.textContent")
    card = page.locator(".card", has=page.locator("strong", has_text=HOSTILE[0])).first
    assert "</script><script>alert(" in card.inner_text()
    card.click()
    assert f"Its class is {HOSTILE[0]}." in page.locator("#sample-body").inner_text()
    page.keyboard.press("Escape")
    assert "<i>unsure</i>" in page.locator("#scheduler").inner_text()


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_cut_off(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    move(page, 3)  # figures are drawn for the new width
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].flatMap(plot => {
            const box = plot.closest("figure").getBoundingClientRect();
            return [...plot.querySelectorAll("text")].filter(text => {
                const own = text.getBoundingClientRect();
                return own.width && (own.left < box.left - 1 || own.right > box.right + 1 ||
                    own.top < box.top - 1 || own.bottom > box.bottom + 1);
            }).map(text => `${plot.closest("figure").id}: ${text.textContent}`);
        })"""
    )
    assert beyond == []
    page.locator(".card").first.click()
    box = page.locator("#sample").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    inside = page.locator("#sample .scroll").evaluate("part => part.scrollWidth <= part.clientWidth + 1")
    assert inside
    page.keyboard.press("Escape")


def test_a_sample_leaves_where_the_replay_says_and_says_why(page: Any, schedulers: dict[str, Any]) -> None:
    for title, scheduler in schedulers.items():
        page.select_option("#scheduler", title)
        move(page, 3)
        decisions = scheduler.at(2.0).replay(RECORDS)
        for card in page.locator(".card").all()[:4]:
            n = int(card.get_attribute("data-sample"))
            exit_index = int(decisions.exits[n])
            assert card.locator(".here").inner_text().startswith(f"▸ exit {exit_index}")
            card.click()
            here = page.locator("#sample tr.here").inner_text()
            if decisions.abstained[n]:
                assert "handed back" in here
            elif exit_index == 2:
                assert "the last exit takes every sample" in here
            else:
                score, limit = numbers(here.partition("leaves: ")[2])
                assert score >= limit
            if not decisions.abstained[n]:
                assert HOSTILE[decisions.predictions[n]] in here
            page.keyboard.press("Escape")


def test_samples_are_found_by_group_and_exit(page: Any) -> None:
    group, where, _ = page.locator(".filters select").all()
    group.select_option("wasted")
    for card in page.locator(".card").all()[:5]:
        assert card.locator(".right").count() == 0
    group.select_option("")
    where.select_option("1")
    assert page.locator(".card .here").count() == page.locator(".card").count() > 0
    assert all(text.startswith("▸ exit 1") for text in page.locator(".card .here").all_inner_texts())


def test_dark_and_print(page: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == "rgb(22, 24, 28)"
    drawn(page)
    font = "document.querySelector('#figure-frontier .plot').layout.font.color"
    page.wait_for_function(f"{font} === '#e9ebee'")
    page.emulate_media(color_scheme="light", media="print")
    assert not page.locator("#controls").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("figure:not([data-at])").count() == 0


def test_a_page_of_10_000_samples_and_5_schedulers_is_small(tmp_path: Path) -> None:
    made = [eenet.MaxProbability(), eenet.Entropy(), eenet.Patience(), Margin(), Voting()]
    costs, calibration = toy_costs(), toy_records(1000, classes=10)
    for scheduler in made:
        scheduler.fit(calibration, costs, fallback=False)
    path = tmp_path / "report.html"
    eenet.report(toy_records(10_000, classes=10, seed=1), costs=costs, schedulers=made, draws=0, out=path)
    assert path.stat().st_size < 6_000_000


def test_the_page_asks_for_nothing(file: Path) -> None:
    html = file.read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert html.count("</script>") == 3
    assert not re.search(r"""(src|href)=["']?https?:|@import|url\(""", re.sub(r"(?s)<script.*?</script>", "", html))


def test_a_budget_that_is_too_small_for_a_scheduler_is_said(browser: Any, tmp_path: Path) -> None:
    class Late(eenet.MaxProbability):
        """Cannot keep a budget below 2."""

        def at(self, budget: Any) -> Any:
            if budget < 2:
                raise eenet.InfeasibleBudgetError("too small", smallest=2.0)
            return super().at(budget)

    path = tmp_path / "late.html"
    late = fitted(Late(), fallback=False)
    eenet.report(RECORDS, costs=toy_costs(), schedulers={"late": late[0]}, budgets=5, draws=0, out=path)
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    show(opened, path)
    move(opened, 0)
    assert "cannot keep a budget of 1 ms" in opened.locator("#sentence").inner_text()
    opened.locator("#figure-difficulty").scroll_into_view_if_needed()
    opened.locator("#figure-difficulty", has_text="This budget is too small").wait_for()
    opened.close()


def test_the_json_is_what_the_page_holds(file: Path) -> None:
    import base64
    import zlib

    packed = re.search(r'id="data">([^<]+)<', file.read_text(encoding="utf-8"))
    assert packed is not None
    data = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    assert data["schema"] == 1
    assert [run["name"] for run in data["runs"]] == ["records"]


def test_cents_are_cheap_and_not_fast(browser: Any, tmp_path: Path) -> None:
    costs = eenet.ExitCosts([1.0, 2.0, 3.0], "cents", plain=2.8)
    (scheduler,) = fitted(eenet.MaxProbability())
    exits = ["small", "middle", "big"]
    eenet.report(
        RECORDS, costs=costs, schedulers=[scheduler], exits=exits, budgets=3, draws=0, out=tmp_path / "page.html"
    )
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    said = page.locator("#sentence").inner_text()
    assert re.search(r"costs [\d.]+ cents on average, [\d.]+ times as cheap as the plain network", said)
    assert "fast" not in said + page.locator("#said").inner_text() + page.locator("#figures").inner_text()
    assert "exit 0 (small): " in page.locator("#shares").inner_text()
    page.close()
