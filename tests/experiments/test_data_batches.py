"""Which samples make a batch, in which order, in which process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.errors import InvalidInputError
from eenet.experiments.data import ImageArray, loader


def images(count: int = 23, transform: str = "eval") -> ImageArray:
    """Images whose pixels all tell their index."""
    pixels = np.broadcast_to((np.arange(count) % 256).astype(np.uint8)[:, None, None, None], (count, 3, 6, 6)).copy()
    return ImageArray(
        pixels,
        np.arange(count) % 4,
        "abcd",
        name="toy",
        split="train",
        transform=transform,
        mean=(0, 0, 0),
        std=(1 / 255,) * 3,
    )


def indices(
    samples: int, size: int, *, epoch: int | None = None, shuffle: bool = True, **options: Any
) -> list[list[int]]:
    """The batches of one epoch of a loader, as positions in the data."""
    sampler = loader(images(samples), size, shuffle=shuffle, **options).sampler
    if epoch is not None:
        sampler.set_epoch(epoch)
    return [batch for _, batch in sampler]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    size=st.integers(1, 40),
    epoch=st.integers(0, 5),
    drop_last=st.booleans(),
    by_length=st.booleans(),
)
def test_every_index_comes_once_per_epoch(
    lengths: list[int], size: int, epoch: int, drop_last: bool, by_length: bool
) -> None:
    options: dict[str, Any] = {"seed": 3, "drop_last": drop_last, "lengths": lengths if by_length else None}
    got = indices(len(lengths), size, epoch=epoch, **options)
    seen = [n for batch in got for n in batch]
    assert len(got) == len(loader(images(len(lengths)), size, shuffle=True, **options))
    assert len(set(seen)) == len(seen)
    assert len(seen) == (len(lengths) // size * size if drop_last else len(lengths))
    assert all(len(batch) == size for batch in got) or not drop_last
    assert indices(len(lengths), size, epoch=epoch, **options) == got


@settings(deadline=None)
@given(samples=st.integers(1, 100), size=st.integers(1, 20), ranks=st.integers(1, 5))
def test_ranks_share_the_batches_and_have_as_many(samples: int, size: int, ranks: int) -> None:
    shares = [indices(samples, size, seed=1, shard=(rank, ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(loader(images(samples), size, shard=(0, ranks)))}
    assert {n for share in shares for batch in share for n in batch} == set(range(samples))


def test_iterating_again_is_the_next_epoch_and_a_seed_is_another_order() -> None:
    sampler = loader(images(50), 8, shuffle=True).sampler
    first, second = list(sampler), list(sampler)
    assert [epoch for epoch, _ in (*first, *second)] == [0] * 7 + [1] * 7
    assert [batch for _, batch in first] != [batch for _, batch in second]
    sampler.set_epoch(1)
    assert list(sampler) == second
    assert indices(50, 8, seed=1) != [batch for _, batch in first]
    assert indices(5, 2, shuffle=False) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1, "seed": -1}, "seed is -1"),
        ({"batch_size": 1, "shard": (2, 2)}, "shard is"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        loader(images(3), **arguments)


def test_the_loader_keeps_order_and_pairs_labels() -> None:
    data = images()
    batches = list(loader(data, 5))
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert len(loader(data, 5)) == 5
    assert torch.cat([x[:, 0, 0, 0] for x, _ in batches]).tolist() == list(range(23))
    assert torch.cat([y for _, y in batches]).tolist() == [n % 4 for n in range(23)]
    assert len(list(loader(data, 5, drop_last=True))) == 4


def test_a_plain_torch_loader_works_too() -> None:
    x, y = next(iter(torch.utils.data.DataLoader(images(), batch_size=4)))  # type: ignore[arg-type]
    assert x.shape == (4, 3, 6, 6)
    assert y.tolist() == [0, 1, 2, 3]


# Forking is what torch does on Linux; Python 3.12 warns of it as soon as a process has threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_do_not_change_what_is_read() -> None:
    data = images(transform="train")
    epochs = []
    for workers in (0, 1):
        batches = loader(data, 5, shuffle=True, seed=4, workers=workers)
        epochs.append([list(batches), list(batches)])
    for alone, parallel in zip(*epochs, strict=True):
        for (x, y), (other_x, other_y) in zip(alone, parallel, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)
    assert not torch.equal(epochs[0][0][0][0], epochs[0][1][0][0])


def test_a_resumed_run_reads_what_the_uninterrupted_one_read() -> None:
    data = images(transform="train")
    whole = loader(data, 5, shuffle=True, seed=4)
    epochs = [list(whole) for _ in range(3)]
    resumed = loader(data, 5, shuffle=True, seed=4)
    resumed.sampler.set_epoch(2)
    for (x, y), (other_x, other_y) in zip(epochs[2], resumed, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
