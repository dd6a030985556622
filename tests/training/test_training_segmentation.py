"""Training where every pixel has a class: the loss, what counts, and that all exits learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.tasks import Segmentation, mean_iou
from eenet.training import SegmentationTask, TrainConfig, train

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")

TASK = SegmentationTask()
CLASSES = 3


class PixelNet(nn.Module):
    """Two convolutions and a classifier for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classify = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.second(self.first(x)))
        return logits


def scenes(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of images whose brightest channel is the class of a pixel, a tenth of them without a label."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count, 8, 12), generator=generator)
    x = torch.randn(count, 3, 8, 12, generator=generator) * 0.5 + 2 * F.one_hot(y, 3).permute(0, 3, 1, 2)
    y[torch.rand(y.shape, generator=generator) < 0.1] = 255
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, count, 8)]


def test_all_exits_learn_and_the_records_are_those_of_collect(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = eenet.attach(PixelNet(), ["first"], CLASSES, torch.randn(2, 3, 8, 12))
    validation = scenes(24, seed=1)
    config = TrainConfig(
        epochs=4, optimizer="adamw", learning_rate=0.02, schedule="linear", accelerator="cpu", tensorboard=False,
        progress=False,
    )  # fmt: skip
    result = train(model, scenes(64, seed=0), validation, config=config, out=tmp_path)
    assert min(result.best.accuracies) > 0.8
    records = eenet.collect(model, validation)
    np.testing.assert_allclose(records.accuracies, result.best.accuracies, rtol=1e-5)
    assert records.pixel_counts is not None
    assert mean_iou(records.pixel_counts[-1]) > 0.7


def test_pixels_without_a_label_do_not_count() -> None:
    logits, y = torch.randn(2, CLASSES, 4, 5), torch.randint(CLASSES, (2, 4, 5))
    y[0, :2] = 255
    counted = y != 255
    by_hand = F.cross_entropy(logits.permute(0, 2, 3, 1)[counted], y[counted])
    assert TASK.loss(logits, y) == pytest.approx(by_hand.item(), rel=1e-5)
    right = (logits.argmax(1) == y) & counted
    expected = right.flatten(1).sum(1) / counted.flatten(1).sum(1)
    torch.testing.assert_close(TASK.utility(logits, y), expected.float())
    nothing = torch.full((2, 4, 5), 255)
    assert TASK.loss(logits, nothing) == 0
    assert TASK.utility(logits, nothing).isnan().all(), "nothing is known of an image without labels"


@pytest.mark.parametrize("utility", ["pixel_accuracy", "mean_iou"])
def test_an_image_is_worth_the_same_in_training_and_in_records(utility: str) -> None:
    task = Segmentation(utility=utility)
    logits, y = torch.randn(6, CLASSES, 4, 5), torch.randint(CLASSES, (6, 4, 5))
    y[torch.rand(y.shape) < 0.2] = 255
    y[4] = 255
    expected = task.utility_of(task.pixel_counts(logits.argmax(1).numpy(), y.numpy(), CLASSES))
    np.testing.assert_array_equal(SegmentationTask(task).utility(logits, y).numpy(), expected)
    with pytest.warns(ReliabilityWarning, match="1 of 6 images have no labeled pixel"):
        records = SegmentationTask(task).records([([logits, logits], y)])
    np.testing.assert_array_equal(records.require_utility(), np.tile(np.delete(expected, 4), (2, 1)))


@pytest.mark.filterwarnings("ignore:.*images have no labeled pixel:eenet.errors.ReliabilityWarning")
def test_images_without_labels_do_not_count_in_the_accuracies_of_an_epoch(tmp_path: Path) -> None:
    x, y = torch.randn(24, 3, 8, 12), torch.ones(24, 8, 12, dtype=torch.long)
    y[::3] = 255
    y[8:16] = 255  # a whole batch
    network = PixelNet()
    with torch.no_grad():
        network.classify.weight.zero_()
        assert network.classify.bias is not None
        network.classify.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))  # always right
    model = eenet.attach(network, ["first"], CLASSES, x[:2])
    loader = [(x[n : n + 8], y[n : n + 8]) for n in (0, 8, 16)]
    config = TrainConfig(epochs=1, learning_rate=1e-6, accelerator="cpu", tensorboard=False, progress=False)
    result = train(model, loader, loader, config=config, out=tmp_path)
    assert result.best.train_accuracies[-1] == result.best.accuracies[-1] == 1


def test_the_divergence_is_a_mean_over_pixels() -> None:
    z, teacher = torch.randn(2, CLASSES, 4, 5), torch.randn(2, CLASSES, 4, 5)
    assert TASK.divergence(z, z, 3.0) == pytest.approx(0, abs=1e-6)
    twice = TASK.divergence(z.repeat(1, 1, 2, 2), teacher.repeat(1, 1, 2, 2), 3.0)
    assert TASK.divergence(z, teacher, 3.0) == pytest.approx(twice.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2, 4, 5), "have dtype torch.float32"),
        (torch.zeros(2, 5, 4, dtype=torch.long), "shape \\(2, 5, 4\\), expected whole numbers of shape \\(2, 4, 5\\)"),
        (torch.full((2, 4, 5), 3), "a pixel has the label 3, expected 0 to 2, or 255"),
        (torch.full((2, 4, 5), -1), "a pixel has the label -1"),
    ],
)
def test_label_maps_that_do_not_fit(targets: Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TASK.check(torch.randn(2, CLASSES, 4, 5), targets)


def test_another_ignored_label_and_no_data() -> None:
    task = SegmentationTask(Segmentation(ignore_index=0))
    task.check(torch.randn(1, CLASSES, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="gave no batch"):
        task.records([])
