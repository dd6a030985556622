"""ImageNet (Russakovsky et al., 2015) as folders: `train/<synset>/*.JPEG` and `val/<synset>/*.JPEG`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data._corrupt import CorruptSample, settle
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
from eenet.experiments.data._folder import IMAGE_ENDINGS, entries, find_corrupt, hash_file, hash_names, spread
from eenet.experiments.data._image_io import IMAGENET_MEAN, IMAGENET_STD, Normalise, channels_first, decode
from eenet.experiments.data._layout import first_folder, missing, show
from eenet.experiments.data._random import uniforms

_ATTEMPTS = 10


class ImageFolder:
    """Labelled image files, decoded when they are read.

    Evaluation resizes the shorter side to `size * 256 / 224` and cuts the centre; training cuts 8 to 100 % of the area
    at an aspect ratio of 3/4 to 4/3, resizes it to `size` and flips half of the time (Szegedy et al., 2015). `check()`
    decodes everything and returns the corrupt files; a corrupt one that is read raises `FileFormatError` naming it.
    """

    task = "classification"

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        labels: NDArray[Any],
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        transform: str = "eval",
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        skipped: Sequence[CorruptSample] = (),
    ) -> None:
        require_transform(transform)
        if size < 1:
            raise InvalidInputError(f"size is {size}, expected 1 pixel or more")
        if len(paths) != len(labels):
            raise InvalidInputError(
                f"{name!r} has {len(paths)} images and {len(labels)} labels; give each image one label"
            )
        self.root, self.paths = root, list(paths)
        self.name, self.split, self.transform, self.size = name, split, transform, size
        self.classes = tuple(classes)
        self.labels = require_labels(labels, self.classes, f"split {split!r} of {name!r}")
        self.skipped = tuple(skipped)
        self.normalise = Normalise(mean, std)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (3, H, W) of one input."""
        return 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        x, y = self.batch([one(index, len(self))])
        return x[0], int(y[0])

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """A float32 tensor (n, 3, size, size) and int64 labels (n,)."""
        import torch

        where = positions(indices, len(self))
        pixels = np.empty((len(where), 3, self.size, self.size), np.uint8)
        if self.transform == "train":
            u = uniforms(*resolve(draw), where, 4 * _ATTEMPTS + 1)
            for n, index in enumerate(where):
                pixels[n] = _random_crop(self._decode(index), self.size, u[n])
        else:
            for n, index in enumerate(where):
                pixels[n] = _centre_crop(self._decode(index), self.size)
        return self.normalise(pixels), torch.from_numpy(self.labels[where])

    def _decode(self, index: int) -> Any:
        path = self.paths[index]
        try:
            return decode(path)
        except FileFormatError as error:
            raise FileFormatError(f"{str(path)!r} {error}") from error

    def check(self) -> list[CorruptSample]:
        """Decode every file and return those that do not decode."""
        return [sample for _, sample in find_corrupt(self._decode, [str(path) for path in self.paths])]

    def without_corrupt(self) -> ImageFolder:
        """The files that decode, after trying all of them; the others become `skipped`."""
        found = find_corrupt(self._decode, [str(path) for path in self.paths])
        settle([sample for _, sample in found], len(self) - len(found), "skip")
        bad = {index for index, _ in found}
        keep = [n for n in range(len(self)) if n not in bad]
        other = copy.copy(self)
        other.paths = [self.paths[n] for n in keep]
        other.labels = self.labels[keep]
        other.skipped = (*self.skipped, *(sample for _, sample in found))
        return other

    def digest(self, index: int) -> bytes:
        """A hash of one file's bytes."""
        return hash_file(self.paths[one(index, len(self))])

    def fingerprint(self) -> str:
        """A hash of the files' names, class folder included."""
        return hash_names(self.root, self.paths)

    def with_transform(self, transform: str) -> ImageFolder:
        """The same files with another transform."""
        return transformed(self, transform)


def load_imagenet(
    name: str,
    root: Path,
    split: str,
    *,
    transform: str,
    on_corrupt: str,
    limit: int | None,
    remedy: str,
    size: int = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ImageFolder:
    """The files of a split. Classes are the synsets of `train/` in order, or of `val/` where there is no `train/`."""
    base = first_folder(root, ("", name, "imagenet", "ILSVRC/Data/CLS-LOC"), holding=(split,))
    if base is None:
        raise missing(f"ImageNet split {split!r}", root, f"{split}/<synset>/*.JPEG, such as {split}/n01440764/", remedy)
    folders = entries(base / split, folders=True)
    if not folders:
        raise InvalidInputError(
            f"{str(base / split)!r} has no synset folders: {show(base / split)}. Expected {split}/<synset>/*.JPEG, "
            f"such as {split}/n01440764/; sort the images into one folder per synset"
        )
    listed = entries(base / "train", folders=True) if split != "train" and (base / "train").is_dir() else folders
    classes = [folder.name for folder in listed]
    index = {synset: k for k, synset in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        if folder.name not in index:
            raise InvalidInputError(
                f"{str(folder)!r} is a label outside the {len(classes)} classes of train/ ({classes[0]} to "
                f"{classes[-1]}); remove the folder, or add it to train/"
            )
        files = [path for path in entries(folder, folders=False) if path.suffix.lower() in IMAGE_ENDINGS]
        if not files:
            raise InvalidInputError(
                f"{str(folder)!r} has no images: {show(folder)}. Expected files ending in {', '.join(IMAGE_ENDINGS)}; "
                "fetch the class again, or remove its folder"
            )
        paths += files
        labels += [index[folder.name]] * len(files)
    chosen = spread(len(paths), limit)
    dataset = ImageFolder(
        base,
        [paths[n] for n in chosen],
        np.array(labels)[chosen],
        classes,
        name=name,
        split=split,
        transform=transform,
        size=size,
        mean=mean,
        std=std,
    )
    return dataset.without_corrupt() if on_corrupt == "skip" else dataset


def _centre_crop(image: Any, size: int) -> NDArray[np.uint8]:
    bilinear = require("PIL.Image", "train", "decoding images").Resampling.BILINEAR
    shorter = round(size * 256 / 224)
    width, height = image.size
    if width <= height:
        width, height = shorter, int(shorter * height / width)
    else:
        width, height = int(shorter * width / height), shorter
    left, top = round((width - size) / 2), round((height - size) / 2)
    return channels_first(image.resize((width, height), bilinear).crop((left, top, left + size, top + size)))


def _random_crop(image: Any, size: int, u: NDArray[np.float64]) -> NDArray[np.uint8]:
    bilinear = require("PIL.Image", "train", "decoding images").Resampling.BILINEAR
    width, height = image.size
    box = None
    for area_draw, ratio_draw, x_draw, y_draw in u[:-1].reshape(_ATTEMPTS, 4):
        area = (0.08 + 0.92 * area_draw) * width * height
        ratio = math.exp((2 * ratio_draw - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x_draw * (width - w + 1)), int(y_draw * (height - h + 1))
            box = (left, top, left + w, top + h)
            break
    if box is None:  # a very long image: its middle, at the nearest allowed ratio
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
    pixels = channels_first(image.resize((size, size), bilinear, box=box))
    return pixels[..., ::-1] if u[-1] < 0.5 else pixels
