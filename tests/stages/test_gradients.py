"""Gradients of the stages are those of the network, or the network is refused with the module that drops them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import eenet
from eenet.errors import CutError
from eenet.stages import StagedModel


class Sign(torch.autograd.Function):
    """The sign, whose gradient passes through."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Step(nn.Module):
    def __init__(self, step: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Any:
        return self.step(x)


class Scaled(nn.Module):
    """Its own parameters come before and after the step that changes gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.ones(8))
        self.after = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        return Sign.apply(x * self.before) * self.after  # type: ignore[no-untyped-call]


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def reversed_gradient(x: Tensor) -> Tensor:
    x = x * 1.0
    if x.requires_grad:
        x.register_hook(lambda gradient: -gradient)  # type: ignore[no-untyped-call]
    return x


def hooked() -> nn.Module:
    module = nn.Linear(8, 8)

    def double(_module: nn.Module, gradients: Any, _: Any) -> Any:
        return tuple(2 * gradient for gradient in gradients)

    module.register_full_backward_hook(double)
    return module


def network(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def step_of(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(0)
    result = model(x)
    (result[-1] if isinstance(result, list) else result).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


DROPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own backward pass": (lambda: Step(Sign.apply), r"'1' \(Step\) uses the autograd Function 'Sign'.*from_stages"),
    "own backward pass inside": (Scaled, r"'1' \(Scaled\) uses the autograd Function 'Sign'.*from_stages"),
    "hook on a tensor": (lambda: Step(reversed_gradient), r"in module '1' \(Step\) a step changes gradients"),
    "hook on a module": (hooked, r"'1' \(Linear\) has a backward hook.*remove the hook"),
}


@pytest.mark.parametrize("kind", DROPPED)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_that_tracing_drops_are_refused_in_training(kind: str, frozen: bool) -> None:
    make, message = DROPPED[kind]
    net = network(make())
    # What is frozen now may be trained later, through the same stages.
    net.requires_grad_(not frozen)
    model = eenet.attach(net.eval(), ["3"], example=torch.randn(2, 4))
    with pytest.raises(CutError, match=f"in training mode: the gradients of '0.weight'.*{message}"):
        model.train()(torch.randn(16, 4))
    assert all(parameter.requires_grad is not frozen for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    model.eval()(torch.randn(16, 4))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_with_the_other_kind_as_the_way_out() -> None:
    with pytest.raises(CutError, match=r"'1' .Checkpointed.*reentrant.*use_reentrant=False"):
        eenet.attach(network(Checkpointed(reentrant=True)), ["3"], example=torch.randn(2, 4)).train()(torch.ones(2, 4))


@pytest.mark.parametrize(
    "middle",
    [
        lambda: Checkpointed(reentrant=False),
        lambda: Step(lambda x: x + (x.sign() - x).detach()),
        lambda: Step(lambda x: x.detach()),
        lambda: nn.Dropout(0.5),
        lambda: nn.BatchNorm1d(8),
        lambda: nn.BatchNorm1d(8).requires_grad_(False),
    ],
)
def test_gradients_that_stay_are_those_of_the_network(middle: Callable[[], nn.Module]) -> None:
    x = torch.randn(16, 4)
    net = network(middle()).train()
    expected = step_of(net, x)
    got = step_of(eenet.attach(net, ["3"], example=x[:2]).staged, x)
    for one, other in zip(expected, got, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)


def test_a_network_frozen_in_part_is_trained_as_it_is() -> None:
    x = torch.randn(16, 4)
    net = network(nn.BatchNorm1d(8)).train()
    net[1].eval()
    expected = step_of(net, x)
    got = step_of(eenet.attach(net, ["3"], example=x[:2]).staged, x)
    torch.testing.assert_close(got, expected)


def test_stages_written_by_hand_keep_gradients_of_any_kind() -> None:
    net = network(Step(Sign.apply)).train()
    x = torch.randn(16, 4)
    expected = step_of(net, x)
    staged = StagedModel.from_stages([net[:4], net[4]], x[:2], reference=net)
    got = step_of(staged, x)
    torch.testing.assert_close(got, expected)
    assert expected[0] is not None
    assert expected[0].abs().sum() > 0.01


def test_a_buffer_that_training_changes_otherwise_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Tensor
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                self.seen += len(x)
            return x

    model = eenet.attach(network(Counter()).eval(), ["3"], example=torch.randn(2, 4))
    with pytest.raises(CutError, match=r"buffer '1\.seen' otherwise"):
        model.train()(torch.randn(16, 4))
