"""The data sets by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.experiments.data._cifar import load_cifar
from eenet.experiments.data._corrupt import describe, require_policy
from eenet.experiments.data._dataset import Dataset, require_transform
from eenet.experiments.data._download import download as fetch
from eenet.experiments.data._download import remedy
from eenet.experiments.data._image_folder import load_imagenet
from eenet.experiments.data._layout import MissingDataError
from eenet.experiments.data._segmentation import load_cityscapes
from eenet.experiments.data._texts import load_texts


@dataclass(frozen=True)
class _Entry:
    load: Callable[..., Dataset]
    splits: tuple[str, ...]
    options: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


_SEGMENTATION_OPTIONS = ("crop_size", "scale", "mean", "std")
_ENTRIES = {
    "cifar10": _Entry(load_cifar, ("train", "test"), ("mean", "std", "padding")),
    "cifar100": _Entry(load_cifar, ("train", "test"), ("mean", "std", "padding")),
    "imagenet": _Entry(load_imagenet, ("train", "val"), ("size", "mean", "std")),
    "cityscapes": _Entry(
        load_cityscapes, ("train", "val", "test"), _SEGMENTATION_OPTIONS, {"folders": ("", "cityscapes")}
    ),
    "camvid": _Entry(
        load_cityscapes,
        ("train", "val", "test"),
        _SEGMENTATION_OPTIONS,
        {"folders": ("", "camvid", "camvid-as-cityscapes")},
    ),
    "sst2": _Entry(load_texts, ("train", "validation", "test")),
    "ag_news": _Entry(load_texts, ("train", "test")),
}
_HELD_OUT = ("val", "validation", "dev")  # three names for one thing


def dataset_names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_ENTRIES)


def load(
    name: str,
    root: str | Path,
    split: str,
    *,
    transform: str = "eval",
    on_corrupt: str = "refuse",
    limit: int | None = None,
    download: bool = False,
    **options: Any,
) -> Dataset:
    """A published data set, or one laid out like it, from the folder `root` (or the folder of its usual name in it).

    Names: cifar10, cifar100 (parquet, binary version, or torchvision's python version), imagenet (folders), cityscapes
    and camvid (CamVid with Cityscapes' ids), sst2 (parquet, GLUE TSV), ag_news (parquet, CSV). `transform` is "eval" or
    "train", which augments. `on_corrupt="skip"` leaves out samples that cannot be read, with a warning that names
    and counts them, instead of raising `FileFormatError`; folders of images are then decoded once ahead. `limit` keeps
    the first samples, or evenly spaced ones of image folders. `download=True` fetches what is missing through
    huggingface_hub. Options: mean, std; padding (CIFAR); size (ImageNet); crop_size, scale (Cityscapes). Raises
    `InvalidInputError` for unknown names and missing or unusable data, `MissingExtraError` without `eenet[train]`.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        raise InvalidInputError(f"no data set {name!r}; there are {', '.join(_ENTRIES)}")
    if split in _HELD_OUT:
        split = next((known for known in entry.splits if known in _HELD_OUT), split)
    if split not in entry.splits:
        raise InvalidInputError(f"{name!r} has no split {split!r}; it has {', '.join(entry.splits)}")
    require_transform(transform)
    require_policy(on_corrupt)
    if limit is not None and limit < 1:
        raise InvalidInputError(f"limit is {limit}, expected 1 sample or more, or None for all")
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        raise InvalidInputError(
            f"{name!r} has no option {unknown[0]!r}; it has {', '.join(entry.options) or 'none of its own'}"
        )
    folder = Path(root).expanduser()

    def attempt() -> Dataset:
        return entry.load(
            name,
            folder,
            split,
            transform=transform,
            on_corrupt=on_corrupt,
            limit=limit,
            remedy=remedy(name),
            **entry.fixed,
            **options,
        )

    try:
        dataset = attempt()
    except MissingDataError:
        if not download:
            raise
        fetch(name, folder)
        dataset = attempt()
    if dataset.skipped:
        found = describe(dataset.skipped, len(dataset) + len(dataset.skipped))
        warnings.warn(f"split {split!r} of {name!r}, skipped: {found}", ReliabilityWarning, stacklevel=2)
    return dataset
