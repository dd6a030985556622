"""ExitCosts: the cumulative cost of each exit, with its unit and where it was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet.errors import InvalidInputError

_UNIT = re.compile(r"[A-Za-z][A-Za-z_]*")


@dataclass(frozen=True, init=False, eq=False)
class ExitCosts:
    """Cost per sample of stopping at each exit: K cumulative, increasing numbers in one unit.

    `unit` is "ms" (wall time), "cpu_ms", "flops" or a word of your own; `batch_size` is the batch they were measured
    at, `spread` (K,) the relative spread of the measurement, `device` a fingerprint of the machine, `includes` names
    the parts that are counted.
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
        spreads = None if spread is None else np.asarray(spread, dtype=np.float64)
        if spreads is not None and spreads.shape != array.shape:
            raise InvalidInputError(f"spread has shape {spreads.shape}, expected {array.shape}: one for each exit")
        array.setflags(write=False)
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExitCosts) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        at = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"ExitCosts([{', '.join(f'{v:.4g}' for v in self.values)}], unit={self.unit!r}{at})"

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
