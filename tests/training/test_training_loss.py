"""What a step of the training does: the joint loss, its gradients, and the learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import InvalidInputError
from eenet.training import TrainConfig, TrainResult, train

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(1))
COSTS = eenet.ExitCosts([1.0, 2.0, 4.0])

STEP = TrainConfig(
    epochs=1, learning_rate=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", loss_weights="uniform",
    distillation_weight=0.0, accelerator="cpu", tensorboard=False, progress=False,
)  # fmt: skip


class Plain(nn.Module):
    """Three layers without dropout or batch norm, whose gradients are those of the formula."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.top = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(self.second(self.first(x)))
        return logits


def plain_model() -> eenet.MultiExitModel:
    torch.manual_seed(0)
    return eenet.attach(Plain(), ["first", "second"], example=X[:3], heads=[nn.Linear(8, 3), nn.Linear(8, 3)])


def run(model: eenet.MultiExitModel, out: Path, *, teacher: nn.Module | None = None, **options: Any) -> TrainResult:
    """A training of one batch an epoch."""
    config = replace(STEP, **options)
    return train(model, [(X, Y)], [(X, Y)], config=config, out=out, costs=COSTS, teacher=teacher)


def stepped(out: Path, *, teacher: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    """By what each parameter was moved in one step of SGD, over minus the learning rate: its gradient."""
    model = plain_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, out, teacher=teacher, **options)
    return {name: (before[name] - parameter.detach()) / 0.5 for name, parameter in model.named_parameters()}


def gradients_of(loss: Any) -> dict[str, Tensor]:
    """The gradients of a loss of the three exits' logits in a model that was not trained."""
    model = plain_model().train()
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(model(X)), parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def of_exit(k: int) -> dict[str, Tensor]:
    return gradients_of(lambda logits: F.cross_entropy(logits[k], Y))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("name", "epoch", "expected"),
    [
        ("linear", 0, [1 / 3, 2 / 3, 1]),
        ("uniform", 0, [1, 1, 1]),
        ("pabee", 0, [1 / 6, 2 / 6, 3 / 6]),
        ("shallow_deep", 0, [0.01, 0.01, 1]),
        ("shallow_deep", 1, [0.01 + 0.24 / 2, 0.01 + 0.49 / 2, 1]),
        ("adaptive", 0, [1, 1, 1]),
        ((1.0, 0.0, 3.0), 0, [1, 0, 3]),
    ],
)
def test_exits_are_weighted_as_published(name: Any, epoch: int, expected: list[float], tmp_path: Path) -> None:
    result = run(plain_model(), tmp_path, epochs=2, loss_weights=name)
    report = result.history[epoch]
    assert report.loss == pytest.approx(
        sum(w * loss for w, loss in zip(expected, report.exit_losses, strict=True)), rel=1e-5
    )


def test_adaptive_weights_are_inverse_to_the_losses_of_the_epoch_before(tmp_path: Path) -> None:
    first, second = run(plain_model(), tmp_path, epochs=2, loss_weights="adaptive").history
    inverse = [1 / loss for loss in first.exit_losses]
    weights = [3 * one / sum(inverse) for one in inverse]
    assert second.loss == pytest.approx(
        sum(w * loss for w, loss in zip(weights, second.exit_losses, strict=True)), rel=1e-5
    )


def test_as_many_weights_as_exits(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="2 numbers for 3 exits"):
        run(plain_model(), tmp_path, loss_weights=(1.0, 2.0))


def test_the_joint_loss_is_the_papers(tmp_path: Path) -> None:
    def divergence(z: Tensor, target: Tensor) -> Tensor:
        p, q = (target / 3).softmax(1), (z / 3).softmax(1)
        return 9 * (p * (p / q).log()).sum(1).mean()

    def exits(logits: list[Tensor]) -> Tensor:
        plain = [F.cross_entropy(z, Y) for z in logits]
        return plain[0] / 3 + 2 * plain[1] / 3 + plain[2]

    def distilled(logits: list[Tensor]) -> Tensor:
        # The last exit does not learn from the early ones.
        return exits(logits) + 0.2 * sum((divergence(z, logits[2].detach()) for z in logits[:2]), torch.zeros(()))

    torch.manual_seed(3)
    teacher = nn.Linear(6, 3)

    def taught(logits: list[Tensor]) -> Tensor:
        target = teacher(X).detach()
        return exits(logits) + 0.5 * sum((divergence(z, target) for z in logits), torch.zeros(()))

    assert_close(stepped(tmp_path / "exits", loss_weights="linear"), gradients_of(exits))
    options: dict[str, Any] = {"loss_weights": "linear", "temperature": 3.0}
    found = stepped(tmp_path / "distilled", distillation_weight=0.2, distillation_part=1.0, **options)
    assert_close(found, gradients_of(distilled))
    found = stepped(tmp_path / "taught", teacher_weight=0.5, teacher=teacher, **options)
    assert_close(found, gradients_of(taught))


def test_equilibrium_gives_the_backbone_the_mean_of_the_exits_gradients(tmp_path: Path) -> None:
    found = stepped(tmp_path, gradient_scaling="equilibrium")
    first, second, last = of_exit(0), of_exit(1), of_exit(2)
    for name, gradient in found.items():
        if ".backbone." not in name:
            expected = first[name] + second[name] + last[name]  # heads keep their own
        elif ".first." in name:
            expected = (first[name] + second[name] + last[name]) / 3
        elif ".second." in name:
            expected = (second[name] + last[name]) / 2
        else:
            expected = last[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("factor", [0.0, 0.25])
def test_a_factor_scales_what_early_heads_send_into_the_backbone(factor: float, tmp_path: Path) -> None:
    found = stepped(tmp_path, gradient_scaling=factor)
    first, second, last = of_exit(0), of_exit(1), of_exit(2)
    for name, gradient in found.items():
        share = factor if ".backbone." in name else 1.0
        expected = share * (first[name] + second[name]) + last[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_heads_and_backbone_have_learning_rates_of_their_own(tmp_path: Path) -> None:
    found = stepped(tmp_path / "one", head_learning_rate=0.25, weight_decay=0.1, decay_vectors=False)
    plain = gradients_of(lambda logits: sum((F.cross_entropy(z, Y) for z in logits), torch.zeros(())))
    weights = dict(plain_model().named_parameters())
    for name, moved in found.items():
        decayed = plain[name] + (0.1 * weights[name].detach() if weights[name].ndim > 1 else 0)
        rate = 0.5 if name.startswith("heads.") else 1.0  # of that of the backbone
        torch.testing.assert_close(moved, rate * decayed, rtol=1e-4, atol=1e-6, msg=name)
    frozen = plain_model()
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    with pytest.raises(InvalidInputError, match="nothing can be trained"):
        run(frozen, tmp_path / "two")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "multistep"}, [1, 1, 0.1, 0.01]),
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)]),
        ({"schedule": "linear", "warmup_epochs": 2}, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_the_learning_rate_follows_its_schedule(options: dict[str, Any], expected: list[float], tmp_path: Path) -> None:
    result = run(plain_model(), tmp_path, epochs=4, **options)
    assert [report.learning_rate / 0.5 for report in result.history] == pytest.approx(expected)
