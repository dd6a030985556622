"""int8 on the command line: `eenet export --precision --calibration`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, run
from optional import import_or_skip

import eenet
from eenet.testing import toy_costs

for _library in ("onnx", "onnxscript", "onnxruntime"):
    import_or_skip(_library)

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
"""

SOURCE = "own_network_in_int8:make"
WORDS = ("export", "model", "--scheduler", "scheduler.safetensors", "--no-measure", "--allow", SOURCE)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a saved model, a scheduler for it, and labeled data."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "own_network_in_int8.py").write_text(NETWORK, encoding="utf-8")
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    network = __import__("own_network_in_int8").make().eval()
    x, labels = torch.randn(64, 6), torch.arange(64) % 3
    model = eenet.attach(network, ["1", "3"], example=x[:2], source=SOURCE).eval()
    model.save_pretrained(folder / "model")
    np.savez(folder / "data.npz", labels=labels.numpy(), input=x.numpy())
    np.savez(folder / "unlabeled.npz", input=x.numpy())
    records = eenet.collect(model, [(x, labels)])
    eenet.MaxProbability().fit(records, toy_costs(), budget=2.5, fallback=False).save(folder / "scheduler.safetensors")
    yield folder
    sys.path.remove(str(folder))
    del sys.modules["own_network_in_int8"]


def test_parts_are_exported_in_int8_as_asked(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    words = ("--out", "bundle", "--precision", "stages.1=int8, heads.1=int8", "--calibration", "data.npz")
    said = " ".join(run(*WORDS, *words).stdout.split())
    assert "stages.0 fp32 stages.1 int8 stages.2 fp32 heads.0 fp32 heads.1 int8" in said
    assert "Accuracy on 64 calibration samples, fp32 -> bundle: exit 0" in said
    bundle = eenet.bundle.load("bundle", threads=1)
    assert [part for part, precision in bundle.precision.items() if precision == "int8"] == ["stages.1", "heads.1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), "needs samples with labels"),
        (("--precision", "int8", "--calibration", "unlabeled.npz"), "has no label for each of its 64 samples"),
        (("--precision", "int4", "--calibration", "data.npz"), "precision is 'int4'"),
        (("--precision", "stage=int8", "--calibration", "data.npz"), "'stage', which is no part"),
        (("--precision", "auto", "--calibration", "data.npz", "--max-exit-drop", "0.5"), "that is 50 points"),
        (("--precision", "int8", "--calibration", "none.npz"), "none.npz"),
    ],
)
def test_what_cannot_be_is_refused(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(run_folder)
    assert message in " ".join(refused(*WORDS, "--out", "none", *words).split())
    assert not (run_folder / "none").exists()
