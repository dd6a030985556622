"""A budget: the average cost per sample that must not be exceeded."""

from __future__ import annotations

import math
import re
import warnings
from numbers import Real

from eenet.costs._costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError, ReliabilityWarning

Budget = float | str
"""A number in the unit of the costs, "60%" of the last exit's cost, or a number with its unit such as "3.5ms"."""

_TEXT = re.compile(
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf)\s*(%|[a-z][a-z_]*)?\s*", re.IGNORECASE | re.ASCII
)


def parse_budget(budget: Budget, costs: ExitCosts) -> float:
    """The budget as a number in the unit of `costs`.

    Raises `InvalidInputError` for what is not a budget, `InfeasibleBudgetError` below the first exit's cost; warns
    (`ReliabilityWarning`) above the last exit's, where every policy fits.
    """
    value = _number(budget, costs)
    if not math.isfinite(value) or value <= 0:
        raise InvalidInputError(
            f"budget {budget!r} is not a positive, finite number; try '60%' or {costs[-1] * 0.6:.4g}"
        )
    if value < costs[0] * (1 - 1e-12):
        raise InfeasibleBudgetError(
            f"budget {budget!r} is {value:.6g} {costs.unit}, below the first exit's cost: the smallest feasible budget "
            f"is {costs[0]:.6g} {costs.unit}",
            smallest=costs[0],
        )
    if value > costs[-1] * (1 + 1e-12):
        warnings.warn(
            f"budget {budget!r} is above the last exit's cost of {costs[-1]:.6g} {costs.unit}: all of it cannot be "
            "spent",
            ReliabilityWarning,
            stacklevel=3,
        )
    return max(value, costs[0])


def _number(budget: object, costs: ExitCosts) -> float:
    remedy = f"give a number in {costs.unit}, '60%', or '{costs[-1] * 0.6:.4g}{costs.unit}'"
    if isinstance(budget, str):
        match = _TEXT.fullmatch(budget)
        if match is None:
            raise InvalidInputError(f"budget {budget!r} cannot be read; {remedy}")
        number, unit = float(match[1]), match[2]
        if unit is None:
            raise InvalidInputError(f"budget {budget!r} is text without a unit; {remedy}")
        if unit == "%":
            return number / 100 * costs[-1]
        if unit.lower() != costs.unit.lower():
            raise InvalidInputError(f"budget {budget!r} is in {unit!r}, the costs are in {costs.unit!r}; {remedy}")
        return number
    # A bool is a Real in Python, numpy's is not: neither is a budget.
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise InvalidInputError(f"budget {budget!r} is not a number; {remedy}")
    return float(budget)
