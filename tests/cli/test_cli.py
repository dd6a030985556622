"""The command line from outside: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from safetensors.numpy import save_file
from typer.testing import CliRunner

import eenet
from eenet.cli import app
from eenet.errors import MissingExtraError
from eenet.testing import toy_logits, toy_records

COSTS = "1,2,3"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """An .npz with a calibration and a test part, and the costs."""
    arrays: dict[str, Any] = {"costs": np.array([1.0, 2.0, 3.0])}
    for seed, part in enumerate(("val", "test")):
        records = toy_records(samples=400, seed=seed)
        assert records.labels is not None
        arrays |= {f"{part}_probs": records.probabilities, f"{part}_labels": records.labels}
    path = tmp_path / "predictions.npz"
    np.savez(path, **arrays)
    return path


def fit(path: Path, *words: object) -> dict[str, Any]:
    result = run("fit", path, "--prefix", "val_", "--budget", "60%", "--json", *words)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


class TestFit:
    @pytest.mark.parametrize("method", ["eenet", "max_prob", "entropy", "patience", "searched"])
    def test_every_method_keeps_the_budget_and_saves_what_it_says(
        self, predictions: Path, tmp_path: Path, method: str
    ) -> None:
        out = tmp_path / "new folder" / "scheduler.safetensors"
        found = fit(predictions, "--method", method, "--out", out)
        assert found["method"] == method
        assert found["budget"] == pytest.approx(1.8)
        assert found["calibration_cost"] <= found["budget"] * (1 + 1e-9)
        assert sum(found["exit_shares"]) == pytest.approx(1)
        saved = eenet.load_scheduler(out)
        assert saved.calibration_cost == found["calibration_cost"]
        on = [t for t in found["thresholds"] if t is not None]
        assert saved.policy.thresholds[saved.policy.enabled].tolist() == on

    def test_missing_classes_are_said_once_by_each_command(self, tmp_path: Path) -> None:
        labels = np.repeat(np.arange(10), 50)[:200]
        logits = np.random.default_rng(0).normal(size=(3, 200, 10))
        logits[:, np.arange(200), labels] += 2
        np.savez(tmp_path / "first.npz", logits=logits, labels=labels)
        words = (tmp_path / "first.npz", "--costs", COSTS, "--budget", "60%", "--method", "max_prob")
        saved = ("--out", tmp_path / "s.safetensors")
        for command in (("fit", *words, *saved), ("evaluate", words[0], "--scheduler", saved[1])):
            said = run(*command).stderr
            assert said.count("lack 6 of the network's 10 classes (4, 5, 6, 7, 8, 9)") == 1, command
            assert "sorted by class" in said

    def test_a_rule_in_place_of_the_method_is_a_note_of_the_table_for_all_budgets(self, tmp_path: Path) -> None:
        labels = np.random.default_rng(0).integers(0, 5, 900)
        logits = np.random.default_rng(1).normal(size=(3, 900, 5))
        logits[:, np.arange(900), labels] += np.array([0.5, 2.5, 0.0])[:, None]
        logits[0] *= 5
        logits[2] = logits[1]  # no better than exit 1, for twenty times its cost
        np.savez(tmp_path / "p.npz", logits=logits, labels=labels)
        words = ("fit", tmp_path / "p.npz", "--costs", "0.1,0.5,10", "--method", "max_prob")
        done = run(*words)
        assert "and is used instead" not in done.stderr
        assert re.search(r"At .* ms the policy is that of Static\(1\), which is no less accurate", done.stdout)
        asked = run(*words, "--budget", "30%")  # one budget, of a method that was chosen
        assert "Static(1), in place of MaxProbability, for a budget of 3 ms" in asked.stdout
        said = " ".join((asked.stdout + asked.stderr).split())
        assert said.count("Static(1) is") == said.count("and is used instead") == 1
        assert json.loads(run(*words, "--budget", "30%", "--json").stdout)["instead"] == "Static(1)"

    def test_labels_by_another_name_are_pointed_out(self, tmp_path: Path) -> None:
        records = toy_records(samples=40)
        assert records.labels is not None
        np.savez(tmp_path / "p.npz", probs=records.probabilities, y=records.labels, ids=np.arange(40) + 1000)
        message = " ".join(run("fit", tmp_path / "p.npz", "--costs", COSTS, "--budget", "60%", code=2).stderr.split())
        assert "has no 'labels', and 'y' with a class number for each sample" in message
        assert "name them 'labels'" in message
        assert "ids" not in message

    def test_an_array_of_objects_beside_predictions_without_labels_is_not_read(
        self, predictions: Path, tmp_path: Path
    ) -> None:
        run(
            "fit",
            predictions,
            "--prefix",
            "val_",
            "--costs",
            COSTS,
            "--budget",
            "60%",
            "--out",
            tmp_path / "s.safetensors",
        )
        probs = toy_records(samples=40).probabilities
        np.savez(tmp_path / "p.npz", probs=probs, paths=np.array(["a.png"] * 40, dtype=object))
        done = run("evaluate", tmp_path / "p.npz", "--scheduler", tmp_path / "s.safetensors")
        assert "The records have no labels" in " ".join(done.stdout.split())

    def test_judged_by_last_reads_no_labels_and_says_so(self, tmp_path: Path) -> None:
        for seed, name in enumerate(("log", "fresh")):
            records = toy_records(samples=400, seed=seed)
            labels = np.where(np.arange(400) % 3, -1, 0)  # partly labeled, which is refused where labels are read
            np.savez(tmp_path / f"{name}.npz", probs=records.probabilities, labels=labels)
            np.savez(tmp_path / f"{name}-last.npz", probs=records.probabilities, labels=records.predictions[-1])
        log, fresh, saved = (tmp_path / name for name in ("log.npz", "fresh.npz", "s.safetensors"))
        words: tuple[object, ...] = (
            "--costs",
            COSTS,
            "--method",
            "max_prob",
            "--max-accuracy-drop",
            "0.05",
            "--out",
            saved,
        )
        assert "--judged-by-last on the command line" in refused("fit", log, *words)
        expected = json.loads(run("fit", tmp_path / "log-last.npz", *words, "--json").stdout)
        found = json.loads(run("fit", log, *words, "--json", "--judged-by-last").stdout)
        assert (expected["judged_by_last"], found["judged_by_last"]) == (False, True)
        assert found["table"] == expected["table"]
        said = "Accuracies are shares of samples with the last exit's answer"
        assert said in run("fit", log, *words, "--judged-by-last").stdout
        words = ("--scheduler", saved, "--judged-by-last")
        assert said in run("evaluate", fresh, *words).stdout
        expected = json.loads(run("evaluate", tmp_path / "fresh-last.npz", *words[:2], "--json").stdout)
        found = json.loads(run("evaluate", fresh, *words, "--json").stdout)
        assert found["accuracy"] == expected["accuracy"] > 0.9
        words = ("--costs", COSTS, "--methods", "max_prob", "--budgets", "60%", "--resplits", "1", "--jobs", "1")
        expected = json.loads(run("compare", tmp_path / "log-last.npz", *words, "--json").stdout)
        found = json.loads(run("compare", log, *words, "--judged-by-last", "--json").stdout)
        assert [row["accuracy"] for row in found["rows"]] == [row["accuracy"] for row in expected["rows"]]
        held_out = ("--held-out", fresh, "--judged-by-last")
        assert said in run("compare", log, *words, *held_out).stdout
        words = ("--costs", COSTS, "--methods", "max_prob", "--draws", "0", "--out", tmp_path / "page.html")
        pytest.importorskip("plotly")
        run("report", fresh, "--calibration", log, *words, "--judged-by-last", "--json", tmp_path / "page.json")
        assert said in (tmp_path / "page.json").read_text(encoding="utf-8")

    def test_a_cascade_is_judged_by_its_last_member(self, predictions: Path, tmp_path: Path) -> None:
        records = toy_records(samples=300)
        for name, k in (("small", 0), ("big", 2)):
            np.savez(tmp_path / f"{name}.npz", probs=records.probabilities[k])
        files, words = (tmp_path / "small.npz", tmp_path / "big.npz"), ("--costs", "1,2", "--judged-by-last", "--json")
        table = json.loads(run("fit", *files, *words, "--budget", "90%", "--method", "max_prob").stdout)["table"]
        alike = (records.predictions[0] == records.predictions[2]).mean()
        assert [row["accuracy"] for row in table if row["kind"] == "exit"] == [pytest.approx(alike), 1.0]

    def test_shares_and_probabilities_are_read_as_numbers_and_as_percentages(self, predictions: Path) -> None:
        asked = ("--prefix", "val_", "--method", "max_prob", "--json")
        for words, others in (
            (("--max-accuracy-drop", "2%"), ("--max-accuracy-drop", "0.02")),
            (("--budget", "60%", "--abstain", "2.5 %"), ("--budget", "60%", "--abstain", ".025")),
            (("--budget", "60%", "--abstain", "1e-2"), ("--budget", "60%", "--abstain", "1%")),
            (("--budget", "60%", "--max-error", "20%"), ("--budget", "60%", "--max-error", "0.2")),
            (("--budget", "80%", "--guarantee", "90%"), ("--budget", "80%", "--guarantee", "0.9")),
        ):
            assert run("fit", predictions, *asked, *words).stdout == run("fit", predictions, *asked, *others).stdout
        once = ("--prefix", "val_", "--methods", "max_prob", "--budgets", "60%", "--resplits", "1", "--jobs", "1")
        found = json.loads(run("compare", predictions, *once, "--fraction", "25%", "--json").stdout)
        assert found["fraction"] == 0.25
        plan = ("plan", "--stages-ms", "4+1,4+2", "--p99-ms", "100", "--rate", "10", "--json", "--exit-shares")
        assert run(*plan, "60%,40%").stdout == run(*plan, "0.6,.4").stdout

    @pytest.mark.parametrize(
        "words",
        [
            ("fit", "--max-accuracy-drop"),
            ("fit", "--abstain"),
            ("fit", "--max-error"),
            ("compare", "--fraction"),
            ("benchmark", "--max-accuracy-drop"),
            ("export", "--max-exit-drop"),
            ("export", "--exit-drop-guarantee"),
        ],
    )
    @pytest.mark.parametrize("text", ["2", "200%", "-0.1", "nan", "much", "2,5%", ""])
    def test_what_is_no_share_is_refused_with_what_is_one(self, words: tuple[str, str], text: str) -> None:
        message = refused(words[0], "x.npz", f"{words[1]}={text}")
        assert f"'{words[1]}': '{text}' is no share, expected a number from 0 to 1, or a percentage such" in message

    def test_seed_decides(self, predictions: Path) -> None:
        assert fit(predictions, "--seed", 3) == fit(predictions, "--seed", 3)

    def test_table_for_people_shows_costs_shares_and_thresholds(self, predictions: Path) -> None:
        shown = run("fit", predictions, "--prefix", "val_", "--budget", "60%", "--method", "max_prob").stdout
        for word in (
            "a budget of 1.8 ms (60% of the last exit)", "exit 2 (last)", "best in budget", "best mixture",
            "oracle", "policy, planned", "policy, calibration", "of last", "Thresholds", "takes the rest",
        ):  # fmt: skip
            assert word in shown
        assert "--out" in shown  # how to keep it
        found = re.search(r"Thresholds \(max_prob score\): ([\d.]+), ([\d.]+);", shown)
        assert found is not None
        records = eenet.ExitRecords.from_probabilities(*(np.load(predictions)[f"val_{n}"] for n in ("probs", "labels")))
        scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts(np.load(predictions)["costs"]), "60%")
        assert repr(scheduler.policy).startswith(
            f"ThresholdPolicy('max_prob', [{float(found[1]):.4g}, "
        )  # probabilities

    def test_a_percentage_is_of_the_plain_network(self, predictions: Path, tmp_path: Path) -> None:
        words = ("fit", predictions, "--prefix", "val_", "--costs", "2,4,5", "--budget", "60%", "--method", "max_prob")
        found = json.loads(run(*words, "--plain", "4.5", "--json").stdout)
        assert (found["budget"], found["costs"]["plain"]) == (pytest.approx(2.7), 4.5)
        assert found["table"][0]["kind"] == "plain"
        assert found["table"][0]["accuracy"] == found["table"][3]["accuracy"]
        assert found["table"][3]["share"] == pytest.approx(5 / 4.5)
        shown = run(*words, "--plain", "4.5").stdout
        assert "2.7 ms (60% of the plain network)" in shown
        assert "of plain" in shown
        # A table from elsewhere has another plain network than the one that was measured with it.
        path = tmp_path / "costs.json"
        path.write_text(json.dumps(eenet.ExitCosts([2, 4, 5], plain=4.0).to_dict()))
        measured = ("fit", predictions, "--prefix", "val_", "--costs", path, "--budget", "75%", "--method", "max_prob")
        assert json.loads(run(*measured, "--json").stdout)["budget"] == 3.0
        assert json.loads(run(*measured, "--plain", "4.8", "--json").stdout)["budget"] == pytest.approx(3.6)

    def test_without_a_budget_it_shows_the_frontier_and_saves_a_policy_for_every_budget(
        self, predictions: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "any.safetensors"
        words = ("fit", predictions, "--prefix", "val_", "--costs", COSTS, "--plain", 2.8, "--method", "max_prob")
        shown = run(*words, "--out", out).stdout
        for word in ("for all budgets", "policy for 1 ms", "policy for 3 ms", "plain network", "--budget 60%"):
            assert word in shown
        found = json.loads(run(*words, "--json").stdout)
        rows = [row for row in found["table"] if row["kind"] == "frontier"]
        assert found["budget"] is None
        assert [row["budget"] for row in rows] == sorted(row["budget"] for row in rows)
        assert (rows[0]["cost"], rows[-1]["cost"]) == (1.0, 3.0)
        assert all(row["cost"] <= row["budget"] * (1 + 1e-9) for row in rows)
        assert rows[-1]["accuracy"] == found["table"][3]["accuracy"]
        assert all(sum(row["exit_shares"]) == pytest.approx(1) for row in rows)
        saved = eenet.load_scheduler(out)
        assert saved.at("60%").budget == pytest.approx(0.6 * 2.8)
        fresh = ("evaluate", predictions, "--prefix", "test_", "--scheduler", out)
        assert json.loads(run(*fresh, "--budget", "60%", "--json").stdout)["budget"] == pytest.approx(0.6 * 2.8)
        held_out = json.loads(run(*fresh, "--json").stdout)
        assert [row["budget"] for row in held_out["table"] if row["kind"] == "frontier"] == [r["budget"] for r in rows]

    def test_logits_plain_safetensors_and_saved_records_give_the_same(self, tmp_path: Path) -> None:
        logits, labels = toy_logits(samples=300)
        np.savez(tmp_path / "a.npz", logits=logits, labels=labels)
        save_file({"logits": logits, "labels": labels}, tmp_path / "b.safetensors")
        eenet.ExitRecords.from_logits(logits, labels).save(tmp_path / "c.safetensors")
        results = []
        for name in ("a.npz", "b.safetensors", "c.safetensors"):
            shown = run("fit", tmp_path / name, "--costs", COSTS, "--budget", "60%", "--method", "entropy", "--json")
            results.append(json.loads(shown.stdout))
        assert results[0] == results[1] == results[2]

    def test_probabilities_is_another_name_for_probs(self, tmp_path: Path) -> None:
        records = toy_records()
        np.savez(tmp_path / "a.npz", probabilities=records.probabilities, labels=np.asarray(records.labels))
        run("fit", tmp_path / "a.npz", "--costs", COSTS, "--budget", "2ms", "--method", "max_prob")

    def test_unit_and_costs_can_be_given(self, predictions: Path) -> None:
        words = ("--costs", "10,20,40", "--unit", "joules", "--budget", "30joules", "--method", "max_prob")
        found = json.loads(run("fit", predictions, "--prefix", "val_", *words, "--json").stdout)
        assert found["unit"] == "joules"
        assert found["budget"] == 30

    def test_costs_of_a_json_file(self, predictions: Path, tmp_path: Path) -> None:
        path = tmp_path / "costs.json"
        path.write_text(json.dumps(eenet.ExitCosts([1, 2, 4], unit="ms").to_dict()))
        assert fit(predictions, "--method", "max_prob", "--costs", path)["budget"] == pytest.approx(2.4)

    def test_costs_of_a_profile(self, predictions: Path, tmp_path: Path) -> None:
        tables = {"ms": [[1, 2, 3], [1, 2, 4]], "flops": [[2, 5, 7]] * 2}
        profile = {"batch_sizes": [1, 32], "costs": tables, "spreads": {unit: [[0.0] * 3] * 2 for unit in tables}}
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(profile))
        words = ("--method", "max_prob", "--costs", path)
        assert fit(predictions, *words, "--batch-size", 32)["budget"] == pytest.approx(2.4)
        assert fit(predictions, *words, "--batch-size", 1, "--unit", "flops")["budget"] == pytest.approx(4.2)
        common = ("fit", predictions, "--prefix", "val_", "--budget", "60%", *words)
        assert "[1, 32]" in refused(*common)
        assert "'flops'" in refused(*common, "--batch-size", 1, "--unit", "cpu_ms")

    def test_costs_of_a_noisy_profile_are_said_to_be(self, predictions: Path, tmp_path: Path) -> None:
        tables = {unit: [[1, 2, 4]] for unit in ("ms", "cpu_ms")}
        plain = {"ms": [16], "cpu_ms": [3.5]}
        path = tmp_path / "profile.json"
        words = ("fit", predictions, "--prefix", "val_", "--budget", "60%", "--method", "max_prob", "--costs", path)
        for spread, plain_ms, said in (
            (0.9, 3.5, "vary by 90% between rounds"),
            (0.0, 16, "is 4 times the last exit's in wall time and 0.875 times in CPU time"),
        ):
            spreads = {"ms": [[spread] * 3], "cpu_ms": [[0.0] * 3]}
            profile = {"batch_sizes": [1], "costs": tables, "spreads": spreads, "plain": plain | {"ms": [plain_ms]}}
            path.write_text(json.dumps(profile))
            assert said in " ".join(run(*words).stderr.split())
            assert "batch size 1" not in run(*words, "--unit", "cpu_ms").stderr


class TestFitRefuses:
    def test_file_that_is_not_there(self, tmp_path: Path) -> None:
        assert "nowhere.npz" in refused("fit", tmp_path / "nowhere.npz", "--budget", "60%")

    def test_other_endings(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("1,2")
        assert ".npz or .safetensors" in refused("fit", tmp_path / "a.csv", "--budget", "60%")

    @pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
    def test_truncated_files(self, predictions: Path, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        if name.endswith("npz"):
            path.write_bytes(predictions.read_bytes()[:2000])
        else:
            toy_records().save(path)
            path.write_bytes(path.read_bytes()[:2000])
        assert "truncated" in refused("fit", path, "--budget", "60%")

    def test_damaged_array_inside_an_npz(self, predictions: Path, tmp_path: Path) -> None:
        data = bytearray(predictions.read_bytes())
        start = data.index(b"val_probs.npy") + 3000
        data[start : start + 64] = bytes(64)
        path = tmp_path / "damaged.npz"
        path.write_bytes(bytes(data))
        assert "val_probs" in refused("fit", path, "--prefix", "val_", "--budget", "60%")

    def test_pickled_objects(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, probs=np.array([{"a": 1}], dtype=object), labels=np.zeros(1, dtype=int))
        message = refused("fit", path, "--budget", "60%", "--costs", COSTS)
        assert "probs" in message
        assert "run code" in message

    def test_pickle_that_is_named_safetensors(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(b"\x80\x04N.")
        assert "pickle" in refused("fit", path, "--budget", "60%")

    def test_exchanged_arguments_are_recognized(self, predictions: Path, tmp_path: Path) -> None:
        scheduler = tmp_path / "scheduler.safetensors"
        run("fit", predictions, "--prefix", "val_", "--budget", "60%", "--method", "max_prob", "--out", scheduler)
        message = refused("evaluate", scheduler, "--scheduler", predictions)
        assert "is an .npz file of arrays, expected a fitted scheduler" in message
        for command in (["evaluate", scheduler, "--scheduler", scheduler], ["fit", scheduler, "--budget", "60%"]):
            message = refused(*command)
            assert "holds a fitted scheduler ('eenet.scheduler'), expected exit records ('eenet.records')" in message
        toy_records(samples=20).save(tmp_path / "records.safetensors")
        message = refused("evaluate", predictions, "--scheduler", tmp_path / "records.safetensors")
        assert "holds exit records ('eenet.records'), expected a fitted scheduler" in message

    def test_a_file_that_is_read_is_not_written_over(self, predictions: Path, tmp_path: Path) -> None:
        records = tmp_path / "records.safetensors"
        toy_records(samples=40).save(records)
        scheduler, other = tmp_path / "scheduler.safetensors", tmp_path / "other"
        fitted = ["fit", predictions, "--prefix", "val_", "--budget", "60%", "--method", "max_prob", "--out"]
        run(*fitted, scheduler)
        other.symlink_to(tmp_path)
        for command, read in (
            ([*fitted, predictions], predictions),
            (["fit", records, "--costs", "1,2,4", "--budget", "60%", "--out", other / records.name], records),
            (["collect", "model", "--data", predictions, "--out", predictions], predictions),
            (["report", records, "--costs", "1,2,4", "--json", records], records),
        ):
            before = read.read_bytes()
            assert "is a file that is read, and would be overwritten" in refused(*command)
            assert read.read_bytes() == before
        run(*fitted, scheduler)  # what was only written may be written again

    def test_missing_arrays_are_named_and_prefixes_suggested(self, predictions: Path) -> None:
        message = refused("fit", predictions, "--budget", "60%")
        assert "'probs'" in message
        assert "'logits'" in message
        assert "--prefix test_ or --prefix val_" in message
        assert "'dev_probs'" in refused("fit", predictions, "--prefix", "dev_", "--budget", "60%")

    def test_two_kinds_of_outputs(self, tmp_path: Path) -> None:
        logits, labels = toy_logits()
        np.savez(tmp_path / "a.npz", logits=logits, probs=logits, labels=labels)
        assert "one of them" in refused("fit", tmp_path / "a.npz", "--budget", "60%")

    def test_no_labels(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", logits=toy_logits()[0])
        assert "labels" in refused("fit", tmp_path / "a.npz", "--budget", "60%", "--costs", COSTS)

    def test_prefix_on_saved_records(self, tmp_path: Path) -> None:
        toy_records().save(tmp_path / "a.safetensors")
        assert "--prefix" in refused("fit", tmp_path / "a.safetensors", "--prefix", "val_", "--budget", "60%")

    def test_wrong_values_in_the_arrays(self, tmp_path: Path) -> None:
        logits, labels = toy_logits()
        np.savez(tmp_path / "a.npz", probs=logits, labels=labels)
        assert "from_logits" in refused("fit", tmp_path / "a.npz", "--budget", "60%", "--costs", COSTS)

    def test_no_costs(self, tmp_path: Path) -> None:
        toy_records().save(tmp_path / "a.safetensors")
        assert "--costs 2.3,4.1,4.9" in refused("fit", tmp_path / "a.safetensors", "--budget", "60%")

    @pytest.mark.parametrize(
        ("costs", "word"), [("1,two,3", "two"), ("1,2", "2 exits"), ("3,2,1", "increase"), ("c.json", "not there")]
    )
    def test_bad_costs(self, predictions: Path, costs: str, word: str) -> None:
        assert word in refused("fit", predictions, "--prefix", "val_", "--budget", "60%", "--costs", costs)

    @pytest.mark.parametrize("text", ["{", "[]", '{"costs": {}}', '{"values": [1, 2, 3]}'])
    def test_bad_costs_file(self, predictions: Path, tmp_path: Path, text: str) -> None:
        path = tmp_path / "costs.json"
        path.write_text(text)
        refused("fit", predictions, "--prefix", "val_", "--budget", "60%", "--costs", path)

    @pytest.mark.parametrize(
        ("budget", "word"),
        [
            ("60", "60%"),
            ("fast", "fast"),
            ("0%", "positive"),
            ("nan%", "positive"),
            ("3 flops", "'flops'"),
            ("0.5ms", "smallest feasible budget"),
        ],
    )
    def test_bad_budget(self, predictions: Path, budget: str, word: str) -> None:
        assert word in refused("fit", predictions, "--prefix", "val_", "--budget", budget)

    def test_method_with_a_typo_gets_a_suggestion(self, predictions: Path) -> None:
        words = ("fit", predictions, "--prefix", "val_", "--budget", "60%", "--method")
        assert "did you mean 'entropy'?" in refused(*words, "entrop")
        assert "choose from eenet, stopping, max_prob" in refused(*words, "zzz")

    def test_folder_that_cannot_be_written(self, predictions: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "scheduler.safetensors"
        words = ("--prefix", "val_", "--budget", "60%", "--method", "max_prob", "--out", out)
        assert "cannot write" in refused("fit", predictions, *words)

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        words = ["fit", str(tmp_path / "nowhere.npz"), "--budget", "60%", "--debug"]
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, eenet.EENetError)

    def test_budget_above_the_last_exit_is_a_warning(self, predictions: Path) -> None:
        result = run("fit", predictions, "--prefix", "val_", "--budget", "200%", "--method", "max_prob", "--json")
        assert json.loads(result.stdout)["calibration_cost"] <= 3
        assert result.stderr.startswith("warning: budget '200%' is 200% of the last exit, 6 ms, above")
        assert len(result.stderr.strip().splitlines()) == 1


class TestEvaluate:
    @pytest.fixture
    def scheduler(self, predictions: Path, tmp_path: Path) -> Path:
        out = tmp_path / "scheduler.safetensors"
        fit(predictions, "--method", "max_prob", "--out", out)
        return out

    def test_json_agrees_with_a_replay(self, predictions: Path, scheduler: Path) -> None:
        shown = run("evaluate", predictions, "--prefix", "test_", "--scheduler", scheduler, "--json").stdout
        found = json.loads(shown)
        with np.load(predictions) as arrays:
            records = eenet.ExitRecords.from_probabilities(arrays["test_probs"], arrays["test_labels"])
        decisions = eenet.load_scheduler(scheduler).replay(records)
        assert found["accuracy"] == decisions.accuracy
        assert found["held_out_cost"] == decisions.mean_cost
        assert found["overspend"] == pytest.approx(decisions.mean_cost / 1.8 - 1)
        assert found["exit_shares"] == decisions.exit_shares.tolist()
        rows = {row["kind"]: row for row in found["table"]}
        assert [row["name"] for row in found["table"] if row["kind"] == "exit"] == ["exit 0", "exit 1", "exit 2 (last)"]
        mixture, oracle = rows["mixture"], rows["oracle"]
        assert mixture["accuracy"] <= found["accuracy"] <= oracle["accuracy"]
        assert oracle["cost"] <= found["budget"] * (1 + 1e-9)

    def test_table_for_people(self, predictions: Path, scheduler: Path) -> None:
        shown = run("evaluate", predictions, "--prefix", "test_", "--scheduler", scheduler).stdout
        for word in ("Held-out cost", "of a budget of", "exits %", "exit 2 (last)", "mixture", "oracle", "±"):
            assert word in shown

    def test_what_it_was_fitted_to_is_not_held_out(self, predictions: Path, tmp_path: Path) -> None:
        out = tmp_path / "scheduler.safetensors"
        words = ("fit", predictions, "--prefix", "val_", "--method", "max_prob", "--budget", "60%", "--out", out)
        said = " ".join(run(*words).stdout.split())
        step = f"For fresh ones: eenet evaluate HELD_OUT --scheduler {out}"
        assert f"met on the samples that it was fitted on only. {step}; or fit with --guarantee 0.95." in said
        judged = ("evaluate", predictions, "--prefix", "val_", "--scheduler", out)
        shown = run(*judged).stdout
        assert "samples that it was fitted on" in shown
        assert "this says nothing about fresh data" in shown
        assert "eld-out" not in shown
        assert json.loads(run(*judged, "--json").stdout)["held_out"] is False
        fresh = ("evaluate", predictions, "--prefix", "test_", "--scheduler", out, "--json")
        assert json.loads(run(*fresh).stdout)["held_out"] is True
        said = " ".join(run(*words, "--guarantee", "0.95").stdout.split())
        assert f"The table is of the samples that it was fitted on. {step}." in said

    def test_overspending_is_said(self, predictions: Path, tmp_path: Path) -> None:
        out = tmp_path / "scheduler.safetensors"
        records = toy_records(samples=100, sharpness=4.0)
        eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2, 3]), budget="60%").save(out)
        words = ("evaluate", predictions, "--prefix", "test_", "--scheduler", out)
        found = json.loads(run(*words, "--json").stdout)
        assert found["overspend"] > 0
        spent, error = found["held_out_cost"], found["held_out_cost_error"]
        plan = f"{found['planned_cost']:.4g} ms was planned."
        assert f"Held-out cost: {spent:.4g} ± {error:.2g} ms of a budget of 1.8 ms; {plan}" in run(*words).stdout

    def test_without_labels_cost_and_shares_are_shown(self, scheduler: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", logits=toy_logits()[0])
        found = json.loads(run("evaluate", tmp_path / "a.npz", "--scheduler", scheduler, "--json").stdout)
        assert found["accuracy"] is None
        assert 1 <= found["held_out_cost"] <= 3
        shown = run("evaluate", tmp_path / "a.npz", "--scheduler", scheduler).stdout
        assert "no labels" in shown
        assert "policy, held out" in shown

    def test_utility_without_labels_is_shown(self, scheduler: Path, tmp_path: Path) -> None:
        # As records of images with a class per pixel have it: no label, but what each answer was worth.
        records = toy_records(samples=50)
        worth = np.full((3, 50), 0.25, dtype=np.float32)
        eenet.ExitRecords(records.probabilities, records.predictions, None, worth).save(tmp_path / "a.safetensors")
        found = json.loads(run("evaluate", tmp_path / "a.safetensors", "--scheduler", scheduler, "--json").stdout)
        assert (found["accuracy"], found["accuracy_error"]) == (0.25, 0.0)
        assert {row["kind"] for row in found["table"]} == {
            "exit", "single", "mixture", "oracle", "planned", "calibration", "held_out"
        }  # fmt: skip

    def test_another_budget_of_the_same_fit(self, predictions: Path, scheduler: Path) -> None:
        words = ("evaluate", predictions, "--prefix", "test_", "--scheduler", scheduler)
        assert json.loads(run(*words, "--budget", "80%", "--json").stdout)["budget"] == pytest.approx(2.4)
        assert "--budget 0.8 has no unit; give --budget 80% (of the last exit) or --budget 0.8ms" in refused(
            *words, "--budget", "0.8"
        )

    def test_scheduler_for_another_number_of_exits(self, scheduler: Path, tmp_path: Path) -> None:
        toy_records(exits=4).save(tmp_path / "a.safetensors")
        message = refused("evaluate", tmp_path / "a.safetensors", "--scheduler", scheduler)
        assert "3 exits" in message
        assert "have 4" in message

    def test_file_that_is_no_scheduler(self, predictions: Path, tmp_path: Path) -> None:
        toy_records().save(tmp_path / "a.safetensors")
        message = refused("evaluate", predictions, "--prefix", "test_", "--scheduler", tmp_path / "a.safetensors")
        assert "eenet.records" in message


NETWORK = """
import torch
import eenet
from eenet.networks import CifarResNet

def with_example():
    x = torch.zeros(2, 1, 12, 12)
    return eenet.attach(CifarResNet([1, 1], widths=(4, 8), channels=1), ["layers.0"], 10, x), x

def alone():
    return with_example()[0]

def something_else():
    return 3

constant = 1
"""


class TestProfile:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "cli_toy_networks.py").write_text(NETWORK)
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "cli_toy_networks", raising=False)
        return tmp_path

    def profile(self, target: str, *words: object) -> dict[str, Any]:
        shown = run("profile", target, "--batch-sizes", "1,3", "--seconds", 0.05, "--json", *words).stdout
        found: dict[str, Any] = json.loads(shown)
        return found

    @pytest.mark.parametrize("name", ["with_example", "alone"])
    def test_function_of_a_module_in_the_current_folder(self, here: Path, name: str) -> None:
        found = self.profile(f"cli_toy_networks:{name}")
        assert found["batch_sizes"] == [1, 3]
        assert found["exits"] == ["layers.0", "output"]
        for unit in ("ms", "cpu_ms", "flops"):
            assert np.shape(found["costs"][unit]) == (2, 2)
        assert all(first < last for first, last in found["costs"]["ms"])
        assert str(here) not in sys.path

    def test_what_it_prints_is_what_fit_reads(self, here: Path) -> None:
        self.profile("cli_toy_networks:alone", "--out", here / "costs.json")
        toy_records(exits=2).save(here / "a.safetensors")
        costs = ("--costs", here / "costs.json", "--batch-size", 3, "--unit", "flops")
        found = json.loads(
            run(
                "fit", here / "a.safetensors", *costs, "--budget", "90% of last", "--method", "max_prob", "--json"
            ).stdout
        )
        assert found["costs"]["batch_size"] == 3
        assert found["budget"] == pytest.approx(0.9 * found["costs"]["values"][-1])
        assert 0 < found["costs"]["plain"] < found["costs"]["values"][-1]

    def test_a_table_without_the_plain_network_is_read(self, here: Path) -> None:
        # What eenet profile wrote before it measured the plain network and percentiles.
        found = self.profile("cli_toy_networks:alone")
        old = {name: value for name, value in found.items() if name not in ("plain", "percentiles")}
        (here / "old.json").write_text(json.dumps(old))
        toy_records(exits=2).save(here / "a.safetensors")
        costs = ("--costs", here / "old.json", "--batch-size", 3, "--unit", "cpu_ms")
        found = json.loads(run("fit", here / "a.safetensors", *costs, "--budget", "90%", "--json").stdout)
        assert found["costs"]["plain"] is None
        assert found["budget"] == pytest.approx(0.9 * found["costs"]["values"][-1])

    def test_scheduler_steps_are_counted_where_asked(self, here: Path) -> None:
        scheduler = eenet.MaxProbability().fit(toy_records(exits=2, classes=10), eenet.ExitCosts([1, 2]), budget="80%")
        scheduler.save(here / "scheduler.safetensors")
        found = self.profile("cli_toy_networks:alone", "--scheduler", here / "scheduler.safetensors")
        assert "scheduler" in found["includes"]

    @pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
    def test_table_for_people(self, here: Path) -> None:
        shown = run("profile", "cli_toy_networks:alone", "--batch-sizes", "1,3", "--seconds", 0.05).stdout
        for word in ("wall ms", "p95", "CPU ms", "MFLOPs", "layers.0", "output", "plain network", "of plain", "thread"):
            assert word in shown

    @pytest.mark.parametrize(
        ("target", "word"),
        [
            ("nowhere", "neither a folder nor the name of a model"),
            ("cli_toy_networks:nothing", "'nothing'"),
            ("cli_toy_networks:constant", "'constant'"),
            ("cli_toy_networks:something_else", "int"),
            ("no_such_module_at_all:f", "no_such_module_at_all"),
            (":f", "package.module:function"),
            (".", "model.json"),
        ],
    )
    def test_bad_targets(self, here: Path, target: str, word: str) -> None:
        assert word in refused("profile", target)

    @pytest.mark.parametrize("sizes", ["", "0", "1,x", "-2"])
    def test_bad_batch_sizes(self, here: Path, sizes: str) -> None:
        assert "--batch-sizes" in refused("profile", "cli_toy_networks:alone", "--batch-sizes", sizes)

    @pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
    def test_costs_of_batches_of_which_samples_exit_on_the_way_reach_the_fit(self, here: Path) -> None:
        self.profile("cli_toy_networks:alone", "--batch-sizes", "1,8", "--out", here / "costs.json")
        toy_records(exits=2).save(here / "a.safetensors")
        found = json.loads((here / "costs.json").read_text())
        alone, in_batches = found["runs"]["ms"]
        assert alone == []
        assert [samples for samples, _ in in_batches] == [[8, 8], [8, 6], [8, 4], [8, 2], [8, 1]]
        assert found["includes"][3:] == ["inputs", "selection", "outputs"]
        for size, runs in ((1, []), (8, in_batches)):
            words = ("--costs", here / "costs.json", "--batch-size", size, "--method", "max_prob")
            run("fit", here / "a.safetensors", *words, "--out", here / "scheduler.safetensors")
            costs = eenet.load_scheduler(here / "scheduler.safetensors").costs
            assert costs.to_dict()["runs"] == runs
            assert ("selection" in costs.includes) == (size > 1)

    @pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
    def test_costs_of_full_batches_on_request(self, here: Path) -> None:
        found = self.profile("cli_toy_networks:alone", "--batch-sizes", 8, "--full-batches")
        assert found["runs"] == {}
        np.testing.assert_allclose(found["costs"]["ms"][0], np.sum(found["parts_ms"][0], axis=1).cumsum())


class TestFrontPage:
    def test_version_as_json_and_for_people(self) -> None:
        found = json.loads(run("version", "--json").stdout)
        assert found["eenet"] == eenet.__version__
        assert {"python", "torch", "numpy"} <= set(found)
        assert f"eenet {eenet.__version__}" in run("version").stdout
        assert run("--version").stdout.strip() == eenet.__version__

    def test_help_lists_the_commands_with_an_example(self) -> None:
        shown = run("--help").stdout
        for word in ("demo", "profile", "fit", "evaluate", "version", "--debug", "eenet fit predictions.npz"):
            assert word in shown

    @pytest.mark.parametrize("command", ["demo", "profile", "fit", "evaluate", "version"])
    def test_help_of_every_command_has_an_example(self, command: str) -> None:
        shown = run(command, "--help").stdout
        assert "Example" in shown
        assert shown.count(f"eenet {command}") >= 2

    def test_starting_loads_nothing_heavy(self) -> None:
        code = (
            "import sys, eenet.cli; from typer.testing import CliRunner; "
            "assert CliRunner().invoke(eenet.cli.app, ['--help']).exit_code == 0; "
            "print([m for m in ('torch', 'matplotlib', 'mlxtend') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_unknown_command_is_exit_code_2(self) -> None:
        run("nonsense", code=2)


def test_a_report_without_plotly_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)  # as where it is not installed
    assert "a report needs plotly, which is not installed" in refused("report", "missing.npz", "--costs", "1,2,3")
    with pytest.raises(MissingExtraError, match="a report needs plotly"):
        eenet.report("missing", out="page.html")
