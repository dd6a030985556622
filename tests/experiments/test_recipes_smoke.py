"""Every recipe, end to end, on tiny data in the format of the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

import eenet
from eenet.experiments.recipes import RunOptions, load_recipe, recipe_names, reproduce

# On the tiny data of a smoke run optimal stopping says that there is nothing to learn from.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

for library in ("yaml", "lightning_fabric", "PIL", "pyarrow", "transformers"):
    pytest.importorskip(library, reason=f"{library} is not installed")

EXITS = {
    "resnet-digits": 3,
    "resnet20": 3,
    "resnet56": 3,
    "resnet56-bottleneck": 3,
    "densenet121-cifar": 4,
    "msdnet35": 5,
    "hrnet-w18-small-v1": 4,
    "bert-base": 4,
    "minilm": 3,
}


# Of these the data is that of one other recipe here and the network that of another, or another test's; test_recipes.py
# runs cifar10-resnet56-shared.
OF_OTHERS = {
    "agnews-25k-bert12",
    "agnews-minilm",
    "cifar10-resnet56-gpu",
    "cifar10-resnet56-shared",
    "cifar10-resnet56-taught",
    "sst2-phrases-minilm",
    "tiny-imagenet-100-densenet121",
    "tiny-imagenet-lite0",
}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in OF_OTHERS])
def test_smoke(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, smoke=True)
    metrics = reproduce(
        recipe, RunOptions(out=tmp_path, smoke=True, threads=1, progress=False), console=Console(quiet=True)
    )
    assert metrics["recipe"] == name
    assert metrics["smoke"] is True
    assert len(metrics["exits"]) == EXITS[recipe.model.name]
    images = recipe.data.name in ("cityscapes", "camvid")
    for row in (row for row in metrics["schedulers"] if "reason" not in row):
        assert sum(row["exit_shares"]) == pytest.approx(1)
        assert ("test_mean_iou" in row) == images
    assert (metrics["comparison"] is None) == (recipe.evaluation.resplits == 0)
    assert metrics["comparison"] is None or metrics["comparison"]["differences"]
    assert (metrics["measured"] is None) == (recipe.evaluation.rounds == 0)
    assert (metrics["published"] is not None) == (recipe.published is not None)
    assert "A smoke run" in (tmp_path / "README.md").read_text(encoding="utf-8")
    # What is on disk runs: the model and a scheduler give the exits that the records say.
    records = eenet.ExitRecords.load(tmp_path / "test.safetensors")
    assert len(records) == metrics["data"]["samples"]["test"]
    model = json.loads((tmp_path / "work" / "model" / "model.json").read_text())
    assert model["source"]["name"] == f"eenet:{recipe.model.name}"
