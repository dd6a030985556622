"""Training where every pixel has a class: the loss, what counts, and that all exits learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import InvalidInputError
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
    assert TASK.utility(logits, nothing).tolist() == [0, 0]


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
