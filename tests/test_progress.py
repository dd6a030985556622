"""Progress on a terminal and in a pipe, with a clock that the tests move."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from bundles import up_to_nine
from rich.console import Console
from torch import nn

import eenet
from eenet._progress import EVERY, Bars, amount, by_itself, duration  # private: what shows it is tested elsewhere
from eenet.errors import InvalidInputError
from eenet.evaluation import compare
from eenet.profiling import measure
from eenet.testing import toy_costs, toy_records


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def piped() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=200), file


def test_a_pipe_gets_a_line_now_and_then_with_the_time_left() -> None:
    (console, file), clock = piped(), Clock()
    with Bars(console, clock=clock) as bars:
        update = bars.task("collecting [all]", 1000)
        for second in range(200):
            clock.now = second
            update(5 * second)
    lines = file.getvalue().splitlines()
    assert len(lines) == int(199 // EVERY)
    assert lines[0] == "collecting [all]: 150 of 1,000 (15%), 3 min left"


def test_a_short_task_says_nothing_in_a_pipe() -> None:
    (console, file), clock = piped(), Clock()
    with Bars(console, clock=clock) as bars:
        update = bars.task("collecting", 10)
        for done in range(11):
            clock.now = done
            update(done)
    assert file.getvalue() == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_shown_where_the_console_is_quiet_or_nothing_is_to_be_shown(quiet: bool) -> None:
    file, clock = io.StringIO(), Clock()
    with Bars(Console(file=file, quiet=quiet), shown=quiet, clock=clock) as bars:
        update = bars.task("fitting", 10)
        clock.now = 1000
        update(5)
    assert file.getvalue() == ""


def test_what_a_stopped_run_had_done_does_not_count_as_quick() -> None:
    (console, file), clock = piped(), Clock()
    with Bars(console, clock=clock) as bars:
        update = bars.task("predicting", 1000)
        update(900)
        clock.now = 50.0
        update(950)
    assert file.getvalue() == "predicting: 950 of 1,000 (95%), 50 s left\n"


def test_a_second_pass_has_a_time_left_of_its_own() -> None:
    (console, file), clock = piped(), Clock()
    with Bars(console, clock=clock) as bars:
        update = bars.task("running", 1)
        clock.now = 100.0
        update(1.0)
        clock.now = 200.0
        update(0.0, what="batch 8")
        clock.now = 240.0
        update(0.5, note="so far")
    assert file.getvalue().splitlines()[-1] == "batch 8: 50%, 40 s left  so far"


def test_a_terminal_gets_a_bar_with_the_amount_and_the_time_left() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Bars(console, clock=clock) as bars:
        update = bars.task("fitting", 8, first=2)
        clock.now = 30.0
        update(4, note="exit 0 90%")
    assert "4 of 8 (50%), 60 s left" in file.getvalue()
    assert "exit 0 90%" in file.getvalue()


def test_amounts_and_durations_in_words() -> None:
    assert amount(3, None, 7) == "3 after 7 s"
    assert amount(0, None, 7) == "7 s"
    assert amount(0, 10, 5) == "0 of 10 (0%)"
    assert amount(10, 10, 5) == "10 of 10 (100%)"
    assert amount(12, 10, 5) == "12 of 10 (100%)"
    words = [duration(seconds) for seconds in (0, 8.4, 99, 100, 5000, 8000)]
    assert words == ["0 s", "8 s", "99 s", "2 min", "83 min", "2 h 13 min"]


class Screen(io.StringIO):
    """Standard error that is a terminal, or is none."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def long_calls() -> dict[str, Callable[..., object]]:
    """Calls that take long in earnest, by what they say; each takes the `progress` of its own kind or none."""
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = eenet.attach(network, ["1"], example=x[:2]).eval()
    records, costs = toy_records(), toy_costs()
    return {
        "cutting the network": lambda: eenet.attach(network, ["1"], example=x[:2]),
        "collecting": lambda: eenet.collect(model, [x]),
        "measuring batch sizes": lambda **given: measure(model, x[:2], batch_sizes=[1], seconds=0.0, **given),
        "fitting and judging": lambda **given: compare(records, costs, ["max_prob"], [2.0], resplits=1, **given),
        "trying systems": lambda **given: eenet.search({"one": records}, {"one": costs}, **given),
        "running": lambda **given: eenet.benchmark({"plain": network}, x, batch_sizes=[8], seconds=0.0, **given),
    }


@pytest.mark.parametrize("given", ["yes", True, False])
@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
def test_a_progress_that_cannot_be_called_is_refused_by_all_that_take_one(given: object, tmp_path: Path) -> None:
    expected = f"progress is {given!r}, expected a function that is called with what is done, or None.*EENET_PROGRESS"
    calls = {name: call for name, call in long_calls().items() if name not in ("cutting the network", "collecting")}
    calls["report"] = partial(eenet.report, toy_records(), costs=toy_costs())
    model, x = up_to_nine()
    scheduler = eenet.MaxProbability().fit(
        eenet.collect(model, [(torch.randn(40, 5, 4), torch.arange(40) % 3)]), eenet.ExitCosts([1.0, 2.0]), 1.5
    )
    calls["export"] = partial(eenet.export, model, scheduler, tmp_path / "bundle", example=x)
    for call in calls.values():
        with pytest.raises(InvalidInputError, match=expected):
            call(progress=given)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
def test_long_calls_show_a_bar_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for what, call in long_calls().items():
        for terminal in (True, False):
            screen = Screen(terminal=terminal)
            monkeypatch.setattr(sys, "stderr", screen)
            call()
            assert (what in screen.getvalue()) == terminal, what
            assert terminal or not screen.getvalue()


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
@pytest.mark.parametrize("value", ["0", "False"])
def test_the_environment_hides_all_bars(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = long_calls()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("EENET_PROGRESS", value)
    for call in calls.values():
        screen = Screen(terminal=True)
        monkeypatch.setattr(sys, "stderr", screen)
        call()
        assert not screen.getvalue()


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
def test_a_call_that_is_given_a_function_shows_nothing_and_no_bar_is_within_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    said: list[object] = []
    screen, calls = Screen(terminal=True), long_calls()
    for what, call in calls.items():
        if what not in ("cutting the network", "collecting"):
            monkeypatch.setattr(sys, "stderr", screen)
            call(progress=lambda *done: said.append(done))
            assert screen.getvalue() == ""
    assert said
    console, file = piped()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bars(console), by_itself("within"):
        calls["collecting"]()
    assert screen.getvalue() == file.getvalue() == ""
    calls["collecting"]()
    assert "collecting" in screen.getvalue()


class Written:
    """What a program puts in the place of standard error, to write it to its log."""

    def write(self, text: str) -> int:
        raise AssertionError(text)

    def flush(self) -> None:
        pass


def test_calls_do_their_work_whatever_standard_error_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, closed = long_calls(), io.TextIOWrapper(io.BytesIO())
    closed.close()
    for screen in (Written(), None, closed):
        monkeypatch.setattr(sys, "stderr", screen)
        calls["collecting"]()


def test_what_has_no_length_yet_is_gone_through_all_the_same() -> None:
    class Loader:
        def __iter__(self) -> Iterator[torch.Tensor]:
            yield from torch.randn(3, 5, 4)

        def __len__(self) -> int:
            raise NotImplementedError("not before it is iterated")

    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert len(eenet.collect(eenet.attach(network, ["1"], example=torch.randn(2, 4)), Loader())) == 15


def test_nothing_is_shown_by_what_a_call_that_is_given_a_function_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    with by_itself("searching", given=print):
        long_calls()["collecting"]()
    assert screen.getvalue() == ""
