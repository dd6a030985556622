"""Searched thresholds: the best on the calibration set under the budget."""

from __future__ import annotations

import numpy as np

from eenet.scheduler._policy import Floats
from eenet.scheduler._thresholds import ScoreTable, Thresholds, geometric_shares, within

_GRID_POINTS = {1: 4096, 2: 160, 3: 40}  # per exit, by the number of early exits
_PAIR_POINTS = 33
_ROUNDS = 20


def search_thresholds(table: ScoreTable, utility: Floats, budget: float) -> Thresholds:
    """Thresholds of the highest mean utility whose mean cost is within the budget.

    `utility` is (K, N). With up to three early exits all combinations on a grid of quantiles are tried, then single
    thresholds and pairs are moved over all their values until nothing improves; with more exits only the latter,
    from the geometric rule. Ties go to the cheaper policy.
    """
    table.require_feasible(budget)
    search = _Search(table, utility.astype(np.float64), budget)
    start = table.meet(budget, geometric_shares(table.early + 1))
    if table.early in _GRID_POINTS:
        start = max(start, search.best_on_grid(_GRID_POINTS[table.early]), key=search.value)
    return table.recentred(search.improve(start))


class _Search:
    def __init__(self, table: ScoreTable, utility: Floats, budget: float) -> None:
        self.table = table
        self.utility = utility
        self.budget = budget

    def value(self, thresholds: Thresholds) -> tuple[float, float]:
        """What is maximised: the utility summed over the samples, then thrift. Infeasible is below everything."""
        exits = self.table.exits(thresholds)
        cost = float(self.table.costs[exits].mean())
        if cost > within(self.budget):
            return -np.inf, -cost
        return float(self.utility[exits, np.arange(len(exits))].sum()), -cost

    def best_on_grid(self, points: int) -> Thresholds:
        """The best of all combinations of quantiles, by cumulative histograms."""
        table = self.table
        n = table.samples
        grids = [self._grid(k, points) for k in range(table.early)]
        # A sample leaves exit k for thresholds 0 .. level-1 of its grid, which ascends; level 0 never leaves.
        levels = [
            np.where(table.finite[k], np.searchsorted(grids[k], table.scores[k], side="right"), 0)
            for k in range(table.early)
        ]
        shape = tuple(len(g) + 1 for g in grids)  # the last index of each axis: the exit is off
        gained, spent = np.zeros(shape), np.zeros(shape)
        for k in range(table.early + 1):
            # Tables over the levels at exits 0..k, summed to "below the threshold before k, at or above it at k".
            axes = range(min(k + 1, table.early))
            sizes = [shape[j] for j in axes]
            flat = np.ravel_multi_index([levels[j] for j in axes], sizes)
            for out, weights in ((gained, self.utility[k]), (spent, np.full(n, table.costs[k]))):
                part = np.bincount(flat, weights=weights, minlength=int(np.prod(sizes))).reshape(sizes)
                for j in axes:
                    part = np.cumsum(part, axis=j)  # stays with threshold index j: level <= index
                    if j == k:
                        part = np.take(part, [-1], axis=j) - part
                out += part.reshape(part.shape + (1,) * (table.early - part.ndim))
        gained[spent > within(self.budget) * n] = -np.inf
        best = gained.max()
        choice = np.flatnonzero(gained.ravel() >= best - 1e-9)
        winner = np.unravel_index(choice[np.argmin(spent.ravel()[choice])], shape)
        values, enabled = np.zeros(table.early), np.zeros(table.early, dtype=np.bool_)
        for k, index in enumerate(winner):
            enabled[k] = index < len(grids[k])
            values[k] = grids[k][index] if enabled[k] else 0.0
        return Thresholds(values, enabled)

    def _grid(self, k: int, points: int) -> Floats:
        ranked = self.table.ranked(k, np.ones(self.table.samples, dtype=np.bool_))
        cuts = self.table.cuts(k, ranked)
        cuts = cuts[cuts > 0]
        if len(cuts) == 0:
            return np.zeros(0)
        cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, points).round().astype(np.intp))]
        return np.sort([self.table.threshold(k, ranked, int(m))[0] for m in cuts])

    def improve(self, thresholds: Thresholds) -> Thresholds:
        """Move single thresholds, then pairs, until nothing improves."""
        best, value = thresholds, self.value(thresholds)
        for _ in range(_ROUNDS):
            before = value
            for k in range(self.table.early):
                best, value = self._better(best, value, self.best_at(k, best))
            for i in range(self.table.early):
                grid = self._grid(i, _PAIR_POINTS)
                for j in range(self.table.early):
                    if i != j:
                        for candidate in (*((t, True) for t in grid), (0.0, False)):
                            moved = self.best_at(j, _with(best, i, *candidate))
                            best, value = self._better(best, value, moved)
            if value <= before:
                break
        return best

    def _better(
        self, best: Thresholds, value: tuple[float, float], other: Thresholds | None
    ) -> tuple[Thresholds, tuple[float, float]]:
        if other is None:
            return best, value
        theirs = self.value(other)
        return (other, theirs) if theirs > value else (best, value)

    def best_at(self, k: int, thresholds: Thresholds) -> Thresholds | None:
        """The best value of one threshold, the others held; None when none is within the budget."""
        table = self.table
        alive = table.alive(thresholds, k)
        ranked = table.ranked(k, alive)
        onward = table.exits(thresholds, start=k + 1)
        gone = np.flatnonzero(~alive)
        exits = table.exits(thresholds)[gone]
        spent_before = table.costs[exits].sum() + table.costs[onward[alive]].sum()
        saved = np.concatenate([[0.0], np.cumsum(table.costs[onward[ranked]] - table.costs[k])])
        gained = np.concatenate([[0.0], np.cumsum(self.utility[k, ranked] - self.utility[onward[ranked], ranked])])
        cuts = table.cuts(k, ranked)
        cuts = cuts[spent_before - saved[cuts] <= within(self.budget) * table.samples]
        if len(cuts) == 0:
            return None
        top = cuts[gained[cuts] >= gained[cuts].max() - 1e-9]
        return _with(thresholds, k, *table.threshold(k, ranked, int(top[-1])))


def _with(thresholds: Thresholds, k: int, value: float, enabled: bool) -> Thresholds:
    values, on = thresholds.values.copy(), thresholds.enabled.copy()
    values[k], on[k] = value, enabled
    return Thresholds(values, on)
