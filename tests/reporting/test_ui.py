"""`eenet ui`: the report of a folder that follows it, and what is shown of a run before it has results."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import interruptible, refused
from waiting import PATIENCE

import eenet
from eenet.reporting._live import live_page, make_server  # private: `eenet ui` serves until it is stopped
from eenet.reporting._watch import Watched
from eenet.testing import toy_costs, toy_records

pytest.importorskip("plotly", reason="needs plotly: pip install 'eenet[report]'")

HISTORY = "epoch,loss,accuracies_0,accuracies_1,seconds\n"


def write_results(folder: Path, *, name: str = "toy") -> None:
    """A folder as `eenet reproduce` leaves it."""
    folder.mkdir(exist_ok=True)
    calibration, test = toy_records(samples=300, seed=0), toy_records(samples=100, seed=1)
    costs = toy_costs()
    calibration.save(folder / "calibration.safetensors")
    test.save(folder / "test.safetensors")
    (folder / "schedulers").mkdir(exist_ok=True)
    eenet.MaxProbability().fit(calibration, costs, "60%").save(folder / "schedulers" / "max_prob-60.safetensors")
    exits = [{"name": f"layer {k}"} for k in range(len(costs))]
    write_metrics(folder, {"recipe": name, "costs": costs.to_dict(), "exits": exits, "data": {"classes": []}})


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    (folder / "new.json").write_text(json.dumps(metrics))
    os.replace(folder / "new.json", folder / "metrics.json")


def write_step(folder: Path, step: str, **result: Any) -> None:
    path = folder / "work" / "steps" / f"{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "step": step, "seconds": 3.0, "settings": {}, "result": result}))


def write_epochs(folder: Path, *rows: str) -> None:
    path = folder / "work" / "training" / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HISTORY + "".join(f"{row}\n" for row in rows))


@contextmanager
def serving(watched: Watched) -> Iterator[tuple[str, int]]:
    server = make_server(watched)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(port: int, method: str, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    return connection.getresponse()


def test_a_page_is_made_when_two_looks_see_the_same_and_again_when_results_change(tmp_path: Path) -> None:
    watched = Watched([tmp_path / "run"], budgets=5)
    assert not watched.look()
    assert watched.status()["version"] == ""
    write_results(tmp_path / "run")
    assert [watched.look() for _ in range(3)] == [False, True, False]
    first = watched.status()["version"]
    assert watched.page is not None
    assert b"toy" in watched.page
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    write_metrics(tmp_path / "run", metrics | {"recipe": "another name"})
    assert [watched.look() for _ in range(3)] == [False, True, False]
    assert watched.status()["version"] not in ("", first)


def test_results_that_cannot_be_read_leave_the_page_as_it_is(tmp_path: Path) -> None:
    write_results(tmp_path)
    watched = Watched([tmp_path], budgets=5)
    assert [watched.look(), watched.look()] == [False, True]
    page, version = watched.page, watched.status()["version"]
    (tmp_path / "metrics.json").write_text("{}")
    assert [watched.look(), watched.look()] == [False, False]
    assert (watched.page, watched.status()["version"]) == (page, version)
    assert "metrics.json" in watched.status()["error"]


def test_results_are_not_read_while_a_run_writes_them(tmp_path: Path) -> None:
    write_results(tmp_path)
    write_step(tmp_path, "data")
    watched = Watched([tmp_path], budgets=5)
    assert not any(watched.look() for _ in range(3))
    write_step(tmp_path, "evaluate")
    assert [watched.look(), watched.look()] == [False, True]


def test_the_state_of_a_run_says_what_is_done_and_what_comes_next(tmp_path: Path) -> None:
    watched = Watched([tmp_path / "none", tmp_path])
    nothing, empty = watched.status()["runs"]
    assert (nothing["there"], nothing["steps"]) == (False, [])
    assert (empty["there"], empty["steps"], empty["training"]) == (True, [], None)
    write_step(tmp_path, "data")
    write_epochs(tmp_path, "0,2.0,0.5,0.6,9.0", "1,1.0,0.7,0.8,9.5")
    state = watched.status()["runs"][1]
    assert [one["state"] for one in state["steps"]] == ["done", "next", *["later"] * 4]
    assert state["training"] == {
        "epochs": [1, 2], "loss": [2.0, 1.0], "accuracies": [[0.5, 0.7], [0.6, 0.8]], "seconds": [9.0, 9.5]
    }  # fmt: skip
    write_step(tmp_path, "train", exits=["a", "output"])
    write_step(tmp_path, "collect", calibration={"samples": 3, "accuracies": [0.1, 0.2]})
    write_step(tmp_path, "profile", costs=eenet.ExitCosts([1.0, 2.0], plain=1.9).to_dict())
    state = watched.status()["runs"][1]
    assert state["exits"] == ["a", "output"]
    assert state["accuracies"] == {"calibration": [0.1, 0.2]}
    assert state["costs"] == {"values": [1.0, 2.0], "unit": "ms", "plain": 1.9}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", HISTORY + "0,x,0.5,0.6,1\n", HISTORY + "0,1.0\n"])
def test_a_history_that_is_half_written_or_of_something_else_is_left_out(tmp_path: Path, text: str) -> None:
    write_epochs(tmp_path)
    (tmp_path / "work" / "training" / "metrics.csv").write_text(text)
    (tmp_path / "work" / "steps").mkdir()
    (tmp_path / "work" / "steps" / "data.json").write_text('{"half')
    state = Watched([tmp_path]).status()["runs"][0]
    assert state["training"] in (None, {"epochs": [], "loss": [], "accuracies": [], "seconds": []})
    assert state["steps"][0]["state"] == "next"


def test_a_training_that_diverges_is_shown_and_the_state_is_json(tmp_path: Path) -> None:
    write_epochs(tmp_path, "0,2.0,0.5,0.6,9.0", "1,nan,0.2,0.2,9.5", "2,inf,0.2,0.2,9.5")
    training = Watched([tmp_path]).status()["runs"][0]["training"]
    assert training["loss"] == [2.0, None, None]
    json.dumps(training, allow_nan=False)


@pytest.mark.parametrize("result", [5, None, [1], {"costs": [1], "exits": None}])
def test_steps_with_other_contents_are_shown_as_done(result: Any, tmp_path: Path) -> None:
    write_step(tmp_path, "data")
    for step in ("train", "collect", "profile"):
        path = tmp_path / "work" / "steps" / f"{step}.json"
        path.write_text(json.dumps({"seconds": 1.0, "result": result}))
    state = Watched([tmp_path]).status()["runs"][0]
    assert [one["state"] for one in state["steps"]] == [*["done"] * 4, "next", "later"]
    assert (state["exits"], state["costs"]) == (None, None)


def test_contents_that_no_version_writes_are_said_and_the_next_results_are_seen(tmp_path: Path) -> None:
    write_results(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    watched = Watched([tmp_path], budgets=5)
    write_metrics(tmp_path, metrics | {"settings": 5, "comparison": [1]})
    assert [watched.look(), watched.look()] == [False, False]
    assert watched.status()["error"]
    write_metrics(tmp_path, metrics)
    assert [watched.look(), watched.look()] == [False, True]
    assert watched.status()["error"] == ""


def test_the_server_shows_and_changes_nothing_and_answers_to_its_own_name_alone(tmp_path: Path) -> None:
    with serving(Watched([tmp_path])) as (_, port):
        for host in (None, f"127.0.0.1:{port}", f"localhost:{port}"):
            response = answer(port, "GET", "/status", host)
            assert response.status == 200
            assert json.loads(response.read())["version"] == ""
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", ""):
            assert answer(port, "GET", "/", host).status == 403
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert answer(port, method, "/").status == 501
        for path in ("/metrics.json", "/../etc/passwd", "/status?x=1"):
            assert answer(port, "GET", path).status == 404
        head = answer(port, "HEAD", "/")
        assert (head.status, head.read()) == (200, b"")
        assert "connect-src 'self'" in head.headers["Content-Security-Policy"]
        assert head.headers["Cache-Control"] == "no-store"


def test_a_port_that_is_taken_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with serving(Watched([tmp_path])) as (_, port):
        assert "choose another --port" in refused("ui", tmp_path, "--port", port)


def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.safetensors").write_bytes(b"")
    assert "is a file, expected a folder of results" in refused("ui", tmp_path / "records.safetensors")


def test_a_bundle_is_refused_with_what_shows_it(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    expected = f"'{folder}' is a bundle, expected the results of eenet reproduce, train or demo; "
    for command in ("ui", "report"):
        assert f"{expected}it carries no records" in refused(command, folder)
    for name in ("records-1234.safetensors", "scheduler.safetensors"):
        (folder / name).write_bytes(b"")
    way = f"eenet report {folder}/records-1234.safetensors --scheduler {folder}/scheduler.safetensors"
    for command in ("ui", "report"):
        assert f"{expected}the page of its calibration records: {way}" in refused(command, folder)


def test_the_command_prints_its_address_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "eenet", "ui", str(tmp_path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}status", timeout=PATIENCE) as response:
            assert json.load(response)["runs"][0]["path"] == str(tmp_path)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()
    assert process.returncode == 0
    assert url in messages
    assert "Traceback" not in messages


def test_a_person_watches_a_run_until_it_is_a_report_that_keeps_what_was_chosen(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "<b>run"
    watched = Watched([folder], budgets=5)
    page = browser.new_page(viewport={"width": 375, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    with serving(watched) as (url, _):
        page.goto(url)
        page.get_by_text("There is no such folder yet.").wait_for()
        assert page.locator("h2").inner_text() == "<b>run"
        write_step(folder, "data")
        write_epochs(folder, "0,2.0,0.5,0.6,9.0", "1,1.0,0.7,0.8,9.5")
        page.get_by_text("Training: epoch 2").wait_for()
        assert page.locator("svg polyline").count() == 2
        assert "exit 1\t80.0 %\t80.0 %" in page.locator("table").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        for step in ("train", "collect", "profile", "fit", "evaluate"):
            write_step(folder, step)
        write_results(folder)
        watched.look()
        assert watched.look()
        page.wait_for_selector("html[data-ready=yes]")
        page.locator("#live", has_text="Live since").wait_for()
        page.locator("#budget").evaluate("one => { one.value = 1; one.dispatchEvent(new Event('input')); }")
        chosen = page.locator("#typed").input_value()
        metrics = json.loads((folder / "metrics.json").read_text())
        write_metrics(folder, metrics | {"recipe": "renamed"})
        watched.look()
        assert watched.look()
        page.locator("h1", has_text="renamed").wait_for()
        page.wait_for_selector("html[data-ready=yes]")
        page.locator("#live", has_text="Live since").wait_for()
        assert page.locator("#typed").input_value() == chosen
        assert page.locator("#budget").input_value() == "1"
        assert errors == []
    page.locator("#live", has_text="does not answer").wait_for()
    page.close()
    assert [error for error in errors if "net::ERR_" not in error] == []


def test_a_page_with_another_policy_is_refused() -> None:
    with pytest.raises(eenet.EENetError, match="policy"):
        live_page(b"<html><body></body></html>")
