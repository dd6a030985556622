"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): Hugging Face parquet, the binary version, torchvision's python version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data._corrupt import CorruptSample, settle
from eenet.experiments.data._dataset import require_labels
from eenet.experiments.data._image_array import ImageArray
from eenet.experiments.data._image_io import channels_first, decode
from eenet.experiments.data._layout import first_folder, missing, parquet_shards
from eenet.experiments.data._parquet import integers, read_columns

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE

_NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_NAMES_100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CIFAR10_CLASSES, CIFAR100_CLASSES = tuple(_NAMES_10.split()), tuple(_NAMES_100.split())


@dataclass(frozen=True)
class _Cifar:
    title: str
    classes: tuple[str, ...]
    label_columns: tuple[str, ...]
    binary: str
    binary_files: dict[str, tuple[str, ...]]
    label_bytes: int  # of a record; the last one is the fine label
    python: str
    python_files: dict[str, tuple[str, ...]]
    torchvision: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_VARIANTS = {
    "cifar10": _Cifar(
        "CIFAR-10",
        CIFAR10_CLASSES,
        ("label",),
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
        1,
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        "CIFAR10",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Cifar(
        "CIFAR-100",
        CIFAR100_CLASSES,
        ("fine_label", "label"),
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "CIFAR100",
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
}

_Raw = tuple[NDArray[np.uint8], NDArray[np.int64], list[CorruptSample]]


def load_cifar(
    name: str,
    root: Path,
    split: str,
    *,
    transform: str,
    on_corrupt: str,
    limit: int | None,
    remedy: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    padding: int = 4,
) -> ImageArray:
    """The images of a split in memory. `mean` and `std` default to those of the training pixels."""
    variant = _VARIANTS[name]
    images, labels, corrupt = _read(variant, name, root, split, limit, remedy)
    settle(corrupt, len(images), on_corrupt)
    return ImageArray(
        images,
        labels,
        variant.classes,
        name=name,
        split=split,
        transform=transform,
        mean=variant.mean if mean is None else mean,
        std=variant.std if std is None else std,
        padding=padding,
        skipped=corrupt,
    )


def _read(variant: _Cifar, name: str, root: Path, split: str, limit: int | None, remedy: str) -> _Raw:
    folders = ("", "data", "plain_text", name, f"{name}/data", f"{name}/plain_text", f"{name}/{name}")
    shards = parquet_shards(root, folders, split)
    if shards:
        return _read_parquet(variant, shards, limit)
    binary = first_folder(root, ("", variant.binary, f"{name}/{variant.binary}"), holding=variant.binary_files[split])
    if binary is not None:
        return _read_binary(variant, [binary / file for file in variant.binary_files[split]], limit)
    for parent in (root, root / name, root.parent):
        if (parent / variant.python).is_dir() and (parent != root.parent or root.name == variant.python):
            return _read_python(variant, parent, split, limit)
    raise missing(
        f"{variant.title} split {split!r}",
        root,
        f"{split}-*.parquet (Hugging Face: columns 'img' or 'image', {variant.label_columns[0]!r}); or "
        f"{variant.binary}/ with {', '.join(variant.binary_files[split])}; or {variant.python}/ (read by torchvision)",
        remedy,
    )


def _read_parquet(variant: _Cifar, shards: Sequence[Path], limit: int | None) -> _Raw:
    wanted = {"image": ("img", "image"), "label": variant.label_columns}
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    corrupt: list[CorruptSample] = []
    for path, first, columns in read_columns(shards, wanted, limit):
        codes = integers(columns["label"], path, first)
        known = np.array([0 if code is None else code for code in codes], np.int64)  # no label: corrupt, below
        require_labels(known, variant.classes, str(path), first)
        for row, (cell, label) in enumerate(zip(columns["image"].to_pylist(), codes, strict=True), start=first):
            image = _small_image(cell)
            if isinstance(image, str) or label is None:
                reason = image if isinstance(image, str) else "has no label"
                corrupt.append(CorruptSample(f"{path.name} row {row}", reason))
            else:
                images.append(image)
                labels.append(label)
    stacked = np.stack(images) if images else np.empty((0, 3, _SIDE, _SIDE), np.uint8)
    return stacked, np.array(labels, np.int64), corrupt


def _small_image(cell: Any) -> NDArray[np.uint8] | str:
    """The pixels, or why there are none."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        return "has no image bytes"
    try:
        image = decode(data)
    except FileFormatError as error:
        return str(error)
    if image.size != (_SIDE, _SIDE):
        return f"is {image.size[0]} x {image.size[1]} pixels, expected {_SIDE} x {_SIDE}"
    return channels_first(image)


def _read_binary(variant: _Cifar, files: Sequence[Path], limit: int | None) -> _Raw:
    record = variant.label_bytes + _PIXELS
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise InvalidInputError(
            f"{str(files[0].parent)!r} lacks {', '.join(absent)}, expected {', '.join(file.name for file in files)}; "
            "unpack the archive again"
        )
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    left = limit
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % record:
            raise FileFormatError(
                f"{str(file)!r} has {size} bytes, expected a multiple of {record} ({variant.label_bytes} for the label "
                f"and {_PIXELS} pixels a record): it is truncated or not {variant.title}; unpack the archive again"
            )
        records = size // record if left is None else min(left, size // record)
        rows = np.fromfile(file, np.uint8, records * record).reshape(records, record)
        labels.append(require_labels(rows[:, variant.label_bytes - 1], variant.classes, str(file)))
        images.append(rows[:, variant.label_bytes :].reshape(-1, 3, _SIDE, _SIDE))
        left = None if left is None else left - records
        if left == 0:
            break
    return np.concatenate(images), np.concatenate(labels), []


def _read_python(variant: _Cifar, parent: Path, split: str, limit: int | None) -> _Raw:
    """The python version, through torchvision alone.

    It is pickled, and eenet never opens a pickle; torchvision reads only files whose checksums are the published ones.
    """
    datasets = require(
        "torchvision.datasets", "train", f"reading {variant.python} (pickles, which eenet does not open itself)"
    )
    try:
        data = getattr(datasets, variant.torchvision)(str(parent), train=split == "train", download=False)
    except RuntimeError as error:
        raise FileFormatError(
            f"torchvision refuses {str(parent / variant.python)!r} ({error}): a file is missing or is not the "
            f"published one; fetch it again, or use the parquet or {variant.binary} version"
        ) from error
    images: NDArray[np.uint8] = np.asarray(data.data)[:limit].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), np.asarray(data.targets, np.int64)[:limit], []
