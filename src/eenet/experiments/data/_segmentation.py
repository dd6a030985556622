"""Cityscapes (Cordts et al., 2016): leftImg8bit and gtFine, 34 label ids of which 19 are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data._dataset import CorruptSample, Draw, Indices, positions, settle, uniforms
from eenet.experiments.data._files import (
    Normalize,
    channels_first,
    entries,
    first_folder,
    header_size,
    missing,
    show,
    spread,
)
from eenet.experiments.data._image_files import ImageFiles, decode_file
from eenet.preprocessing import IMAGENET_MEAN, IMAGENET_STD

IGNORED = 255
"""The label of pixels that count neither in the loss nor in a metric."""

_LABEL_IDS = 34
CITYSCAPES_IDS = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The label ids of Cityscapes that are trained on, with the names of their classes."""

CITYSCAPES_CLASSES = tuple(CITYSCAPES_IDS.values())
_TRAIN_IDS = np.full(256, IGNORED, np.uint8)
_TRAIN_IDS[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))

_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


class SegmentationFolder(ImageFiles):
    """Pairs of an image and a map of label ids.

    Evaluation keeps the image whole. Training scales both by a random factor of `scale`, cuts `crop_size` (height,
    width; None: the size of the image itself) out of them and flips half of the time, all three jointly; what lies
    outside the image is the mean color, and 255 in the label map. Label ids become 0..18 or 255 (`IGNORED`).
    """

    task = "segmentation"

    def __init__(
        self,
        root: Path,
        pairs: Sequence[tuple[Path, Path]],
        *,
        name: str,
        split: str,
        transform: str = "eval",
        crop_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if crop_size is not None and (len(crop_size) != 2 or min(crop_size) < 1):
            raise InvalidInputError(f"crop_size is {crop_size!r}, expected (height, width) in pixels, or None")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < float("inf"):
            raise InvalidInputError(f"scale is {scale!r}, expected (smallest, largest) factor, both above 0")
        super().__init__(len(pairs), None, CITYSCAPES_CLASSES, name=name, split=split, transform=transform)
        self.root, self.files = root, [image for image, _ in pairs]
        self.label_maps = [label_map for _, label_map in pairs]
        self.crop_size, self.scale = crop_size, scale
        self.normalize = Normalize(mean, std)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (3, H, W) of the first input; others may be of another size unless `crop_size` fixes it."""
        if self.transform == "train" and self.crop_size is not None:
            return 3, *self.crop_size
        return 3, *header_size(self.files[0])

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """A float32 tensor (n, 3, H, W) and int64 label maps (n, H, W); all must come out of one size."""
        import torch

        where = positions(indices, len(self))
        u = uniforms(draw, where, 4) if self.transform == "train" else None
        images: list[Any] = []
        maps: list[Any] = []
        for n, index in enumerate(where):
            image, ids = self._decode(index)
            x, y = self._augment(image, ids, u[n]) if u is not None else (self._tensor(image), _TRAIN_IDS[ids])
            if images and x.shape != images[0].shape:
                raise InvalidInputError(
                    f"{str(self.files[index])!r} is of size {tuple(x.shape[1:])}, others of its batch of "
                    f"{tuple(images[0].shape[1:])}; use batch size 1, or for training give crop_size=(height, width)"
                )
            images.append(x)
            maps.append(torch.from_numpy(y.astype(np.int64)))
        if not images:
            return torch.empty(0, *self.sample_shape), torch.empty(0, *self.sample_shape[1:], dtype=torch.int64)
        return torch.stack(images), torch.stack(maps)

    def _tensor(self, image: Any) -> Any:
        return self.normalize(channels_first(image)[None])[0]

    def _decode(self, index: int) -> tuple[Any, NDArray[np.uint8]]:
        label_path = self.label_maps[index]
        image = decode_file(self.files[index])
        ids = np.asarray(decode_file(label_path, mode=None))
        if ids.ndim != 2:
            raise FileFormatError(
                f"{str(label_path)!r} has {ids.shape[2]} channels, expected one of label ids: *_color.png is for "
                "looking at, use *_labelIds.png"
            )
        if ids.shape != (image.height, image.width):
            raise _other_size(label_path, ids.shape, (image.height, image.width))
        # -1, the license plate, is 255 in a byte.
        wrong = np.argwhere((ids < 0) | ((ids >= _LABEL_IDS) & (ids != IGNORED)))
        if len(wrong):
            row, column = wrong[0]
            raise FileFormatError(
                f"{str(label_path)!r} has label id {ids[row, column]} at row {row}, column {column} ({len(wrong)} such "
                f"pixels), outside the ids 0 to {_LABEL_IDS - 1}; expected the ids of *_labelIds.png"
            )
        return image, ids.astype(np.uint8)

    def _augment(self, image: Any, ids: NDArray[np.uint8], u: NDArray[np.float64]) -> tuple[Any, NDArray[np.uint8]]:
        pillow = require("PIL.Image", "train", "decoding images")
        crop_h, crop_w = self.crop_size or (image.height, image.width)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * u[0]
        height, width = max(1, round(image.height * factor)), max(1, round(image.width * factor))
        # Where the crop lies on the scaled image, or the scaled image on a larger crop.
        top, left = int(u[1] * (abs(height - crop_h) + 1)), int(u[2] * (abs(width - crop_w) + 1))
        h, w = min(height, crop_h), min(width, crop_w)
        down, right = (0 if height >= crop_h else top), (0 if width >= crop_w else left)
        if height < crop_h:
            top = 0
        if width < crop_w:
            left = 0
        sy, sx = image.height / height, image.width / width
        box = (left * sx, top * sy, min((left + w) * sx, image.width), min((top + h) * sy, image.height))
        scaled = image.resize((w, h), pillow.Resampling.BILINEAR, box=box)
        labels = pillow.fromarray(_TRAIN_IDS[ids]).resize((w, h), pillow.Resampling.NEAREST, box=box)
        import torch

        x = torch.zeros(3, crop_h, crop_w)  # zero is the mean color once normalized
        x[:, down : down + h, right : right + w] = self._tensor(scaled)
        y = np.full((crop_h, crop_w), IGNORED, np.uint8)
        y[down : down + h, right : right + w] = np.asarray(labels)
        return (x.flip(2), np.ascontiguousarray(y[:, ::-1])) if u[3] < 0.5 else (x, y)

    def pixel_counts(self) -> NDArray[np.int64]:
        """Labeled pixels of each class (19,), counted over all label maps; ignored ones are left out."""
        total = np.zeros(len(self.classes), np.int64)
        for index in range(len(self)):
            total += np.bincount(_TRAIN_IDS[self._decode(index)[1]].ravel(), minlength=256)[: len(self.classes)]
        return total

    def _keep(self, rows: list[int]) -> None:
        super()._keep(rows)
        self.label_maps = [self.label_maps[n] for n in rows]


def load_cityscapes(
    name: str,
    root: Path,
    split: str,
    *,
    transform: str,
    on_corrupt: str,
    limit: int | None,
    remedy: str,
    folders: Sequence[str],
    crop_size: tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> SegmentationFolder:
    """The pairs of a split; image and label map must be there and, by their headers, of one size."""
    layout = f"leftImg8bit/{split}/<city>/*{_IMAGE} and gtFine/{split}/<city>/*{_LABEL}"
    base = first_folder(root, folders, holding=(f"leftImg8bit/{split}",))
    if base is None:
        raise missing(f"Cityscapes split {split!r}", root, layout, remedy)
    images = _by_stem(base / "leftImg8bit" / split, _IMAGE)
    label_root = base / "gtFine" / split
    if not label_root.is_dir():
        raise missing(f"Cityscapes labels of split {split!r}", label_root, layout, remedy)
    maps = _by_stem(label_root, _LABEL)
    if not images:
        folder = base / "leftImg8bit" / split
        raise InvalidInputError(f"{str(folder)!r} has no images: {show(folder)}. Expected {layout}. {remedy}")
    unpaired = sorted(images.keys() ^ maps.keys())
    if unpaired:
        lacks = "label map" if unpaired[0] in images else "image"
        raise InvalidInputError(
            f"{str(base)!r} has {len(images)} images and {len(maps)} label maps in split {split!r}; {len(unpaired)} "
            f"have no partner, such as {unpaired[0]!r}, which has no {lacks}; expected {layout}: download the rest"
        )
    stems = sorted(images)
    pairs = [(images[stems[n]], maps[stems[n]]) for n in spread(len(stems), limit)]
    dataset = SegmentationFolder(
        base,
        pairs,
        name=name,
        split=split,
        transform=transform,
        crop_size=None if crop_size is None else (crop_size[0], crop_size[1]),
        scale=(scale[0], scale[1]),
        mean=mean,
        std=std,
    )
    if on_corrupt == "skip":
        return dataset.without_corrupt()
    # Headers are quick to read; the pixels of a damaged file are found when it is read, or by check().
    problems = [problem for pair in pairs if (problem := _header_problem(*pair))]
    settle(problems, len(pairs) - len(problems), "refuse")
    return dataset


def _by_stem(folder: Path, ending: str) -> dict[str, Path]:
    return {
        f"{city.name}/{path.name.removesuffix(ending)}": path
        for city in entries(folder, folders=True)
        for path in entries(city, folders=False)
        if path.name.endswith(ending)
    }


def _header_problem(image: Path, label_map: Path) -> CorruptSample | None:
    at = image
    try:
        size = header_size(image)
        at = label_map
        label_size = header_size(label_map)
    except FileFormatError as error:
        return CorruptSample(str(at), str(error))
    if size != label_size:
        return CorruptSample(str(label_map), _size_reason(label_size, size))
    return None


def _size_reason(label_size: tuple[int, ...], size: tuple[int, int]) -> str:
    return f"is {label_size[1]} x {label_size[0]} pixels, its image {size[1]} x {size[0]}; expected the same size"


def _other_size(path: Path, label_size: tuple[int, ...], size: tuple[int, int]) -> FileFormatError:
    return FileFormatError(f"{str(path)!r} {_size_reason(label_size, size)}")
