"""The page in a headless browser; where there is none, what the page would fetch."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import TOKEN
from PIL import Image
from serving_toys import Gray, TableBackend, ToyModel, Words, connect, scripted_logits, serving

from eenet.control import BudgetController

PAGES = Path(__file__).resolve().parents[2] / "src" / "eenet" / "serving" / "http" / "pages"


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test on any error, and on any request to elsewhere."""
    opened = browser.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    hosts: set[str] = set()
    opened.on("request", lambda request: hosts.add(re.sub(r"^(\w+):(//([^/:]+))?.*", r"\1 \3", request.url)))
    yield opened
    opened.close()
    assert [error for error in errors if "422" not in error and "401" not in error] == []
    assert hosts <= {"http 127.0.0.1", "blob "}


@contextlib.contextmanager
def shown(page: Any, *served: Any, **options: Any) -> Iterator[str]:
    """A server whose page is left before it stops: one that asks a server that is gone says so, which is an error."""
    with serving(*served, **options) as url:
        yield url
        page.goto("about:blank")


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def test_a_person_chooses_an_image_and_sees_the_answer_and_where_it_left(page: Any) -> None:
    with shown(page, ToyModel(Gray())) as url:
        page.goto(url)
        page.wait_for_selector("#image:not([hidden])")
        assert page.locator("#about").inner_text() == "3 exits, 2 classes, running on table"
        assert not page.locator("#answer").is_visible()
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(250)})
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#class").inner_text().startswith("even · 100.0")
        assert page.locator("#exit").inner_text() == "exit 0 (first)"
        assert page.locator("#time").inner_text().endswith(" ms")
        against = page.locator("#against").inner_text()
        assert re.match(r"The full network took [\d.]+ ms and gave the same answer", against)
        assert "Planned cost 1.00 of 3.00 ms" in against
        assert page.locator("#preview").is_visible()
        page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": png(10)})
        page.locator("#exit", has_text="the end of the network").wait_for()
        page.locator("[data-exit='2']", has_text="50.0 %").wait_for()
        shares = [page.locator(f"[data-exit='{k}']").inner_text() for k in range(3)]
        assert shares == ["50.0 %", "0.0 %", "50.0 %"]  # the runs of the full network do not count
        assert "Budget 2.00 ms" in page.locator("#cost").inner_text()


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_and_the_drop_box_is_around_its_text(page: Any, width: int) -> None:
    model = ToyModel(Gray())
    model.class_names = ["<img src=x onerror=alert(1)>", "a-name-of-one-very-long-word-" * 4]
    page.set_viewport_size({"width": width, "height": 800})
    with shown(page, model, token=TOKEN) as url:
        page.goto(url)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(100)})
        page.wait_for_selector("#exits:not([hidden])")
        assert page.locator("#answer img").count() == 0  # names are text
        assert page.locator("#class").inner_text().startswith("<img src=x")
        box = page.locator("#drop").bounding_box()
        for inside in ("#file", "#preview"):
            part = page.locator(inside).bounding_box()
            assert box["x"] <= part["x"]
            assert part["x"] + part["width"] <= box["x"] + box["width"]
            assert box["y"] <= part["y"]
            assert part["y"] + part["height"] <= box["y"] + box["height"]
        assert page.locator("body").evaluate("body => body.parentElement.scrollWidth") <= width


def test_a_person_sees_what_each_exit_says_and_what_a_deeper_one_would_have_said(page: Any) -> None:
    table = TableBackend(3, 2)
    with shown(page, ToyModel(backend=table)) as url:
        page.goto(url)
        page.fill("#numbers", "[0, 0, 9, 0, 0, 9]")  # the first is not sure, the second is, the last sees it otherwise
        page.click("#array button")
        page.wait_for_selector("#exits:not([hidden])")
        rows = [row.split("\t") for row in page.locator("#exits tbody tr").all_inner_texts()]
        assert [row[0] for row in rows] == ["0 (first)", "1 (second) · left", "2"]
        assert [row[1].split(" · ")[0] for row in rows] == ["even", "even", "odd"]
        assert [row[2:] for row in rows] == [["0.500", "0.993"], ["1.000", "0.993"], ["none", "all"]]
        assert "Exit 2 would have said: odd." in page.locator("#deeper").inner_text()
        assert not page.locator("#budget").is_visible()  # without a token it cannot be changed


def test_a_person_with_the_token_changes_the_budget_and_there_is_one_truth(page: Any) -> None:
    with shown(page, ToyModel(), token=TOKEN) as url:
        page.goto(url)
        page.fill("#limit", "5")
        page.fill("#token", "not the token")
        page.click("#budget button")
        page.locator("#changed", has_text="the bearer token is missing or wrong").wait_for()
        page.locator("#cost", has_text="Budget 2.00 ms").wait_for()
        page.fill("#token", TOKEN)
        page.click("#budget button")
        page.locator(
            "#changed", has_text="The budget is 3.00 ms per sample from now on. No sample can cost more"
        ).wait_for()
        page.locator("#cost", has_text="Budget 3.00 ms").wait_for()
        page.fill("#limit", "1%")
        page.click("#budget button")
        page.locator("#changed", has_text="budget").wait_for()
        assert "Budget 3.00 ms" in page.locator("#cost").inner_text()


def hold_first(page: Any, what: str, held: list[Any]) -> None:
    """Keep the first request from the server, until it is continued."""

    def handle(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route(what, handle)


def test_an_answer_to_what_was_asked_before_does_not_take_the_place_of_a_later_one(page: Any) -> None:
    """Without the token the answers to others are not shown; it was given while the page waited for such an answer."""
    page.clock.install()
    held: list[Any] = []
    with shown(page, ToyModel(), token=TOKEN) as url, connect(url) as client:
        client.post("/predict", json={"inputs": scripted_logits([0, 1, 2], 3).tolist()})
        page.goto(url)
        page.locator("#locked").wait_for()
        hold_first(page, "**/traffic", held)
        with page.expect_request("**/traffic"):
            page.clock.run_for(2000)
        page.fill("#token", TOKEN)
        page.locator("#token").blur()
        page.locator("#recent tbody tr").nth(2).wait_for()
        (earlier,) = held
        with page.expect_response("**/info"):
            earlier.continue_()
        page.evaluate("fetch('/info').then(answer => answer.json())")  # so long after it
        assert page.locator("#recent tbody tr").count() == 3
        assert not page.locator("#locked").is_visible()


def test_an_image_that_is_chosen_before_the_page_knows_the_server_is_answered(page: Any) -> None:
    held: list[Any] = []
    with shown(page, ToyModel(Gray())) as url:
        hold_first(page, "**/traffic", held)
        page.goto(url)
        with page.expect_response("**/predict?full=true"):
            page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(250)})
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#exit").inner_text() == "exit 0 (first)"
        (first,) = held
        first.continue_()


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1280, "light")])
def test_a_person_sees_exits_cost_and_budget_over_time_and_the_last_samples(page: Any, width: int, scheme: str) -> None:
    model = ToyModel()
    model.class_names = ["<img src=x onerror=alert(1)>", "odd"]
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    with shown(page, model, token=TOKEN) as url, connect(url) as client:
        page.goto(url)
        page.locator("#quiet", has_text="No traffic").wait_for()
        assert not page.locator("#charts").is_visible()
        assert not page.locator("#last").is_visible()
        for _ in range(3):
            client.post("/predict", json={"inputs": scripted_logits([0, 1, 1, 2, 0], 3).tolist()})
        page.wait_for_selector("#charts:not([hidden])")
        page.wait_for_selector("#locked:not([hidden])")  # the answers to others are for those who have the token
        assert not page.locator("#last").is_visible()
        page.fill("#token", TOKEN)
        page.locator("#token").blur()
        page.locator("#recent tbody tr").nth(9).wait_for()
        assert not page.locator("#locked").is_visible()
        assert page.locator("#over-legend").inner_text().split("\n") == ["exit 0: 40 %", "exit 1: 40 %", "exit 2: 20 %"]
        assert page.locator("#over rect").count() % 3 == 0  # a bar of three parts for each point in time
        assert "spent 1.80" in page.locator("#spent-legend").inner_text()
        assert "budget 2.00" in page.locator("#spent-legend").inner_text()
        assert "now exit 0 40 %, exit 1 40 %, exit 2 20 %" in page.locator("#over").get_attribute("aria-label")
        texts = page.locator("#recent tbody tr").all_inner_texts()
        rows = [["", *row.replace("\u00a0", " ").split("\t")][-4:] for row in texts]  # no time on a narrow screen
        assert len(rows) == 10
        assert {row[2] for row in rows} == {"0", "1", "2 (last)"}
        for row in rows:
            passed, left = r"0\.\d+ < 0\.993", r"1\.000 ≥ 0\.993"  # probabilities, as ?exits=true has them
            assert re.fullmatch({"0": left, "1": f"{passed}; {left}"}.get(row[2], f"{passed}; {passed}"), row[3])
        assert page.locator("#recent img").count() == 0  # names are text
        page.click("#more")
        page.locator("#recent tbody tr").nth(11).wait_for()
        assert page.locator("#recent tbody tr").count() == 12  # the first four of each request
        for part in ("document.documentElement", "document.querySelector('#last .scroll')"):
            assert page.evaluate(f"{part}.scrollWidth <= {part}.clientWidth")  # nothing is cut off


def test_drift_is_said_in_words(page: Any) -> None:
    model = ToyModel()
    with shown(page, model, BudgetController(model.scheduler)) as url, connect(url) as client:
        client.post("/predict", json={"inputs": scripted_logits([0, 1, 1, 2, 0], 3).tolist()})
        page.goto(url)
        page.locator("#drift", has_text="No drift is seen in 5 samples").wait_for()
        assert "They took exit 0 40 %, exit 1 40 %, exit 2 20 %; planned exit 0 " in page.locator("#drift").inner_text()


def test_an_image_can_be_dropped(page: Any) -> None:
    with shown(page, ToyModel(Gray())) as url:
        page.goto(url)
        page.wait_for_selector("#image:not([hidden])")
        page.evaluate(
            """bytes => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "c.png", { type: "image/png" }));
                document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
            }""",
            list(png(100)),
        )
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#exit").inner_text() == "exit 1 (second)"


def test_a_person_types_a_sentence(page: Any) -> None:
    with shown(page, ToyModel(Words())) as url:
        page.goto(url)
        page.wait_for_selector("#text:not([hidden])")
        page.fill("#words", "two words")
        page.click("#text button")
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#exit").inner_text() == "exit 1 (second)"


def test_what_is_refused_is_said(page: Any) -> None:
    with shown(page, ToyModel()) as url:
        page.goto(url)
        page.wait_for_selector("#array:not([hidden])")
        page.fill("#numbers", "[1, 2]")
        page.click("#array button")
        page.wait_for_selector("#error:not([hidden])")
        assert "expected float32 (n, 6)" in page.locator("#error").inner_text()
        assert not page.locator("#answer").is_visible()
        page.fill("#numbers", "[9, 0, 9, 0, 9, 0]")
        page.click("#array button")
        page.wait_for_selector("#answer:not([hidden])")
        assert not page.locator("#error").is_visible()


def test_the_interface_page_lists_the_operations(page: Any) -> None:
    with shown(page, ToyModel()) as url:
        page.goto(f"{url}/docs")
        page.wait_for_selector("details")
        listed = page.locator("summary code").all_inner_texts()
        assert "POST /predict" in listed
        assert "PUT /budget" in listed


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_the_pages_are_one_file_each_with_nothing_from_elsewhere(name: str) -> None:
    html = (PAGES / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # the name of SVG
    assert not re.search(r"https?://|src=|@import|<link", html)


def test_what_the_page_fetches_is_there() -> None:
    html = (PAGES / "index.html").read_text(encoding="utf-8")
    fetched = set(re.findall(r'(?:ask|href=)\(?"(/[a-z]*)', html))
    assert fetched == {"/predict", "/budget", "/info", "/traffic", "/docs", "/metrics"}
    with serving(ToyModel(Gray())) as url, connect(url) as client:
        for path in fetched - {"/predict", "/budget"}:
            assert client.get(path).status_code == 200, path
        for path in ("/predict?exits=true", "/predict?full=true&exits=true"):
            answer = client.post(path, content=png(100), headers={"Content-Type": "image/png"}).json()
            used = set(re.findall(r"(?:early|full)\.(\w+)", html)) - {"predictions"}
            assert used <= set(answer)
            sample = client.get("/traffic").json()["samples"][0]
            elsewhere = {"share", "name", "shape", "textContent", "setAttribute"}
            assert set(re.findall(r"\bone\.(\w+)", html)) <= set(answer["exits"][0]) | set(sample) | elsewhere
            of_texts = {"truncated", "empty"}
            named = set(re.findall(r"\b(?:answer|whole)\.(\w+)", html))
            assert named - of_texts <= set(answer["predictions"][0]) | {"share"}
        traffic = client.get("/traffic").json()
        assert set(re.findall(r"\btraffic\.(\w+)", html)) <= set(traffic) | set(client.get("/info").json()["traffic"])
        assert set(re.findall(r"\bpoint\.(\w+)", html)) <= set(traffic["points"][0])
        info = client.get("/info").json()
        assert set(re.findall(r"\binfo\.(\w+)", html)) <= set(info) | {"runtime", "costs_from"}  # of a bundle only
        response = client.get("/")
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
