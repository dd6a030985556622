"""What the tests remember of traces and exports is what a trace or an export would give."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import eenet


def network(slope: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(slope), nn.Dropout(), nn.Linear(8, 3)).eval()


def test_a_network_like_one_before_gets_stages_with_its_own_weights_and_others_are_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced: list[Any] = []
    export = torch.export.export

    def counted(*args: Any, **options: Any) -> Any:
        traced.append(args)
        return export(*args, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    x = torch.randn(6, 4)
    for one, traces in ((network(), 1), (network(), 1), (network(0.5), 2), (network().double(), 3), (network(), 3)):
        of_dtype = x.to(one[0].weight.dtype)  # type: ignore[index]
        staged = eenet.cut(one, ["2"], of_dtype[:2])
        assert len(traced) == traces
        torch.testing.assert_close(staged(of_dtype), one(of_dtype))
        assert {id(weight) for stage in staged.stages for weight in stage.module.parameters()} == {
            id(weight) for weight in one.parameters()
        }
    frozen = network()
    frozen[0].weight.requires_grad_(False)  # type: ignore[index]
    frozen[2].register_forward_hook(lambda _module, _args, output: output + 1)  # type: ignore[index]
    staged = eenet.cut(frozen, ["2"], x[:2])
    torch.testing.assert_close(staged(x), frozen(x))
    assert len(traced) == 4


def test_a_program_that_was_exported_is_not_exported_again_and_one_with_other_weights_is() -> None:
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 4)

    def exported(linear: nn.Linear) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the exporters say of themselves
            program = torch.export.export(linear, (x,), strict=False)
            made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=20)
        assert made is not None
        return made.model_proto

    first, other = nn.Linear(4, 3), nn.Linear(4, 3)
    one = exported(first)
    assert exported(first) == one
    assert exported(other) != one
