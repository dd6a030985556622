"""Pacing: what mean cost to plan for next, so that what is spent keeps to the budget.

The controller aims at a planned cost x. Traffic that is harder or easier than the calibration records costs more or
less than planned, by an offset that is learned as an exponential mean of (observed - planned). What was spent above the
budget so far, the debt, is paid back over a horizon:

    x = budget - debt / horizon - offset.

With the offset's memory at a quarter of the horizon both vanish without swinging: for an offset that is constant, the
debt obeys a linear equation with the real poles 1 / horizon and 4 / horizon. This is integral control of the cost, or
online dual ascent on the multiplier of the budget's constraint, with the planned cost as the coordinate.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MEMORY = 0.25  # of the horizon: over how many samples the offset is learned
_LARGEST_STEP = 0.5  # of the way to a batch's own offset, however large the batch
_LARGEST_PAYBACK = 0.25  # of the range of planned costs, per sample
_DEBT_HORIZONS = 10  # a debt that would take longer to pay back at that rate is forgotten


@dataclass
class Pacer:
    """The aim, and what it is made of; costs are per sample, `debt` is a sum over samples.

    The aim lies between `low` and `high`, whatever is observed; `offset` and `debt` are bounded too.
    """

    budget: float
    low: float
    high: float
    horizon: float
    offset: float = 0.0
    debt: float = 0.0
    batch: float = 1.0

    @property
    def aim(self) -> float:
        """The planned cost to go for."""
        # A batch is decided before its cost is seen: what one batch pays back must not overshoot.
        most = _LARGEST_PAYBACK * (self.high - self.low)
        payback = min(max(self.debt / max(self.horizon, 2 * self.batch), -most), most)
        return min(max(self.budget - payback - self.offset, self.low), self.high)

    def observe(self, samples: int, spent: float, planned: float | None) -> None:
        """So many samples cost `spent` each on average where `planned` was planned, or nothing known."""
        if planned is not None:
            step = min(1 - math.exp(-samples / (_MEMORY * self.horizon)), _LARGEST_STEP)
            self.offset += step * (spent - planned - self.offset)
        most = _DEBT_HORIZONS * self.horizon * _LARGEST_PAYBACK * (self.high - self.low)
        self.debt = min(max(self.debt + samples * (spent - self.budget), -most), most)
        self.batch = float(samples)

    def to_dict(self) -> dict[str, float]:
        """What `take` reads back."""
        return {"budget": self.budget, "offset": self.offset, "debt": self.debt, "batch": self.batch}

    def take(self, data: Mapping[str, Any]) -> None:
        """Go on where `to_dict` was called."""
        self.budget, self.offset = float(data["budget"]), float(data["offset"])
        self.debt, self.batch = float(data["debt"]), float(data["batch"])


class Alternation:
    """Which of a ladder of planned costs to take next, so that their mean over samples is the aim.

    Only the two neighbors of the aim are taken; what one was off by is carried to the next choice (as in Bresenham's
    line), so that nothing is random.
    """

    def __init__(self, ladder: list[float]) -> None:
        self._ladder = ladder
        self.carry = 0.0

    def served(self, samples: int, aim: float, rung: int) -> None:
        """So many samples went by a rung when another cost was aimed at."""
        self.carry += samples * (aim - self._ladder[rung])

    def choose(self, aim: float, samples: float) -> int:
        """The rung for about this number of samples to come."""
        ladder = self._ladder
        upper = min(bisect_left(ladder, aim), len(ladder) - 1)
        lower = max(upper - 1, 0)
        if lower == upper:
            return upper
        # What is carried is at most what a batch twice as large as this one could have left.
        most = 2 * samples * (ladder[upper] - ladder[lower])
        self.carry = min(max(self.carry, -most), most)
        below = abs(self.carry + samples * (aim - ladder[lower]))
        above = abs(self.carry + samples * (aim - ladder[upper]))
        return upper if above < below else lower
