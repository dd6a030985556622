"""The options that move early exits: averaged weights, soft labels, mixed images, rates by stage, heads first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from training_toys import CLASSES, Augmented, assert_same_weights, corner_model, images, weights_of

import eenet
from eenet.errors import InvalidInputError
from eenet.tasks import Segmentation
from eenet.training import ClassificationTask, SegmentationTask, TrainConfig, load_checkpoint, train

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")

COSTS = eenet.ExitCosts([1.0, 2.0, 4.0])
PLAIN = TrainConfig(
    epochs=2, learning_rate=0.05, momentum=0.0, weight_decay=0.0, schedule="constant", distillation_weight=0.0,
    loss_weights="uniform", accelerator="cpu", tensorboard=False, progress=False,
)  # fmt: skip
X, Y = images(24, 0)
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]
EVERYTHING: dict[str, Any] = {
    "ema_decay": 0.9, "label_smoothing": 0.1, "mixup": 0.4, "cutmix": 1.0, "layer_decay": 0.5, "ensemble_weight": 0.3,
    "distillation_part": 1.0, "head_epochs": 2, "cache_crops": 2, "momentum": 0.9,
}  # fmt: skip


def run(model: eenet.MultiExitModel, out: Path, data: Any = BATCHES, **options: Any) -> Any:
    resume = options.pop("resume", False)
    given = {name: options.pop(name) for name in ("task", "features") if name in options}
    config = replace(PLAIN, **options)
    return train(model, data, [(X, Y)], config=config, out=out, costs=COSTS, resume=resume, **given)


def moved(out: Path, data: Any = BATCHES[:1], **options: Any) -> dict[str, Tensor]:
    """By what each parameter was moved in one step of SGD, over minus the learning rate: its gradient."""
    model = smooth_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, out, data, epochs=1, learning_rate=0.5, **options)
    return {name: (before[name] - p.detach()) / 0.5 for name, p in model.named_parameters()}


class Smooth(nn.Module):
    """Layers without dropout or batch norm, whose gradients are those of the formula."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.top = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(self.second(self.first(x)))
        return logits


def smooth_model() -> eenet.MultiExitModel:
    torch.manual_seed(0)
    heads = [nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)]
    return eenet.attach(Smooth(), ["first", "second"], example=X[:3], heads=heads)


def gradients_of(loss: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    model = smooth_model().train()
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(model(X[:12])), parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def summed(of: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor]], Tensor]:
    return lambda logits: torch.stack([of(z) for z in logits]).sum()


def test_averaged_weights_are_those_of_the_formula(tmp_path: Path) -> None:
    after = []
    for steps in range(1, 5):  # a batch an epoch, at a constant rate: the first steps are those of a shorter run
        model = corner_model()
        run(model, tmp_path / f"plain{steps}", BATCHES[:1], epochs=steps)
        load_checkpoint(model, tmp_path / f"plain{steps}" / "last.safetensors")
        after.append(weights_of(model))
    expected = after[0]
    for done, weights in enumerate(after[1:], start=1):
        decay = min(0.3, (1 + done) / (10 + done))
        expected = {
            name: decay * tensor + (1 - decay) * weights[name] if tensor.is_floating_point() else weights[name]
            for name, tensor in expected.items()
        }
    model = corner_model()
    result = run(model, tmp_path / "averaged", BATCHES[:1], epochs=4, ema_decay=0.3)
    load_checkpoint(model, result.last_checkpoint)
    found = weights_of(model)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert any("running_var" in name for name in found)
    # What is evaluated is what is saved.
    assert eenet.collect(model, [(X, Y)]).accuracies.tolist() == pytest.approx(result.history[-1].accuracies)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_torchs(smoothing: float, tmp_path: Path) -> None:
    found = moved(tmp_path, label_smoothing=smoothing)
    assert_close(found, gradients_of(summed(lambda z: F.cross_entropy(z, Y[:12], label_smoothing=smoothing))))


def test_label_smoothing_leaves_out_pixels_that_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 5, 3, 4, generator=generator), torch.randint(0, 5, (2, 3, 4), generator=generator)
    labels[0, 1] = 255
    found = SegmentationTask(Segmentation(ignore_index=255), 0.3).loss(logits, labels)
    expected = F.cross_entropy(logits, labels, ignore_index=255, label_smoothing=0.3)
    torch.testing.assert_close(found, expected)


def test_probabilities_as_targets() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 2, 1, 1, 0])
    certain, task = F.one_hot(labels, 4).float(), ClassificationTask(0.1)
    torch.testing.assert_close(task.loss(logits, certain), task.loss(logits, labels))
    assert task.utility(logits, certain).tolist() == task.utility(logits, labels).tolist()


def test_the_ensemble_teaches_and_does_not_learn(tmp_path: Path) -> None:
    def loss(logits: list[Tensor]) -> Tensor:
        mean = torch.stack([(z / 2).softmax(1) for z in logits]).mean(0).detach()
        taught = [4 * (mean * (mean.log() - (z / 2).log_softmax(1))).sum(1).mean() for z in logits]
        return summed(lambda z: F.cross_entropy(z, Y[:12]))(logits) + 0.7 * torch.stack(taught).sum()

    found = moved(tmp_path / "all", ensemble_weight=0.7, distillation_part=1.0, temperature=2.0)
    assert_close(found, gradients_of(loss))
    found = moved(tmp_path / "off", ensemble_weight=0.7, distillation_part=0.0)
    assert_close(found, gradients_of(summed(lambda z: F.cross_entropy(z, Y[:12]))))


def test_the_learning_rate_falls_from_the_last_stage_to_the_first(tmp_path: Path) -> None:
    found = moved(tmp_path, layer_decay=0.5, head_learning_rate=0.25)
    plain = gradients_of(summed(lambda z: F.cross_entropy(z, Y[:12])))
    rates = {"heads": 0.5, "first": 0.25, "second": 0.5, "top": 1.0}
    for name, gradient in plain.items():
        part = next(part for part in rates if part in name.split("."))
        torch.testing.assert_close(found[name], rates[part] * gradient, rtol=1e-4, atol=1e-6, msg=name)


class Recorder(nn.Module):
    """A head that keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, CLASSES)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_images_and_labels_are_mixed_alike(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("torchvision.transforms.v2")
    head, batches = Recorder(), 4
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(192, CLASSES))
    model = eenet.attach(net, ["0"], example=X[:2], heads=[head])
    head.seen.clear()  # attach tries heads on the example
    constant = torch.arange(8.0)[:, None, None, None].expand(8, 3, 8, 8).clone()
    labels = torch.arange(8) % CLASSES

    class Watched(ClassificationTask):
        targets: list[Tensor] = []  # noqa: RUF012

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            self.targets.append(targets)
            return super().loss(logits, targets)

    task = Watched()
    config = replace(PLAIN, epochs=1, **options)
    data = [(constant, labels)] * batches
    train(model, data, [(X, Y)], config=config, out=tmp_path, costs=eenet.ExitCosts([1.0, 2.0]), task=task)
    certain = F.one_hot(labels, CLASSES).float()
    shares = []
    for seen, targets in zip(head.seen, task.targets[::2], strict=True):
        # Image n is mixed with the one before it: by its own share of each pixel, or of the pixels.
        own = 1 - (seen - constant).mean((1, 2, 3)) / (constant.roll(1, 0) - constant).mean((1, 2, 3))
        torch.testing.assert_close(targets, own[:, None] * certain + (1 - own[:, None]) * certain.roll(1, 0))
        shares.append(float(own[0]))
    assert len(set(shares)) == batches
    assert all(0 <= share <= 1 for share in shares)


def test_only_images_of_one_class_are_mixed(tmp_path: Path) -> None:
    pytest.importorskip("torchvision.transforms.v2")
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    rows = eenet.attach(net, ["1"], example=torch.randn(2, 4))
    data, costs = [(torch.randn(8, 4), torch.arange(8) % 2)], eenet.ExitCosts([1.0, 2.0])
    with pytest.raises(InvalidInputError, match=r"need batches of images .*got torch.float32 of shape \(2, 4\)"):
        train(rows, data, data, config=replace(PLAIN, mixup=0.2, head_epochs=2), out=tmp_path / "rows", costs=costs)
    assert not (tmp_path / "rows").exists(), "the heads are not trained first"
    with pytest.raises(InvalidInputError, match="one class for each image; the task is 'segmentation'"):
        run(corner_model(), tmp_path / "pixels", cutmix=0.2, head_epochs=2, task=SegmentationTask())
    assert not (tmp_path / "pixels").exists(), "the heads are not trained first"
    with pytest.raises(InvalidInputError, match="holds the label 9"):
        run(corner_model(), tmp_path / "label", [(X, torch.full_like(Y, 9))], mixup=0.2)


def test_a_task_that_is_given_smooths_labels_itself(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"ClassificationTask\(label_smoothing=0.1\)"):
        run(corner_model(), tmp_path, label_smoothing=0.1, task=ClassificationTask())


def test_heads_first_leaves_the_backbone_alone_and_then_trains_it(tmp_path: Path) -> None:
    model = corner_model()
    before = weights_of(model)
    result = run(model, tmp_path, head_epochs=3, epochs=1)
    first = corner_model()
    header = load_checkpoint(first, tmp_path / "heads" / "best.safetensors")
    assert [report["epoch"] for report in header["history"]] == list(range(3))[: len(header["history"])]
    for name, tensor in first.state_dict().items():
        if name.startswith("staged."):
            assert torch.equal(tensor, before[name]), name
    assert len(result.history) == 1
    assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items() if n.startswith("staged."))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not (tmp_path / "heads" / "features").exists()


def test_heads_first_without_a_cache_where_inputs_have_several_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(20, 8), nn.Tanh(), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Mean())
    model = eenet.attach(net, ["1"], 2, torch.arange(12).reshape(2, 6), dynamic={1: "length"})
    before = weights_of(model)
    data = [(torch.randint(0, 20, (8, length)), torch.arange(8) % 2) for length in (4, 7)]
    costs = eenet.ExitCosts([1.0, 2.0])
    config = replace(PLAIN, epochs=1, head_epochs=2)
    train(model, data, data, config=config, out=tmp_path, costs=costs)
    header = load_checkpoint(model, tmp_path / "heads" / "last.safetensors")
    assert header["step"] == 4
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("heads.") for name in changed)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(1))
        return logits


def test_cached_crops_take_turns(tmp_path: Path) -> None:
    data = Augmented(24, 0)
    model = corner_model()
    loader = DataLoader(data, 12)
    run(model, tmp_path / "out", loader, freeze_backbone=True, cache_crops=3, features=tmp_path / "kept")
    # Each reading is augmented otherwise, and so is kept apart; besides them there is the validation data.
    assert len(list((tmp_path / "kept").glob("*/complete.json"))) == 4
    assert data.read == 3 * 24
    plain = DataLoader(TensorDataset(X, Y), 12)
    run(model, tmp_path / "two", plain, freeze_backbone=True, cache_crops=3, features=tmp_path / "same")
    assert len(list((tmp_path / "same").glob("*/complete.json"))) == 2, "without augmentation once is enough"


class Interrupted(Augmented):
    """Augmented images, reading one of which fails: a run that is cut off there."""

    last: int | None = None

    def __getitem__(self, index: int) -> Any:
        if self.read == self.last:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.filterwarnings("ignore:a matrix product takes")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("average", {"ema_decay": 0.9}),
        ("everything", EVERYTHING),
        ("bf16", {**EVERYTHING, "precision": "bf16", "gradient_scaling": "equilibrium", "accumulate": 2}),
    ],
)
def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if "mixup" in options:
        pytest.importorskip("torchvision.transforms.v2")

    def attempt(out: Path, last: int | None = None) -> tuple[dict[str, Tensor], Any]:
        data = Interrupted(36, seed=0)
        data.last = last
        loader = DataLoader(data, 12, shuffle=True, generator=torch.Generator().manual_seed(5))
        model = corner_model()
        result = run(model, out, loader, epochs=3, resume=True, **options)
        return weights_of(model), result

    expected, whole = attempt(tmp_path / "whole")
    readings = 36 * options.get("cache_crops", 0)
    places = [readings + 36 + 20]  # in the second epoch of everything
    if readings:
        places.append(readings + 10)  # in its first one, after that of the heads
    for place in places:
        out = tmp_path / f"{name}{place}"
        with pytest.raises(KeyboardInterrupt):
            attempt(out, place)
        found, result = attempt(out)
        assert_same_weights(expected, found)
        assert [report.to_dict() | {"seconds": 0, "images_per_second": 0} for report in result.history] == [
            report.to_dict() | {"seconds": 0, "images_per_second": 0} for report in whole.history
        ]
        shutil.rmtree(out)


def test_more_settings_out_of_range() -> None:
    for values, words in (
        ({"ema_decay": 1.0}, "ema_decay is 1.0, expected a number above 0 and below 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"cutmix": True}, "cutmix is True"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0, expected a number above 0 and at most 1"),
        ({"ensemble_weight": float("nan")}, "ensemble_weight is nan"),
        ({"head_epochs": -1}, "head_epochs is -1"),
        ({"cache_crops": 0}, "cache_crops is 0"),
        ({"freeze_backbone": True, "mixup": 0.2}, "mixup is 0.2, expected 0 with freeze_backbone"),
        ({"freeze_backbone": True, "head_epochs": 1}, "head_epochs is 1, expected 0 with freeze_backbone"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            TrainConfig(**values)


class Masked(nn.Module):
    """A network with a mask of attention among its buffers, which is not finite."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("mask", torch.tensor([0.0] * 7 + [-torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        logits: Tensor = self.last(hidden * torch.softmax(hidden + self.mask, dim=1))
        return logits


def test_a_mask_that_is_not_finite_is_no_divergence(tmp_path: Path) -> None:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    y = (x.sum(dim=1) > 0).long()
    network = Masked().eval()
    model = eenet.attach(network, ["first"], example=x[:2])
    config = replace(PLAIN, ema_decay=0.9)
    trained = train(model, [(x, y)], [(x, y)], config=config, out=tmp_path / "run", costs=eenet.ExitCosts([1.0, 2.0]))
    assert len(trained.history) == 2
    with torch.no_grad():
        network.first.bias.fill_(torch.inf)
    with pytest.raises(eenet.training.TrainingDivergedError):
        train(model, [(x, y)], [(x, y)], config=config, out=tmp_path / "other", costs=eenet.ExitCosts([1.0, 2.0]))


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "accumulate": 2}, {"head_epochs": 1}], ids=str)
def test_a_backbone_that_is_frozen_answers_as_before(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    network = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(24, 4) + 3
    y = (x.sum(dim=1) > 12).long()
    model = eenet.attach(network.eval(), ["2"], example=x[:2])
    network.requires_grad_(False)
    before = network(x)
    heads = [parameter.clone() for parameter in model.heads.parameters()]
    config = replace(PLAIN, **options)
    train(model, [(x, y)] * 2, [(x, y)], config=config, out=tmp_path, costs=eenet.ExitCosts([1.0, 2.0]))
    assert torch.equal(network(x), before)
    assert any(not torch.equal(now, then) for now, then in zip(model.heads.parameters(), heads, strict=True))
    norm.requires_grad_(True)  # one that learns goes on counting
    train(model, [(x, y)] * 2, [(x, y)], config=config, out=tmp_path / "learning", costs=eenet.ExitCosts([1.0, 2.0]))
    assert norm.running_mean is not None
    assert norm.running_mean.abs().max() > 0


def test_training_accuracies_are_of_samples_whatever_the_sizes_of_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(24, 4)
    model = eenet.attach(network, ["1"], example=x[:2])
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    y[23] = 1 - y[23]  # the last batch has this sample alone
    batches = [(x[:23], y[:23]), (x[23:], y[23:])]
    config = replace(PLAIN, epochs=1, learning_rate=1e-9)
    trained = train(model, batches, [(x, y)], config=config, out=tmp_path, costs=eenet.ExitCosts([1.0, 2.0]))
    assert trained.best.train_accuracies[-1] == pytest.approx(23 / 24)


@pytest.mark.parametrize("learns", [False, True])
def test_a_batch_norm_without_weights_is_frozen_with_what_is_around_it(learns: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU())
    network = nn.Sequential(nn.BatchNorm1d(4, affine=False), body, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for part in (body, network) if not learns else (body,):
        part.requires_grad_(False)
    x = torch.randn(48, 4) + 2
    model = eenet.attach(network, ["2"], example=x[:2])
    before = network(x)
    batches = [(x, torch.arange(48) % 3)]
    config = TrainConfig(epochs=2, accelerator="cpu", tensorboard=False, progress=False)
    train(model, batches, batches, config=config, out=tmp_path)
    inner, outer = body.get_buffer("1.running_mean"), network.get_buffer("0.running_mean")
    assert torch.equal(inner, torch.zeros(8)), "all that is around it is frozen"
    assert torch.equal(outer, torch.zeros(4)) is not learns
    assert torch.equal(network.eval()(x), before) is not learns
