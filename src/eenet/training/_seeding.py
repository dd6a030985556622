"""Seeds: randomness in training is a function of the seed and the epoch.

Every epoch starts by seeding all generators, so a resumed run draws what an uninterrupted one draws without any
generator state on disk: order of samples, augmentation, dropout. Data loader workers take their seeds from these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def mixed(*numbers: int) -> int:
    """One 63-bit seed of several numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeding(seed: int, rank: int, loader: Any) -> Iterator[EpochSeeds]:
    """Give the seeds of epochs within the block; all generators are put back as they were after it."""
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    own = _generators_of(loader)
    states = [generator.get_state() for generator in own]
    try:
        with _states_kept():
            yield EpochSeeds(seed, rank, own)
    finally:
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


@contextmanager
def _states_kept() -> Iterator[None]:
    kept = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002 - libraries use it
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - transforms of datasets use the global state
    torch.manual_seed(seed)


@contextmanager
def drawn_alike(*numbers: int) -> Iterator[None]:
    """What is drawn on the CPU within the block is a function of some numbers; after it generators are as before."""
    with _states_kept():
        _seed_all(mixed(*numbers))
        yield


class EpochSeeds:
    """Seeds every generator at the start of an epoch, those of the loader from their own first seeds."""

    def __init__(self, seed: int, rank: int, own: list[torch.Generator]) -> None:
        self.seed = seed
        self.rank = rank
        self._own = [(generator, generator.initial_seed()) for generator in own]

    def start(self, epoch: int, *, alike: bool = False) -> None:
        """Seed for one epoch, which count from 0; with `alike` all processes get the seeds of the first."""
        _seed_all(mixed(self.seed, epoch, 0 if alike else self.rank))
        for generator, first in self._own:
            generator.manual_seed(mixed(first, epoch))


def samplers_of(loader: Any) -> list[Any]:
    """The samplers of a loader and theirs, each once."""
    holders = [loader]
    for holder in holders:
        for name in ("sampler", "batch_sampler"):
            inner = getattr(holder, name, None)
            if inner is not None and all(inner is not other for other in holders):
                holders.append(inner)
    return holders[1:]


def _generators_of(loader: Any) -> list[torch.Generator]:
    """The generators that a data loader and its samplers draw from, each once."""
    generators: list[torch.Generator] = []
    for holder in (loader, *samplers_of(loader)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in generators):
            generators.append(generator)
    return generators
