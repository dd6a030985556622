"""Toy records and costs for documentation and tests: small, made in milliseconds, the same for a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords

__all__ = ["toy_costs", "toy_logits", "toy_records"]

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
    """Logits of an imagined multi-exit network whose later exits are better, and labels.

    Exit k sees x = s_k e_y + standard normal noise, and its logits are `sharpness` times s_k x.

    Parameters
    ----------
    samples, exits, classes : int
        N, K and C.
    seed : int
        The same seed gives the same numbers.
    sharpness : float
        1 gives calibrated logits, more overconfident ones, from about 100 saturated ones (probabilities of 0 and 1).
    duplicates : float
        The share of samples that copy another one.
    nonfinite : float
        The share of samples whose logits hold NaN or infinities from some exit on.
    deceptive_class : int, optional
        Most samples of this class look at the first exit like a sure case of the class after it.

    Returns
    -------
    logits : ndarray of shape (K, N, C), float32
    labels : ndarray of shape (N,), intp

    Raises
    ------
    InvalidInputError
        If a share is not from 0 to 1.

    Examples
    --------
    >>> logits, labels = toy_logits(samples=100, exits=3, classes=5)
    >>> logits.shape, labels.shape
    ((3, 100, 5), (100,))
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
        deceived = np.flatnonzero((labels == deceptive_class) & (rng.random(samples) < 0.8))
        x[0, deceived, (deceptive_class + 1) % classes] += 2 * _LAST_SIGNAL
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
    """Records of `toy_logits`.

    Parameters
    ----------
    samples, exits, classes, seed, sharpness, duplicates, nonfinite, deceptive_class
        As for `toy_logits`.

    Examples
    --------
    >>> records = toy_records(samples=1000)
    >>> records
    ExitRecords(3 exits, 1000 labeled samples, 5 classes)
    >>> records.accuracies.round(2)
    array([...])
    """
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
    """Costs of 1, 2 .. K milliseconds.

    Parameters
    ----------
    exits : int
        K.

    Examples
    --------
    >>> toy_costs(3)
    ExitCosts([1, 2, 3], unit='ms')
    """
    return ExitCosts(np.arange(1.0, exits + 1))
