"""What a budget is: a number, a share or a number with its unit, read in the unit of the costs."""

from __future__ import annotations

import math
import re
from numbers import Real

from eenet._warn import warn
from eenet.costs._exit_costs import LAST, PLAIN, ROUNDING, ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError, ReliabilityWarning

Budget = float | str
"""A number in the unit of the costs, "60%" of the plain network, or a number with its unit such as "3.5ms".

A percentage is of the plain network where the costs have it, otherwise of the last exit; "60% of plain" and "60% of
last" say which.
"""

_TEXT = re.compile(
    r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf)\s*(%|[a-zµμ_]+)?\s*", re.IGNORECASE
)
_SHARE = re.compile(r"(.*%)\s*of\s+(?:the\s+)?(plain|last)(?:\s+(?:network|exit))?(?:'s\s+cost)?\s*", re.IGNORECASE)
_PERCENTILE = re.compile(r".*(?:\bp[0-9]{1,2}(?:\.[0-9]+)?\b|percentile).*", re.IGNORECASE)

# Units that a budget may be given in where the costs are in another of the same kind; sizes are relative.
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0}
_COUNTS = {"flops": 1.0, "kflops": 1e3, "mflops": 1e6, "gflops": 1e9, "tflops": 1e12}


def parse_budget(budget: Budget, costs: ExitCosts) -> float:
    """The average cost per sample that a budget allows, in the unit of the costs.

    Parameters
    ----------
    budget : float or str
        A number in the unit of the costs; a share such as "60%", of the plain network where the costs have it and
        otherwise of the last exit ("60% of plain" and "60% of last" say which); or a number with a unit of the same
        kind as that of the costs: "3ms", "3000us", "0.003s", "250 MFLOPs".
    costs : ExitCosts
        The costs of the exits.

    Returns
    -------
    float
        The budget, at least the first exit's cost.

    Raises
    ------
    InvalidInputError
        If the budget cannot be read, is of the plain network where the costs lack it, or limits a percentile.
    InfeasibleBudgetError
        If it is below the first exit's cost.

    Warns
    -----
    ReliabilityWarning
        If it is above the last exit's cost: then every policy fits, and some of it cannot be spent. Not for a share up
        to 100% of the plain network, which may be measured above the last exit.

    Examples
    --------
    >>> costs = ExitCosts([1.0, 2.0, 5.0], unit="ms")
    >>> parse_budget("60%", costs), parse_budget(2.5, costs), parse_budget("2500us", costs)
    (3.0, 2.5, 2.5)
    >>> costs = ExitCosts([1.0, 2.0, 5.0], unit="ms", plain=4.0)
    >>> parse_budget("60%", costs), parse_budget("60% of last", costs)
    (2.4, 3.0)
    """
    value, whole = budget_and_whole(budget, costs)
    if not math.isfinite(value) or value <= 0:
        raise InvalidInputError(
            f"budget {budget!r} is not a positive, finite number; try '60%' or {costs.reference * 0.6:.4g}"
        )
    amount = _amount(value, costs, whole)
    if value < costs[0] * (1 - ROUNDING):
        raise InfeasibleBudgetError(
            f"budget {budget!r} is {amount}, below the first exit's cost: the smallest feasible budget is "
            f"{costs[0]:.6g} {costs.unit}, or {_at_least(100 * costs[0] / costs.reference)}% of {costs.reference_name}"
            f"{_hint(budget, costs, most=1.0)}",
            smallest=costs[0],
        )
    if value > costs[-1] * (1 + ROUNDING) and not (whole == PLAIN and value <= costs.reference * (1 + ROUNDING)):
        is_amount = f"is {amount}," if isinstance(budget, str) else "is"
        warn(
            f"budget {budget!r} {is_amount} above the last exit's cost of {costs[-1]:.6g} {costs.unit}: all of it "
            f"cannot be spent{_hint(budget, costs, most=100.0)}",
            ReliabilityWarning,
        )
    return max(value, costs[0])


def _at_least(share: float) -> str:
    """A percentage rounded up, so that it is feasible as it is written."""
    return f"{math.ceil(share * 10 * (1 - ROUNDING)) / 10:g}"


def _amount(value: float, costs: ExitCosts, whole: str | None) -> str:
    """A budget as an amount, and for a share what it is of."""
    if whole is None:
        return f"{value:.6g} {costs.unit}"
    cost = costs[-1] if whole == LAST else costs.reference
    return f"{100 * value / cost:.6g}% of {whole}, {value:.6g} {costs.unit}"


def _hint(budget: Budget, costs: ExitCosts, *, most: float) -> str:
    """What to write instead of a number that is probably meant as a share, in 1 or in 100."""
    if isinstance(budget, str) or budget > most:
        return ""
    return f"; if you mean a share of {costs.reference_name}, write '{float(budget) * 100 / most:.6g}%'"


def budget_and_whole(budget: object, costs: ExitCosts) -> tuple[float, str | None]:
    """A budget in the unit of the costs, and for a share what it is of."""
    remedy = f"give a number in {costs.unit}, '60%', or '{costs.reference * 0.6:.4g}{costs.unit}'"
    if isinstance(budget, str):
        return _read(budget, costs, remedy)
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise InvalidInputError(f"budget {budget!r} is not a number; {remedy}")
    return float(budget), None


def _read(budget: str, costs: ExitCosts, remedy: str) -> tuple[float, str | None]:
    if _PERCENTILE.fullmatch(budget):
        raise InvalidInputError(
            f"budget {budget!r} limits a percentile, and a budget is the mean cost per sample: thresholds fix how many "
            "samples exit where, and with it the mean, while the percentiles of latency depend on load and batching as "
            f"well; {remedy}, and find the replicas for a percentile with eenet plan --p99-ms"
        )
    of = _SHARE.fullmatch(budget)
    match = _TEXT.fullmatch(of[1] if of is not None else budget)
    if match is None:
        raise InvalidInputError(f"budget {budget!r} cannot be read; {remedy}")
    number, unit = float(match[1]), match[2]
    if unit is None:
        likely = f"{number * 100 if number <= 1 else number:.6g}%"
        raise InvalidInputError(
            f"budget {budget!r} is text without a unit; write {likely!r} for a share of {costs.reference_name}, or "
            f"'{match[1]}{costs.unit}'"
        )
    if unit == "%":
        if of is not None and of[2].lower() == "plain" and costs.plain is None:
            raise InvalidInputError(
                f"budget {budget!r} is a share of the plain network, whose cost is not known: measure it with "
                "eenet.profile, or give it, ExitCosts(..., plain=...) or --plain; a share of the last exit is "
                f"'{match[1]}%'"
            )
        last = of is not None and of[2].lower() == "last"
        return number / 100 * (costs[-1] if last else costs.reference), LAST if last else costs.reference_name
    scale = _scale(unit, costs.unit)
    if scale is None:
        raise InvalidInputError(f"budget {budget!r} is in {unit!r}, the costs are in {costs.unit!r}; {remedy}")
    return number * scale, None


def is_time(unit: str) -> bool:
    """Whether costs in this unit are times, so that fewer of them are faster; FLOPs, bytes and cents are not."""
    return unit.lower().replace("µ", "u").replace("μ", "u").removeprefix("cpu_") in _TIMES


def _scale(unit: str, other: str) -> float | None:
    """How many of the unit `other` one `unit` is; None where they measure different things."""
    one, two = (name.lower().replace("µ", "u").replace("μ", "u") for name in (unit, other))
    if one == two:
        return 1.0
    if two.startswith("cpu_"):  # of "cpu_ms", other times of the processor: wall time is another thing
        one, two = (name.removeprefix("cpu_") if name.startswith("cpu_") else "" for name in (one, two))
    for sizes in (_TIMES, _COUNTS):
        if one in sizes and two in sizes:
            return sizes[one] / sizes[two]
    return None
