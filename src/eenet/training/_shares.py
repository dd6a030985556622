"""What each of several processes reads of the training data.

Lightning's own sampler is not used: it takes no seed of a run, draws a sampler's order in each process for itself, so
that the shares overlap, and loses a `batch_sampler`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence, Sized
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler

from eenet.errors import InvalidInputError, kind_of
from eenet.training._seeding import drawn_alike, samplers_of


def is_first_process() -> bool:
    """Whether this is the first of the processes that train together, or the only one."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not together or torch.distributed.get_rank() == 0


def share_of(loader: Any, rank: int, ranks: int, seed: int) -> Any:
    """A loader of the share of one process; all have as many batches, for which the first samples are read again.

    Of a loader that makes batches by itself each process gets every n-th sample, of others every n-th batch. Samplers
    that give shares already are left as they are, and so are streams, of which each process has its own.
    """
    if isinstance(loader, Sequence):
        return [loader[k % len(loader)] for k in range(rank, -(-len(loader) // ranks) * ranks, ranks)]
    if not isinstance(loader, DataLoader):
        raise InvalidInputError(
            f"train_loader is {kind_of(loader)}, which cannot be shared among {ranks} processes; give a "
            "DataLoader or a list of batches, or train with devices=1"
        )
    if isinstance(loader.dataset, IterableDataset) or any(_shared(sampler) for sampler in samplers_of(loader)):
        return loader
    shared = copy.copy(loader)  # of the loader's own class, with all of its options
    batches = loader.batch_sampler
    parts: dict[str, Any]
    if type(batches) is BatchSampler:
        share = _Share(batches.sampler, rank, ranks, seed)
        parts = {"sampler": share, "batch_sampler": BatchSampler(share, batches.batch_size, batches.drop_last)}
    elif batches is not None:
        parts = {"batch_sampler": _Share(batches, rank, ranks, seed)}
    else:
        parts = {"sampler": _Share(loader.sampler, rank, ranks, seed)}
    for name, value in parts.items():
        object.__setattr__(shared, name, value)  # which a loader refuses while it may be iterated
    shared._iterator = None
    return shared


def _shared(sampler: Any) -> bool:
    shard = getattr(sampler, "shard", None)  # of `experiments.data.loader`
    return isinstance(sampler, DistributedSampler) or (isinstance(shard, tuple) and shard[1] > 1)


class _Share(Sampler[Any]):
    """Every n-th of what a sampler gives, in the one order that all processes draw."""

    def __init__(self, whole: Any, rank: int, ranks: int, seed: int) -> None:
        if not isinstance(whole, Sized):
            raise InvalidInputError(
                f"the {type(whole).__name__} of train_loader has no length, so it cannot be shared among {ranks} "
                "processes; give it one, or train with devices=1"
            )
        self.whole: Any = whole
        self._rank, self._ranks, self._seed = rank, ranks, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        tell_epoch(self.whole, epoch)

    def __len__(self) -> int:
        return -(-len(self.whole) // self._ranks)

    def __iter__(self) -> Iterator[Any]:
        # A generator: with worker processes torch makes one iterator more than it uses, and a sampler may count them.
        with drawn_alike(self._seed, self._epoch):
            order = list(islice(self.whole, len(self.whole)))
        yield from islice(cycle(order), self._rank, len(self) * self._ranks, self._ranks)


def tell_epoch(loader: Any, epoch: int) -> None:
    """Tell a sampler, or the samplers of a loader, that order samples by the epoch which one it is."""
    for sampler in (loader, *samplers_of(loader)):
        tell = getattr(sampler, "set_epoch", None)
        if callable(tell):
            tell(epoch)
