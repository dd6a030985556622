"""Frozen stages: the same answers, chosen by measuring, never slower, and the model is left alone."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CASES, Case
from torch import nn

import eenet
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.optimize import StageTimes, Variant, compiled, frozen
from eenet.optimize._compiled import key_of  # private: that packages differ is seen without making them
from eenet.runtime import TorchBackend, run_arrays


def make(case: Case, **options: Any) -> eenet.AdaptiveModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # on a busy machine nothing may be faster
        return eenet.AdaptiveModel(
            case.model, case.scheduler, optimize="auto", batch_sizes=(1, 4), seconds=0.02, **options
        )


def prefer(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """Make the measurement find one variant the fastest, or none faster than eager."""
    tried = ["eager", "compiled"] if name == "compiled" else ["eager", "folded", "folded, channels last"]

    def time(steps: Any, seconds: float) -> Any:
        names = tried[: len(steps)]
        return np.array([0.5 if found == name else 1.0 for found in names] + [1.0] * (len(steps) - len(names)))

    monkeypatch.setattr("eenet.optimize._optimize._time", time)


@pytest.mark.parametrize("variant", ["folded", "folded, channels last"])
@pytest.mark.parametrize("name", ["convolutions", "segmentation", "digits"])
def test_frozen_stages_take_the_same_exits_and_give_the_same_logits(
    name: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]()
    prefer(monkeypatch, variant)
    fast = make(case)
    assert fast.optimized is not None
    assert fast.optimized.chosen == (variant, variant)
    assert fast.optimized.dropped == ()
    plain = eenet.AdaptiveModel(case.model, case.scheduler)
    for size in (1, 7, 40):
        for start in range(0, 40, size):
            x = case.fresh["x"][start : start + size]
            got, expected = fast(x), plain(x)
            assert torch.equal(got.exits, expected.exits)
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-3, atol=1e-3)


def test_no_batch_norm_is_left_behind_a_convolution_and_the_model_keeps_its_own() -> None:
    case = CASES["convolutions"]()
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    pointers = [parameter.data_ptr() for parameter in case.model.parameters()]
    for variant in frozen(case.model):
        for stage in variant.stages:
            module = stage.module
            assert isinstance(module, torch.fx.GraphModule)
            assert not any(node.target is torch.ops.aten.batch_norm.default for node in module.graph.nodes)
    own: Any = case.model.staged.inference_stages[0].module
    assert any(node.target is torch.ops.aten.batch_norm.default for node in own.graph.nodes)
    assert [parameter.data_ptr() for parameter in case.model.parameters()] == pointers
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_batch_norm_is_folded_only_where_nothing_else_reads_the_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.two, self.other = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)
            self.end = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x)
            x = self.norm(x) + x  # read twice: must stay
            out: torch.Tensor = self.end(self.other(self.two(x)).mean((2, 3)))
            return out

    net = Net().eval()
    for module in (net.norm, net.other):
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    model = eenet.attach(net, ["other"], example=x)
    folded, _ = frozen(model)
    graphs = [stage.module.graph for stage in folded.stages if isinstance(stage.module, torch.fx.GraphModule)]
    left = [node for graph in graphs for node in graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    assert len(left) == 1
    torch.testing.assert_close(folded.all_logits((x,))[-1], net(x), rtol=1e-4, atol=1e-5)


def test_where_nothing_is_faster_the_model_runs_as_it_is_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["convolutions"]()
    prefer(monkeypatch, None)
    with pytest.warns(ReliabilityWarning, match="nothing that was tried is faster than the model as it is"):
        fast = eenet.AdaptiveModel(case.model, case.scheduler, optimize="auto", seconds=0.0)
    assert fast.optimized is not None
    assert str(fast.optimized) == "batch 1: eager; batch 8: eager"
    assert fast.optimized.at(3)[0].stages == case.model.staged.inference_stages


def test_each_batch_size_has_its_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["convolutions"]()
    calls = iter([np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.9, 0.7])])

    def time(steps: Any, seconds: float) -> Any:
        return next(calls) if len(steps) == 3 else np.ones(len(steps))

    monkeypatch.setattr("eenet.optimize._optimize._time", time)
    fast = eenet.AdaptiveModel(case.model, case.scheduler, optimize="auto", batch_sizes=(8, 1), seconds=0.0)
    assert fast.optimized is not None
    assert str(fast.optimized) == "batch 1: eager; batch 8: folded, channels last (0.70 of eager)"
    assert [fast.optimized.at(n)[0].name for n in (1, 7, 8, 64)] == ["eager"] * 2 + ["folded, channels last"] * 2


def test_the_measurement_itself_runs_and_reports_what_it_tried() -> None:
    fast = make(CASES["convolutions"]())
    assert fast.optimized is not None
    assert set(fast.optimized.ratios) == {"eager", "folded", "folded, channels last"}
    assert fast.optimized.ratios["eager"] == (1.0, 1.0)
    for times in fast.optimized.times:
        assert times.sizes == (1, 2, 4)
        assert (times.stages > 0).all()


def test_a_variant_with_other_logits_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Variant.all_logits

    def wrong(variant: Variant, live: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        found = real(variant, live)
        return [logits + 1 for logits in found] if variant.name == "folded" else found

    monkeypatch.setattr(Variant, "all_logits", wrong)
    fast = make(CASES["convolutions"]())
    assert fast.optimized is not None
    assert fast.optimized.dropped == ("folded",)
    assert "folded" not in fast.optimized.chosen


def test_compaction_pays_where_a_stage_costs_less_for_fewer_samples() -> None:
    proportional = StageTimes((1, 8), np.array([[1.0, 1.0], [8.0, 8.0]]), np.array([[0.0, 0.1], [0.0, 0.8]]))
    assert proportional.compacts(1, 8, 4)
    assert proportional.compacts(1, 16, 8)
    assert not proportional.compacts(1, 16, 15)  # copying 15 costs more than one sample too many
    flat = StageTimes((1, 8), np.array([[1.0, 8.0], [8.0, 8.0]]), np.array([[0.0, 0.1], [0.0, 0.8]]))
    assert not flat.compacts(1, 8, 1)


@pytest.mark.parametrize("pays", ["never", "at odd numbers"])
@pytest.mark.parametrize("name", ["convolutions", "bert", "segmentation"])
def test_without_compaction_the_answers_are_the_same(name: str, pays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    fast, plain = make(case), eenet.AdaptiveModel(case.model, case.scheduler)
    decide = {"never": lambda self, k, n, left: False, "at odd numbers": lambda self, k, n, left: left % 2 == 1}[pays]
    monkeypatch.setattr(StageTimes, "compacts", decide)
    for size in (5, 40):
        inputs = {key: tensor[:size] for key, tensor in case.fresh.items()}
        got = fast(**inputs) if len(inputs) > 1 else fast(inputs["x"])
        expected = plain(**inputs) if len(inputs) > 1 else plain(inputs["x"])
        assert torch.equal(got.exits, expected.exits)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimize": "fast"}, "optimize is 'fast', expected 'auto'"),
        ({"optimize": "auto", "batch_sizes": (0,)}, r"batch_sizes are \[0\], expected whole numbers from 1"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: Any, message: str) -> None:
    case = CASES["convolutions"]()
    with pytest.raises(InvalidInputError, match=message):
        eenet.AdaptiveModel(case.model, case.scheduler, **options)


compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="needs a C++ compiler"
)


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutions", "bert"])
def test_compiled_stages_take_the_same_exits_and_are_compiled_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EENET_CACHE", str(tmp_path))
    case = CASES[name]()
    variant = compiled(case.model)
    packages = sorted((tmp_path / "aoti").iterdir())
    assert len(packages) == 5  # three stages and two heads
    made = [path.stat().st_mtime_ns for path in packages]
    backend = TorchBackend(case.model, variant)
    expected = case.scheduler.replay(case.records(case.fresh)).exits
    for size in (1, 7, 40):
        rows = {key: array[:size] for key, array in case.arrays.items()}
        answers = run_arrays(backend, case.scheduler.policy, case.model.task, rows)
        assert answers is not None
        np.testing.assert_array_equal(answers.exits, expected[:size])
    monkeypatch.setattr("eenet.optimize._optimize.frozen", lambda _: [])
    prefer(monkeypatch, "compiled")
    fast = eenet.AdaptiveModel(case.model, case.scheduler, optimize="aoti", batch_sizes=(1, 4), seconds=0.0)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "aoti").iterdir())] == made
    assert fast.optimized is not None
    assert fast.optimized.chosen == ("compiled", "compiled")
    for size in (1, 7, 40):
        inputs = {key: tensor[:size] for key, tensor in case.fresh.items()}
        output = fast(**inputs) if len(inputs) > 1 else fast(inputs["x"])
        np.testing.assert_array_equal(output.exits, expected[:size])


@compiler
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="makes a shell script")
def test_a_torch_that_crashes_at_a_package_is_refused_and_crashes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EENET_CACHE", str(tmp_path))
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o700)
    model = eenet.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval(), ["0"], 3, torch.randn(2, 4))
    monkeypatch.setattr("eenet.optimize._compiled._loads", [])
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", str(crashing))
        with pytest.raises(InvalidInputError, match="crashes where it loads a stage compiled by AOTInductor; run the"):
            compiled(model)
    assert compiled(model).name == "compiled"


def test_the_key_of_a_package_is_of_all_the_tensors_in_it() -> None:
    class Net(nn.Module):
        def __init__(self, scale: float, constant: float) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
            self.register_buffer("scale", torch.tensor([scale]), persistent=False)
            self.constant = torch.tensor([constant, 1.0, 1.0, 1.0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.first(x) * self.scale + self.constant)
            return out

    keys = []
    for scale, constant in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (1.0, 1.0)):
        torch.manual_seed(0)
        model = eenet.attach(Net(scale, constant).eval(), ["first"], 3, torch.randn(2, 4))
        keys.append([key_of(stage.module, stage.inputs) for stage in model.staged.inference_stages])
    assert keys[0] == keys[3]
    assert keys[0][1] not in (keys[1][1], keys[2][1])
    assert keys[1][1] != keys[2][1]


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EENET_CACHE", str(tmp_path))
    (tmp_path / "aoti").mkdir()
    (tmp_path / "aoti").chmod(0o777)
    with pytest.raises(InvalidInputError, match="can be written by others, and what is in it would be run"):
        compiled(CASES["convolutions"]().model)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])  # noqa: S301
def test_a_copy_is_optimized_again_and_gives_the_same(duplicate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["convolutions"]()
    prefer(monkeypatch, "folded")
    fast = make(case)
    again = duplicate(fast)
    assert again.model is not fast.model
    assert again.optimized is not None
    assert again.optimized.chosen == ("folded", "folded")
    x = case.fresh["x"][:7]
    got, expected = again(x), fast(x)
    assert torch.equal(got.exits, expected.exits)
    assert torch.equal(got.logits, expected.logits)
