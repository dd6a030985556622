"""Training mode, and following the network to other tensors, dtypes and devices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stages_toys import Chain, SmallResNet, warm
from torch import Tensor, nn

from eenet.errors import CutError
from eenet.stages import StagedModel, cut


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small() -> SmallResNet:
    model = SmallResNet().eval()
    warm(model)
    return model


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def assert_bound(staged: StagedModel) -> None:
    owned = {id(tensor) for tensor in (*staged.backbone.parameters(), *staged.backbone.buffers())}
    for stage in staged.stages:
        held = (*stage.module.parameters(), *stage.module.buffers())
        assert held
        assert all(id(tensor) in owned for tensor in held)


def test_training_is_the_same_as_the_network_s() -> None:
    model = small()
    twin = copy.deepcopy(model).train()
    staged = cut(model, ["layer1", "layer2.0"], images()).train()
    assert model.training
    x = images(4)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = twin(x)
        expected.square().sum().backward()
        torch.manual_seed(seed)
        got = staged(x)
        got.square().sum().backward()
        torch.testing.assert_close(got, expected)
    for (name, one), other in zip(twin.named_parameters(), model.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None, name
        else:
            torch.testing.assert_close(other.grad, one.grad, msg=name)
    for (name, statistic), own in zip(twin.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(own, statistic, msg=name)
    assert model.layer1.bn.num_batches_tracked is not None
    assert model.layer1.bn.num_batches_tracked.item() == 2


def test_the_training_trace_leaves_statistics_and_generator_alone() -> None:
    model = small()
    staged = cut(model, ["layer1"], images()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert len(staged.stages) == 2
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_modes_have_stages_of_their_own_and_come_back() -> None:
    staged = cut(small(), ["layer1"], images())
    inference = staged.stages
    staged.train()
    training = staged.stages
    assert training is not inference
    staged.eval()
    assert staged.stages is inference
    x = images(3)
    torch.testing.assert_close(staged(x), staged.backbone(x))


def test_a_frozen_batch_norm_stays_frozen_in_training() -> None:
    model = small()
    staged = cut(model, ["layer1"], images()).train()
    model.layer1.bn.eval()
    assert model.layer1.bn.running_mean is not None
    assert model.layer3.bn.running_mean is not None
    frozen, moving = model.layer1.bn.running_mean.clone(), model.layer3.bn.running_mean.clone()
    staged(images(4))
    assert torch.equal(model.layer1.bn.running_mean, frozen)
    assert not torch.equal(model.layer3.bn.running_mean, moving)


def test_a_model_in_training_mode_gives_a_staged_model_in_training_mode() -> None:
    model = small().train()
    staged = cut(model, ["layer1"], images())
    assert staged.training
    assert model.training
    assert not staged.eval().backbone.training


def test_a_network_that_cannot_be_traced_in_training_says_so() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        y = net.a(x)
        if net.training and y.sum() > 0:
            y = -y
        return net.b(y)

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    staged = cut(model, ["a"], torch.randn(2, 4))
    with pytest.raises(CutError, match="in training mode"):
        staged.train()(torch.randn(2, 4))
    x = torch.randn(3, 4)
    torch.testing.assert_close(staged.eval()(x), model(x))


def test_buffers_that_each_training_step_moves() -> None:
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(normed, nn.ReLU(inplace=True), nn.Linear(4, 4)).eval()
    twin = copy.deepcopy(model).train()
    staged = cut(model, ["1"], torch.randn(2, 4)).train()
    x = torch.randn(3, 4)
    for _ in range(2):
        torch.testing.assert_close(staged(x), twin(x))


def test_loading_weights() -> None:
    model, other = small(), small()
    staged = cut(model, ["layer1"], images())
    x = images(3)
    state = {f"backbone.{name}": value.clone() for name, value in other.state_dict().items()}
    staged.load_state_dict(state)
    torch.testing.assert_close(staged(x), other(x))
    assert_bound(staged)


@pytest.mark.parametrize("nested", [False, True])
def test_loading_weights_by_assignment(nested: bool) -> None:
    staged = cut(small(), ["layer1"], images())
    other = small()
    state = {f"backbone.{name}": value.clone() for name, value in other.state_dict().items()}
    if nested:
        nn.ModuleDict({"inner": staged}).load_state_dict({f"inner.{k}": v for k, v in state.items()}, assign=True)
    else:
        staged.load_state_dict(state, assign=True)
    x = images(3)
    torch.testing.assert_close(staged(x), other(x))
    assert_bound(staged)


def test_rebind_after_a_change_behind_its_back() -> None:
    model = small()
    staged = cut(model, ["layer1"], images())
    model.head.weight = nn.Parameter(torch.ones_like(model.head.weight))
    x = images(3)
    assert not torch.equal(staged(x), model(x))
    staged.rebind()
    torch.testing.assert_close(staged(x), model(x))
    del model.head
    with pytest.raises(CutError, match=r"'head\.(weight|bias)'"):
        staged.rebind()


def test_cutting_and_training_from_inside_inference_mode() -> None:
    model = small()
    with torch.inference_mode():
        staged = cut(model, ["layer1"], images())
        got = staged(x := images(3))
        torch.testing.assert_close(got, model(x))
    staged.double()
    with torch.inference_mode():
        torch.testing.assert_close(staged(x.double()), model(x.double()))
    staged.train()(images(4).double()).sum().backward()
    assert model.stem.weight.grad is not None


def test_stages_for_inference_in_any_mode() -> None:
    staged = cut(small().train(), ["layer1"], images())
    assert staged.inference_stages is not staged.stages
    assert staged.eval().stages is staged.inference_stages


def test_another_dtype() -> None:
    staged = cut(small(), ["layer1"], images()).double()
    x = images(3).double()
    got = staged(x)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, staged.backbone(x))
    assert_bound(staged)


def test_another_device_rewrites_what_tracing_fixed() -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.lin(x) + torch.arange(4, device=x.device)
            with torch.no_grad():
                gate = torch.ones(x.shape[0], 1, device=x.device) * y.sum()
            return self.out(y * torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device)) + gate.mean() * 0

    model = Constants().eval()
    staged = cut(model, ["lin"], torch.randn(2, 4), check=False)
    handed_out = staged.stages
    staged.to("meta")
    assert staged.stages is handed_out
    got = staged(torch.randn(3, 4, device="meta"))
    assert got.device.type == "meta"
    for stage in staged.stages:
        assert all(tensor.device.type == "meta" for tensor in (*stage.module.parameters(), *stage.module.buffers()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    model = small()
    staged = cut(model, ["layer1", "layer2"], images()).cuda()
    x = images(5).cuda()
    torch.testing.assert_close(staged(x), model(x), rtol=1e-3, atol=1e-4)
    staged.train()(x).sum().backward()
    again = cut(model.eval(), ["layer1", "layer2"], images().cuda())
    torch.testing.assert_close(again(x), model(x), rtol=1e-3, atol=1e-4)


def test_a_deep_copy_stands_alone() -> None:
    staged = cut(small(), ["layer1"], images())
    twin = copy.deepcopy(staged)
    assert_bound(twin)
    assert set(twin.stages[0].state_dict()) == set(staged.stages[0].state_dict())
    x = images(3)
    expected = staged(x).clone()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(staged(x), expected)
    assert not torch.equal(twin(x), expected)


def test_buffers_that_are_not_saved_are_not_in_a_stage_s_state() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("kept", torch.ones(4))
            self.register_buffer("derived", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Any:
            return self.out(self.lin(x) * self.kept * self.derived * torch.tensor([1.0, 2.0, 3.0, 4.0]))

    model = Scaled().eval()
    staged = cut(model, ["lin"], torch.randn(2, 4))
    assert set(staged.stages[1].state_dict()) == {"kept", "out.weight", "out.bias"}
    x = torch.randn(3, 4)
    torch.testing.assert_close(staged(x), model(x))
