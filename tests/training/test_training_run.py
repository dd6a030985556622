"""Joint training: what it learns, what it writes, how gradients are scaled, and what stops it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from training_toys import CornerNet, assert_same_weights, corner_model, images, loaders, weights_of

import eenet
from eenet.errors import CutError, InvalidInputError, MissingExtraError, ReliabilityWarning
from eenet.experiments.data import ImageArray, loader
from eenet.training import (
    ClassificationTask,
    TrainConfig,
    TrainingDivergedError,
    load_checkpoint,
    reestimate_batch_norm,
    train,
    two_fold_frontier,
)

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")

QUICK = TrainConfig(epochs=2, learning_rate=0.05, accelerator="cpu", tensorboard=False, progress=False)


def test_training_makes_all_exits_good_and_keeps_the_best_frontier(tmp_path: Path) -> None:
    model, (train_loader, validation) = corner_model(), loaders(256)
    config = replace(QUICK, epochs=6, schedule="cosine", optimizer="adamw", learning_rate=0.02, tensorboard=True)
    result = train(model, train_loader, validation, config=config, out=tmp_path)
    assert [report.epoch for report in result.history] == list(range(6))
    assert result.best == max(result.history, key=lambda report: report.score)
    records = eenet.collect(model, validation)
    assert records.accuracies.tolist() == pytest.approx(result.best.accuracies)
    assert min(records.accuracies) > 0.7
    found = two_fold_frontier(records, result.costs)
    assert found.accuracies == pytest.approx(result.best.frontier)
    assert found.mean == pytest.approx(result.best.score)
    assert result.costs.unit == "flops"
    again = corner_model(seed=1)
    header = load_checkpoint(again, result.best_checkpoint)
    assert len(header["history"]) == result.best.epoch + 1
    assert_same_weights(weights_of(model), weights_of(again))
    assert not list(tmp_path.rglob("*.ckpt"))
    assert list((tmp_path / "tensorboard").glob("events*"))
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [8, 16, 24, 32, 40, 48]
    for name in ("loss", "accuracies_0", "accuracies_2", "mean", "frontier_1", "score", "learning_rate"):
        assert all(float(row[name]) >= 0 for row in rows), name


def test_an_exit_that_is_dead_after_training_is_named_with_its_figures(tmp_path: Path) -> None:
    model, validation = corner_model(), DataLoader(TensorDataset(*images(200, 1)), 50)
    # Nothing of the image reaches the first head, so that it can learn how often each class comes, and no more.
    model.heads[0] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.Threshold(1e9, 0.0))
    with pytest.warns(ReliabilityWarning, match=r"after training exit 0 says nothing.*no sample exit there") as said:
        result = train(model, loaders(256)[0], validation, config=replace(QUICK, epochs=3), out=tmp_path)
    (about,) = (str(one.message) for one in said if "after training" in str(one.message))
    assert f"right on {100 * result.best.accuracies[0]:.1f} %" in about
    assert "exit 2" not in about
    with pytest.warns(ReliabilityWarning) as again:
        train(model, loaders(256)[0], validation, config=replace(QUICK, epochs=3), out=tmp_path, resume=True)
    assert about in [str(one.message) for one in again], "a run that was over says it too"


def test_costs_of_the_users_own_are_used(tmp_path: Path) -> None:
    costs = eenet.ExitCosts([1.0, 5.0, 9.0], unit="ms")
    result = train(corner_model(), *loaders(), config=replace(QUICK, epochs=1), out=tmp_path, costs=costs)
    assert result.best.budgets == pytest.approx((3.0, 5.0, 7.0))
    with pytest.raises(InvalidInputError, match="costs are for 2 exits"):
        train(corner_model(), *loaders(), config=QUICK, out=tmp_path / "other", costs=eenet.ExitCosts([1.0, 2.0], "ms"))


@pytest.mark.filterwarnings("ignore:a matrix product takes")
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "learning_rate": 0.01, "precision": "bf16", "gradient_clip": 1.0},
        {"accumulate": 3, "schedule": "linear", "warmup_epochs": 0.5, "loss_weights": "shallow_deep"},
        {"gradient_scaling": "equilibrium", "loss_weights": "adaptive", "distillation_part": 1.0, "nesterov": True},
        {"gradient_scaling": 0.0, "loss_weights": (1.0, 1.0, 2.0), "head_learning_rate": 0.1},
    ],
)
def test_every_setting_trains(options: dict[str, Any], tmp_path: Path) -> None:
    model = corner_model()
    result = train(model, *loaders(192), config=replace(QUICK, **{"epochs": 6, **options}), out=tmp_path)
    losses = [report.exit_losses for report in result.history]
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))
    assert result.best.accuracies[-1] > 0.7


def test_a_precision_that_the_processor_emulates_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(_: Any, matrix: Tensor, *__: Any) -> tuple[float, float]:
        seconds = 0.001 if matrix.dtype == torch.float32 else 0.03 if slow else 0.0005
        return seconds, seconds

    monkeypatch.setattr("eenet.training._train.timed", clock)
    config = replace(QUICK, epochs=1, precision="bf16")
    slow = False
    train(corner_model(), *loaders(24), config=config, out=tmp_path / "fast")
    slow = True
    with pytest.warns(ReliabilityWarning, match=r"30 times as long with precision='bf16'.*precision=32"):
        train(corner_model(), *loaders(24), config=config, out=tmp_path / "slow")


@pytest.mark.parametrize("samples", [48, 36], ids=["equal", "last-smaller"])
def test_accumulated_batches_make_the_step_of_one_large_batch(samples: int, tmp_path: Path) -> None:
    x, y = images(samples, 0)  # of 36, the last batch of one run has 12 samples, and of the other 8 and 4
    found, reports = [], []
    for name, size, accumulate in (("one", 24, 1), ("three", 8, 3)):
        model = corner_model()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Dropout):
                module.eval()
        frozen = _KeptModes(model)
        loader = DataLoader(TensorDataset(x, y), size)
        config = replace(QUICK, epochs=1, accumulate=accumulate, distillation_weight=0.0)
        result = train(model, loader, loader, config=config, out=tmp_path / name)
        frozen.release()
        assert result.history[0].step == 2
        found.append(weights_of(model))
        reports.append(result.history[0])
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5)
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-5), "means over samples, not over batches"
    assert reports[1].exit_losses == pytest.approx(reports[0].exit_losses, rel=1e-5)


class _KeptModes:
    """Batch norms and dropouts that stay in inference mode, whatever train() says: no batch has statistics then."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout)]
        for module in self._modules:
            module.train = lambda mode=True, kept=module: kept  # type: ignore[method-assign]

    def release(self) -> None:
        for module in self._modules:
            del module.train


class Teacher(nn.Module):
    """Always sure of the class after the right one."""

    def forward(self, x: Tensor) -> Tensor:
        corners = torch.stack([x[:, :, r : r + 3, c : c + 3].mean((1, 2, 3)) for r in (0, 5) for c in (0, 5)], dim=1)
        return 20 * nn.functional.one_hot((corners.argmax(1) + 1) % 4, 4).float()


def test_exits_learn_from_a_teacher(tmp_path: Path) -> None:
    model, (train_loader, validation) = corner_model(), loaders(256)
    config = replace(QUICK, epochs=5, teacher_weight=20.0, schedule="cosine", optimizer="adamw", learning_rate=0.02)
    train(model, train_loader, validation, config=config, out=tmp_path, teacher=Teacher())
    x, y = images(96, 1)
    with torch.no_grad():
        found = [[float(((z.argmax(1) - y) % 4 == shift).float().mean()) for shift in (0, 1)] for z in model.eval()(x)]
    assert all(taught > labeled for labeled, taught in found)
    assert found[-1][1] > 0.7
    with pytest.raises(InvalidInputError, match=r"teacher_weight is 1, and no teacher was given"):
        train(model, train_loader, validation, config=replace(QUICK, teacher_weight=1.0), out=tmp_path / "other")
    with pytest.raises(InvalidInputError, match=r"teacher_weight is 0, and a teacher was given"):
        train(model, train_loader, validation, config=QUICK, out=tmp_path / "other", teacher=Teacher())


def test_patience_stops_on_the_mean_of_the_exits(tmp_path: Path) -> None:
    config = replace(QUICK, epochs=20, learning_rate=1e-9, momentum=0.0, patience=3)
    net = CornerNet()
    model = eenet.attach(net, ["first", "second"], example=images(3, 0)[0])
    for module in (*net.modules(), *model.heads.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    model = eenet.attach(net, ["first", "second"], example=images(3, 0)[0], heads=list(model.heads))
    result = train(model, *loaders(32), config=config, out=tmp_path)
    means = [report.mean for report in result.history]
    assert result.stopped_early
    assert len(means) - 1 - means.index(max(means)) == 3
    again = train(model, *loaders(32), config=config, out=tmp_path, resume=True)
    assert again.history == result.history


class NotFiniteAt:
    """Labeled batches, one of which holds infinities."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.given = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        for index in range(4):
            x, y = images(16, index)
            if self.given == self.batch:
                x = x * torch.inf
            self.given += 1
            yield x, y


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    model, (_, validation) = corner_model(), loaders()
    train_loader: Any = NotFiniteAt(6)
    with pytest.raises(TrainingDivergedError) as caught:
        train(model, train_loader, validation, config=QUICK, out=tmp_path)
    assert (caught.value.step, caught.value.exit_name) == (6, "first")
    assert "the loss of exit 'first' is nan at step 6 (epoch 2, batch 3)" in str(caught.value)
    assert "of the last good epoch, number 1" in str(caught.value)
    assert isinstance(caught.value, ArithmeticError)
    assert len(load_checkpoint(model, tmp_path / "last.safetensors")["history"]) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    early: Any = NotFiniteAt(0)
    with pytest.raises(TrainingDivergedError, match=r"at step 0 .*no epoch was finished before"):
        train(corner_model(), early, validation, config=QUICK, out=tmp_path / "other")
    assert not (tmp_path / "other" / "last.safetensors").exists()


class Explosive(nn.Module):
    """A head whose gradient is infinite although its loss is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * torch.arange(4) + torch.sqrt(self.weight)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    x, _ = images(2, 0)
    heads = [Explosive(), eenet.models.ConvHead(6, 4)]
    model = eenet.attach(CornerNet(), exits=["first", "second"], num_classes=4, example=x, heads=heads)
    with pytest.raises(TrainingDivergedError, match=r"the weight 'heads\.0\.weight' is not finite") as caught:
        train(model, *loaders(32), config=replace(QUICK, epochs=1), out=tmp_path)
    assert caught.value.exit_name is None
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, (train_loader, validation) = corner_model(), loaders(32)
    x, y = images(32, 0)

    def run(data: Any, labeled: Iterable[Any] = validation, **options: Any) -> None:
        train(model, data, labeled, config=replace(QUICK, **options), out=tmp_path)

    with pytest.raises(InvalidInputError, match="the label 7, expected 0 to 3"):
        run([(x, torch.where(y == 1, 7, y))])
    with pytest.raises(InvalidInputError, match=r"dtype torch\.float32"):
        run([(x, y.float())])
    with pytest.raises(InvalidInputError, match="has no labels"):
        run([x])
    with pytest.raises(InvalidInputError, match="has no labels"):
        run(train_loader, [x])
    with pytest.raises(InvalidInputError, match="gave no batch"):
        run(train_loader, [])
    with pytest.raises(InvalidInputError, match="train_loader has no batches"):
        run([])
    with pytest.raises(InvalidInputError, match="train_loader has no length"):
        run(DataLoader(Endless(), 8))
    with pytest.raises(InvalidInputError, match="2 numbers for 3 exits"):
        run(train_loader, loss_weights=(1.0, 1.0))
    with pytest.raises(InvalidInputError, match=r"accelerator='abacus'.* cannot be used on this machine"):
        run(train_loader, accelerator="abacus")
    with pytest.raises(InvalidInputError, match=r"a CornerNet, expected a MultiExitModel.*eenet\.attach"):
        train(CornerNet(), train_loader, validation, config=QUICK, out=tmp_path)  # type: ignore[arg-type]
    for options, message in (
        ({"config": {"epochs": 1}}, r"config is a dict, expected a TrainConfig, such as TrainConfig\("),
        ({"costs": 3}, "costs is an int, expected what eenet.profile gives"),
        ({"out": None}, "out is None, expected the folder that the run is written to"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            train(model, train_loader, validation, **{"config": QUICK, "out": tmp_path, **options})  # type: ignore[arg-type]


def test_a_network_that_was_changed_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    model = corner_model()
    model.backbone.third = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.Tanh())
    with pytest.raises(CutError, match="the network was changed after it was cut: module 'third"):
        train(model, *loaders(32), config=QUICK, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        yield from zip(*images(8, 0), strict=True)


def test_without_tensorboard_nothing_is_trained_or_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    train_loader, validation = loaders(64)
    config = replace(QUICK, head_epochs=1, tensorboard=True)
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[train\]', or set tensorboard=False"):
        train(corner_model(), train_loader, validation, config=config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_lightning_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[train\]'"):
        train(corner_model(), *loaders(32), config=QUICK, out=tmp_path)


def test_workers_that_live_on_are_warned_of(tmp_path: Path) -> None:
    class Lasting:
        """A list of batches that says it has such workers; starting real ones takes seconds."""

        persistent_workers = True

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            yield images(32, 0)

    train_loader, validation = Lasting(), loaders(32)[1]
    with pytest.warns(ReliabilityWarning, match="persistent_workers=False"):
        train(corner_model(), train_loader, validation, config=replace(QUICK, epochs=1), out=tmp_path)
    x, y = images(8, 0)
    pixels = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8).numpy()
    own = ImageArray(pixels, y.numpy(), "abcd", name="x", split="train", transform="eval", mean=[0] * 3, std=[1] * 3)
    # Its workers live on as well, but draw nothing from their states.
    lasting = loader(own, 4, shuffle=True, workers=1)
    assert lasting.persistent_workers
    train(corner_model(), lasting, validation, config=replace(QUICK, epochs=1), out=tmp_path / "own")


def test_dict_batches_and_another_task(tmp_path: Path) -> None:
    class Smoothed(ClassificationTask):
        name = "smoothed"

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)

    x, y = images(64, 0)
    batches = [{"x": x[i : i + 16], "labels": y[i : i + 16]} for i in range(0, 64, 16)]
    torch.manual_seed(0)
    model = eenet.attach(CornerNet(), exits=["first", "second"], num_classes=4, example={"x": x[:2]})
    config = replace(QUICK, epochs=1)
    result = train(model, batches, batches, config=config, out=tmp_path, task=Smoothed())
    assert len(result.best.accuracies) == 3
    with pytest.raises(InvalidInputError, match="task: 'classification' instead of 'smoothed'"):
        train(model, batches, batches, config=config, out=tmp_path, resume=True)


def test_batch_norm_statistics_become_those_of_the_data() -> None:
    model = corner_model().train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    x, y = images(64, 3)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    before = weights_of(model)
    assert reestimate_batch_norm(model, batches, 4) == len(norms) == 4
    first = model.backbone.first
    assert isinstance(first, nn.Sequential)
    maps = [first[0](part) for part, _ in batches]
    norm = first[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    head = model.heads[0].norm
    assert isinstance(head, nn.BatchNorm2d)
    assert head.running_mean is not None
    assert not torch.equal(head.running_mean, before["heads.0.norm.running_mean"])
    assert all(m.momentum == 0.1 and m.training for m in norms.values())
    assert not any(module._forward_hooks for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    after = weights_of(model)
    with pytest.raises(InvalidInputError, match="the loader gave 4 batches, expected 9"):
        reestimate_batch_norm(model, batches, 9)
    assert_same_weights(after, weights_of(model))
    with pytest.raises(InvalidInputError, match="batches is 0"):
        reestimate_batch_norm(model, batches, 0)

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield batches[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        reestimate_batch_norm(model, broken(), 4)
    assert_same_weights(after, weights_of(model))
    assert all(m.momentum == 0.1 and m.training for m in norms.values())


def test_progress_shows_every_exit_and_is_silent_when_not_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corner_model(), *loaders(64), config=replace(QUICK, progress=True), out=tmp_path / "shown")
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("epoch 2/2  loss")]
    for word in ("first", "second", "output", "% ", "at 3 budgets", "mean", "samples/s"):
        assert word in line
    assert sum("in the mean of several budgets, in counted FLOPs: costs=... gives" in line for line in lines) == 1
    config = replace(QUICK, progress=True, freeze_backbone=True)
    train(corner_model(), *loaders(64), config=config, out=tmp_path / "frozen")
    assert "caching features of 64 samples at 2 exits: " in capsys.readouterr().err
    train(corner_model(), *loaders(64), config=QUICK, out=tmp_path / "silent")
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
