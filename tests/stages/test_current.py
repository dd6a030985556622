"""Stages of a network that was changed after the cut: noticed, named, and what can be followed is followed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eenet
from eenet.errors import CutError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()


def replace(net: nn.Sequential) -> None:
    net[3] = nn.Linear(8, 3)


def wrap(net: nn.Sequential) -> None:
    net[3] = nn.Sequential(net[3])


def another_forward(net: nn.Sequential) -> None:
    net[3].forward = lambda x: x[:, :3]


def hook(net: nn.Sequential) -> None:
    net[3].register_forward_hook(lambda _module, _args, output: 2 * output)


def another_eps(net: nn.Sequential) -> None:
    net[1].eps = 1.0  # type: ignore[assignment]


def another_shape(net: nn.Sequential) -> None:
    net[3].weight = nn.Parameter(torch.randn(5, 8))


def another_dtype(net: nn.Sequential) -> None:
    net[3].weight = nn.Parameter(torch.randn(3, 8, dtype=torch.float64))


def weight_norm(net: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(net[3])


CHANGES: dict[Callable[[nn.Sequential], None], str] = {
    replace: r"module '3' was replaced by another Linear",
    wrap: r"module '3' was replaced by another Sequential",
    another_forward: r"module '3' has another forward",
    hook: r"output .* differs",
    another_eps: r"module '1' has eps=1\.0, which was 1e-05",
    another_shape: r"module '3' has another weight: shape \(5, 8\), not \(3, 8\)",
    another_dtype: r"was changed after it was cut: .* \(torch.float32 in module '0', torch.float64 in module '3'\)",
    weight_norm: r"'3\.parametrizations'.*was added",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_named(change: Callable[[nn.Sequential], None]) -> None:
    net = network()
    staged = eenet.cut(net, ["1"], torch.randn(2, 4))
    staged.check_current()
    change(net)
    with pytest.raises(CutError, match=CHANGES[change]) as caught:
        staged.check_current()
    advice = "make them one with network.float()" if change is another_dtype else "attach exits to the network again"
    assert advice in str(caught.value)


def test_a_setting_that_matters_in_training_only() -> None:
    net = network()
    staged = eenet.cut(net, ["1"], torch.randn(2, 4))
    staged.train()(torch.randn(3, 4))
    net[2].p = 0.1  # type: ignore[assignment]
    with pytest.raises(CutError, match=r"module '2' has p=0\.1, which was 0\.5"):
        staged.check_current()


def test_what_does_not_change_the_result_is_no_change() -> None:
    net = network()
    staged = eenet.cut(net, ["1"], torch.randn(2, 4))
    net[1].calls = 3  # type: ignore[assignment]
    net.requires_grad_(False)
    net.train()
    staged.check_current()
    staged.eval().double().check_current()


@pytest.mark.parametrize("way", ["parameter", "load", "data"])
def test_other_tensors_of_the_same_shape_are_followed(way: str) -> None:
    net = network()
    staged = eenet.cut(net, ["1"], torch.randn(2, 4))
    if way == "parameter":
        net[3].weight = nn.Parameter(torch.randn(3, 8))
    elif way == "load":
        net.load_state_dict({name: torch.randn_like(value) for name, value in net.state_dict().items()}, assign=True)
    else:
        net[3].weight.data = torch.randn(3, 8)
    staged.check_current()
    x = torch.randn(5, 4)
    torch.testing.assert_close(staged(x), net(x))


def test_stages_written_by_hand() -> None:
    first, last = nn.Linear(4, 8), nn.Linear(8, 3)
    staged = eenet.StagedModel.from_stages({"first": first, "last": last}, torch.randn(2, 4))
    staged.check_current()
    staged.backbone.last = nn.Linear(8, 3)
    with pytest.raises(CutError, match="'last' was replaced"):
        staged.check_current()


class Half(nn.Module):
    """Holds a tensor that tracing takes up as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.full((1,), 0.5)


@pytest.mark.parametrize("way", ["saved", "copied"])
@pytest.mark.parametrize("training", [False, True])
def test_saved_and_copied_models_give_the_same(way: str, training: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), Half(), nn.Linear(8, 3))
    model = eenet.attach(net, ["2"], example=torch.randn(2, 4)).train()
    model(torch.randn(6, 4))
    model.train(training)
    if way == "saved":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
    else:
        again = copy.deepcopy(model)
    x = torch.randn(5, 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.state_dict()["staged.backbone.1.num_batches_tracked"] == 1
    for one, other in zip(model(x), again(x), strict=True):
        assert torch.equal(one, other)
    again.staged.check_current()
    with torch.no_grad():
        again.backbone[4].bias += 1
    torch.testing.assert_close(again(x)[-1] - 1, model(x)[-1])


def test_graphs_are_not_in_the_saved_file() -> None:
    model = eenet.attach(network(), ["1"], example=torch.randn(2, 4))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"GraphModule" not in buffer.getvalue()
    assert len(repr(model.staged)) < 80
