"""Is a mean below a limit? A test by betting, valid for any sample size."""

from __future__ import annotations

import math

import numpy as np

from eenet.scheduler._policy import Bools, Floats

_BOLDNESS = 0.9
"""The largest bet, as a share of the one that could lose everything."""


def mean_is_below(values: Floats, limit: float, error: float) -> Bools:
    """For each row of values in [0, 1], (G, n), whether its mean in the population is below the limit.

    A row whose population mean is at the limit or above it is called below with probability `error` at most, whatever
    the distribution. The rows' samples must be independent draws, in an order that was not chosen by their values.
    Source: the capital process of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    Journal of the Royal Statistical Society B 86 (2024), with their predictable plug-in bets.
    """
    samples = values.shape[1]
    if limit >= 1:
        return np.ones(len(values), dtype=np.bool_)
    if limit <= 0 or samples == 0:
        return np.zeros(len(values), dtype=np.bool_)
    return np.asarray(log_capital(values, limit, error).max(axis=1) >= math.log(1 / error))


def log_capital(values: Floats, limit: float, error: float) -> Floats:
    """The logarithm of the capital after each sample, (G, n), of who bets that the mean is below the limit."""
    samples = values.shape[1]
    seen = np.arange(1, samples + 1)
    means = (0.5 + np.cumsum(values, axis=1)) / (seen + 1)
    variances = (0.25 + np.cumsum(np.square(values - means), axis=1)) / (seen + 1)
    # Each bet is made before its sample is seen.
    before = np.concatenate([np.full((len(values), 1), 0.25), variances[:, :-1]], axis=1)
    bets = np.minimum(np.sqrt(2 * math.log(1 / error) / (samples * before)), _BOLDNESS / (1 - limit))
    capital: Floats = np.cumsum(np.log1p(bets * (limit - values)), axis=1)
    return capital


def smallest_limit(values: Floats, error: float) -> float:
    """The smallest limit that the mean of the values (n,) is below, by the test; 1 where there is none below 1."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if mean_is_below(values[None], middle, error)[0]:
            high = middle
        else:
            low = middle
    return high
