"""Two more ways to divide a budget: one threshold for all exits, and EERO's exponential weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eenet.errors import InvalidInputError
from eenet.scheduler._assignments import TIES, Calibration, Plan
from eenet.scheduler._policy import Floats
from eenet.scheduler._thresholds import ScoreTable, Thresholds, within


@dataclass(frozen=True)
class SharedAssignment:
    """One threshold for all exits, the one that spends the budget: for scores that mean the same at each exit.

    What is left of less than a sample is spent by single thresholds. Source: the one confidence threshold of, for
    example, Wolczyk et al. (NeurIPS 2021).
    """

    name: str = "shared"
    table_points: int = 101
    unspent: str | None = TIES

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:  # noqa: ARG002 - the protocol's
        """The plan for one budget."""
        table, costs = calibration.table, calibration.costs
        table.require_feasible(budget)
        levels = np.unique(table.scores[table.finite])
        best = table.cheapest()
        low, high = 0, len(levels)
        while low < high:
            middle = (low + high) // 2
            thresholds = _at_level(table, float(levels[middle]))
            if table.mean_cost(thresholds) <= within(budget):
                low, best = middle + 1, thresholds
            else:
                high = middle
        return Plan(table.spend_rest(best, budget), min(budget, costs[-1]))


def _at_level(table: ScoreTable, level: float) -> Thresholds:
    """Every exit lets go who scores at least the level; a tie that it would part leaves as a whole."""
    values, enabled = np.zeros(table.early), np.zeros(table.early, dtype=np.bool_)
    alive = np.ones(table.samples, dtype=np.bool_)
    for k in range(table.early):
        ranked = table.ranked(k, alive)
        cuts = table.cuts(k, ranked)
        wanted = int((table.scores[k, ranked] >= level).sum())
        leavers = int(cuts[np.searchsorted(cuts, wanted)])
        values[k], enabled[k] = table.threshold(k, ranked, leavers)
        alive[ranked[:leavers]] = False
    return Thresholds(values, enabled)


@dataclass(frozen=True)
class ExponentialWeightsAssignment:
    """EERO's exit shares: p_k proportional to exp(-(R_k + lambda c_k) / beta), lambda chosen to spend the budget.

    R_k is the error rate of exit k on the calibration set; the most confident share leaves, the rest is rejected to
    later exits. A small beta trusts the error rates, a large one spreads the samples evenly; of several, the one with
    the highest calibration accuracy is taken. Needs labels. Source: Valade, Hebiri and Gay, "EERO: Early Exit with
    Reject Option for Efficient Classification with limited budget" (arXiv 2402.03779; UAI 2025).
    """

    betas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    name: str = "exponential weights"
    table_points: int = 21
    unspent: str | None = TIES

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta < np.inf for beta in self.betas):
            raise InvalidInputError(f"betas are {self.betas}, expected at least one number, each above 0")

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:  # noqa: ARG002 - the protocol's
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
