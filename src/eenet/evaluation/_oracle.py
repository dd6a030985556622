"""Bounds that know the labels: the oracle, which no scheduler can beat, and the best random mixture of exits.

Both look at the labels of the very records they are asked about: schedulers are compared with them, they are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts, parse_budget
from eenet.records import ExitRecords

Floats = NDArray[np.float64]

_SLACK = 1e-12  # the rounding of a sum of N costs


@dataclass(frozen=True)
class Bound:
    """Mean utility (for classification: accuracy) in [0, 1], and mean cost per sample in the unit of the costs.

    Parameters
    ----------
    accuracy : float
        What can be reached.
    cost : float
        The mean cost that it takes.

    Examples
    --------
    >>> from eenet.evaluation import random_mixture
    >>> from eenet.testing import toy_costs, toy_records
    >>> random_mixture(toy_records(), toy_costs(), 2.0).cost <= 2.0
    True
    """

    accuracy: float
    cost: float


def oracle(records: ExitRecords, costs: ExitCosts, budget: float | str) -> Bound:
    """The best accuracy within a budget where each sample's exit may be chosen by its label.

    It is exact where the utility is 0 or 1: samples that a deeper exit gets right are sent there, the cheapest gains
    first. For utilities in between, gains are taken by utility per cost; it then falls short of the best by less than
    one gain.

    Parameters
    ----------
    records : ExitRecords
        Records with labels.
    costs : ExitCosts
        The costs of the exits.
    budget : float or str
        The average cost per sample; see `eenet.costs.parse_budget`.

    Returns
    -------
    Bound
        The accuracy, and the cost that it takes.

    Raises
    ------
    InfeasibleBudgetError
        If the budget is below the first exit's cost.

    Examples
    --------
    >>> from eenet.testing import toy_costs, toy_records
    >>> records, costs = toy_records(), toy_costs()
    >>> oracle(records, costs, "60%").accuracy > random_mixture(records, costs, "60%").accuracy
    True
    """
    costs.require_exits(records.num_exits)
    limit = parse_budget(budget, costs)
    utility = records.require_utility().astype(np.float64)
    gain, price = _moves(utility, costs.values)
    # Within a sample the gain per cost falls from move to move, so this order never takes a later move first.
    order = np.lexsort((price, -gain / price))
    spare = (limit * (1 + _SLACK) - costs[0]) * len(records)
    spent = np.cumsum(price[order])
    taken = order[: int(np.searchsorted(spent, spare, side="right"))]
    return Bound(
        float((utility[0].sum() + gain[taken].sum()) / len(records)),
        float(costs[0] + price[taken].sum() / len(records)),
    )


def _moves(utility: Floats, costs: Floats) -> tuple[Floats, Floats]:
    """Gain and price of every worthwhile move to a deeper exit: the concave hull of (cost, utility) of each sample."""
    exits, samples = utility.shape
    rows = np.arange(samples)
    here = np.zeros(samples, dtype=np.intp)
    gains, prices = [], []
    while len(rows):
        rise = utility[:, rows] - utility[here, rows]
        run = costs[:, None] - costs[here]
        slope = np.divide(rise, run, out=np.zeros_like(rise), where=run > 0)
        # Of equal slopes the farthest, so that the next move gains strictly less for its price.
        there = exits - 1 - slope[::-1].argmax(axis=0)
        better = slope[there, np.arange(len(rows))] > 0
        rows, here, there = rows[better], here[better], there[better]
        gains.append(utility[there, rows] - utility[here, rows])
        prices.append(costs[there] - costs[here])
        here = there
    return np.concatenate([np.zeros(0), *gains]), np.concatenate([np.zeros(0), *prices])


def random_mixture(records: ExitRecords, costs: ExitCosts, budget: float | str) -> Bound:
    """The best accuracy within a budget where each sample's exit is drawn at random.

    It is the upper concave hull of (cost, accuracy) of the single exits, at the budget: one exit, or two of them in the
    proportion that spends it.

    Parameters
    ----------
    records : ExitRecords
        Records with labels.
    costs : ExitCosts
        The costs of the exits.
    budget : float or str
        The average cost per sample; see `eenet.costs.parse_budget`.

    Returns
    -------
    Bound
        The accuracy, and the cost that it takes.

    Raises
    ------
    InfeasibleBudgetError
        If the budget is below the first exit's cost.

    Examples
    --------
    >>> from eenet.testing import toy_costs, toy_records
    >>> records, costs = toy_records(), toy_costs()
    >>> random_mixture(records, costs, "100%") == Bound(accuracy=records.accuracies[2], cost=3.0)
    True
    """
    costs.require_exits(records.num_exits)
    limit = parse_budget(budget, costs)
    accuracy = records.accuracies
    affordable = [k for k in range(len(costs)) if costs[k] <= limit * (1 + _SLACK)]
    choices = [Bound(float(accuracy[k]), costs[k]) for k in affordable]
    for low in affordable:
        for high in range(len(affordable), len(costs)):
            share = (limit - costs[low]) / (costs[high] - costs[low])
            choices.append(Bound(float((1 - share) * accuracy[low] + share * accuracy[high]), limit))
    return max(choices, key=lambda bound: (bound.accuracy, -bound.cost))
