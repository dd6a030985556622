"""What is trained for: the loss of an exit, how good it is, and what a teacher's output says of it.

Training knows logits and targets only through a task: a class per sample, or a class per pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.errors import InvalidInputError
from eenet.models import ImageRecords, MultiExitModel
from eenet.records import ExitRecords
from eenet.tasks import Segmentation


class TrainingTask(Protocol):
    """The meaning of one exit's logits. All tensors have the samples on dimension 0; logits are float32."""

    name: str

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise `InvalidInputError` for targets that do not fit the logits."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        ...

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What each sample's output is worth, (N,) in [0, 1]."""
        ...

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL(teacher || logits) at a temperature, the mean of a batch, a scalar."""
        ...

    def records(self, outputs: Iterable[tuple[Sequence[Tensor], Tensor]]) -> ExitRecords:
        """The records of held-out data: for each batch the logits of the K exits, and the targets."""
        ...


class ClassificationTask:
    """One class for each sample: cross entropy and accuracy. Logits are (N, C), targets (N,) class numbers."""

    name = "classification"

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise `InvalidInputError` for labels of another shape, of a float dtype, or outside the classes."""
        classes = logits.shape[1]
        if targets.is_floating_point() or targets.shape != logits.shape[:1]:
            raise InvalidInputError(
                f"labels have dtype {targets.dtype} and shape {tuple(targets.shape)}, expected whole numbers of shape "
                f"({len(logits)},): one class number for each sample"
            )
        bad = (targets < 0) | (targets >= classes)
        if bool(bad.any()):
            raise InvalidInputError(
                f"a batch holds the label {int(targets[bad][0])}, expected 0 to {classes - 1}: the model has {classes} "
                "classes; correct the data, or attach the exits with another num_classes"
            )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(logits, targets)

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 where the class is right."""
        return (logits.argmax(dim=1) == targets).float()

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL times the square of the temperature, by which the gradient of a softened softmax shrinks.

        Source: Hinton et al., "Distilling the knowledge in a neural network" (2015), section 2.
        """
        student = F.log_softmax(logits / temperature, dim=1)
        target = F.log_softmax(teacher / temperature, dim=1)
        return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)

    def records(self, outputs: Iterable[tuple[Sequence[Tensor], Tensor]]) -> ExitRecords:
        """Records of the class probabilities and labels."""
        logits, labels = [], []
        for batch, targets in outputs:
            self.check(batch[-1], targets)
            logits.append(torch.stack([z.float() for z in batch]).cpu().numpy())
            labels.append(targets.cpu().numpy())
        if not logits:
            raise InvalidInputError("the validation loader gave no batch; expected at least one")
        return ExitRecords.from_logits(np.concatenate(logits, axis=1), np.concatenate(labels))


class SegmentationTask:
    """One class for each pixel: cross entropy over the labeled pixels. Logits are (N, C, H, W), targets (N, H, W).

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
        """Cross entropy, the mean over the labeled pixels of the batch; 0 where there is none."""
        total = F.cross_entropy(logits, targets, ignore_index=self.task.ignore_index, reduction="sum")
        return total / (targets != self.task.ignore_index).sum().clamp(min=1)

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The share of each image's labeled pixels that are right."""
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
        images = ImageRecords(self.task)
        with torch.no_grad():
            for logits, targets in outputs:
                self.check(logits[-1], targets)
                images.add(logits, targets)
        return images.records()


def task_of(model: MultiExitModel) -> TrainingTask:
    """What a model is trained for, by what its logits mean."""
    return SegmentationTask(model.task) if isinstance(model.task, Segmentation) else ClassificationTask()


def targets_of(labels: Any, device: torch.device) -> Tensor:
    """A batch's labels as a tensor on `device`; raises `InvalidInputError` for a batch without any."""
    if labels is None:
        raise InvalidInputError("a batch has no labels; give batches of (inputs, labels), or with 'labels'")
    targets = labels if isinstance(labels, Tensor) else torch.as_tensor(labels)
    return targets.to(device)
