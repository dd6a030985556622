"""Assignments: how a budget is divided over the exits, as thresholds on a score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._policy import Bools, Floats, Ints, Score
from eenet.scheduler._search import ThresholdGrid, search_thresholds
from eenet.scheduler._thresholds import (
    ScoreTable,
    Thresholds,
    geometric_shares,
    tilted_shares,
    within,
)

_CERTAIN = 3.0
"""Standard errors that the last exit must be below an earlier one to count as worse."""

_STEEPEST = 300.0
"""The largest exponent that a multiplier puts between the first exit and the last."""

_FOLDS = 3

TIES = "many samples have the same score; they cannot be split at a threshold"


@dataclass(frozen=True)
class Plan:
    """Thresholds, and the mean cost per sample they were planned to have."""

    thresholds: Thresholds
    cost: float


@array_value
@dataclass(frozen=True)
class Calibration:
    """A score on calibration records with the costs of the exits: what an assignment divides a budget over."""

    score: Score
    records: ExitRecords
    costs: ExitCosts

    known: ScoreTable | None = None
    """The scores of the records, where they have been computed already."""

    live: Bools | None = None
    """Which of the early exits are not left out, (K-1,); None for all."""

    seed: int = 0
    """Of the folds."""

    @cached_property
    def folds(self) -> Ints | None:
        """A fold for each sample, (N,): what is searched for the others is tried on it. None for a single sample."""
        folds = fold_numbers(self.records, self.seed, _FOLDS)
        return folds if folds.max() else None

    @cached_property
    def table(self) -> ScoreTable:
        """The scores of all records."""
        if self.known is not None:
            return self.known
        return ScoreTable.of(self.score, self.records, self.costs, self.live)

    @cached_property
    def grid(self) -> ThresholdGrid | None:
        """Combinations of thresholds on the scores; None where the exits are too many."""
        if not ThresholdGrid.possible(self.table):
            return None
        return ThresholdGrid(self.table, self.records.require_utility().astype(np.float64), self.folds)

    @cached_property
    def ceiling(self) -> int:
        """The exit beyond which no sample should go: the last, or an earlier one where the last is clearly worse.

        Without labels no exit is known to be worse. Samples whose outputs are not finite go on all the same.
        """
        last = len(self.costs) - 1
        if self.records.utility is None or not self.table.finite.all():
            return last
        utility = self.records.utility.astype(np.float64)
        best = int(utility.mean(axis=1).argmax())
        # With one sample either way added, so that a few samples that agree by chance are not certain (Agresti, Caffo).
        ahead = np.concatenate([utility[best] - utility[last], [-1.0, 1.0]])
        return best if ahead.mean() > _CERTAIN * ahead.std() / math.sqrt(len(ahead)) else last

    @cached_property
    def worthwhile(self) -> Calibration:
        """The same without the exits beyond the ceiling, which must not be the first exit."""
        exits = self.ceiling + 1
        if exits == len(self.costs):
            return self
        costs = ExitCosts(self.costs.values[:exits].tolist(), unit=self.costs.unit)
        live = self.table.live[: exits - 1]
        table = ScoreTable(self.table.scores[: exits - 1], self.table.finite[: exits - 1], costs, live)
        return Calibration(self.score, self.records.first_exits(exits), costs, table, live, self.seed)

    def whole(self, thresholds: Thresholds) -> Thresholds:
        """Thresholds found for `worthwhile`, as thresholds of all exits: at the ceiling all samples exit."""
        table = self.table
        missing = table.early - len(thresholds.values)
        if missing == 0:
            return thresholds
        lowest, _ = table.threshold(
            self.ceiling, table.ranked(self.ceiling, np.ones(table.samples, bool)), table.samples
        )
        values = np.concatenate([thresholds.values, [lowest], np.zeros(missing - 1)])
        enabled = np.concatenate([thresholds.enabled, [True], np.zeros(missing - 1, dtype=np.bool_)])
        return Thresholds(values, enabled)


class Assignment(ABC):
    """Chooses the thresholds of a score on calibration records so that the mean cost stays within the budget."""

    table_points: ClassVar[int] = 101
    """How many budgets a table of its policies should have: few where planning one takes long."""

    unspent: ClassVar[str | None] = TIES
    """Why much of a budget may be left unspent, for the user; None where leaving it is what was asked for.

    With None there is no ceiling either: the assignment itself sees which exits are worth their cost.
    """

    searches: ClassVar[bool] = False
    """Whether it takes the best of very many thresholds, so that it looks better than it is on its own records."""

    @abstractmethod
    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan for one budget, in the unit of the costs."""


class Geometric(Assignment):
    """p_k proportional to a power of k, the power chosen to meet the budget (MSDNet, and BranchyNet's successors)."""

    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan for one budget."""
        costs = calibration.costs
        thresholds = calibration.table.meet(budget, geometric_shares(len(costs)))
        return Plan(thresholds, min(budget, costs[-1]))


class Searched(Assignment):
    """The thresholds with the highest calibration accuracy under the budget; needs labels."""

    table_points = 21
    unspent = None
    searches = True

    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan for one budget."""
        table = calibration.table
        utility = calibration.records.require_utility().astype(np.float64)
        grid = calibration.grid if table.early <= 3 else None
        thresholds = search_thresholds(table, utility, budget, grid)
        return Plan(thresholds, table.mean_cost(thresholds))


class Shared(Assignment):
    """One threshold for all exits, the one that spends the budget: for scores that mean the same at each exit.

    What is left of less than a sample is spent by single thresholds. Source: the one confidence threshold of, for
    example, Wolczyk et al. (NeurIPS 2021).
    """

    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan for one budget."""
        table, costs = calibration.table, calibration.costs
        table.require_feasible(budget)
        levels = np.unique(table.scores[table.finite])
        best = table.cheapest()
        low, high = 0, len(levels)
        while low < high:
            middle = (low + high) // 2
            thresholds, cost = _at_level(table, float(levels[middle]))
            if cost <= within(budget):
                low, best = middle + 1, thresholds
            else:
                high = middle
        return Plan(table.spend_rest(best, budget), min(budget, costs[-1]))


def _at_level(table: ScoreTable, level: float) -> tuple[Thresholds, float]:
    """At every exit the samples that score at least the level exit; a tie that it would split exits as a whole."""

    def exiting(k: int, ranked: Ints) -> int:
        cuts = table.cuts(k, ranked)
        return int(cuts[np.searchsorted(cuts, int((table.scores[k, ranked] >= level).sum()))])

    return table.for_exiting(exiting)


@dataclass(frozen=True)
class ExponentialWeights(Assignment):
    """EERO's exit shares: p_k proportional to exp(-(R_k + lambda c_k) / beta), lambda chosen to spend the budget.

    R_k is the error rate of exit k on the calibration set; the most confident share exits, the rest is rejected to
    later exits. A small beta trusts the error rates, a large one spreads the samples evenly; of several, the one with
    the highest calibration accuracy is taken. Needs labels. Source: Valade, Hebiri and Gay, "EERO: Early Exit with
    Reject Option for Efficient Classification with limited budget" (arXiv 2402.03779; UAI 2025).
    """

    betas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    table_points = 21

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta < np.inf for beta in self.betas):
            raise InvalidInputError(f"betas are {self.betas}, expected at least one number, each above 0")

    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan for one budget."""
        table, records, costs = calibration.table, calibration.records, calibration.costs
        utility = records.require_utility()
        risks = 1 - records.accuracies

        def worth(thresholds: Thresholds) -> float:
            return float(utility[table.exits(thresholds), np.arange(table.samples)].sum(dtype=np.float64))

        plans = [table.meet(budget, _exponential_shares(risks, costs.values, beta)) for beta in self.betas]
        return Plan(max(plans, key=worth), min(budget, costs[-1]))


def _exponential_shares(risks: Floats, costs: Floats, beta: float) -> Callable[[float], Floats]:
    reach = (4 + 0.1 / beta) / (costs[-1] - costs[0])  # far enough that lambda can outweigh the risks either way

    def shares(a: float) -> Floats:
        z = a * reach * costs - risks / beta
        p: Floats = np.exp(z - z.max())
        p /= p.sum()
        return p

    return shares


class Learned(Assignment):
    """EENet's exit assignment: p_k is the mean of the learned r, tilted along the costs to meet the budget.

    A score that was learned with an assignment has the shares already. For any other, a sample's rank among all takes
    the place of q_k.
    """

    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan for one budget."""
        table, costs = calibration.table, calibration.costs
        shares: Floats | None = getattr(calibration.score, "shares", None)
        if shares is None:
            ranks = table.scores.argsort(axis=1).argsort(axis=1) / max(1, table.samples - 1)
            # The last exit needs no score and counts as sure.
            shares = exit_assignment(np.concatenate([ranks, np.ones((1, table.samples))]), costs, budget).mean(axis=1)
        thresholds = table.meet(budget, tilted_shares(shares[: len(costs)], costs.values))
        return Plan(thresholds, min(budget, costs[-1]))


def exit_assignment(
    q: Floats, costs: ExitCosts, budget: float, *, kl_weight: float = 1e-3, cost_weight: float = 1e-2
) -> Floats:
    """EENet's exit assignment r (K, N) for exit scores q (K, N) in [0, 1].

    The minimum of the paper's loss, kl_weight mean_n KL(r_n, q_n / sum q_n) + cost_weight |mean_n r_n . c - B| / B,
    over all r. It is r_nk proportional to q_nk exp(-m c_k), with the multiplier m that spends the budget, where that is
    at most cost_weight / (kl_weight B), and otherwise with this largest one.
    """
    c, target = costs.values / costs[-1], min(budget, costs[-1]) / costs[-1]
    goal = np.maximum(q / np.maximum(q.sum(axis=0), 1e-12), 1e-12)

    def at(multiplier: float) -> Floats:
        r: Floats = goal * np.exp(-multiplier * (c - c[0]))[:, None]
        r /= r.sum(axis=0)
        return r

    def overspends(r: Floats) -> bool:
        return bool(r.mean(axis=1) @ c > target)

    steepest = _STEEPEST / (c[-1] - c[0])
    most = min(cost_weight / (kl_weight * budget / costs[-1]), steepest) if kl_weight else steepest
    sign = 1.0 if overspends(at(0.0)) else -1.0
    low, high = 0.0, most if cost_weight else 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if overspends(at(sign * middle)) == (sign > 0):
            low = middle
        else:
            high = middle
    return at(sign * high)


ASSIGNMENTS: dict[str, Callable[[], Assignment]] = {
    "geometric": Geometric,
    "searched": Searched,
    "shared": Shared,
    "exponential": ExponentialWeights,
    "learned": Learned,
}
"""The assignments that take a budget, by name."""


def fold_numbers(records: ExitRecords, seed: int, folds: int) -> Ints:
    """A fold for each sample, (N,), at random; samples with equal outputs at all exits share one."""
    _, group = np.unique(records.digests(), return_inverse=True)
    group = group.reshape(-1)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    numbers: Ints = order[group] % min(folds, len(order))
    return numbers
