"""Heads of the caller's own: what they do to the network, and what is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optional import import_or_skip
from stages_toys import Chain
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import InvalidInputError

BATCH = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def residual(last: nn.Module | None = None) -> Any:
    """A network whose residual branch reads the feature at "first" again, after the head there."""
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), last or nn.Identity())
    second = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    return Chain(_residual, first=first, second=second, shortcut=nn.Conv2d(8, 16, 1, 2), top=nn.Linear(16, 5)).eval()


def _residual(net: Any, x: Tensor) -> Tensor:
    z = net.first(x)
    both: Tensor = net.second(z) + net.shortcut(z)
    logits: Tensor = net.top(both.mean((2, 3)))
    return logits


class Head(nn.Module):
    """A linear head after `change` of the feature."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)
        self.change = change

    def forward(self, z: Tensor) -> Tensor:
        changed = self.change(self, z)
        logits: Tensor = self.linear((z if changed is None else changed).mean((2, 3)))
        return logits


def _relu(_head: nn.Module, z: Tensor) -> Tensor:
    return F.relu(z, inplace=True)


def _of_a_view(_head: nn.Module, z: Tensor) -> None:
    z.detach().flatten(1)[:, :20].mul_(3)


def _without_a_version(_head: nn.Module, z: Tensor) -> None:
    z.data.mul_(0.5)


def _in_training(head: nn.Module, z: Tensor) -> Tensor:
    return F.dropout(z, 0.5, training=head.training, inplace=True)


WRITING = [_relu, _of_a_view, _without_a_version, _in_training]


def attached(change: Callable[[nn.Module, Tensor], Any], network: Any = None) -> eenet.MultiExitModel:
    torch.manual_seed(0)
    return eenet.attach(network or residual(), ["first"], example=BATCH[:4], heads=[Head(change)])


def plain_pass(model: eenet.MultiExitModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits and gradients of the last exit's loss, without any head."""
    model.zero_grad()
    logits = model.backbone(x)
    F.cross_entropy(logits, torch.arange(len(x)) % 5).backward()  # type: ignore[no-untyped-call]
    return logits, {name: p.grad.clone() for name, p in model.backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("change", WRITING)
def test_a_head_that_works_in_place_leaves_the_network_its_feature(change: Callable[..., Any]) -> None:
    model = attached(change)
    with torch.no_grad():
        assert torch.equal(model(BATCH)[-1], model.backbone(BATCH))
        own = copy.deepcopy(model.heads[0])
        feature = model.backbone.get_submodule("first")(BATCH)
        assert torch.allclose(own(feature.clone()), model(BATCH)[0], atol=1e-6)
    # No gradient reaches the network from the head: then those of the last exit are the network's own.
    model.train()
    expected, gradients = plain_pass(model, BATCH)
    model.zero_grad()
    logits = model(BATCH)
    assert torch.allclose(logits[-1], expected, atol=1e-5)
    F.cross_entropy(logits[-1], torch.arange(len(BATCH)) % 5).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5), name


def test_a_head_that_works_in_place_after_a_relu_can_be_trained() -> None:
    # Its values stay, but the ReLU before it needs what it gave for its gradient.
    model = attached(_relu, residual(nn.ReLU())).train()
    model(BATCH, labels=torch.arange(len(BATCH)) % 5)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("copied", ["", "deepcopy", "saved", "fewer exits"])
def test_what_runs_is_what_the_records_say_whether_a_head_that_works_in_place_runs_or_not(copied: str) -> None:
    model = attached(_relu)
    if copied == "deepcopy":
        model = copy.deepcopy(model)
    elif copied == "saved":
        file = io.BytesIO()
        torch.save(model, file)
        model = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    elif copied == "fewer exits":
        model = eenet.attach(residual(), ["first", "second"], example=BATCH[:4], heads=[Head(_relu), _pooled(16)])
        model = model.keep_exits([0, 2])
    labels = model.backbone(BATCH).argmax(1)
    records = eenet.collect(model, [(BATCH, labels)])
    assert records.accuracies[-1] == 1
    costs = eenet.ExitCosts([1.0, 2.0], "ms")
    for budget in (1.6, 2.0):  # with the head, and with a policy that leaves it out
        scheduler = eenet.MaxProbability().fit(records, costs, budget, fallback=False)
        out, replayed = eenet.AdaptiveModel(model, scheduler)(BATCH), scheduler.replay(records)
        assert (out.exits.numpy() == replayed.exits).all()
        assert (out.logits.argmax(1).numpy() == replayed.predictions).all()
    assert replayed.accuracy == 1
    last = eenet.AdaptiveModel(model, eenet.Static(1).fit(records, costs))
    assert torch.equal(last(BATCH).logits, model.eval()(BATCH)[-1])


def _pooled(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def test_a_head_that_works_in_place_is_optimized_and_profiled_as_it_is() -> None:
    model = attached(_relu)
    costs = eenet.profile(model, BATCH, unit="flops")
    assert costs.plain is not None
    assert costs.plain < costs[-1]
    records = eenet.collect(model, [(BATCH, model.backbone(BATCH).argmax(1))])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0], "ms"), 1.6, fallback=False)
    fast = eenet.AdaptiveModel(model, scheduler, optimize="auto", batch_sizes=[64], seconds=0.05)
    replayed = scheduler.replay(records)
    assert (fast(BATCH).logits.argmax(1).numpy() == replayed.predictions).all()


def test_a_head_that_works_in_place_is_exported_as_it_is(tmp_path: Path) -> None:
    import_or_skip("onnxscript")
    import_or_skip("onnxruntime")
    model = attached(_relu)
    records = eenet.collect(model, [(BATCH, model.backbone(BATCH).argmax(1))])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0], "ms"), 1.6, fallback=False)
    bundle = eenet.export(model, scheduler, tmp_path / "bundle", example=BATCH, measure=False)
    answers, replayed = bundle(BATCH.numpy()), scheduler.replay(records)
    assert (answers.exits == replayed.exits).all()
    assert (answers.logits.argmax(1) == replayed.predictions).all()


def test_only_a_head_that_works_in_place_is_given_a_copy() -> None:
    places = []

    def note(_head: nn.Module, z: Tensor) -> None:
        places.append(z.data_ptr())

    def note_and_write(_head: nn.Module, z: Tensor) -> Tensor:
        note(_head, z)
        return z.relu_()

    for change, shared in ((note, True), (note_and_write, False)):
        model = attached(change)
        step = next(model.staged.walk((BATCH,)))
        with torch.no_grad():
            model.heads[0](step.feature)
        assert (places[-1] == step.feature.data_ptr()) is shared


@pytest.mark.parametrize(
    "change", [lambda _, z: F.dropout(z, 0.3), lambda _, z: z + torch.randn_like(z)], ids=["dropout", "noise"]
)
def test_a_head_that_is_random_in_inference_is_refused(change: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"the head at 'first', a Head, is random in inference.*self\.training"):
        attached(change)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_head_that_works_in_place_is_refused_and_another_is_taken() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(inplace=True), *_pooled(8)))
    with pytest.raises(InvalidInputError, match=r"of torch\.jit, works in place on the feature.*inplace=True"):
        eenet.attach(residual(), ["first"], example=BATCH[:4], heads=[scripted])
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), *_pooled(8)))
    model = eenet.attach(residual(), ["first"], example=BATCH[:4], heads=[scripted])
    assert torch.equal(model(BATCH)[-1], model.backbone(BATCH))


def test_a_head_that_is_random_in_training_alone_is_taken_and_the_generator_is_left_as_it_was() -> None:
    network = residual()
    head = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.5), *_pooled(8))
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    before = copy.deepcopy(head.state_dict())
    model = eenet.attach(network.train(), ["first"], example=BATCH[:4], heads=[head])
    assert torch.equal(torch.randn(4), expected)
    assert model.heads[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.heads[0].state_dict().items())
