"""Random numbers that belong to a sample: a function of the seed, the epoch and the sample's index alone.

So augmentation does not depend on the batch size, the order, the number of worker processes or on what was drawn
before, and a run that is resumed at an epoch draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape (samples, draws): SplitMix64 (Steele et al., OOPSLA 2014) as a hash."""
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
