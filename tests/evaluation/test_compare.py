"""Comparisons in several processes, kept in a folder and taken up again, and `eenet compare`."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import stopped
from matplotlib.figure import Figure
from typer.testing import CliRunner
from waiting import PATIENCE

from eenet import ExitCosts, InfeasibleBudgetError, MaxProbability, Patience, Static
from eenet.cli import app
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.evaluation import Comparison, compare
from eenet.records import ExitRecords
from eenet.scheduler import SCHEDULERS, SCORES, Scheduler, TemperatureScaled
from eenet.tasks import Evidence, Segmentation
from eenet.testing import toy_costs, toy_records

COSTS = toy_costs()
NAMES = ["max_prob", "margin", "ztw"]
BUDGETS = [1.5, 2.2]
FILES = ["comparison.json", "comparison.png", "differences.csv", "inputs.json", "rows.csv", "table.tex", "table.txt"]


def timeless(found: Comparison) -> dict[str, Any]:
    data = found.to_dict()
    for row in data["rows"]:
        del row["fit_seconds"]
    return data


def killed() -> Scheduler:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def test_the_results_are_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    common: dict[str, Any] = {"resplits": 3, "seed": 4}
    one = compare(toy_records(240), COSTS, NAMES, BUDGETS, **common)
    two = compare(
        toy_records(240), COSTS, NAMES, BUDGETS, **common, jobs=2, out=tmp_path,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert timeless(one) == timeless(two)
    for first, second in zip(one.cells, two.cells, strict=True):
        np.testing.assert_array_equal(first.exits, second.exits)
        np.testing.assert_array_equal(first.utility, second.utility)
    assert calls == [(2 * (n + 1), 18) for n in range(9)]
    assert len(list((tmp_path / "cells").iterdir())) == 9


def test_the_latex_tables_have_the_numbers_of_the_text(tmp_path: Path) -> None:
    found = compare(toy_records(200), COSTS, NAMES, ["60%", "80%"], resplits=2)
    accuracies, differences = found.to_latex("margin").split("\n\n")
    assert r"\caption{Difference to margin at the same held-out cost" in differences
    for table, columns in ((accuracies, 5), (differences, 4)):
        assert table.startswith(r"\begin{table}")
        assert table.endswith(r"\end{table}")
        body = table.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
        lines = [line for line in body.splitlines() if line]
        assert all(line.endswith(r"\\") and line.count(" & ") == columns - 1 for line in lines), lines
        assert not re.search(r"(?<!\\)[%_#]", table), "LaTeX would read these"
    text = found.to_text("margin")
    error = found.accuracy_error("max_prob", found.budgets[0])
    assert error is not None
    (cell,) = re.findall(rf"max_prob +(\S+) ± {100 * error:.2f}", text)
    assert rf"max\_prob & {cell} $\pm$ {100 * error:.2f} &" in accuracies
    signed = re.findall(r"[+-]\d+\.\d\d ±", text)
    assert [f"${one[0]}${one[1:-2]}" for one in signed] == re.findall(r"\$[+-]\$\d+\.\d\d", differences)
    found.write(tmp_path, "margin")
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == found.to_latex("margin") + "\n"


def test_a_method_that_took_a_simple_rule_in_its_own_place_is_told(tmp_path: Path) -> None:
    # Nothing to learn: all that the exits say is how sure they are.
    records = toy_records(300)
    found = compare(records, COSTS, ["max_prob", "stopping"], BUDGETS, resplits=3, out=tmp_path)
    again = compare(records, COSTS, ["max_prob", "stopping"], BUDGETS, resplits=3, out=tmp_path)
    notes = {row.resplit: row.note for row in found.rows if row.scheduler == "stopping" and row.note}
    assert notes
    assert all("MaxProbability is used instead" in str(note) for note in notes.values())
    assert not [row for row in found.rows if row.scheduler == "max_prob" and row.note]
    for one in (found, again):  # again: what was kept in files
        said = one.to_text().splitlines()
        assert f"stopping, on {len(notes)} of 3 resplits: {next(iter(notes.values()))}" in said
    for resplit in notes:
        rows = [
            [row for row in found.rows if (row.scheduler, row.resplit) == (name, resplit)] for name in found.schedulers
        ]
        assert [row.accuracy for row in rows[0]] == [row.accuracy for row in rows[1]]


def test_budgets_may_be_shares_or_have_a_unit() -> None:
    costs = ExitCosts([1.0, 2.0, 3.0], "ms", plain=2.5)
    asked = compare(toy_records(200), costs, ["max_prob"], ["60%", "2200us", 2.4, "20%"], resplits=1)
    assert asked.budgets == pytest.approx((1.5, 2.2, 2.4, 0.5))
    infeasible = [row for row in asked.rows if row.budget == pytest.approx(0.5)]
    assert [row.accuracy for row in infeasible] == [None], "it is a row, with its reason"
    assert infeasible[0].reason is not None
    with pytest.raises(InvalidInputError, match=r"budgets are '60%', expected a list such as \['40%', '60%'\]"):
        compare(toy_records(200), costs, ["max_prob"], "60%")


def test_finished_work_is_not_repeated_and_more_of_it_is_added(tmp_path: Path) -> None:
    def run(names: list[str], resplits: int = 2) -> tuple[Comparison, list[int]]:
        counts: list[int] = []
        found = compare(
            toy_records(200), COSTS, names, BUDGETS, resplits=resplits, out=tmp_path,
            progress=lambda done, total: counts.append(done),
        )  # fmt: skip
        return found, counts

    first, counts = run(["max_prob", "margin"])
    assert counts == list(range(1, 9))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    again, counts = run(["max_prob", "margin"])
    assert counts == [8]
    assert first.to_dict() == again.to_dict()  # fit times included: nothing was fitted
    more, counts = run(["max_prob", "margin", "voting"], resplits=3)
    assert counts == [8, *range(9, 19)]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    fresh = compare(toy_records(200), COSTS, ["max_prob", "margin", "voting"], BUDGETS, resplits=3)
    assert timeless(more) == timeless(fresh)


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = compare(toy_records(200), COSTS, NAMES, BUDGETS, resplits=2)

    class Stop(Exception):  # noqa: N818 - what a test raises to stop
        pass

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        compare(toy_records(200), COSTS, NAMES, BUDGETS, resplits=2, out=tmp_path, progress=stop)
    finished = sorted((tmp_path / "cells").iterdir())
    assert len(finished) == 3
    # A file that was damaged meanwhile is as one that is not there.
    finished[0].write_bytes(finished[0].read_bytes()[:-10])
    counts: list[int] = []
    found = compare(
        toy_records(200), COSTS, NAMES, BUDGETS, resplits=2, out=tmp_path,
        progress=lambda done, total: counts.append(done),
    )  # fmt: skip
    assert counts[0] == 4
    assert timeless(found) == timeless(whole)


def test_a_changed_input_is_refused_by_name_or_begins_again(tmp_path: Path) -> None:
    compare(toy_records(100), COSTS, ["max_prob"], BUDGETS, resplits=1, out=tmp_path)
    with pytest.raises(InvalidInputError, match=r"holds a comparison of other records; name another folder, or"):
        compare(toy_records(100, seed=1), COSTS, ["max_prob"], BUDGETS, resplits=1, out=tmp_path)
    other = ExitCosts([1.0, 2.0, 4.0])
    with pytest.raises(InvalidInputError, match="of other costs and budgets and seed;"):
        compare(toy_records(100), other, ["max_prob"], [1.5], resplits=1, out=tmp_path, seed=3)
    fresh = toy_records(50, seed=2)
    with pytest.raises(InvalidInputError, match="of other held_out and fraction;"):
        compare(toy_records(100), COSTS, ["max_prob"], BUDGETS, out=tmp_path, held_out=fresh, fraction=0.5)


def test_another_scheduler_of_the_same_name_is_computed_again(tmp_path: Path) -> None:
    def run(made: Callable[[], Scheduler], out: Path | None = tmp_path) -> Comparison:
        return compare(toy_records(200), COSTS, {"mine": made}, BUDGETS, resplits=2, out=out)

    run(MaxProbability)
    scores = [
        TemperatureScaled().fit(toy_records(300, seed=n), COSTS, 2.0, fallback=False).policy.score for n in (0, 1)
    ]
    others: list[Callable[[], Scheduler]] = [partial(Static, 0), partial(Static, 1)]
    others += [partial(Scheduler, score) for score in scores]
    for made in others:
        with pytest.warns(
            ReliabilityWarning, match=r"results of 'mine' that are not used: it was .*, now it is "
        ) as said:
            found = run(made)
        assert len(said) == 1
        assert timeless(found) == timeless(run(made, None))
        assert run(made).to_dict() == found.to_dict()  # kept, and not said again


def test_restarting_discards_what_was_kept(tmp_path: Path) -> None:
    compare(toy_records(100), COSTS, ["max_prob", "margin"], BUDGETS, resplits=1, out=tmp_path)
    other = compare(toy_records(100, seed=1), COSTS, ["max_prob"], [2.0], resplits=1, out=tmp_path, restart=True)
    assert len(list((tmp_path / "cells").iterdir())) == 1
    assert timeless(other) == timeless(compare(toy_records(100, seed=1), COSTS, ["max_prob"], [2.0], resplits=1))
    (tmp_path / "inputs.json").write_text("no json")
    with pytest.raises(InvalidInputError, match="is not what eenet compare wrote"):
        compare(toy_records(100), COSTS, ["max_prob"], BUDGETS, resplits=1, out=tmp_path)


def test_what_other_processes_cannot_be_given_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"scheduler 'mine' cannot be given to other processes .*or jobs=1"):
        compare(toy_records(60), COSTS, {"mine": lambda: Static(1)}, BUDGETS, jobs=2)
    found = compare(toy_records(60), COSTS, {"mine": partial(Static, 1), "max": MaxProbability}, [2.0], jobs=2)
    assert [row.held_out_cost for row in found.rows if row.scheduler == "mine"] == [2.0] * 5
    with pytest.raises(InvalidInputError, match="jobs is 0, expected 1 or more"):
        compare(toy_records(60), COSTS, ["max_prob"], BUDGETS, jobs=0)
    with pytest.raises(
        InvalidInputError, match="scheduler 'nonsense' is not known; choose from eenet, stopping, max_prob"
    ):
        compare(toy_records(60), COSTS, ["nonsense"], BUDGETS)


def test_a_script_that_each_process_runs_again_is_told_so(tmp_path: Path) -> None:
    """The processes end before they read their arguments, which are more than a pipe holds."""
    script = """
        from eenet.evaluation import compare
        from eenet.testing import toy_costs, toy_records
        compare(toy_records(20_000), toy_costs(), ["max_prob", "entropy"], [1.5], resplits=2, jobs=2)
        """
    (tmp_path / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "outside of `if __name__ == '__main__':`" in done.stderr


def test_a_killed_process_is_said_and_finished_work_is_kept(tmp_path: Path) -> None:
    schedulers = {"max": MaxProbability, "patience": Patience, "killed": killed}
    with pytest.raises(InvalidInputError, match="a process of the comparison ended: perhaps it was killed"):
        compare(toy_records(60), COSTS, schedulers, BUDGETS, resplits=1, jobs=2, out=tmp_path)
    found = compare(
        toy_records(60), COSTS, {"max": MaxProbability, "patience": Patience}, BUDGETS, resplits=1, out=tmp_path
    )
    assert len(found.rows) == 4


def test_doubles_on_both_sides_are_warned_of() -> None:
    records = toy_records(100)
    with pytest.warns(ReliabilityWarning, match="60 of the 60 samples held out have a double among those to calibrate"):
        compare(records, COSTS, ["max_prob"], [2.0], held_out=records.subset(np.arange(60)))
    with pytest.warns(ReliabilityWarning, match="40 of the 120 samples have a double among them"):
        compare(records.subset(np.r_[:100, :20]), COSTS, ["max_prob"], [2.0])


def test_an_infeasible_budget_passes_from_process_to_process() -> None:
    found = compare(toy_records(60), COSTS, {"max": MaxProbability, "last": partial(Static, 2)}, [2.0], jobs=2)
    assert all("Static(2) costs 3 ms" in str(row.reason) for row in found.rows if row.scheduler == "last")
    import pickle

    error = pickle.loads(pickle.dumps(InfeasibleBudgetError("too small", smallest=1.5)))  # noqa: S301 - its own
    assert (str(error), error.smallest) == ("too small", 1.5)


# The command line.


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.npz"
    arrays: dict[str, Any] = {}
    for prefix, seed in (("val_", 0), ("test_", 1)):
        records = toy_records(240, seed=seed)
        arrays |= {f"{prefix}probs": records.probabilities, f"{prefix}labels": records.labels}
    np.savez(path, costs=COSTS.values, **arrays)
    return path


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["compare", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_compare_prints_tables_and_leaves_everything_in_a_folder(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = (predictions, "--prefix", "val_", "--methods", "max_prob,ztw,searched", "--resplits", 2, "--jobs", 1)
    shown = run(*words, "--budgets", "40%,60%,80%", "--out", out).stdout
    titles = ("ztw *", "searched", "oracle", "best random mixture", "difference to max_prob")
    for word in (*titles, f"tables and figure are in {out}"):
        assert word in shown
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "cells"])
    table = (out / "table.txt").read_text(encoding="utf-8")
    assert set(table.split()) <= set(shown.split()), "the same, in parts that fit"
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    with (out / "rows.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(data["rows"]) == 18
    for row, expected in zip(rows, data["rows"], strict=True):
        assert float(row["accuracy"]) == expected["accuracy"]
        assert row["changes_predictions"] == str(row["scheduler"] == "ztw")
        assert float(row["random_mixture"]) <= float(row["oracle"])
    with (out / "differences.csv").open(encoding="utf-8", newline="") as handle:
        differences = list(csv.DictReader(handle))
    assert len(differences) == 3 * 4
    assert {row["reference"] for row in differences} == {"max_prob"}
    # Without matplotlib there is no figure, and none is promised.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (out / "comparison.png").unlink()
    result = run(*words, "--budgets", "40%,60%,80%", "--out", out)
    assert f"tables are in {out}" in result.stdout
    assert "figure" not in result.stdout
    assert "no figure: a figure needs matplotlib" in " ".join(result.stderr.split())
    assert "[report]'" in result.stderr
    # The same again is read from the folder; the reference may be another one.
    again = json.loads(run(*words, "--budgets", "40%,60%,80%", "--out", out, "--reference", "ztw", "--json").stdout)
    assert again["rows"] == data["rows"]
    assert again["reference"] == "ztw"
    assert "other budgets; name another folder" in run(*words, "--budgets", "50%", "--out", out, code=2).stderr
    run(*words, "--budgets", "50%", "--out", out, "--restart")


def test_a_number_of_budgets_lies_evenly_between_the_exits(predictions: Path) -> None:
    words = (predictions, "--prefix", "val_", "--methods", "max_prob", "--resplits", 1, "--jobs", 1, "--json")
    found = json.loads(run(*words, "--budgets", 3).stdout)
    assert [row["budget"] for row in found["rows"]] == [1.5, 2.0, 2.5]
    found = json.loads(run(*words, "--budgets", "50%,2.5ms").stdout)
    assert [row["budget"] for row in found["rows"]] == [1.5, 2.5]


def test_held_out_predictions_are_only_judged_on(predictions: Path) -> None:
    words = (predictions, "--prefix", "val_", "--methods", "max_prob", "--budgets", 2, "--resplits", 2, "--jobs", 1)
    found = json.loads(run(*words, "--held-out", predictions, "--held-out-prefix", "test_", "--json").stdout)
    assert found["separate"]
    assert found["samples"] == 240


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "max_porb"), "--methods 'max_porb' is not known; did you mean 'max_prob'?"),
        (("--methods", "max_prob,max_prob"), "names a method twice"),
        (("--methods", "max_prob", "--reference", "ztw"), "--reference 'ztw' is not known"),
        (("--budgets", "0"), "expected at least 1"),
        (("--budgets", "1.5,2"), "1.5 has no unit; write 1.5% or 1.5ms"),
        (("--budgets", "0.6,0.8"), "0.6 has no unit; write 60% or 0.6ms"),
        (("--budgets", "60%,much"), "budget 'much' cannot be read"),
        (("--budgets", "10%"), "below the first exit's cost"),
        (("--fraction", "1"), "leaves one part empty"),
        (("--costs", "1,2"), "costs are for 2 exits"),
    ],
)
def test_what_cannot_be_compared_is_one_line(predictions: Path, words: tuple[str, ...], message: str) -> None:
    stderr = run(predictions, "--prefix", "val_", "--jobs", 1, *words, code=2).stderr
    assert message in stderr
    assert stderr.strip().count("\n") == 0


def test_a_comparison_that_is_stopped_leaves_whole_files(predictions: Path, tmp_path: Path) -> None:
    """Interrupted while one of two processes writes what it has found; then the same command again."""
    out = tmp_path / "out"
    words = (
        "compare", predictions, "--prefix", "val_", "--methods", "max_prob,eenet", "--budgets", 3, "--resplits", 2,
        "--jobs", 2, "--out", out, "--json",
    )  # fmt: skip
    done = stopped(signal.SIGINT, "makes", ".safetensors", *words)
    assert list(out.glob("cells/*.safetensors"))
    assert not list(out.rglob("*.partial"))
    assert done.returncode == 130, done.stderr
    assert "stopped, nothing was half written" in done.stderr
    assert "the same command goes on" in done.stderr
    done = run(*words[1:])
    assert len(json.loads(done.stdout)["rows"]) == 12
    assert not list(out.rglob("*.partial"))


def test_all_methods_on_pooled_evidence_are_those_that_can_read_it_and_the_rest_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=(40, 8, 8))
    task = Segmentation(stride=2)
    for name in ("pooled", "other"):
        logits = rng.normal(size=(3, 40, 3, 8, 8)) + 2 * np.eye(3)[labels].transpose(0, 3, 1, 2)
        history: list[Evidence] = []
        for of_exit in logits.astype(np.float32):
            history.append(task.evidence(task.shown(of_exit), history))
        utility = rng.random((3, 40), dtype=np.float32)
        ExitRecords.from_evidence([history], utility=utility).save(tmp_path / f"{name}.safetensors")
    words = ["compare", str(tmp_path / "pooled.safetensors"), "--costs", "1,2,3", "--budgets", "60%", "--resplits", "1"]
    result = CliRunner().invoke(app, [*words, "--jobs", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    assert "left out, since they cannot read evidence pooled over pixels: margin, temperature, ztw, beem, gate" in (
        " ".join(result.stderr.split())
    )
    names = {row["scheduler"] for row in json.loads(result.stdout)["rows"]}
    assert names == {name for name, make in SCHEDULERS.items() if not make().whole_samples}
    joined = [words[1], str(tmp_path / "other.safetensors"), "--costs", "1,2,3,1,2,4", "--json"]
    result = CliRunner().invoke(app, ["compare", *joined, "--budgets", "60%", "--resplits", "1", "--jobs", "1"])
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "left out, since on how many pixels exits agree is not known for records that were joined or cut: " in said
    readable = {"max_prob", "entropy", "eero", "searched"}
    assert {row["scheduler"] for row in json.loads(result.stdout)["rows"]} == readable
    assert CliRunner().invoke(app, ["search", *joined]).exit_code == 0
    result = CliRunner().invoke(app, ["fit", "--method", "voting", *joined])
    assert result.exit_code == 2, result.stderr
    assert "choose a scheduler that does not count agreement: MaxProbability" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, ["search", "--method", "patience", *joined])
    assert result.exit_code == 0, result.stderr
    (note,) = [note for note in json.loads(result.stdout)["notes"] if "left out" in note]
    assert note.startswith("pooled + other is left out: Patience counts on how many pixels exits agree, which is not")


def test_accuracies_have_standard_errors_and_what_is_the_same_for_all_samples_stands_beside_them() -> None:
    records, costs = toy_records(300), ExitCosts([1.0, 2.0, 3.0], plain=2.8)
    found = compare(records, costs, ["max_prob", "entropy"], [2.0, 2.9], resplits=3, held_out=toy_records(400, seed=1))
    assert [one.name for one in found.statics] == ["exit 0", "exit 1", "exit 2", "plain"]
    fresh = toy_records(400, seed=1)
    for one, k in zip(found.statics, (0, 1, 2, 2), strict=True):
        assert one.accuracy == pytest.approx(fresh.accuracies[k])
        assert one.standard_error == pytest.approx(np.sqrt(one.accuracy * (1 - one.accuracy) / 400))
    assert found.statics[-1].cost == 2.8
    for name in found.schedulers:
        error = found.accuracy_error(name, 2.0)
        of_name = [row for row in found.rows if (row.scheduler, row.budget) == (name, 2.0)]
        accuracy = float(np.mean([row.accuracy or 0.0 for row in of_name]))
        assert error == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400), rel=0.15)
    text = found.to_text()
    assert f"{100 * fresh.accuracies[1]:.2f} ± {100 * found.statics[1].standard_error:.2f}" in text
    assert "plain at 2.8 ms" in text
    assert found.to_dict()["statics"][3]["name"] == "plain"
    # Of resplits the mean over them: samples that were held out more often count more.
    own = compare(records, costs, ["max_prob"], [2.0], resplits=2)
    expected = np.mean([records.require_utility()[1, rows].mean() for rows in own.held])
    assert own.statics[1].accuracy == pytest.approx(expected)


def test_the_figure_names_all_and_shows_errors_exits_and_the_plain_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    save = Figure.savefig

    def saved(figure: Figure, *words: Any, **more: Any) -> None:
        figures.append(figure)
        save(figure, *words, **more)

    monkeypatch.setattr(Figure, "savefig", saved)
    costs = ExitCosts([1.0, 2.0, 3.0], plain=2.8)
    found = compare(toy_records(200), costs, ["max_prob", "entropy", "margin"], [1.5, 2.5], resplits=2)
    found.write_figure(tmp_path / "three.png")
    compare(toy_records(200), costs, ["max_prob"], [1.5, 2.5], resplits=2).write_figure(tmp_path / "one.png")
    three, one = figures
    left, right = three.axes
    named = [text.get_text() for text in left.get_legend().get_texts()]
    assert {"max_prob", "entropy", "margin", "one exit for all", "plain network"} <= set(named)
    bars = [drawn for drawn in left.containers if drawn.has_yerr]
    assert len(bars) == 5, "three schedulers, the exits, the plain network"
    for axes in (left, right):
        three.canvas.draw()
        box = axes.xaxis.label.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= three.bbox.x1, "the label is not cut off"
    assert len(one.axes) == 1, "there is no difference to show"


def test_a_method_of_ones_own_is_drawn_in_a_style_of_its_own(tmp_path: Path) -> None:
    code = """
        import sys
        import eenet
        from eenet.evaluation import compare
        from eenet.scheduler import Scheduler
        from eenet.testing import toy_costs, toy_records

        class Mine(Scheduler, method="mine"):
            def __init__(self):
                super().__init__("entropy", "geometric")

        makers = {"max_prob": eenet.MaxProbability, "mine": Mine}
        found = compare(toy_records(200), toy_costs(), makers, budgets=[1.5, 2.5], resplits=2)
        from matplotlib.figure import Figure
        drawn, save = [], Figure.savefig
        Figure.savefig = lambda figure, *words, **more: drawn.append(figure) or save(figure, *words, **more)
        found.write_figure(sys.argv[1])
        print(*(container[0].get_color() for container in drawn[0].axes[0].containers[:2]))
    """
    # In a process of its own: the method is registered before the first figure is drawn.
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "mine.png")]
    colors = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert colors[0] == "#009E73", "that of max probability everywhere"
    assert len(set(colors)) == 2


def test_one_method_alone_has_no_table_of_differences(predictions: Path) -> None:
    shown = run(predictions, "--prefix", "val_", "--methods", "max_prob", "--budgets", "60%", "--resplits", 1).stdout
    assert "difference to" not in shown
    assert "held-out accuracy in % with its standard error" in shown


def test_results_of_a_policy_whose_code_has_changed_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = """
        from eenet.scheduler import Scheduler, Score

        class Sign(Score):
            name = "sign_of_this_test"

            def __call__(self, history):
                return {}history.evidence[-1].log_odds

        class Signed(Scheduler, method="signed_of_this_test"):
            def __init__(self):
                super().__init__("sign_of_this_test", "geometric")
        """
    found: list[float] = []
    for sign in ("", "-"):
        (tmp_path / "own_policy_of_this_test.py").write_text(textwrap.dedent(text.format(sign)), encoding="utf-8")
        sys.modules.pop("own_policy_of_this_test", None)
        maker = {"signed": __import__("own_policy_of_this_test").Signed}
        records, out = toy_records(120), tmp_path / "out"
        changed = pytest.warns(ReliabilityWarning, match="holds results of 'signed' that are not used: it was")
        with changed if sign else nullcontext():
            row = compare(records, COSTS, maker, [2.0], resplits=1, out=out).rows[0]
        assert compare(records, COSTS, maker, [2.0], resplits=1, out=out).rows[0].accuracy == row.accuracy
        assert row.accuracy is not None
        found.append(row.accuracy)
    assert found[1] < found[0], "the surest samples go on"
    SCHEDULERS.pop("signed_of_this_test")
    SCORES.pop("sign_of_this_test")


def test_what_makes_no_scheduler_is_refused() -> None:
    made: Any = {"mine": MaxProbability()}
    with pytest.raises(InvalidInputError, match=r"scheduler 'mine' is .*expected what makes an unfitted one"):
        compare(toy_records(60), COSTS, made, [2.0])
