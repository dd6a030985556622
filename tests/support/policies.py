"""What property tests of replay and runtimes draw from: schedulers, and logits that are hard to decide on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import eenet
from eenet.scheduler import SCHEDULERS

MAKERS = {
    "EENet": lambda: eenet.EENet(turns=1, target="right", weight_decay=1e-4),
    "MaxProbability": eenet.MaxProbability,
    "Entropy": eenet.Entropy,
    "Patience": eenet.Patience,
    "SearchedThresholds": eenet.SearchedThresholds,
    **{name: make for name, make in SCHEDULERS.items() if name not in ("eenet", "max_prob", "entropy", "searched")},
}


def awkward_logits(rng: np.random.Generator, exits: int, samples: int, classes: int) -> NDArray[np.float32]:
    """Logits with all that goes wrong: NaN, infinities, saturation, ties and duplicated samples."""
    scale = rng.choice([0.1, 1.0, 10.0, 1000.0])
    logits: NDArray[np.float32] = (rng.standard_normal((exits, samples, classes)) * scale).astype(np.float32)
    for value, rate in ((np.nan, 0.02), (np.inf, 0.02), (-np.inf, 0.02), (0.0, 0.05)):
        logits[rng.random(logits.shape) < rate] = value
    copies = rng.random(samples) < 0.3
    logits[:, copies] = logits[:, rng.integers(samples, size=int(copies.sum()))]
    logits[:, rng.random(samples) < 0.1] = 0.0
    return logits
