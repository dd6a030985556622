"""Images of one small size, kept in memory as bytes and augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.experiments.data._corrupt import CorruptSample
from eenet.experiments.data._dataset import (
    Draw,
    Indices,
    one,
    positions,
    require_labels,
    require_transform,
    resolve,
    transformed,
)
from eenet.experiments.data._image_io import IMAGENET_MEAN, IMAGENET_STD, Normalise
from eenet.experiments.data._random import uniforms


class ImageArray:
    """Labelled uint8 images (N, 3, H, W) in memory.

    The training transform pads with `padding` black pixels, crops back at random and flips left to right half of the
    time; both transforms normalise with `mean` and `std` (of pixels scaled to 0..1). Raises `InvalidInputError` for
    another shape or dtype, another number of labels than images, or a label outside the classes.
    """

    task = "classification"

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[Any],
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        transform: str = "eval",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        padding: int = 4,
        skipped: Sequence[CorruptSample] = (),
    ) -> None:
        require_transform(transform)
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            raise InvalidInputError(
                f"images of {name!r} are {images.dtype} of shape {images.shape}, expected uint8 (N, 3, H, W)"
            )
        if len(images) != len(labels):
            raise InvalidInputError(
                f"{name!r} has {len(images)} images and {len(labels)} labels; give each image one label"
            )
        if not len(images):
            raise InvalidInputError(f"split {split!r} of {name!r} has no samples; expected at least one")
        if padding < 0:
            raise InvalidInputError(f"padding is {padding}, expected 0 pixels or more")
        self.name, self.split, self.transform = name, split, transform
        self.classes = tuple(classes)
        self.images = images
        self.labels = require_labels(labels, self.classes, f"split {split!r} of {name!r}")
        self.skipped = tuple(skipped)
        self.padding = padding
        self.normalise = Normalise(mean, std)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (3, H, W) of one input."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        x, y = self.batch([one(index, len(self))])
        return x[0], int(y[0])

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """A float32 tensor (n, 3, H, W) and int64 labels (n,)."""
        import torch

        where = positions(indices, len(self))
        pixels = self.images[where]
        if self.transform == "train":
            pixels = self._augment(pixels, uniforms(*resolve(draw), where, 3))
        return self.normalise(pixels), torch.from_numpy(self.labels[where])

    def _augment(self, pixels: NDArray[np.uint8], u: NDArray[np.float64]) -> NDArray[np.uint8]:
        n, channels, height, width = pixels.shape
        pad = self.padding
        padded = np.zeros((n, channels, height + 2 * pad, width + 2 * pad), np.uint8)
        padded[:, :, pad : pad + height, pad : pad + width] = pixels
        down, right = (u[:, :2] * (2 * pad + 1)).astype(np.int64).T
        windows = sliding_window_view(padded, (height, width), axis=(2, 3))
        cropped: NDArray[np.uint8] = windows[np.arange(n), :, down, right]
        flipped = u[:, 2] < 0.5
        cropped[flipped] = cropped[flipped][..., ::-1]
        return cropped

    def digest(self, index: int) -> bytes:
        """A hash of one image's pixels."""
        return blake2b(self.images[one(index, len(self))].tobytes(), digest_size=16).digest()

    def fingerprint(self) -> str:
        """A hash of all pixels and labels."""
        pixels = np.ascontiguousarray(self.images)
        return sha256(sha256(pixels.data).digest() + self.labels.astype("<i8").tobytes()).hexdigest()

    def with_transform(self, transform: str) -> ImageArray:
        """The same images, not copied, with another transform."""
        return transformed(self, transform)
