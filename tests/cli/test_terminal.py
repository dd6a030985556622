"""What every command has: tables that fit, --json, --quiet, --verbose, errors of one line, a way on after Ctrl-C."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import refused, run
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

import eenet
from eenet.benchmarking import Benchmark, BenchmarkRow
from eenet.cli import app
from eenet.evaluation import compare
from eenet.experiments import recipes
from eenet.testing import toy_costs, toy_records

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
FIT = ("--costs", "1,2,3", "--method", "max_prob")
COMPARE = ("compare", "records.safetensors", "--costs", "1,2,3")
PLAN = ("plan", "--stages-ms", "4+1,4+2,4+4", "--exit-shares", "50%,30%,20%", "--p99-ms", 100)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    toy_records(samples=400).save("records.safetensors")
    return "records.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_and_says_what_else_it_takes(command: str) -> None:
    shown = run(command, "--help").stdout
    assert "--json" in shown
    assert "Every command takes --quiet, --verbose, --debug and --import" in " ".join(shown.split())


def test_quiet_prints_nothing_but_what_was_asked_for(records: str) -> None:
    words = ("fit", records, *FIT, "--budget", "60%")
    for place in (("--quiet", *words), (*words, "--quiet")):
        assert run(*place, "--out", "s.safetensors").output == ""
        assert eenet.load_scheduler("s.safetensors").budget == pytest.approx(1.8)
    assert json.loads(run(*words, "--quiet", "--json").stdout)["budget"] == pytest.approx(1.8)


def test_quiet_keeps_warnings_and_errors(records: str) -> None:
    result = run("fit", records, *FIT, "--budget", "200%", "--quiet")
    assert result.stderr.startswith("warning: ")
    assert result.stdout == ""
    assert "nowhere.npz" in refused("fit", "nowhere.npz", "--quiet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "--budgt", "3"), "No such option: --budgt"),
        (("fit",), "Missing argument"),
        (("nonsense",), "No such command 'nonsense'"),
        (("plan", "--exit-shares", "1", "--p99-ms", "soon"), "--p99-ms"),
        (("--nonsense",), "No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(words: tuple[str, ...], message: str) -> None:
    line = refused(*words)
    assert message in line
    where = f"eenet {words[0]}" if words[0] in COMMANDS else "eenet"
    assert line.endswith(f"; see {where} --help")


def test_without_arguments_the_help_is_shown() -> None:
    result = CliRunner().invoke(app, [])
    assert "Usage" in result.output
    assert "error" not in result.stderr


def test_verbose_shows_what_the_library_chose_and_only_then(records: str) -> None:
    words = (*COMPARE, "--methods", "max_prob", "--budgets", "60%", "--resplits", 1, "--jobs", 1, "--out", "kept")
    run(*words)
    assert "kept in" not in run(*words).stderr
    assert "eenet.evaluation: 1 of 1 fits are kept in kept" in run(*words, "--verbose").stderr
    assert logging.getLogger("eenet").level == logging.NOTSET
    assert [type(one) for one in logging.getLogger("eenet").handlers] == [logging.NullHandler]


def stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("patched", "words", "way"),
    [
        ("eenet.evaluation.compare", COMPARE, "give --out FOLDER"),
        (
            "eenet.evaluation.compare",
            (*COMPARE, "--out", "kept"),
            "finished work is kept in kept; the same command goes on",
        ),
        ("eenet.evaluation.compare", (*COMPARE, "--out", "kept", "--restart"), "the same command without --restart"),
        ("eenet.evaluation.evaluate", ("fit", "records.safetensors", *FIT), "no results yet"),
        ("eenet.capacity.plan", (*PLAN, "--rate", 1), "give the same command again"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    records: str, monkeypatch: pytest.MonkeyPatch, patched: str, words: tuple[Any, ...], way: str
) -> None:
    monkeypatch.setattr(patched, stopped)
    result = run(*words, code=130)
    assert re.fullmatch(r"error: stopped, nothing was half written; .+\n", result.stderr)
    assert way in result.stderr


def terminated(*_: Any, **__: Any) -> None:
    signal.raise_signal(signal.SIGTERM)
    raise ValueError("SIGTERM did not end the command")


def test_sigterm_ends_a_command_as_ctrl_c_does(records: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eenet.evaluation.compare", terminated)
    before = signal.getsignal(signal.SIGTERM)
    result = run(*COMPARE, code=143)
    assert re.fullmatch(r"error: stopped, nothing was half written; .+\n", result.stderr)
    assert signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL


def test_a_program_that_ignores_or_handles_sigterm_goes_on_to_do_so(
    records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plans(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise eenet.EENetError("planned")

    seen: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        seen.append(number)

    monkeypatch.setattr("eenet.capacity.plan", plans)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for kept in (signal.SIG_IGN, handler):
            signal.signal(signal.SIGTERM, kept)
            assert run(*PLAN, "--rate", 1, code=2).stderr == "error: planned\n"
            assert signal.getsignal(signal.SIGTERM) == kept
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_a_stopped_recipe_names_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(recipes, "reproduce", stopped)
    words = [command, "digits", "--from", "train", "--resume"]
    monkeypatch.setattr("sys.argv", ["eenet", *words])
    assert f"to go on: eenet {command} digits --resume" in run(*words, code=130).stderr


def test_tables_fit_80_columns_and_need_no_color(records: str) -> None:
    for words in (
        ("fit", records, *FIT, "--budget", "60%"),
        ("fit", records, *FIT),
        (*COMPARE, "--methods", "max_prob", "--budgets", 4, "--resplits", 1, "--jobs", 1),
        (*PLAN, "--replicas", "1,10"),
        ("doctor", "--seconds", 0.01),
    ):
        environment = {"COLUMNS": "80", "NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm"}
        result = CliRunner().invoke(app, [str(word) for word in words], env=environment)
        shown = re.sub(r"\x1b\[[013]*m", "", result.stdout)
        assert "\x1b" not in shown  # bold and slanted at most
        table = [line.rstrip() for line in shown.splitlines() if "  " in line]
        assert table
        assert max(map(len, table)) <= 80, table


def test_json_of_a_report_is_printed_or_written_to_a_file(records: str) -> None:
    pytest.importorskip("plotly", reason="needs plotly: pip install 'eenet[report]'")
    words = ("report", records, "--costs", "1,2,3", "--methods", "max_prob", "--budgets", 3, "--draws", 0)
    printed = json.loads(run(*words, "--json", "--quiet").stdout)
    assert run(*words, "--json", "numbers.json", "-q").output == ""
    assert json.loads(Path("numbers.json").read_text()) == printed
    assert Path("report.html").is_file()


def test_a_comparison_of_many_budgets_is_shown_in_parts_on_a_narrow_terminal() -> None:
    budgets = [1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6]
    comparison = compare(toy_records(samples=200), toy_costs(), ["max_prob", "entropy"], budgets, resplits=1)
    whole, parts = comparison.to_text(), comparison.to_text(width=80)
    tables = [line for line in parts.splitlines() if not line.startswith(("held-out", "difference"))]
    assert max(map(len, tables)) <= 80 < max(map(len, whole.splitlines()))
    numbers = re.compile(r"(?<=  )[+-]?\d[\d.]*%?")  # of cells; the names of rows stand in each part
    assert sorted(numbers.findall(whole)) == sorted(numbers.findall(parts))


def test_a_benchmark_shows_all_columns_on_every_terminal_and_in_a_file() -> None:
    row = BenchmarkRow("plain", None, False, 8, 9, 1.0, 2.0, 3.0, 0.1, 0.05, 0.05, 900.0, 0.1, 1.0, 0.0, 1.0, 0.0)
    machine = {"processor": "p", "machine": "m", "cores": 2, "python": "3", "system": "s"}
    result = Benchmark((row, row), "Not worth it.", ("A note.",), 100, False, machine)
    texts = {80: str(result)}
    for width in (60, 80, 120, 200):
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(result)
        texts[width] = console.file.getvalue()  # type: ignore[attr-defined]
    for width, text in texts.items():
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        for word in ("p50 ms", "p95 ms", "p99 ms", "spread", "samples", "as fast", "A note."):
            assert word in text, (width, word)
        assert all(line.startswith(("plain", " ")) for line in text.splitlines() if " 0.1 " in line), (
            "no name is folded"
        )
    assert len(texts[60].splitlines()) > len(texts[200].splitlines())
