"""The uncertainty of a comparison: bootstrap samples of the pool that all resplits were drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.evaluation._cells import Cell, Ints

Floats = NDArray[np.float64]

REPLICATES = 1000
_CHUNK = 50  # replicates at once, so that their weights of the samples need little memory


@array_value
@dataclass(frozen=True)
class Means:
    """Held-out means of every scheduler on every bootstrap sample, one mapping of resplits for each scheduler.

    `costs[name][resplit]` and `accuracies[name][resplit]` are (replicates, B); `ends[name][resplit]` (replicates, 2).
    """

    costs: Mapping[str, Mapping[int, Floats]]
    accuracies: Mapping[str, Mapping[int, Floats]]
    ends: Mapping[str, Mapping[int, Floats]]


def bootstrap_means(
    cells: Sequence[Cell], held: Sequence[Ints], pool: int, costs: ExitCosts, *, seed: int, replicates: int = REPLICATES
) -> Means:
    """Draw samples of the pool with replacement, and weigh each resplit's held-out samples by their counts.

    `held` are the numbers in the pool of each resplit's held-out samples. One draw is used for all resplits and all
    schedulers: what is held out in several resplits counts as one sample there, and differences are paired.
    """
    result = Means({}, {}, {})
    by_resplit: dict[int, list[Cell]] = {}
    for cell in cells:
        by_resplit.setdefault(cell.resplit, []).append(cell)
    for resplit, of_resplit in by_resplit.items():
        columns = [np.concatenate([costs.values[c.exits], c.utility, c.ends]).astype(np.float64) for c in of_resplit]
        means = _weighted(np.concatenate(columns), held[resplit], pool, seed, replicates)
        start = 0
        for cell in of_resplit:
            count = len(cell.rows)
            parts = np.split(means[:, start : start + 2 * count + 2], [count, 2 * count], axis=1)
            for mapping, part in zip((result.costs, result.accuracies, result.ends), parts, strict=True):
                mapping.setdefault(cell.scheduler, {})[resplit] = part  # type: ignore[attr-defined]
            start += 2 * count + 2
    return result


def _weighted(columns: Floats, held: Ints, pool: int, seed: int, replicates: int) -> Floats:
    """Weighted means (replicates, columns) of columns (columns, n)."""
    return np.concatenate(
        [(w @ columns.T) / np.maximum(w.sum(axis=1, keepdims=True), 1) for w in _weights(held, pool, seed, replicates)]
    )


def _weights(held: Ints, pool: int, seed: int, replicates: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, replicates, _CHUNK):
        size = min(_CHUNK, replicates - start)
        drawn = rng.multinomial(pool, np.full(pool, 1 / pool), size=size)
        yield drawn[:, held].astype(np.float64)


def interpolated(x: Floats, costs: Floats, accuracies: Floats) -> Floats:
    """Accuracies (replicates, Q) at costs `x` (replicates, Q), straight between points (replicates, P), row by row."""
    order = np.argsort(costs, axis=1, kind="stable")
    xs, ys = np.take_along_axis(costs, order, axis=1), np.take_along_axis(accuracies, order, axis=1)
    right = np.clip((xs[:, None, :] < x[:, :, None]).sum(axis=2), 1, xs.shape[1] - 1)
    x0, x1 = np.take_along_axis(xs, right - 1, axis=1), np.take_along_axis(xs, right, axis=1)
    y0, y1 = np.take_along_axis(ys, right - 1, axis=1), np.take_along_axis(ys, right, axis=1)
    width = x1 - x0
    share = np.divide(x - x0, width, out=np.full_like(width, 0.5), where=width > 0)
    return y0 + np.clip(share, 0, 1) * (y1 - y0)
