"""Folds of calibration records."""

from __future__ import annotations

import hashlib

import numpy as np

from eenet.records import ExitRecords
from eenet.scheduler._policy import Ints


def fold_numbers(records: ExitRecords, seed: int, folds: int) -> Ints:
    """A fold for each sample, (N,), at random; samples with equal outputs at all exits share one."""
    # Digests, since sorting the outputs themselves would take several times their memory.
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(records))]
    for of_exit in np.ascontiguousarray(records.probabilities):
        for digest, row in zip(digests, of_exit, strict=True):
            digest.update(row)
    _, group = np.unique(np.array([digest.digest() for digest in digests], dtype="V16"), return_inverse=True)
    group = group.reshape(-1)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    numbers: Ints = order[group] % min(folds, len(order))
    return numbers
