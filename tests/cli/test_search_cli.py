"""`eenet search`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run

from eenet.testing import toy_logits


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The predictions of a network of two exits and of a plain one."""
    logits, labels = toy_logits(samples=400, exits=3)
    for name, of_member in (("small", logits[:2]), ("big", logits[2])):
        np.savez(tmp_path / f"{name}.npz", logits=of_member, labels=labels)
    return tmp_path / "small.npz", tmp_path / "big.npz"


def test_search_shows_saves_and_prints_json(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "best.safetensors"
    words = ("search", *files, "--costs", "1,2,9", "--unit", "cents", "--budget", "60%", "--method", "max_prob")
    shown = run(*words, "--out", out).stdout
    assert "small + big" in shown
    assert f"its networks are those of {files[0]} {files[1]}, in this order" in shown
    judged = json.loads(run("evaluate", *files, "--scheduler", out, "--json").stdout)
    assert 5.0 < judged["held_out_cost"] < 5.41
    found = json.loads(run(*words, "--json").stdout)
    assert found["unit"] == "cents"
    assert found["candidates"] == ["small", "big"]
    assert [system["members"] for system in found["frontier"]] == [["small", "big"]]
    several = json.loads(run(*words[:5], "--budgets", "20%,60%", "--max-members", 1, "--json").stdout)
    assert [system["kind"] for system in several["frontier"]] == ["exits", "one exit"]


def test_files_of_one_name_are_called_by_their_folders(files: tuple[Path, Path], tmp_path: Path) -> None:
    paths = []
    for number, path in enumerate(files):
        (tmp_path / f"run{number}").mkdir()
        paths.append(path.rename(tmp_path / f"run{number}" / "calibration.npz"))
    found = json.loads(run("search", *paths, "--costs", "1,2", "--costs", "9", "--budget", "60%", "--json").stdout)
    assert found["candidates"] == ["run0", "run1"]


def test_what_cannot_be_searched(files: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("search", *files, "--costs", "1,2,9")
    assert "small, exit 0: the smallest feasible budget is 1 ms" in refused(*words, "--budget", "0.1ms")
    assert "write '60%'" in refused(*words, "--budget", "60")
    assert "give one of them" in refused(*words, "--budget", "60%", "--budgets", "60%")
    assert "give --budget too" in refused(*words, "--out", tmp_path / "best.safetensors")
    assert "2 numbers, the files have 2 + 1 exits" in refused(*words[:3], "--costs", "1,2")
    assert "given twice" in refused("search", files[1], files[1], "--costs", "1,2")
    assert "--method 'best' is not known" in refused(*words, "--method", "best")
    plain = refused("search", files[1], "--costs", "9", "--budget", "100%", "--out", tmp_path / "best.safetensors")
    assert "the plain network 'big': there is no scheduler to save" in plain
    logits, labels = toy_logits(samples=400, exits=3)
    np.savez(tmp_path / "turned.npz", logits=logits[2, ::-1], labels=labels[::-1])
    said = refused("search", files[0], tmp_path / "turned.npz", "--costs", "1,2,9")
    assert "candidate 'turned' has other labels than candidate 'small'" in said
