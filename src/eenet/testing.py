"""Toy material that the documentation and the tests share: small, made in an instant, the same for a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords

_FIRST_SIGNAL, _LAST_SIGNAL = 1.2, 2.8
_SHARED_NOISE = 0.6  # the share of the noise's variance that all exits of a sample have in common


def toy_logits(
    samples: int = 600,
    exits: int = 3,
    classes: int = 5,
    seed: int = 0,
    *,
    sharpness: float = 1.0,
    duplicates: float = 0.0,
    nonfinite: float = 0.0,
    deceptive_class: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Logits (K, N, C) and labels (N,) of a pretended multi-exit network whose later exits are better.

    Exit k sees x = s_k e_y + standard normal noise, its logits are `sharpness` times s_k x: calibrated at 1,
    overconfident above, saturated (probabilities of exactly 0 and 1) from about 100. `duplicates` is the share of
    samples that copy another one; `nonfinite` the share whose logits hold NaN or infinities from some exit on. Most
    samples of `deceptive_class` look at the first exit like a sure case of the class after it.
    """
    for name, share in (("duplicates", duplicates), ("nonfinite", nonfinite)):
        if not 0 <= share <= 1:
            raise InvalidInputError(f"{name} is {share!r}, expected a share from 0 to 1")
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples).astype(np.intp)
    signal = np.linspace(_FIRST_SIGNAL, _LAST_SIGNAL, exits)
    x = np.sqrt(_SHARED_NOISE) * rng.normal(size=(samples, classes))
    x = x + np.sqrt(1 - _SHARED_NOISE) * rng.normal(size=(exits, samples, classes))
    x[:, np.arange(samples), labels] += signal[:, None]
    if deceptive_class is not None:
        fooled = np.flatnonzero((labels == deceptive_class) & (rng.random(samples) < 0.8))
        x[0, fooled, (deceptive_class + 1) % classes] += 2 * _LAST_SIGNAL
    logits = (sharpness * signal[:, None, None] * x).astype(np.float32)
    copies = rng.choice(samples, round(duplicates * samples), replace=False)
    originals = rng.integers(0, samples, len(copies))
    logits[:, copies], labels[copies] = logits[:, originals], labels[originals]
    for n in rng.choice(samples, round(nonfinite * samples), replace=False):
        logits[rng.integers(0, exits) :, n, rng.integers(0, classes)] = rng.choice([np.nan, np.inf])
    return logits, labels


def toy_records(
    samples: int = 600,
    exits: int = 3,
    classes: int = 5,
    seed: int = 0,
    *,
    sharpness: float = 1.0,
    duplicates: float = 0.0,
    nonfinite: float = 0.0,
    deceptive_class: int | None = None,
) -> ExitRecords:
    """Records of `toy_logits`, which explains the options."""
    logits, labels = toy_logits(
        samples,
        exits,
        classes,
        seed,
        sharpness=sharpness,
        duplicates=duplicates,
        nonfinite=nonfinite,
        deceptive_class=deceptive_class,
    )
    return ExitRecords.from_logits(logits, labels)


def toy_costs(exits: int = 3) -> ExitCosts:
    """Costs 1, 2 .. K milliseconds."""
    return ExitCosts(np.arange(1.0, exits + 1))
