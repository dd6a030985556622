"""In-place operators: the caller's tensors and the features handed out stay as they are, results stay right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages_toys import Chain
from torch import Tensor, fx, nn

from eenet.errors import CutError
from eenet.stages import StagedModel, cut


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def linears(forward: object, training: bool = False) -> Chain:
    return Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4), d=nn.Dropout()).train(training)


def assert_nothing_handed_in_changes(staged: StagedModel, model: nn.Module, x: Tensor) -> None:
    expected = model(x.clone())
    live: tuple[Tensor, ...] = staged.flatten_inputs(x)
    for stage in staged.stages:
        before = [tensor.clone() for tensor in live]
        out = stage(*live)
        for one, other, described in zip(before, live, stage.inputs, strict=True):
            assert torch.equal(one, other), f"{stage.name} changed {described.name}"
        live = tuple(out[i] for i in stage.passed)
    torch.testing.assert_close(staged.unflatten_output(out), expected)
    torch.testing.assert_close(staged(x), expected)


def relu_of_input(net: Chain, x: Tensor) -> Any:
    return net.b(net.a(x.relu_()))


def relu_of_feature(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    return net.b(nn.functional.relu(y, inplace=True)) + y


def relu_of_feature_without_result(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    y.relu_()
    y += 1
    return net.b(y)


def add_after_reading_old_value(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    old = y * 3
    y.add_(1)
    return net.b(y) + old


def change_through_a_view(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    view = y.view(-1)
    view.mul_(2)
    return net.b(y)


def change_seen_through_a_view(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    view = y.view(-1)
    y.mul_(2)
    return net.b(view.view(-1, 4))


def change_through_dropout(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    z = net.d(y)
    z.mul_(2)
    return net.b(z) + y


def change_two_stages_later(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    z = net.b(y)
    y.mul_(2)
    return net.c(z) + y


def change_of_a_slice(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    y[:, 0] = 1.0
    return net.b(y)


def change_of_input_late(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    x.mul_(2)
    return net.b(y) + x


ONE_CUT = [
    relu_of_input,
    relu_of_feature,
    relu_of_feature_without_result,
    add_after_reading_old_value,
    change_through_a_view,
    change_seen_through_a_view,
    change_through_dropout,
    change_of_a_slice,
    change_of_input_late,
]


@pytest.mark.parametrize("forward", ONE_CUT)
def test_tensors_handed_in_are_not_changed(forward: object) -> None:
    model = linears(forward).eval()
    staged = cut(model, ["a"], torch.randn(2, 4))
    assert_nothing_handed_in_changes(staged, model, torch.randn(3, 4))


def test_a_change_two_stages_later() -> None:
    model = linears(change_two_stages_later).eval()
    staged = cut(model, ["a", "b"], torch.randn(2, 4))
    assert_nothing_handed_in_changes(staged, model, torch.randn(3, 4))


def test_a_cut_on_both_sides_of_an_in_place_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)).eval()
    staged = cut(model, ["0", "1"], torch.randn(2, 4))
    x = torch.randn(3, 4)
    assert_nothing_handed_in_changes(staged, model, x)
    (before,) = staged.stages[0](x)
    assert (before < 0).any()
    (after,) = staged.stages[1](before)
    assert (after >= 0).all()
    assert (before < 0).any()


def test_inside_a_stage_the_work_stays_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True)).eval()
    staged = cut(model, ["1"], torch.randn(2, 4))
    for stage in staged.stages:
        assert isinstance(stage.module, fx.GraphModule)
        targets = [str(node.target) for node in stage.module.graph.nodes]
        assert "aten.relu_.default" in targets
        assert "aten.clone.default" not in targets


def shared_memory_across_the_cut(net: Chain, x: Tensor) -> Any:
    y = net.a(x)
    view = y.view(-1)
    z = net.b(x)
    view.mul_(2)
    return z + y


def test_shared_memory_across_a_boundary_that_is_changed_is_refused_by_name() -> None:
    with pytest.raises(CutError, match=r"'b'.*share memory.*changes them in place"):
        cut(linears(shared_memory_across_the_cut).eval(), ["b"], torch.randn(2, 4))


def test_shared_memory_across_a_boundary_that_is_only_read_is_fine() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        y = net.a(x)
        view = y.view(-1)
        z = net.b(x)
        return z + y + view.view(-1, 4)

    # 4*batch elements in one dimension cannot be compacted; a view that keeps the samples separate can.
    with pytest.raises(CutError, match=r"'b'.*4\*batch"):
        cut(linears(forward).eval(), ["b"], torch.randn(2, 4))

    def kept(net: Chain, x: Tensor) -> Any:
        y = net.a(x)
        view = y.unsqueeze(1)
        return net.b(x) + y + view.squeeze(1)

    model = linears(kept).eval()
    staged = cut(model, ["b"], torch.randn(2, 4))
    x = torch.randn(3, 4)
    torch.testing.assert_close(staged(x), model(x))


def test_training_through_in_place_operators_gives_the_same_gradients() -> None:
    model = linears(relu_of_feature, training=True)
    staged = cut(model, ["a"], torch.randn(2, 4))
    x = torch.randn(3, 4)

    def gradients(run: nn.Module) -> list[Tensor]:
        model.zero_grad()
        run(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients(model)
    got = gradients(staged)
    assert len(expected) == len(got) == 4
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(one, other)
