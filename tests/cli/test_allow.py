"""A network of one's own on the command line: what may be called is named by `--allow`, from saving to serving."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from commands import refused, run

import eenet
from eenet.testing import toy_costs

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""

SOURCE = "own_networks_of_a_test:make"


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module of a network, the model that `save_pretrained` wrote, a scheduler and inputs."""
    (tmp_path / "own_networks_of_a_test.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = __import__("own_networks_of_a_test").make().eval()
    model = eenet.attach(network, ["1", "3"], example=torch.randn(2, 4), source=SOURCE)
    model.save_pretrained("model")
    records = eenet.collect(model, [(torch.randn(100, 4), torch.randint(0, 3, (100,)))])
    eenet.MaxProbability().fit(records, toy_costs(), budget=2.5).save("scheduler.safetensors")
    # The command line must find the module by itself, in the current folder.
    sys.path.remove(str(tmp_path))
    del sys.modules["own_networks_of_a_test"]
    return tmp_path


def test_profile_says_the_option_and_takes_it(saved: Path) -> None:
    assert f"--allow {SOURCE}" in refused("profile", "model")
    words = ("--batch-sizes", "1", "--seconds", 0, "--json")
    found = json.loads(run("profile", "model", "--allow", SOURCE, *words).stdout)
    assert found["exits"] == ["1", "3", "output"]


def test_export_says_the_option_and_takes_it(saved: Path) -> None:
    words = ("export", "model", "--scheduler", "scheduler.safetensors", "--out", "bundle", "--backend", "torch")
    assert f"--allow {SOURCE}" in refused(*words)
    found = json.loads(run(*words, "--allow", SOURCE, "--json").stdout)
    assert found["backend"] == "torch"
    assert f"--allow {SOURCE}" in refused("serve", "bundle")
