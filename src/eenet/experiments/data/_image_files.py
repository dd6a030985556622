"""Image files that are decoded when they are read: ImageNet and Cityscapes, as folders or Hugging Face parquet."""

from __future__ import annotations

import copy
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from eenet._extras import require
from eenet._warn import warn
from eenet.errors import EENetError, FileFormatError, InvalidInputError, ReliabilityWarning
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
    IMAGE_ENDINGS,
    Normalize,
    channels_first,
    class_names,
    decode,
    entries,
    first_folder,
    hash_file,
    image_bytes,
    integers,
    missing,
    parquet_rows,
    parquet_shards,
    read_columns,
    show,
    spread,
)
from eenet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing

_ATTEMPTS = 10
_HELD_OUT = ("val", "validation", "valid")  # as ImageNet's folders, Hugging Face and Tiny-ImageNet name one split


class ImageFiles(Dataset):
    """What image data sets share whose files are decoded when they are read.

    A corrupt file that is read raises `FileFormatError` naming it; `check()` decodes everything ahead. `files` are
    paths, or for parquet the names of rows.
    """

    root: Path
    files: list[Path]

    def __len__(self) -> int:
        return len(self.files)

    @abstractmethod
    def _decode(self, index: int) -> Any: ...

    def check(self) -> list[CorruptSample]:
        """Decode every file and return those that cannot be used."""
        return [sample for _, sample in self._find_corrupt()]

    def without_corrupt(self) -> Self:
        """The files that can be used, after trying all of them; the others become `skipped`."""
        corrupt = self._find_corrupt()
        settle([sample for _, sample in corrupt], len(self) - len(corrupt), "skip")
        bad = {index for index, _ in corrupt}
        other = copy.copy(self)
        other._keep([n for n in range(len(self)) if n not in bad])
        other.skipped = (*self.skipped, *(sample for _, sample in corrupt))
        return other

    def _keep(self, rows: list[int]) -> None:
        self.files = [self.files[n] for n in rows]
        if self.labels is not None:
            self.labels = self.labels[rows]

    def _find_corrupt(self) -> list[tuple[int, CorruptSample]]:
        """Read every sample, in threads since decoding leaves Python's lock."""

        def problem(index: int) -> tuple[int, CorruptSample] | None:
            name = str(self.files[index])
            try:
                self._decode(index)
            except EENetError as error:
                # The reader names the file first; here the name stands apart.
                return index, CorruptSample(name, str(error).removeprefix(f"{name!r} "))
            return None

        with ThreadPoolExecutor() as pool:
            return [corrupt for corrupt in pool.map(problem, range(len(self))) if corrupt is not None]

    def digest(self, index: int) -> bytes:
        """A hash of one image file's bytes."""
        return hash_file(self.files[one(index, len(self))])

    def fingerprint(self) -> str:
        """A hash of the files' relative names: contents would take hours for ImageNet."""
        names = "\n".join(path.relative_to(self.root).as_posix() for path in self.files)
        return sha256(names.encode()).hexdigest()


def decode_file(path: Path, mode: str | None = "RGB") -> Any:
    """A decoded image; raises `FileFormatError` naming the file."""
    try:
        return decode(path, mode)
    except FileFormatError as error:
        raise FileFormatError(f"{str(path)!r} {error}") from error


class ImageFolder(ImageFiles):
    """Labeled image files.

    Evaluation resizes the shorter side to `size * 256 / 224` and cuts the center; training cuts 8 to 100 % of the area
    at an aspect ratio of 3/4 to 4/3, resizes it to `size` and flips half of the time (Szegedy et al., 2015). `augment`
    ("rand" or "trivial") adds torchvision's `RandAugment` or `TrivialAugmentWide`.
    """

    labels: NDArray[np.int64]

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        labels: NDArray[Any],
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        transform: str = "eval",
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        augment: str | None = None,
    ) -> None:
        if size < 1:
            raise InvalidInputError(f"size is {size}, expected 1 pixel or more")
        super().__init__(len(files), labels, classes, name=name, split=split, transform=transform)
        self.root, self.files, self.size = root, list(files), size
        self.normalize = Normalize(mean, std)
        self.augment = None if augment is None else Augment(augment)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (3, H, W) of one input."""
        return 3, self.size, self.size

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """A float32 tensor (n, 3, size, size) and int64 labels (n,)."""
        where = positions(indices, len(self))
        pixels = np.empty((len(where), 3, self.size, self.size), np.uint8)
        u = uniforms(draw, where, 4 * _ATTEMPTS + 2) if self.transform == "train" else None
        for n, index in enumerate(where):
            image = self._decode(index)
            pixels[n] = _center_crop(image, self.size) if u is None else _random_crop(image, self.size, u[n, :-1])
        if u is not None and self.augment is not None:
            pixels = self.augment(pixels, u[:, -1])
        return self.normalize(pixels), self._labels_of(where)

    def _decode(self, index: int) -> Any:
        return decode_file(self.files[index])

    def preprocessing(self) -> ImagePreprocessing:
        """What evaluation does."""
        size = (self.size, self.size)
        return ImagePreprocessing(
            size, resize=_shorter_side(self.size), mean=self.normalize.mean, std=self.normalize.std
        )


class _ImageRows(ImageFolder):
    """Labeled images of parquet files, kept in memory as they are encoded."""

    encoded: list[bytes | None]

    def _decode(self, index: int) -> Any:
        data = self.encoded[index]
        if data is None:
            raise FileFormatError(f"{str(self.files[index])!r} has no image bytes")
        try:
            return decode(data)
        except FileFormatError as error:
            raise FileFormatError(f"{str(self.files[index])!r} {error}") from error

    def _keep(self, rows: list[int]) -> None:
        super()._keep(rows)
        self.encoded = [self.encoded[n] for n in rows]

    def digest(self, index: int) -> bytes:
        """A hash of one image's bytes."""
        return blake2b(self.encoded[one(index, len(self))] or b"", digest_size=16).digest()

    def fingerprint(self) -> str:
        """A hash of the rows' names and labels."""
        return sha256(super().fingerprint().encode() + self.labels.astype("<i8").tobytes()).hexdigest()


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
    augment: str | None = None,
    synsets: str | Path | Sequence[str] | None = None,
) -> ImageFolder:
    """The images of a split: folders `split/<synset>/*.JPEG`, or Hugging Face parquet (columns image and label).

    Classes are numbered by `synsets`; where it is None, folders by those of `train/` in order, and parquet by its
    labels.
    """
    listed = None if synsets is None else class_names(synsets, root)
    options: dict[str, Any] = {
        "name": name,
        "split": split,
        "transform": transform,
        "size": size,
        "mean": mean,
        "std": std,
        "augment": augment,
    }
    base = first_folder(root, ("", name, "imagenet", "ILSVRC/Data/CLS-LOC"), holding=(split,))
    shards: list[Path] = []
    for candidate in () if base is not None else _HELD_OUT if split == "val" else (split,):
        shards = shards or parquet_shards(root, ("", "data", name, f"{name}/data"), candidate)
    if base is not None:
        dataset = _of_folders(base, split, listed, limit, options)
    elif shards:
        dataset = _of_parquet(shards, listed, limit, options)
    else:
        raise missing(
            f"ImageNet split {split!r}",
            root,
            f"{split}/<synset>/*.JPEG, such as {split}/n01440764/, or {split}-*.parquet (Hugging Face: columns "
            "'image', 'label')",
            remedy,
        )
    return dataset.without_corrupt() if on_corrupt == "skip" else dataset


def _of_folders(
    base: Path, split: str, listed: list[str] | None, limit: int | None, options: dict[str, Any]
) -> ImageFolder:
    folders = entries(base / split, folders=True)
    if not folders:
        raise InvalidInputError(
            f"{str(base / split)!r} has no synset folders: {show(base / split)}. Expected {split}/<synset>/*.JPEG, "
            f"such as {split}/n01440764/; sort the images into one folder per synset"
        )
    if listed is not None:
        classes, among = listed, "that `synsets` lists"
    elif split != "train" and (base / "train").is_dir():
        classes, among = [folder.name for folder in entries(base / "train", folders=True)], "of train/"
    else:
        classes, among = [folder.name for folder in folders], ""
        if split != "train" and len(classes) < 1000:
            warn(
                f"there is no {str(base / 'train')!r}, so the classes are numbered 0 to {len(classes) - 1} by the "
                f"{len(classes)} folders of {split}/: not as a network numbers them that was trained on more classes. "
                "Give all its synsets, in its order, as synsets=[...] or synsets=FILE (such as synset_words.txt)",
                ReliabilityWarning,
            )
    index = {synset: k for k, synset in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        if folder.name not in index:
            raise InvalidInputError(
                f"{str(folder)!r} is a label outside the {len(classes)} classes {among} ({classes[0]} to "
                f"{classes[-1]}); remove the folder, or add it to them"
            )
        files = [path for path in entries(folder, folders=False) if path.suffix.lower() in IMAGE_ENDINGS]
        if not files:
            raise InvalidInputError(
                f"{str(folder)!r} has no images: {show(folder)}. Expected files ending in {', '.join(IMAGE_ENDINGS)}; "
                "download the class again, or remove its folder"
            )
        paths += files
        labels += [index[folder.name]] * len(files)
    chosen = spread(len(paths), limit)
    return ImageFolder(base, [paths[n] for n in chosen], np.array(labels)[chosen], classes, **options)


def _of_parquet(
    shards: Sequence[Path], listed: list[str] | None, limit: int | None, options: dict[str, Any]
) -> ImageFolder:
    sizes, features = parquet_rows(shards)
    chosen = spread(sum(sizes), limit)
    _require_memory(shards, len(chosen) / max(1, sum(sizes)))
    columns_of_role = {"image": ("image", "img"), "label": ("label",)}
    files: list[Path] = []
    encoded: list[bytes | None] = []
    labels: list[int] = []
    starts = np.cumsum([0, *sizes])
    for shard, start, end in zip(shards, starts[:-1], starts[1:], strict=True):
        rows = chosen[(chosen >= start) & (chosen < end)] - start
        if not len(rows):
            continue
        for path, first, columns in read_columns([shard], columns_of_role, None):
            codes = integers(columns["label"], path, first)
            here = rows[(rows >= first) & (rows < first + len(codes))] - first
            cells = columns["image"].take(require("pyarrow", "train").array(here)).to_pylist()
            files += [path.parent / f"{path.name} row {first + row}" for row in here]
            encoded += [image_bytes(cell) for cell in cells]
            labels += [-1 if (code := codes[row]) is None else code for row in here]
    numbers = np.array(labels, np.int64)
    described = shards[0].parent / "classes.json"  # synsets, where the parquet has English names
    names: list[str] | None = features.get("label", {}).get("names")
    if described.is_file():
        names = class_names(described, shards[0].parent)
    where = f"split {options['split']!r} of {options['name']!r}"
    if names is not None and listed is not None and len(names) == len(listed) and not set(names) & set(listed):
        names = listed  # English names of all classes, in the order of the synsets
    if names is None:
        names = listed or [str(label) for label in range(max(labels, default=0) + 1)]
    elif listed is not None:
        require_labels(numbers, names, where)
        absent = [name for name in names if name not in listed]
        if absent:
            raise InvalidInputError(
                f"`synsets` lacks {len(absent)} classes of {where}, such as {absent[0]!r}; add them, or where "
                "these are no synsets, a classes.json beside the parquet files, a list of {label, wnid}"
            )
        position = {name: k for k, name in enumerate(listed)}
        numbers = np.array([position[name] for name in names])[numbers]
        names = listed
    dataset = _ImageRows(shards[0].parent, files, numbers, names, **options)
    dataset.encoded = encoded
    return dataset


def _require_memory(shards: Sequence[Path], share: float) -> None:
    """Refuse what does not fit: rows of parquet files cannot be read one at a time in any order."""
    needed = share * sum(path.stat().st_size for path in shards)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > 0.8 * there:
        raise InvalidInputError(
            f"the images of {str(shards[0].parent)!r} take {needed / 1e9:.0f} GB and are kept in memory, of which "
            f"there are {there / 1e9:.0f} GB; give limit=, or unpack them into folders <split>/<synset>/"
        )


def _shorter_side(size: int) -> int:
    return round(size * 256 / 224)


def _center_crop(image: Any, size: int) -> NDArray[np.uint8]:
    bilinear = require("PIL.Image", "train", "decoding images").Resampling.BILINEAR
    shorter = _shorter_side(size)
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
