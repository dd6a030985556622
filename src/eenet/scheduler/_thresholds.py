"""Thresholds on calibration scores that meet a budget: from shares of samples per exit, or by search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError
from eenet.records import ExitRecords
from eenet.scheduler._checks import checked_scores
from eenet.scheduler._policy import RESOLUTION, Bools, ExitHistory, Floats, Ints, Score, leaves_at

_MARGIN = 1e-3  # how far below the lowest calibration score the threshold lies where all samples exit
_BISECTIONS = 60


@array_value
@dataclass(frozen=True)
class Thresholds:
    """One threshold for each exit but the last, (K-1,), and whether the exit is on."""

    values: Floats
    enabled: Bools


class ScoreTable:
    """The scores of N calibration samples at the K-1 early exits, with the costs of all K exits.

    No sample exits where `live` (K-1,) is false.
    """

    def __init__(self, scores: Floats, finite: Bools, costs: ExitCosts, live: Bools | None = None) -> None:
        self.scores = scores
        self.finite = finite
        self.live: Bools = np.ones(len(scores), dtype=np.bool_) if live is None else live
        self.costs = costs.values
        self.unit = costs.unit
        self._order = np.argsort(-scores, axis=1, kind="stable")

    @classmethod
    def of(cls, score: Score, records: ExitRecords, costs: ExitCosts, live: Bools | None = None) -> ScoreTable:
        """The table of one score on all records.

        A sample counts as not finite from the first exit where it is not, also where that exit will be off and its
        output not looked at: then the run is cheaper than the plan, never more expensive.

        Raises `InvalidInputError` for a score that is not what `Score` promises.
        """
        history = ExitHistory()
        finite = []
        for evidence in records.all_evidence()[:-1]:
            history.evidence.append(evidence)
            history.scores.append(checked_scores(score, history))
            finite.append(history.finite)
        return cls(np.stack(history.scores), np.stack(finite), costs, live)

    @property
    def samples(self) -> int:
        """N."""
        return int(self.scores.shape[1])

    @property
    def early(self) -> int:
        """K-1, the exits that decide."""
        return int(self.scores.shape[0])

    @property
    def first(self) -> int:
        """The first exit that is not left out."""
        return int(np.append(self.live, True).argmax())

    def exits(self, thresholds: Thresholds, *, start: int = 0) -> Ints:
        """Where each sample exits, (N,), when all of them enter at exit `start`."""
        exits = np.full(self.samples, self.early, dtype=np.intp)
        for k in reversed(range(start, self.early)):
            leaving = leaves_at(self.scores[k], self.finite[k], thresholds.values[k], bool(thresholds.enabled[k]))
            np.copyto(exits, k, where=leaving)
        return exits

    def mean_cost(self, thresholds: Thresholds) -> float:
        """Mean cost per sample under the thresholds."""
        counts = np.bincount(self.exits(thresholds), minlength=self.early + 1)
        return float(counts @ self.costs / self.samples)

    def ranked(self, k: int, alive: Bools) -> Ints:
        """The samples that are running and may exit at exit k, the surest first."""
        if not self.live[k]:
            return np.zeros(0, dtype=np.intp)
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

    def for_exiting(self, exiting: Callable[[int, Ints], int]) -> tuple[Thresholds, float]:
        """Thresholds by which `exiting(k, ranked)` of the ranked samples exit at exit k, and their mean cost."""
        values, enabled = np.zeros(self.early), np.zeros(self.early, dtype=np.bool_)
        alive = np.ones(self.samples, dtype=np.bool_)
        exited = np.zeros(self.early + 1, dtype=np.intp)
        for k in range(self.early):
            ranked = self.ranked(k, alive)
            count = exiting(k, ranked)
            values[k], enabled[k] = self.threshold(k, ranked, count)
            alive[ranked[:count]] = False
            exited[k] = count
        exited[-1] = self.samples - exited.sum()
        return Thresholds(values, enabled), float(exited @ self.costs / self.samples)

    def recentered(self, thresholds: Thresholds) -> Thresholds:
        """The same decisions on these samples, each threshold midway between its two neighbors."""

        def exiting(k: int, ranked: Ints) -> int:
            on = bool(thresholds.enabled[k])
            return int(leaves_at(self.scores[k, ranked], self.finite[k, ranked], thresholds.values[k], on).sum())

        return self.for_exiting(exiting)[0]

    def for_shares(self, shares: Floats) -> Thresholds:
        """Thresholds by which about N p_k samples exit at exit k: the surest of those that are running.

        `shares` p is (K,). Source: EENet, section 3.3; MSDNet's dynamic evaluation does the same.
        """
        return self._for_counts(self._counts(shares))[0]

    def _counts(self, shares: Floats) -> tuple[int, ...]:
        if not self.live.all():  # what an exit that is left out would get goes to the others in proportion
            shares = np.append(self.live, True) * shares
            shares = shares / shares.sum() if shares.sum() > 0 else np.eye(len(shares))[self.first]
        return tuple([round(self.samples * share) for share in shares[: self.early].tolist()])

    def _for_counts(self, counts: tuple[int, ...]) -> tuple[Thresholds, float]:
        """Thresholds by which about these numbers of samples exit, and their mean cost."""
        return self.for_exiting(lambda k, ranked: self._nearest_cut(k, ranked, counts[k]))

    def _nearest_cut(self, k: int, ranked: Ints, count: int) -> int:
        """Of `cuts` the one nearest to a number; most numbers are cuts, which takes two scores to see."""
        if 0 < count < len(ranked):
            here, there = self.scores[k, ranked[count - 1 : count + 1]].tolist()
            if here - there > RESOLUTION:
                return count
        cuts = self.cuts(k, ranked)
        return int(cuts[np.argmin(np.abs(cuts - count))])

    def cheapest(self) -> Thresholds:
        """All samples that may exit do so at the first exit that is not left out."""
        return self._cheapest

    @cached_property
    def _cheapest(self) -> Thresholds:
        return self.for_shares(np.eye(self.early + 1)[self.first])

    @cached_property
    def _smallest(self) -> float:
        return self.mean_cost(self.cheapest())

    def require_feasible(self, budget: float) -> None:
        """Raise `InfeasibleBudgetError` when even exiting as early as possible costs more than the budget."""
        smallest = self._smallest
        if smallest > within(budget):
            stuck = int((~self.finite[min(self.first, self.early - 1)]).sum())
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
            thresholds, cost = self._for_counts(counts)
            if cost <= within(budget):
                low, at_low, best = middle, counts, thresholds
                if cost > budget - step:
                    break
            else:
                high, at_high = middle, counts
        return self.spend_rest(best, budget)

    def common(self, threshold: float) -> Thresholds:
        """One threshold for all exits."""
        return Thresholds(np.full(self.early, threshold), self.live)

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
