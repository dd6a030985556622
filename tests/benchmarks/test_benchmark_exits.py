"""The comparison of exit heads and loss weightings: how it judges, and that it can be stopped and goes on."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eenet
from eenet.errors import InvalidInputError
from eenet.experiments.recipes import load_recipe, write_smoke_files
from eenet.testing import toy_costs, toy_records

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = [
    *("--images", "64", "--validation", "32", "--calibration", "40", "--batch-size", "32", "--precision", "32"),
    *("--head-epochs", "1", "--joint-epochs", "1", "--seeds", "1"),
    *("--only", "linear", "downsampling-3", "uniform", "detached"),
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(name)


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(20, 300), seed=st.integers(0, 100), folds=st.integers(1, 3))
def test_every_image_is_judged_as_often_and_on_thresholds_of_others(samples: int, seed: int, folds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        judge = importlib.import_module("_exits_report").judge
    records, costs = toy_records(samples, seed=seed), toy_costs()
    # A budget that nothing can exceed: every image takes the exits that were best on the others.
    found = judge(records, costs, [1.5, costs[-1]], folds)
    right = np.array(found["right"])
    assert right.shape == (samples,)
    assert right.max() <= found["judgements"] == 2 * folds
    assert right.sum() / (samples * found["judgements"]) == pytest.approx(found["mean"])
    assert found["mean"] == pytest.approx(np.mean(found["accuracies"]))
    assert found["cost_over_budget"][1] <= 1 + 1e-9


def test_a_costlier_head_has_to_earn_its_cost(benchmark: Any) -> None:
    judge, records = benchmark("_exits_report").judge, toy_records(2000)
    cheap = judge(records, toy_costs(), [1.6, 2.2], 2)
    dear = judge(records, eenet.ExitCosts([1.3, 2.5, 3.7]), [1.6, 2.2], 2)
    assert cheap["mean"] > dear["mean"]
    rows = [benchmark("_exits_report").Row(name, "", "heads", (run,)) for name, run in (("a", cheap), ("b", dear))]
    mean, error = benchmark("_exits_report").difference(rows[1], rows[0])
    assert mean == pytest.approx(dear["mean"] - cheap["mean"])
    assert 0 < error < 0.02
    assert benchmark("_exits_report").difference(rows[0], rows[0]) is None


def test_it_runs_on_tiny_data_and_goes_on_where_it_stopped(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exits = benchmark("exits")
    root, _ = write_smoke_files(load_recipe(exits.RECIPE, smoke=True), tmp_path)
    out = tmp_path / "results"
    weights = root.parent / "weights" / "cifar10_resnet56.safetensors"
    places = ["--data-root", str(root), "--weights", str(weights), "--out", str(out)]

    class StoppedError(Exception):
        pass

    trained: list[str] = []
    real = exits.train

    def stopping(model: Any, *args: Any, **options: Any) -> Any:
        if len(trained) == 3:
            raise StoppedError
        trained.append(options["out"].parent.name)
        return real(model, *args, **options)

    monkeypatch.setattr(exits, "train", stopping)
    with pytest.raises(StoppedError):
        exits.main([*places, *TINY])
    assert trained == ["linear", "downsampling-3", "uniform"]
    assert not (out / "results.json").exists()
    trained.clear()
    assert exits.main([*places, *TINY]) == 0
    assert trained == ["detached"], "what is finished is not trained again"

    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    by_name = {variant["name"]: variant for variant in written["variants"]}
    assert list(by_name) == ["linear", "downsampling-3", "uniform", "detached"]
    for variant in by_name.values():
        (run,) = variant["runs"]
        assert len(run["accuracies"]) == len(run["exits"]) == 3
        assert 0 <= run["mean"] <= 1
        assert run["costs"] == sorted(run["costs"])
        assert "right" not in run
    assert by_name["linear"]["runs"][0]["costs"][-1] == pytest.approx(1.0, abs=1e-3), "of the plain network"
    assert by_name["downsampling-3"]["runs"][0]["costs"][-1] > 1.05, "heads are part of the cost"
    assert by_name["uniform"]["difference"] is None
    # What the heads send into the backbone is the only difference, and it is seen in the last exit's training.
    assert len(by_name["detached"]["difference"]) == 2
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "Judged on 40 images of the published test file" in text
    assert "not trained jointly" in text
    assert re.search(r"\(the last one, as published, has [\d.]+ % there and [\d.]+ % here\)", text)
    assert len(list((out / "work" / "features").iterdir())) == 2, "all heads share the features of one pass"
    assert not list((out / "work").rglob("last.safetensors"))

    capsys.readouterr()
    assert exits.main([*places, *TINY]) == 0
    assert "| linear |" in capsys.readouterr().out
    with pytest.raises(InvalidInputError, match="images: 63 instead of 64"):
        exits.main([*places, *TINY, "--images", "63"])
