"""What is trained for where every pixel has a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.errors import InvalidInputError
from eenet.models import ImageRecords
from eenet.records import ExitRecords
from eenet.tasks import Segmentation


class SegmentationTask:
    """One class for each pixel: cross entropy over the labelled pixels. Logits are (N, C, H, W), targets (N, H, W).

    `task` says which pixels are looked at for the evidence, which label does not count, and what an image is worth.
    """

    name = "segmentation"

    def __init__(self, task: Segmentation | None = None) -> None:
        self.task = task or Segmentation()

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise `InvalidInputError` for label maps of another shape, of a float dtype, or outside the classes."""
        classes = logits.shape[1]
        expected = (logits.shape[0], *logits.shape[2:])
        if targets.is_floating_point() or tuple(targets.shape) != expected:
            raise InvalidInputError(
                f"label maps have dtype {targets.dtype} and shape {tuple(targets.shape)}, expected whole numbers of "
                f"shape {expected}: one class number for each pixel"
            )
        bad = (targets != self.task.ignore_index) & ((targets < 0) | (targets >= classes))
        if bool(bad.any()):
            raise InvalidInputError(
                f"a pixel has the label {int(targets[bad][0])}, expected 0 to {classes - 1}, or "
                f"{self.task.ignore_index} for a pixel that does not count"
            )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, the mean over the labelled pixels of the batch; 0 where there is none."""
        total = F.cross_entropy(logits, targets, ignore_index=self.task.ignore_index, reduction="sum")
        return total / (targets != self.task.ignore_index).sum().clamp(min=1)

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The share of each image's labelled pixels that are right."""
        counted = (targets != self.task.ignore_index).flatten(1)
        right = (logits.argmax(dim=1) == targets).flatten(1) & counted
        return right.sum(1).float() / counted.sum(1).clamp(min=1).float()

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL at a temperature, the mean over all pixels, times the square of the temperature."""
        student = F.log_softmax(logits / temperature, dim=1)
        target = F.log_softmax(teacher / temperature, dim=1)
        return temperature**2 * F.kl_div(student, target, reduction="none", log_target=True).sum(dim=1).mean()

    def records(self, outputs: Iterable[tuple[Sequence[Tensor], Tensor]]) -> ExitRecords:
        """Records of evidence pooled over the pixels, with pixel counts."""
        found = ImageRecords(self.task)
        with torch.no_grad():
            for logits, targets in outputs:
                self.check(logits[-1], targets)
                found.add(logits, targets)
        return found.records()
