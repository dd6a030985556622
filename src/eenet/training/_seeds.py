"""Randomness as a function of the seed and the epoch.

Every epoch starts by seeding all generators anew, so a resumed run draws what an uninterrupted one draws without any
generator state on disk: order of samples, augmentation, dropout. Data loader workers take their seeds from these.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from eenet.errors import ReliabilityWarning


def mixed(*numbers: int) -> int:
    """One 63-bit seed of several numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeding(seed: int, rank: int, loader: Any) -> Iterator[EpochSeeds]:
    """Give the seeds of epochs within the block; all generators are put back as they were after it."""
    kept = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002 - libraries use it
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    own = _generators_of(loader)
    states = [generator.get_state() for generator in own]
    try:
        yield EpochSeeds(seed, rank, own)
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


class EpochSeeds:
    """Seeds every generator at the start of an epoch, those of the loader from their own first seeds."""

    def __init__(self, seed: int, rank: int, own: list[torch.Generator]) -> None:
        self.seed = seed
        self.rank = rank
        self._own = [(generator, generator.initial_seed()) for generator in own]

    def start(self, epoch: int) -> None:
        """Seed for one epoch; epochs count from 0."""
        seed = mixed(self.seed, epoch, self.rank)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - transforms of datasets use the global state
        torch.manual_seed(seed)
        for generator, first in self._own:
            generator.manual_seed(mixed(first, epoch))


def _generators_of(loader: Any) -> list[torch.Generator]:
    """The generators that a data loader and its samplers draw from, each once."""
    holders = [loader]
    for holder in holders:
        for name in ("sampler", "batch_sampler"):
            inner = getattr(holder, name, None)
            if inner is not None and all(inner is not other for other in holders):
                holders.append(inner)
    found: list[torch.Generator] = []
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in found):
            found.append(generator)
    return found


def warn_of_persistent_workers(loader: Any) -> None:
    """Warn where a loader's workers live on between epochs, with random states that nobody can restore.

    Those of `experiments.data.loader` draw nothing from such states: they are told the epoch along with the samples.
    """
    if getattr(loader, "persistent_workers", False) and not hasattr(getattr(loader, "sampler", None), "in_order"):
        warnings.warn(
            "train_loader has persistent_workers=True: their random states live on between epochs, so a resumed run "
            "would augment images otherwise than an uninterrupted one; use persistent_workers=False",
            ReliabilityWarning,
            stacklevel=3,
        )
