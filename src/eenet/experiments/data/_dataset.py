"""What every data set offers, a view of some of its samples, samples that cannot be read, and random numbers."""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from eenet.errors import FileFormatError, InvalidInputError
from eenet.preprocessing import Preprocessing

TRANSFORMS = ("eval", "train")
ON_CORRUPT = ("refuse", "skip")
_NAMED = 5

Draw: TypeAlias = "tuple[int, int] | None"
"""(seed, epoch) fixes the augmentation of every sample; None draws it from torch's generator."""
Indices: TypeAlias = "Sequence[int] | NDArray[np.int64]"


@dataclass(frozen=True)
class CorruptSample:
    """A sample that cannot be read: its file (and row) and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Dataset(ABC):
    """Map-style data: `dataset[i]` is (x, y), `dataset.batch(indices)` the same for many samples at once.

    Parameters
    ----------
    name, split
        Of the published data.
    transform
        "eval", or "train", which augments.
    classes
        Names of the classes.
    labels
        Integers (N,), or None for segmentation.
    skipped
        Corrupt samples that were left out.

    Attributes
    ----------
    task
        "classification", "text" or "segmentation". x is a float32 tensor (channels, H, W) or, for text, the raw string;
        y is an int, or for segmentation an int64 tensor (H, W).

    Raises
    ------
    InvalidInputError
        For an unknown transform, labels outside the classes, or data without samples.

    Examples
    --------
    >>> from eenet.experiments.data import Dataset, Texts
    >>> isinstance(Texts(["good"], np.array([0]), ["no"], name="mine", split="train"), Dataset)
    True
    """

    task = "classification"

    def __init__(
        self,
        samples: int,
        labels: NDArray[Any] | None,
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        transform: str = "eval",
        skipped: Sequence[CorruptSample] = (),
    ) -> None:
        require_transform(transform)
        what = "text" if self.task == "text" else "image"
        if labels is not None and samples != len(labels):
            raise InvalidInputError(
                f"{name!r} has {samples} {what}s and {len(labels)} labels; give each {what} one label"
            )
        if not samples:
            raise InvalidInputError(f"split {split!r} of {name!r} has no samples; expected at least one")
        self.name, self.split, self.transform = name, split, transform
        self.classes = tuple(classes)
        self.labels = None if labels is None else require_labels(labels, classes, f"split {split!r} of {name!r}")
        self.skipped = tuple(skipped)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """Inputs and labels of some samples: stacked tensors, or a list of strings and a tensor of labels."""

    @abstractmethod
    def digest(self, index: int) -> bytes:
        """A hash of the sample's bytes, without its label: equal for duplicates."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that distinguishes this data from other data of the same name and length."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x, y = self.batch([one(index, len(self))])
        return x[0], (int(y[0]) if y.ndim == 1 else y[0])

    def with_transform(self, transform: str) -> Self:
        """The same samples, not copied, with another transform."""
        require_transform(transform)
        other = copy.copy(self)
        other.transform = transform
        return other

    def preprocessing(self) -> Preprocessing | None:
        """What makes image files into inputs as evaluation reads them; None where the data cannot say."""
        return None

    def class_sizes(self) -> dict[str, int]:
        """Samples of each class, by name; raises `InvalidInputError` for segmentation, where samples have many."""
        if self.labels is None:
            raise InvalidInputError(f"{self.name!r} has a label map per sample, not a label: use pixel_counts()")
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def _labels_of(self, where: NDArray[np.int64]) -> Any:
        import torch

        assert self.labels is not None
        return torch.from_numpy(self.labels[where])


class Subset(Dataset):
    """Some samples of a data set, in the order of `indices`; nothing is copied.

    `augmentable=False` makes a view that is only ever read with the evaluation transform.
    """

    def __init__(self, dataset: Dataset, indices: Indices, *, part: str = "", augmentable: bool = True) -> None:
        if not augmentable and dataset.transform != "eval":
            dataset = dataset.with_transform("eval")
        self.dataset = dataset
        self.indices = positions(indices, len(dataset))
        self.part, self.task, self._augmentable = part, dataset.task, augmentable
        self.name, self.split, self.transform = dataset.name, dataset.split, dataset.transform
        self.classes, self.skipped = dataset.classes, dataset.skipped
        self.labels = None if dataset.labels is None else dataset.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """Inputs and labels of some samples of this view."""
        return self.dataset.batch(self.indices[positions(indices, len(self))], draw)

    def digest(self, index: int) -> bytes:
        """A hash of one sample's bytes."""
        return self.dataset.digest(int(self.indices[one(index, len(self))]))

    def fingerprint(self) -> str:
        """A hash of the data and of which samples these are."""
        return sha256(self.dataset.fingerprint().encode() + self.indices.astype("<i8").tobytes()).hexdigest()

    def preprocessing(self) -> Preprocessing | None:
        """That of the whole data."""
        return self.dataset.preprocessing()

    def with_transform(self, transform: str) -> Self:
        """The same samples with another transform; a part that is measured on refuses "train"."""
        if transform == "train" and not self._augmentable:
            raise InvalidInputError(
                f"the {self.part or 'evaluation'} part is read with the evaluation transform only: augmented samples "
                "would bias thresholds and measurements; take the training part"
            )
        other = super().with_transform(transform)
        other.dataset = self.dataset.with_transform(transform)
        return other


def require_transform(transform: str) -> None:
    """Raise `InvalidInputError` unless `transform` is "eval" or "train"."""
    if transform not in TRANSFORMS:
        raise InvalidInputError(f"transform is {transform!r}, expected one of {list(TRANSFORMS)}")


def require_labels(labels: NDArray[Any], classes: Sequence[str], where: str, first: int = 0) -> NDArray[np.int64]:
    """Labels as int64; raises `InvalidInputError` naming the first that is no integer within the classes."""
    values = np.asarray(labels)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise InvalidInputError(f"{where}: labels are {values.dtype}, expected integers 0 to {len(classes) - 1}")
    wrong = np.flatnonzero((values < 0) | (values >= len(classes)))
    if len(wrong):
        hint = "; -1 marks a published split without labels: use another split" if (values[wrong] == -1).all() else ""
        raise InvalidInputError(
            f"{where}: row {first + wrong[0]} has label {values[wrong[0]]}, outside the {len(classes)} classes "
            f"0 to {len(classes) - 1} ({len(wrong)} such rows){hint}"
        )
    return values.astype(np.int64)


def positions(indices: Indices, length: int) -> NDArray[np.int64]:
    """Indices as an int64 array within the length; negative ones count from the end."""
    array = np.asarray(indices, dtype=np.int64)
    if array.size and (array.min() < -length or array.max() >= length):
        worst = array.max() if array.max() >= length else array.min()
        raise IndexError(f"index {worst} is outside a dataset of {length} samples")
    return np.where(array < 0, array + length, array)


def one(index: int, length: int) -> int:
    """One index as a position within the length; raises `IndexError`, as the iteration protocol expects."""
    return int(positions([operator.index(index)], length)[0])


def describe_corrupt(corrupt: Sequence[CorruptSample], samples: int) -> str:
    """How many cannot be read, and the first of them by name; `samples` is how many there are in all."""
    named = "; ".join(map(str, corrupt[:_NAMED]))
    more = f"; and {len(corrupt) - _NAMED} more" if len(corrupt) > _NAMED else ""
    return f"{len(corrupt)} of {samples} samples cannot be read: {named}{more}"


def settle(corrupt: Sequence[CorruptSample], usable: int, on_corrupt: str) -> None:
    """Raise `FileFormatError` when there are corrupt samples and they are to be refused, or nothing else is left."""
    if not corrupt:
        return
    problems = describe_corrupt(corrupt, usable + len(corrupt))
    if on_corrupt == "refuse":
        raise FileFormatError(f'{problems}. Repair or download them again, or leave them out with on_corrupt="skip"')
    if not usable:
        raise FileFormatError(f"{problems}. Nothing is left when they are skipped; download the data again")


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


def uniforms(draw: Draw, indices: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape (samples, draws): SplitMix64 (Steele et al., OOPSLA 2014) as a hash.

    They depend on the seed, the epoch and the sample's index alone: not on the batch size, the order, the number of
    worker processes or on what was drawn before. A run that is resumed at an epoch draws what the uninterrupted run
    would have drawn. No transform of torchvision does this for a whole batch.
    """
    if draw is None:
        import torch

        draw = int(torch.randint(2**62, ())), 0
    seed, epoch = draw
    key = _mix(_mix(np.array([seed & _MASK], np.uint64)) + np.array([epoch & _MASK], np.uint64))
    rows = _mix(key + indices.astype(np.uint64) * _GOLDEN)
    columns = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(rows[:, None] + columns[None, :])
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[Any] = x ^ (x >> np.uint64(31))
    return mixed
