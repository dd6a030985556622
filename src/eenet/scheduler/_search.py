"""The search for the thresholds of the highest accuracy within a budget."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from eenet.scheduler._policy import Floats, Ints
from eenet.scheduler._thresholds import ScoreTable, Thresholds, geometric_shares, within

_GRID_POINTS = {1: 4096, 2: 160, 3: 40, 4: 16, 5: 9, 6: 6}  # per exit, by the number of early exits
_ALL_COMBINATIONS = 3  # early exits, up to which a search begins with a grid
_PAIR_POINTS = 33
_ROUNDS = 20


def search_thresholds(
    table: ScoreTable, utility: Floats, budget: float, grid: ThresholdGrid | None = None, *, brief: bool = False
) -> Thresholds:
    """Thresholds of the highest mean utility whose mean cost is within the budget.

    `utility` is (K, N). With up to three early exits all combinations on a grid of quantiles are tried, then single
    thresholds and pairs are moved over all their values until nothing improves; with more exits only the latter,
    from the geometric rule. Ties go to the cheaper policy. A `grid` that is given is used whatever the number of exits,
    and spares the time of making one; a `brief` search does not move pairs.
    """
    table.require_feasible(budget)
    search = _Search(table, utility.astype(np.float64), budget)
    if grid is None and table.early <= _ALL_COMBINATIONS:
        grid = ThresholdGrid(table, utility)
    starts = [] if grid is None else [grid.at(budget)]
    if grid is None or not brief:
        starts.append(table.meet(budget, geometric_shares(table.early + 1)))
    start = max(starts, key=search.value)
    return table.recentered(search.improve(start, pairs=not brief))


class _Search:
    """The search over the thresholds of one table for one budget."""

    def __init__(self, table: ScoreTable, utility: Floats, budget: float) -> None:
        self.table = table
        self.utility = utility
        self.budget = budget

    def value(self, thresholds: Thresholds) -> tuple[float, float]:
        """What is maximized: the utility summed over the samples, then a low cost. Infeasible is below all others."""
        exits = self.table.exits(thresholds)
        cost = float(self.table.costs[exits].mean())
        if cost > within(self.budget):
            return -np.inf, -cost
        return float(self.utility[exits, np.arange(len(exits))].sum()), -cost

    def improve(self, thresholds: Thresholds, *, pairs: bool = True) -> Thresholds:
        """Move single thresholds, then pairs, until nothing improves."""
        best, value = thresholds, self.value(thresholds)
        for _ in range(_ROUNDS):
            before = value
            for k in range(self.table.early):
                best, value = self._better(best, value, self.best_at(k, best))
            for i in range(self.table.early if pairs else 0):
                grid = quantile_thresholds(self.table, i, _PAIR_POINTS)
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


def quantile_thresholds(table: ScoreTable, k: int, points: int) -> Floats:
    """Thresholds at exit k by which evenly spaced numbers of all samples would exit, ascending."""
    ranked = table.ranked(k, np.ones(table.samples, dtype=np.bool_))
    cuts = table.cuts(k, ranked)
    cuts = cuts[cuts > 0]
    if len(cuts) == 0:
        return np.zeros(0)
    cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, points).round().astype(np.intp))]
    return np.sort([table.threshold(k, ranked, int(m))[0] for m in cuts])


class ThresholdGrid:
    """All combinations of quantiles as thresholds: the best of them for any budget.

    With `folds` (N,), also what the best for the other folds would do with the samples of each fold.
    """

    def __init__(self, table: ScoreTable, utility: Floats, folds: Ints | None = None) -> None:
        self.table = table
        self.utility = utility
        self.folds = folds
        self._grids = [quantile_thresholds(table, k, _GRID_POINTS[table.early]) for k in range(table.early)]
        self._shape = tuple(len(g) + 1 for g in self._grids)  # the last index of each axis: the exit is off
        # A sample exits at k for thresholds 0 .. level-1 of its grid, which ascends; level 0 never exits.
        self._levels = [
            np.where(table.finite[k], np.searchsorted(self._grids[k], table.scores[k], side="right"), 0)
            for k in range(table.early)
        ]

    @staticmethod
    def possible(table: ScoreTable) -> bool:
        """Whether the exits are few enough."""
        return table.early in _GRID_POINTS

    @cached_property
    def _parts(self) -> list[_Sums]:
        """The sums over the samples of each fold."""
        if self.folds is None:
            return [self._sums(np.arange(self.table.samples))]
        return [self._sums(np.flatnonzero(self.folds == fold)) for fold in range(int(self.folds.max()) + 1)]

    def _sums(self, rows: Ints) -> _Sums:
        """For each combination the utility and the cost of some samples, by cumulative histograms."""
        table = self.table
        gained, spent = np.zeros(self._shape), np.zeros(self._shape)
        for k in range(table.early + 1):
            # Tables over the levels at exits 0..k, summed to "below the threshold before k, at or above it at k".
            axes = range(min(k + 1, table.early))
            sizes = [self._shape[j] for j in axes]
            flat = np.ravel_multi_index([self._levels[j][rows] for j in axes], sizes)
            for out, weights in ((gained, self.utility[k, rows]), (spent, np.full(len(rows), table.costs[k]))):
                part = np.bincount(flat, weights=weights, minlength=int(np.prod(sizes))).reshape(sizes)
                for j in axes:
                    part = np.cumsum(part, axis=j)  # stays with threshold index j: level <= index
                    if j == k:
                        part = np.take(part, [-1], axis=j) - part
                out += part.reshape(part.shape + (1,) * (table.early - part.ndim))
        return gained.ravel(), spent.ravel()

    @cached_property
    def _all(self) -> _Best:
        gained, spent = (np.sum(parts, axis=0) for parts in zip(*self._parts, strict=True))
        return _best(gained, spent / self.table.samples)

    @cached_property
    def _others(self) -> list[_Best]:
        """The best for all folds but one."""
        assert self.folds is not None
        gained, spent = (np.sum(parts, axis=0) for parts in zip(*self._parts, strict=True))
        counts = len(self.folds) - np.bincount(self.folds)
        return [_best(gained - g, (spent - s) / n) for (g, s), n in zip(self._parts, counts.tolist(), strict=True)]

    def at(self, budget: float) -> Thresholds:
        """The best for a budget; the cheapest where none is within it."""
        return self._thresholds(self._all, budget)

    def out_of_fold(self, budget: float) -> Ints:
        """Where each sample exits, (N,), under the best for the other folds."""
        assert self.folds is not None
        exits = np.empty(self.table.samples, dtype=np.intp)
        for fold, best in enumerate(self._others):
            mine = self.folds == fold
            exits[mine] = self.table.exits(self._thresholds(best, budget))[mine]
        return exits

    def _thresholds(self, best: _Best, budget: float) -> Thresholds:
        spent, winners = best
        winner = winners[max(0, int(np.searchsorted(spent, within(budget), side="right")) - 1)]
        values, enabled = np.zeros(self.table.early), np.zeros(self.table.early, dtype=np.bool_)
        for k, index in enumerate(np.unravel_index(winner, self._shape)):
            enabled[k] = index < len(self._grids[k])
            values[k] = self._grids[k][index] if enabled[k] else 0.0
        return Thresholds(values, enabled)


_Sums = tuple[Floats, Floats]
_Best = tuple[Floats, Ints]
"""Rising costs, and from each on the combination of the highest utility."""


def _best(gained: Floats, spent: Floats) -> _Best:
    order = np.lexsort((-gained, spent))
    highest = np.maximum.accumulate(gained[order])
    rises = np.concatenate([[True], highest[1:] > highest[:-1] + 1e-9])
    return spent[order][rises], order[rises]
