"""Which samples make a batch, and a loader that reads a batch at once.

Order and augmentation are functions of the seed and the epoch alone: a run that is resumed at an epoch reads what the
uninterrupted run would have read, with any number of worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.experiments.data._dataset import Dataset

_POOL = 50  # batches that are sorted together: enough to pad little, few enough to stay random

Shard = tuple[int, int]


class ShuffledBatches:
    """Batches of indices: every index once per epoch, in an order that seed and epoch fix.

    With `shuffle=False` in the order of the data. Iterating again is the next epoch, unless `set_epoch` says which;
    Lightning calls that. `shard` is (rank, number of ranks): each rank gets every n-th batch, and as many of them
    as the others, for which the first ones are given out again. `drop_last` leaves out a smaller last batch.
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
    ) -> None:
        _check(samples, batch_size, seed, shard)
        self.samples, self.batch_size, self.shuffle, self.seed = samples, batch_size, shuffle, seed
        self.drop_last, self.shard, self.epoch = drop_last, shard, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return -(-(full + bool(rest and not self.drop_last)) // self.shard[1])

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that the epoch counts when the first batch is drawn: torch's loader with worker processes
        # makes one iterator more than it uses.
        epoch, self.epoch = self.epoch, self.epoch + 1
        yield from _share(self._batches(epoch), self.shard)

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.arange(self.samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return _cut(order, self.batch_size, drop_last=self.drop_last)


class LengthBuckets(ShuffledBatches):
    """Batches of samples of similar `lengths` (N,), so that little is padded; random in all other respects.

    Every index comes once per epoch: indices are shuffled, sorted by length within pools of 50 batches, cut into
    batches, and the batches shuffled.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        shard: Shard = (0, 1),
    ) -> None:
        super().__init__(len(lengths), batch_size, seed=seed, drop_last=drop_last, shard=shard)
        self.lengths = np.asarray(lengths)

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
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
            batches += _cut(pool, self.batch_size, drop_last=False)
        return [batches[n] for n in rng.permutation(len(batches))]


def _cut(order: NDArray[np.int64], size: int, *, drop_last: bool) -> list[NDArray[np.int64]]:
    end = len(order) - len(order) % size if drop_last else len(order)
    return [order[start : start + size] for start in range(0, end, size)]


def _share(batches: list[NDArray[np.int64]], shard: Shard) -> list[list[int]]:
    rank, ranks = shard
    short = -len(batches) % ranks
    filled = batches + [batches[n % len(batches)] for n in range(short)] if batches else []
    return [batch.tolist() for batch in filled[rank::ranks]]


def _check(samples: int, batch_size: int, seed: int, shard: Shard) -> None:
    if samples < 1:
        raise InvalidInputError("there are no samples to batch; expected at least one")
    if batch_size < 1:
        raise InvalidInputError(f"batch_size is {batch_size}, expected 1 or more")
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}, expected 0 or more")
    if not 0 <= shard[0] < shard[1]:
        raise InvalidInputError(f"shard is {shard!r}, expected (rank, number of ranks) with 0 <= rank < number")


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

    Texts need a `TextCollator` as `collate`; with `lengths`, shuffled batches hold texts of similar length. Its
    `sampler` has `set_epoch`; without that call, each iteration is the next epoch. `sampler.in_order()` is a sampler of
    every sample once in the order of the data, which is how `eenet.train` caches features. With Lightning on several
    devices pass `shard` and `use_distributed_sampler=False`.
    """
    from torch.utils.data import DataLoader

    if dataset.task == "text" and collate is None:
        raise InvalidInputError(f"{dataset.name!r} gives raw strings; pass collate=TextCollator(tokenizer, max_length)")
    if lengths is not None and len(lengths) != len(dataset):
        raise InvalidInputError(f"{len(lengths)} lengths for {len(dataset)} samples; expected one each")
    if lengths is not None and shuffle:
        batches: ShuffledBatches = LengthBuckets(lengths, batch_size, seed=seed, drop_last=drop_last, shard=shard)
    else:
        batches = ShuffledBatches(
            len(dataset), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, shard=shard
        )
    return DataLoader(
        _ByBatch(dataset, collate, seed),  # type: ignore[arg-type]
        sampler=_WithEpoch(batches),
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


class _WithEpoch:
    """Sends the epoch along with the indices, so that worker processes that live on know it too."""

    def __init__(self, batches: ShuffledBatches) -> None:
        self.batches = batches

    @property
    def samples(self) -> int:
        """The number of samples in all batches, those of other ranks included."""
        return self.batches.samples

    @property
    def batch_size(self) -> int:
        """The number of samples in a full batch."""
        return self.batches.batch_size

    def in_order(self) -> _WithEpoch:
        """Every sample once, in the order of the data, augmented as in epoch 0."""
        return _WithEpoch(ShuffledBatches(self.samples, self.batch_size, shuffle=False))

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch = self.batches.epoch
        for indices in self.batches:
            yield epoch, indices
