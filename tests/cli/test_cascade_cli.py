"""Several files of predictions on the command line: one cascade."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, run
from torch import nn

import eenet
from eenet.testing import toy_logits

FIT = ("fit", "--budget", "60%", "--method", "max_prob")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The predictions of a network of two exits and of a plain one, for two sets of samples."""
    for seed, part in enumerate(("val_", "test_")):
        logits, labels = toy_logits(samples=400, exits=3, seed=seed)
        for name, of_member in (("small", logits[:2]), ("big", logits[2])):
            arrays = dict(np.load(tmp_path / f"{name}.npz")) if seed else {}
            arrays |= {f"{part}logits": of_member, f"{part}labels": labels}
            np.savez(tmp_path / f"{name}.npz", **arrays)
    return tmp_path / "small.npz", tmp_path / "big.npz"


def test_fit_and_evaluate_a_cascade(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "cascade.safetensors"
    words = (*FIT, *files, "--prefix", "val_", "--costs", "1,2,6", "--out", out)
    found = json.loads(run(*words, "--json").stdout)
    assert found["costs"]["values"] == [1, 2, 8], "the big one comes after the whole of the small one"
    assert found["costs"]["plain"] == 6
    assert found["budget"] == pytest.approx(3.6)
    assert found["members"] == [{"file": str(files[0]), "exits": [0, 1]}, {"file": str(files[1]), "exits": [2]}]
    assert f"Cascade: exits 0 to 1 of {files[0]}, exit 2 of {files[1]}." in run(*words).stdout
    judged = json.loads(run("evaluate", *files, "--prefix", "test_", "--scheduler", out, "--json").stdout)
    assert judged["members"] == found["members"]
    logits, labels = toy_logits(samples=400, exits=3, seed=1)
    replayed = eenet.load_scheduler(out).replay(eenet.ExitRecords.from_logits(logits, labels))
    assert judged["accuracy"] == pytest.approx(replayed.accuracy)


def test_costs_once_for_each_file_in_the_files_or_of_the_cascade_as_measured(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    words = (*FIT, *files, "--prefix", "val_", "--json")
    expected = json.loads(run(*words, "--costs", "1,2,6", "--unit", "cents").stdout)
    assert expected["unit"] == "cents"
    assert json.loads(run(*words, "--costs", "1,2", "--costs", "6", "--unit", "cents").stdout) == expected
    whole = eenet.ExitCosts.cascade([eenet.ExitCosts([1.0, 2.0], "cents"), 6.0])
    (tmp_path / "costs.json").write_text(json.dumps(whole.to_dict()))
    assert json.loads(run(*words, "--costs", tmp_path / "costs.json").stdout) == expected
    for path, costs in zip(files, ([1.0, 2.0], 6.0), strict=True):
        np.savez(path, **dict(np.load(path)), costs=np.array(costs))
    assert json.loads(run(*words, "--unit", "cents").stdout) == expected
    assert json.loads(run(*words, "--unit", "cents", "--plain", 5).stdout)["budget"] == pytest.approx(3.0)


def test_compare_takes_several_files(files: tuple[Path, Path]) -> None:
    words = ("compare", *files, "--prefix", "val_", "--costs", "1,2,6", "--methods", "max_prob,entropy", "--jobs", 1)
    held_out = ("--held-out", files[0], "--held-out", files[1], "--held-out-prefix", "test_")
    found = json.loads(run(*words, *held_out, "--budgets", "50%", "--resplits", 1, "--json").stdout)
    assert found["costs"]["values"] == [1, 2, 8]


def test_report_shows_the_members_by_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    small, big = files
    prefixes = ("--prefix", "test_", "--calibration-prefix", "val_")
    quick = ("--methods", "max_prob", "--budgets", 3, "--draws", 2)
    out = ("--out", tmp_path / "page.html", "--json", tmp_path / "data.json")
    words = ("report", *files, "--cascade", *prefixes, *quick, *out)
    costs = ("--costs", "1,2,6", "--unit", "cents")
    run(*words, "--calibration", small, "--calibration", big, *costs)
    data = json.loads((tmp_path / "data.json").read_text())
    made = data["runs"][0]
    names = ["exit 0 (small 0)", "exit 1 (small 1)", "exit 2 (big)"]
    assert (made["exits"], made["costs"]["values"], made["costs"]["plain"]) == (names, [1, 2, 8], 6)
    charts = {chart["name"]: chart for section in made["sections"] for chart in section["charts"]}
    for name in ("exit-shares", "reliability", "risk-coverage"):
        assert [one["name"] for one in charts[name]["series"]][:3] == names, name
    assert [one["name"] for one in charts["paper-scores-0"]["series"]] == names[:2]
    assert charts["agreement"]["rows"] == [*names, "the answers"]
    assert charts["failure-prediction"]["columns"] == names[:2]
    assert charts["changes"]["categories"][0] == "all leave at exit 0 (small 0)"
    assert charts["confusion-0"]["title"] == "Answers of exit 0 (small 0) and of the last exit"
    logits, labels = toy_logits(samples=400, exits=3, seed=1)
    records = eenet.ExitRecords.from_logits(logits, labels)
    assert charts["frontier"]["series"][-2]["y"] == pytest.approx(records.accuracies.tolist())

    message = refused("report", small, "--costs", "1,2", "--prefix", "test_", "--cascade")
    assert "--cascade was given with" in message
    message = refused("report", big, small, *costs, "--prefix", "test_")
    assert "'big.npz' holds the predictions of a plain network" in message.replace(f"{tmp_path}/", "")
    assert "or with --cascade a second file" in message
    message = refused(*words, "--calibration", small, *costs)
    assert "there are 1 files of --calibration and 2 of predictions; give one for each" in message


def joined() -> eenet.MultiExitModel:
    torch.manual_seed(0)
    members = [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))]
    return eenet.cascade([member.eval() for member in members], example=torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:the costs at batch size")  # a test machine may be busy
def test_a_profile_says_that_the_plain_network_is_the_last_member(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    words = ("profile", "test_cascade_cli:joined", "--batch-sizes", "1,2", "--seconds", 0.02, "--threads", 1)
    shown = run(*words, "--out", path).stdout
    assert "the plain network is the last member by itself" in " ".join(shown.split())
    assert json.loads(path.read_text())["cascade"] is True
    costs = eenet.profile(joined(), torch.randn(2, 4), seconds=0.02)
    records = eenet.ExitRecords.from_logits(toy_logits(samples=60, exits=2)[0], toy_logits(samples=60, exits=2)[1])
    data = eenet.report(records, path, costs=costs, methods=["max_prob"], budgets=2, draws=0).data
    charts = {chart["name"]: chart for section in data["runs"][0]["sections"] for chart in section["charts"]}
    assert [one["name"] for one in charts["overheads"]["series"]] == ["early heads", "scheduler", "the members before"]
    assert "the last member of the cascade by itself" in charts["overheads"]["about"]


def test_what_does_not_fit_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    small, big = files
    words = (*FIT, "--prefix", "val_")
    message = refused(*words, big, "--costs", "1,2")
    assert "big.npz' holds the predictions of a plain network" in message
    assert "a second file" in message
    message = refused(*words, small, big, "--costs", "1,2")
    assert "has 2 numbers, the files have 2 + 1 exits" in message
    assert "given 3 times for 2 files" in refused(*words, small, big, *["--costs", "1"] * 3)
    assert "no costs of file 1" in refused(*words, small, big)
    assert "file 1 has 2 exits and 1 costs" in refused(*words, small, big, "--costs", "1", "--costs", "6")
    other = tmp_path / "other.npz"
    np.savez(other, val_logits=np.zeros((399, 5)), val_labels=np.arange(399) % 5)
    message = refused(*words, small, other, "--costs", "1,2,6")
    assert f"{str(other)!r} has records of 399 samples, {str(small)!r} of 400" in message
