"""Mixed images (`mixup`, `cutmix`): torchvision's transforms of whole batches, whose targets are probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eenet._extras import require
from eenet.errors import InvalidInputError
from eenet.training._config import TrainConfig
from eenet.training._loss import ClassificationTask, TrainingTask


class Mixer:
    """Mixes the images of batches, and their labels (N,) into probabilities (N, C)."""

    def __init__(self, config: TrainConfig, task: TrainingTask, classes: int) -> None:
        if not isinstance(task, ClassificationTask):
            raise InvalidInputError(
                f"mixup is {config.mixup:g} and cutmix {config.cutmix:g}, which need one class for each image; the "
                f"task is {task.name!r}: set both to 0"
            )
        v2 = require("torchvision.transforms.v2", "train", "mixing images (mixup, cutmix)")
        chosen = [
            kind(alpha=alpha, num_classes=classes)
            for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
            if alpha > 0
        ]
        self._mix = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
        self._task = task
        self._classes = classes

    def require_images(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `InvalidInputError` unless a call takes one batch of images."""
        given = [*args, *kwargs.values()]
        if len(given) != 1:
            raise self._not_images(f"{len(given)} inputs")
        self._require_image(given[0])

    def __call__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """The arguments of a batch with its images mixed, and the mixed targets."""
        self.require_images(args, kwargs)
        if args:
            images, mixed = self._images(args[0], targets)
            return (images,), {}, mixed
        ((name, value),) = kwargs.items()
        images, mixed = self._images(value, targets)
        return (), {name: images}, mixed

    def _require_image(self, images: Any) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            shape = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images)
            raise self._not_images(str(shape))

    def _images(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # Before the labels become probabilities, which all fit.
        self._task.check(torch.empty(len(images), self._classes, device=images.device), targets)
        mixed: tuple[Tensor, Tensor] = self._mix(images, targets.long())
        return mixed

    def _not_images(self, found: str) -> InvalidInputError:
        return InvalidInputError(
            f"mixup and cutmix need batches of images (batch, channels, height, width), got {found}; set both to 0"
        )


def mixer_of(config: TrainConfig, task: TrainingTask, classes: int) -> Mixer | None:
    """What mixes the images as `config` says, if anything does."""
    return Mixer(config, task, classes) if config.mixup > 0 or config.cutmix > 0 else None
