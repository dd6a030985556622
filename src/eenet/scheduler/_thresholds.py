"""Thresholds on calibration scores that meet a budget: from shares of samples per exit, or by search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError
from eenet.records import ExitRecords
from eenet.scheduler._policy import Bools, ExitHistory, Floats, Ints, Score, leaves_at

RESOLUTION = 1e-5
"""Scores closer than this are one tie: the same network rounds a log-odds score by up to about as much when its batch
size or back end changes, and no threshold is ever put between two samples that rounding could swap."""

_MARGIN = 1e-3  # how far below the lowest calibration score the threshold lies where all samples exit
_BISECTIONS = 60
_GRID_POINTS = {1: 4096, 2: 160, 3: 40}  # of the search, per exit, by the number of early exits
_PAIR_POINTS = 33
_ROUNDS = 20


@array_value
@dataclass(frozen=True)
class Thresholds:
    """One threshold for each exit but the last, (K-1,), and whether the exit is on."""

    values: Floats
    enabled: Bools


class ScoreTable:
    """The scores of N calibration samples at the K-1 early exits, with the costs of all K exits."""

    def __init__(self, scores: Floats, finite: Bools, costs: ExitCosts) -> None:
        self.scores = scores
        self.finite = finite
        self.costs = costs.values
        self.unit = costs.unit
        self._order = np.argsort(-scores, axis=1, kind="stable")

    @classmethod
    def of(cls, score: Score, records: ExitRecords, costs: ExitCosts) -> ScoreTable:
        """The table of one score on all records.

        A sample counts as not finite from the first exit where it is not, also where that exit will be off and its
        output not looked at: then the run is cheaper than the plan, never more expensive.
        """
        history = ExitHistory()
        finite = []
        for evidence in records.all_evidence()[:-1]:
            history.evidence.append(evidence)
            history.scores.append(score(history))
            finite.append(history.finite)
        return cls(np.stack(history.scores), np.stack(finite), costs)

    @property
    def samples(self) -> int:
        """N."""
        return int(self.scores.shape[1])

    @property
    def early(self) -> int:
        """K-1, the exits that decide."""
        return int(self.scores.shape[0])

    def exits(self, thresholds: Thresholds, *, start: int = 0) -> Ints:
        """Where each sample exits, (N,), when all of them enter at exit `start`."""
        exits = np.full(self.samples, self.early, dtype=np.intp)
        for k in reversed(range(start, self.early)):
            leaving = leaves_at(self.scores[k], self.finite[k], thresholds.values[k], bool(thresholds.enabled[k]))
            exits[leaving] = k
        return exits

    def mean_cost(self, thresholds: Thresholds) -> float:
        """Mean cost per sample under the thresholds."""
        counts = np.bincount(self.exits(thresholds), minlength=self.early + 1)
        return float(counts @ self.costs / self.samples)

    def mean_cost_at(self, threshold: float) -> float:
        """Mean cost per sample under one threshold for all exits."""
        return self.mean_cost(self.common(threshold))

    def ranked(self, k: int, alive: Bools) -> Ints:
        """The samples that are running and may exit at exit k, the surest first."""
        order = self._order[k]
        ranked: Ints = order[(alive & self.finite[k])[order]]
        return ranked

    def cuts(self, k: int, ranked: Ints) -> Ints:
        """The numbers of samples that a threshold at exit k can let exit without splitting a tie, ascending."""
        if len(ranked) == 0:
            return np.zeros(1, dtype=np.intp)
        gaps = -np.diff(self.scores[k, ranked])
        return np.concatenate([[0], np.flatnonzero(gaps > RESOLUTION) + 1, [len(ranked)]]).astype(np.intp)

    def threshold(self, k: int, ranked: Ints, exiting: int) -> tuple[float, bool]:
        """The threshold midway between the last sample that exits and the first that stays; whether the exit is on."""
        if exiting == 0:
            return 0.0, False
        last = self.scores[k, ranked[exiting - 1]]
        if exiting == len(ranked):
            return float(last - _MARGIN), True
        return float((last + self.scores[k, ranked[exiting]]) / 2), True

    def recentered(self, thresholds: Thresholds) -> Thresholds:
        """The same decisions on these samples, each threshold midway between its two neighbors."""
        values, enabled = np.zeros(self.early), np.zeros(self.early, dtype=np.bool_)
        alive = np.ones(self.samples, dtype=np.bool_)
        for k in range(self.early):
            ranked = self.ranked(k, alive)
            leaving = leaves_at(self.scores[k], self.finite[k], thresholds.values[k], bool(thresholds.enabled[k]))
            values[k], enabled[k] = self.threshold(k, ranked, int(leaving[ranked].sum()))
            alive &= ~leaving
        return Thresholds(values, enabled)

    def for_shares(self, shares: Floats) -> Thresholds:
        """Thresholds by which about N p_k samples exit at exit k: the surest of those that are running.

        `shares` p is (K,). Source: EENet, section 3.3; MSDNet's dynamic evaluation does the same.
        """
        return self._for_counts(self._counts(shares))

    def _counts(self, shares: Floats) -> tuple[int, ...]:
        return tuple([round(self.samples * share) for share in shares[: self.early].tolist()])

    def _for_counts(self, counts: tuple[int, ...]) -> Thresholds:
        values, enabled = np.zeros(self.early), np.zeros(self.early, dtype=np.bool_)
        alive = np.ones(self.samples, dtype=np.bool_)
        for k in range(self.early):
            ranked = self.ranked(k, alive)
            cuts = self.cuts(k, ranked)
            exiting = int(cuts[np.argmin(np.abs(cuts - counts[k]))])
            values[k], enabled[k] = self.threshold(k, ranked, exiting)
            alive[ranked[:exiting]] = False
        return Thresholds(values, enabled)

    def cheapest(self) -> Thresholds:
        """All samples that may exit do so at the first exit."""
        return self.for_shares(np.eye(self.early + 1)[0])

    def require_feasible(self, budget: float) -> None:
        """Raise `InfeasibleBudgetError` when even exiting as early as possible costs more than the budget."""
        smallest = self.mean_cost(self.cheapest())
        if smallest > within(budget):
            stuck = int((~self.finite[0]).sum())
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {self.unit} cannot be met: {stuck} of {self.samples} samples have an output that "
                f"is not finite and go on to the last exit; the smallest feasible budget is {smallest:.6g} {self.unit}",
                smallest=smallest,
            )

    def meet(self, budget: float, shares: Callable[[float], Floats]) -> Thresholds:
        """The thresholds of a family of shares that spend the budget: never more, and less by at most one sample.

        `shares(a)` gives p (K,) and moves samples to later exits as `a` grows from -50 to 50. Samples with the same
        score cannot be split, so more is left where there are many.
        """
        self.require_feasible(budget)
        best = self.cheapest()
        step = float(np.diff(self.costs).min()) / self.samples  # the least that one more sample costs
        low, high = -50.0, 50.0
        at_low, at_high = self._counts(shares(low)), self._counts(shares(high))
        for _ in range(_BISECTIONS):
            if at_low == at_high:  # so are the thresholds of all shares between
                break
            middle = (low + high) / 2
            counts = self._counts(shares(middle))
            if counts == at_low:
                low = middle
                continue
            thresholds = self._for_counts(counts)
            cost = self.mean_cost(thresholds)
            if cost <= within(budget):
                low, at_low, best = middle, counts, thresholds
                if cost > budget - step:
                    break
            else:
                high, at_high = middle, counts
        return self.spend_rest(best, budget)

    def common(self, threshold: float) -> Thresholds:
        """One threshold for all exits."""
        return Thresholds(np.full(self.early, threshold), np.ones(self.early, dtype=np.bool_))

    def meet_common(self, budget: float) -> Thresholds:
        """The highest common threshold within the budget; the rest of the budget is spent exit by exit.

        The higher the threshold the later each sample exits, so these policies are nested.
        """
        self.require_feasible(budget)
        levels = np.unique(self.scores[self.finite])
        levels = levels[np.concatenate([[True], np.diff(levels) > RESOLUTION])] if len(levels) else levels
        low, high = -1, len(levels)  # the cost is within the budget at low, and above it at high
        thresholds = self.cheapest()
        while high - low > 1:
            middle = (low + high) // 2
            tried = self.common(float(levels[middle]))
            if self.mean_cost(tried) <= within(budget):
                low, thresholds = middle, tried
            else:
                high = middle
        return self.spend_rest(thresholds, budget)

    def spend_rest(self, thresholds: Thresholds, budget: float) -> Thresholds:
        """Raise thresholds, the last exit's first, as far as the budget allows; the mean cost never falls."""
        for k in reversed(range(self.early)):
            thresholds = self._raise_one(k, thresholds, budget)
        return self.recentered(thresholds)

    def alive(self, thresholds: Thresholds, k: int) -> Bools:
        """Which samples reach exit k, (N,)."""
        enabled = thresholds.enabled.copy()
        enabled[k:] = False
        reached: Bools = self.exits(Thresholds(thresholds.values, enabled)) == self.early
        return reached

    def _raise_one(self, k: int, thresholds: Thresholds, budget: float) -> Thresholds:
        ranked = self.ranked(k, self.alive(thresholds, k))
        now = leaves_at(self.scores[k], self.finite[k], thresholds.values[k], bool(thresholds.enabled[k]))
        leaving_now = int(now[ranked].sum())
        later = self.costs[self.exits(thresholds, start=k + 1)[ranked]]
        # The cost against all samples going on, when the first m exit here, for every m at once.
        change = np.concatenate([[0.0], np.cumsum(self.costs[k] - later)])
        spare = (within(budget) - self.mean_cost(thresholds)) * self.samples
        cuts = self.cuts(k, ranked)
        cuts = cuts[(cuts <= leaving_now) & (change[cuts] - change[leaving_now] <= spare)]
        if len(cuts) == 0:
            return thresholds
        values, enabled = thresholds.values.copy(), thresholds.enabled.copy()
        values[k], enabled[k] = self.threshold(k, ranked, int(cuts[0]))
        return Thresholds(values, enabled)


def within(budget: float) -> float:
    """The budget with the rounding of a sum of N costs allowed for."""
    return budget * (1 + 1e-12)


def geometric_shares(exits: int) -> Callable[[float], Floats]:
    """MSDNet's family of shares: p_k proportional to exp(a k)."""

    def shares(a: float) -> Floats:
        p: Floats = np.exp(a * np.arange(exits) - max(a * (exits - 1), 0.0))
        p /= p.sum()
        return p

    return shares


def tilted_shares(base: Floats, costs: Floats) -> Callable[[float], Floats]:
    """The shares p_k exp(a c_k / c_K), normalized: from any shares to any mean cost."""
    logs = np.log(np.maximum(base, 1e-12))

    def shares(a: float) -> Floats:
        z = logs + a * 4 * costs / (costs[-1] - costs[0])
        p: Floats = np.exp(z - z.max())
        p /= p.sum()
        return p

    return shares


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
    return table.recentered(search.improve(start))


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

    def best_on_grid(self, points: int) -> Thresholds:
        """The best of all combinations of quantiles, by cumulative histograms."""
        table = self.table
        n = table.samples
        grids = [self._grid(k, points) for k in range(table.early)]
        # A sample exits at k for thresholds 0 .. level-1 of its grid, which ascends; level 0 never exits.
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
