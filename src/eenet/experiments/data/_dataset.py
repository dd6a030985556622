"""What every dataset offers, and a view of some of its samples."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.experiments.data._corrupt import CorruptSample

TRANSFORMS = ("eval", "train")

Kind = TypeVar("Kind")

Draw: TypeAlias = "tuple[int, int] | None"
"""(seed, epoch) fixes the augmentation of every sample; None draws it from torch's generator."""
Indices: TypeAlias = "Sequence[int] | NDArray[np.int64]"


class Dataset(Protocol):
    """Map-style data: `dataset[i]` is (x, y), `dataset.batch(indices)` the same for many samples at once.

    `task` is "classification", "text" or "segmentation"; x is a float32 tensor (3, H, W) or, for text, the raw string;
    y is an int, or an int64 tensor (H, W). `labels` are (N,), or None for segmentation. `skipped` names the corrupt
    samples that were left out. `transform` is "eval" or "train"; only the latter augments.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def skipped(self) -> tuple[CorruptSample, ...]: ...
    @property
    def transform(self) -> str: ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Any, Any]: ...

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """Inputs and labels of some samples: stacked tensors, or a list of strings and a tensor of labels."""
        ...

    def digest(self, index: int) -> bytes:
        """A hash of the sample's bytes, without its label: equal for duplicates."""
        ...

    def fingerprint(self) -> str:
        """A hash that tells this data from other data of the same name and length."""
        ...

    def with_transform(self, transform: str) -> Dataset:
        """The same samples, not copied, with another transform."""
        ...


def require_transform(transform: str) -> None:
    """Raise `InvalidInputError` unless `transform` is "eval" or "train"."""
    if transform not in TRANSFORMS:
        raise InvalidInputError(f"transform is {transform!r}, expected one of {list(TRANSFORMS)}")


def transformed(dataset: Kind, transform: str) -> Kind:
    """The same samples, not copied, with another transform."""
    require_transform(transform)
    other: Any = copy.copy(dataset)
    other.transform = transform
    return cast(Kind, other)


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


def resolve(draw: Draw) -> tuple[int, int]:
    """(seed, epoch), drawn from torch's generator where none is given."""
    if draw is not None:
        return draw
    import torch

    return int(torch.randint(2**62, ())), 0


def class_sizes(dataset: Dataset) -> dict[str, int]:
    """Samples of each class, by name; raises `InvalidInputError` for segmentation, whose samples have many classes."""
    if dataset.labels is None:
        raise InvalidInputError(f"{dataset.name!r} has a label map per sample, not a label: use pixel_counts()")
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    return dict(zip(dataset.classes, counts.tolist(), strict=True))


class Subset:
    """Some samples of a dataset, in the order of `indices`; nothing is copied.

    `augmentable=False` makes a view that is only ever read with the evaluation transform.
    """

    def __init__(self, dataset: Dataset, indices: Indices, *, part: str = "", augmentable: bool = True) -> None:
        if not augmentable and dataset.transform != "eval":
            dataset = dataset.with_transform("eval")
        self.dataset = dataset
        self.indices = positions(indices, len(dataset))
        self.part = part
        self._augmentable = augmentable

    @property
    def name(self) -> str:
        """Name of the data."""
        return self.dataset.name

    @property
    def split(self) -> str:
        """The published split that the samples come from."""
        return self.dataset.split

    @property
    def task(self) -> str:
        """The task of the data."""
        return self.dataset.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.dataset.classes

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Labels (N,) of these samples, or None."""
        labels = self.dataset.labels
        return None if labels is None else labels[self.indices]

    @property
    def skipped(self) -> tuple[CorruptSample, ...]:
        """Corrupt samples that were left out of the whole dataset."""
        return self.dataset.skipped

    @property
    def transform(self) -> str:
        """The transform that samples are read with."""
        return self.dataset.transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.dataset[int(self.indices[one(index, len(self))])]

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[Any, Any]:
        """Inputs and labels of some samples of this view."""
        return self.dataset.batch(self.indices[positions(indices, len(self))], draw)

    def digest(self, index: int) -> bytes:
        """A hash of one sample's bytes."""
        return self.dataset.digest(int(self.indices[one(index, len(self))]))

    def fingerprint(self) -> str:
        """A hash of the data and of which samples these are."""
        from hashlib import sha256

        return sha256(self.dataset.fingerprint().encode() + self.indices.astype("<i8").tobytes()).hexdigest()

    def with_transform(self, transform: str) -> Subset:
        """The same samples with another transform; a part that is measured on refuses "train"."""
        if transform == "train" and not self._augmentable:
            raise InvalidInputError(
                f"the {self.part or 'evaluation'} part is read with the evaluation transform only: augmented samples "
                "would bias thresholds and measurements; take the training part"
            )
        return Subset(
            self.dataset.with_transform(transform), self.indices, part=self.part, augmentable=self._augmentable
        )


def one(index: int, length: int) -> int:
    """One index as a position within the length; raises `IndexError`, as the iteration protocol expects."""
    return int(positions([operator.index(index)], length)[0])
