"""Benchmarks that nothing else runs still run: a warning that is new, or a name that is gone, would stop them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optional import import_or_skip

import eenet

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, folder: Path, *words: str) -> dict[str, Any]:
    """What a benchmark writes as JSON."""
    out = folder / "found.json"
    command = [sys.executable, str(ROOT / "benchmarks" / name), *words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_the_controllers_runs_on_all_results(tmp_path: Path) -> None:
    words = ("--seeds", "1", "--samples", "2200", "--budgets", "60%", "--draws", "1")
    found = run("controller.py", tmp_path, *words)["streams"]
    named = {key.split("/")[0] for key in found}
    assert {folder.parent.name for folder in (ROOT / "results").glob("*/costs.json")} <= named


@pytest.mark.slow
def test_the_one_for_gpus_runs_without_one(tmp_path: Path) -> None:
    import_or_skip("torchvision")
    words = ("--device", "cpu", "--networks", "resnet50", "--dtypes", "float32", "--batch-sizes", "2", "--samples", "4")
    (found,) = run("gpu.py", tmp_path, *words, "--seconds", "0")["results"]
    assert found["batches"][0]["ms_per_sample"]["static"]["median"] > 0


@pytest.mark.slow
def test_the_frontier_has_a_row_for_each_method_and_budget(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "frontier.py"), "sst2-minilm", "--resplits", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with (tmp_path / "frontier.csv").open(encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["test_set"] == "test"]
    assert len(rows) == len(eenet.scheduler.SCHEDULERS) * 8
    reference = [row for row in rows if row["method"] == "max_prob"]
    assert all(float(row["difference"]) == 0 for row in reference)
    assert "| sst2-minilm |" in (tmp_path / "learning" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_one_of_budgets_in_batches_has_a_row_for_each_kind_of_cost_and_budget(tmp_path: Path) -> None:
    few = ("--seconds", "0.1", "--trials", "1", "--samples", "64", "--networks", "digits")
    found = run("partial_batches.py", tmp_path, *few)["rows"]
    assert [(row["batch_size"], row["costs"], row["budget"]) for row in found] == [
        (size, costs, budget)
        for size in (32, 8)
        for costs in ("full batches", "batches as they run")
        for budget in ("60%", "80%", "100%")
    ]


@pytest.mark.slow
def test_the_one_of_regions_runs_without_a_trained_network(tmp_path: Path) -> None:
    found = run("regions.py", tmp_path, "--rounds", "1", "--seconds", "0")
    assert found["exact"]["stage3"][0] > 90  # a tile and its halo are the whole picture
