"""Folds of calibration records."""

from __future__ import annotations

import numpy as np

from eenet.records import ExitRecords
from eenet.scheduler._policy import Ints


def fold_numbers(records: ExitRecords, seed: int, folds: int) -> Ints:
    """A fold for each sample, (N,), at random; samples with equal outputs at all exits share one."""
    _, group = np.unique(records.digests(), return_inverse=True)
    group = group.reshape(-1)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    numbers: Ints = order[group] % min(folds, len(order))
    return numbers
