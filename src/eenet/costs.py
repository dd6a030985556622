"""What reaching each exit costs, and what a budget is."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet._values import array_value
from eenet.errors import InfeasibleBudgetError, InvalidInputError, ReliabilityWarning

__all__ = ["Budget", "ExitCosts", "parse_budget"]

Budget = float | str
"""A number in the unit of the costs, "60%" of the last exit's cost, or a number with its unit such as "3.5ms"."""

_UNIT = re.compile(r"[A-Za-z][A-Za-z_]*")
_TEXT = re.compile(
    r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf)\s*(%|[a-zµμ_]+)?\s*", re.IGNORECASE
)
_ROUNDING = 1e-12

# Units that a budget may be given in where the costs are in another of the same kind; sizes are relative.
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0}
_COUNTS = {"flops": 1.0, "kflops": 1e3, "mflops": 1e6, "gflops": 1e9, "tflops": 1e12}


@array_value
@dataclass(frozen=True, init=False, repr=False)
class ExitCosts:
    """The cost per sample of stopping at each of K exits.

    Parameters
    ----------
    values : array_like of shape (K,)
        Cumulative costs: each counts the whole way to its exit. Positive, finite and increasing.
    unit : str
        "ms" (wall time), "cpu_ms" (time of the processor), "flops", or a word of your own.
    batch_size : int, optional
        The batch size of the measurement.
    spread : array_like of shape (K,), optional
        The relative spread of the measurement.
    device : mapping, optional
        Names and versions that identify the machine of the measurement.
    includes : tuple of str
        The parts that are counted, such as "heads" and "scheduler".

    Raises
    ------
    InvalidInputError
        If the values are not at least two positive, finite, increasing numbers, or the unit is not a word.

    Examples
    --------
    >>> costs = ExitCosts([1.5, 2.5, 4.0], unit="ms", batch_size=32)
    >>> costs
    ExitCosts([1.5, 2.5, 4], unit='ms', batch_size=32)
    >>> len(costs), costs[-1]
    (3, 4.0)
    """

    values: NDArray[np.float64]
    unit: str
    batch_size: int | None = None
    spread: NDArray[np.float64] | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...] = ()

    def __init__(
        self,
        values: ArrayLike,
        unit: str = "ms",
        *,
        batch_size: int | None = None,
        spread: ArrayLike | None = None,
        device: Mapping[str, Any] | None = None,
        includes: tuple[str, ...] = (),
    ) -> None:
        try:
            array = np.asarray(values)
        except (ValueError, TypeError, RuntimeError):  # lists within the list; tensors with gradients or on a GPU
            array = np.empty(0, dtype=np.object_)
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            raise InvalidInputError(f"costs are {values!r}, expected a list of numbers, one for each exit")
        array = array.astype(np.float64)
        if len(array) < 2:
            raise InvalidInputError(f"costs {array.tolist()} have {len(array)} exits, expected at least 2")
        if not np.isfinite(array).all() or (array <= 0).any():
            raise InvalidInputError(f"costs {array.tolist()} must be finite and above 0")
        if (np.diff(array) <= 0).any():
            k = int(np.flatnonzero(np.diff(array) <= 0)[0])
            raise InvalidInputError(
                f"costs {array.tolist()} must increase: exit {k + 1} costs {array[k + 1]:g} after {array[k]:g}; give "
                "cumulative costs (the whole way to each exit), and drop an exit that is no cheaper than a later one"
            )
        if not isinstance(unit, str) or not _UNIT.fullmatch(unit):
            raise InvalidInputError(f"unit {unit!r} is not a word; use 'ms', 'cpu_ms', 'flops' or one of your own")
        spreads = None if spread is None else np.array(spread, dtype=np.float64)
        if spreads is not None and spreads.shape != array.shape:
            raise InvalidInputError(f"spread has shape {spreads.shape}, expected {array.shape}: one for each exit")
        for numbers in (array, spreads):
            if numbers is not None:
                numbers.setflags(write=False)
        object.__setattr__(self, "values", array)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "batch_size", batch_size)
        object.__setattr__(self, "spread", spreads)
        object.__setattr__(self, "device", dict(device or {}))
        object.__setattr__(self, "includes", tuple(includes))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, exit_index: int) -> float:
        return float(self.values[exit_index])

    def __repr__(self) -> str:
        at = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"ExitCosts([{', '.join(f'{v:.4g}' for v in self.values)}], unit={self.unit!r}{at})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made by the constructor, so that their arrays are read-only too."""
        return ExitCosts.from_dict, (self.to_dict(),)

    def require_exits(self, exits: int) -> None:
        """Raise `InvalidInputError` unless there is one cost for each of `exits` exits."""
        if len(self) != exits:
            raise InvalidInputError(
                f"costs are for {len(self)} exits, the records or the model have {exits}; give one cost for each exit"
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, read back by `from_dict`."""
        return {
            "values": self.values.tolist(),
            "unit": self.unit,
            "batch_size": self.batch_size,
            "spread": None if self.spread is None else self.spread.tolist(),
            "device": dict(self.device),
            "includes": list(self.includes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExitCosts:
        """Costs from what `to_dict` gave."""
        try:
            return cls(
                data["values"],
                data["unit"],
                batch_size=data.get("batch_size"),
                spread=data.get("spread"),
                device=data.get("device"),
                includes=tuple(data.get("includes", ())),
            )
        except KeyError as error:
            raise InvalidInputError(f"costs need {error.args[0]!r}; found {sorted(data)}") from error


def parse_budget(budget: Budget, costs: ExitCosts) -> float:
    """The average cost per sample that a budget allows, in the unit of the costs.

    Parameters
    ----------
    budget : float or str
        A number in the unit of the costs, a share of the last exit's cost such as "60%", or a number with a unit of the
        same kind as that of the costs: "3ms", "3000us", "0.003s", "250 MFLOPs".
    costs : ExitCosts
        The costs of the exits.

    Returns
    -------
    float
        The budget, at least the first exit's cost.

    Raises
    ------
    InvalidInputError
        If the budget cannot be read.
    InfeasibleBudgetError
        If it is below the first exit's cost.

    Warns
    -----
    ReliabilityWarning
        If it is above the last exit's cost: then every policy fits, and some of it cannot be spent.

    Examples
    --------
    >>> costs = ExitCosts([1.0, 2.0, 5.0], unit="ms")
    >>> parse_budget("60%", costs), parse_budget(2.5, costs), parse_budget("2500us", costs)
    (3.0, 2.5, 2.5)
    """
    value = _number(budget, costs)
    if not math.isfinite(value) or value <= 0:
        raise InvalidInputError(
            f"budget {budget!r} is not a positive, finite number; try '60%' or {costs[-1] * 0.6:.4g}"
        )
    if value < costs[0] * (1 - _ROUNDING):
        raise InfeasibleBudgetError(
            f"budget {budget!r} is {value:.6g} {costs.unit}, below the first exit's cost: the smallest feasible budget "
            f"is {costs[0]:.6g} {costs.unit}, or {100 * costs[0] / costs[-1]:.3g}% of the last exit's cost"
            f"{_hint(budget, most=1.0)}",
            smallest=costs[0],
        )
    if value > costs[-1] * (1 + _ROUNDING):
        amount = f"is {value:.6g} {costs.unit}," if isinstance(budget, str) else "is"
        warnings.warn(
            f"budget {budget!r} {amount} above the last exit's cost of {costs[-1]:.6g} {costs.unit}: all of it cannot "
            f"be spent{_hint(budget, most=100.0)}",
            ReliabilityWarning,
            stacklevel=3,
        )
    return max(value, costs[0])


def _hint(budget: Budget, *, most: float) -> str:
    """What to write instead of a number that is probably meant as a share, in 1 or in 100, of the last exit's cost."""
    if isinstance(budget, str) or budget > most:
        return ""
    return f"; if you mean a share of the last exit's cost, write '{float(budget) * 100 / most:.6g}%'"


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
        scale = _scale(unit, costs.unit)
        if scale is None:
            raise InvalidInputError(f"budget {budget!r} is in {unit!r}, the costs are in {costs.unit!r}; {remedy}")
        return number * scale
    # A bool is a Real in Python, numpy's is not: neither is a budget.
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise InvalidInputError(f"budget {budget!r} is not a number; {remedy}")
    return float(budget)


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
