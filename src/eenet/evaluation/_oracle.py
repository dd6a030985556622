"""Bounds that know the labels: the oracle, which no scheduler can beat, and the best without a scheduler.

Both look at the labels of the very records they are asked about: schedulers are compared with them, they are none.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    of : tuple of str
        What it is made of: "exit 0" and so on, and "plain", the plain network. Empty for the oracle.

    Examples
    --------
    >>> from eenet.evaluation import random_mixture
    >>> from eenet.testing import toy_costs, toy_records
    >>> random_mixture(toy_records(), toy_costs(), 2.0).cost <= 2.0
    True
    """

    accuracy: float
    cost: float
    of: tuple[str, ...] = ()


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


def static_bounds(records: ExitRecords, costs: ExitCosts) -> list[Bound]:
    """What can be computed for all samples alike: each exit, and the plain network where its cost is known.

    The plain network has the last exit's answers. It comes last.
    """
    costs.require_exits(records.num_exits)
    accuracies = records.accuracies.tolist()
    found = [Bound(accuracies[k], cost, (f"exit {k}",)) for k, cost in enumerate(costs.static.tolist())]
    return found if costs.plain is None else [*found, Bound(accuracies[-1], costs.plain, ("plain",))]


def best_static(records: ExitRecords, costs: ExitCosts, limit: float) -> Bound:
    """The most accurate of `static_bounds` that costs at most `limit`; of equal ones the cheapest."""
    affordable = [one for one in static_bounds(records, costs) if one.cost <= limit * (1 + _SLACK)]
    return max(affordable, key=lambda one: (one.accuracy, -one.cost))


def upper_hull(points: Iterable[Bound]) -> list[Bound]:
    """The points of the upper concave hull, of rising cost and accuracy: between two of them lie their mixtures."""
    hull: list[Bound] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.accuracy)):
        if hull and point.accuracy <= hull[-1].accuracy:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(low: Bound, high: Bound) -> float:
    return (high.accuracy - low.accuracy) / (high.cost - low.cost)


def random_mixture(records: ExitRecords, costs: ExitCosts, budget: float | str) -> Bound:
    """The best accuracy within a budget where it is drawn at random what each sample is answered by.

    That is one of the exits or, where the costs have its cost, the plain network, which has the last exit's accuracy.
    The best is on the upper concave hull of their (cost, accuracy): one of them, or two in the proportion that spends
    the budget.

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
        The accuracy, the cost that it takes, and what is mixed.

    Raises
    ------
    InfeasibleBudgetError
        If the budget is below the first exit's cost.

    Examples
    --------
    >>> from eenet.costs import ExitCosts
    >>> from eenet.testing import toy_costs, toy_records
    >>> records, costs = toy_records(), toy_costs()
    >>> random_mixture(records, costs, "100%").of
    ('exit 2',)
    >>> random_mixture(records, ExitCosts([1.0, 2.0, 3.0], plain=2.7), "100%").of
    ('plain',)
    """
    limit = parse_budget(budget, costs)
    hull = upper_hull(static_bounds(records, costs))
    affordable = [one for one in hull if one.cost <= limit * (1 + _SLACK)]
    low = affordable[-1]
    if len(affordable) == len(hull) or low.cost >= limit * (1 - _SLACK):
        return low
    high = hull[len(affordable)]
    share = (limit - low.cost) / (high.cost - low.cost)
    return Bound((1 - share) * low.accuracy + share * high.accuracy, limit, (*low.of, *high.of))
