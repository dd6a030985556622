"""How long survivors stand before a deep stage for others to join them: as long as a call's fixed cost is worth.

Where that is large, waiting for a full batch saves it for everybody behind. Where it is small, as on most CPUs, waiting
gains little, and those who wait are the slowest answers there are.
"""

from __future__ import annotations

import numpy as np

CALLS = 12.0
"""Survivors wait for at most so many fixed costs of a call. By simulation, where a call costs as much as 16 samples the
throughput is within 3 % of waiting for a second with 8, and the same with 16."""

_FADING = 1.01  # a fastest call counts for so much more with each call of its size: what a stage takes may change
_CHANGED = 0.95
_REFIT = 32  # calls of a stage


def hold_of(fixed: float, full: float, most: float) -> float:
    """Seconds to hold survivors where a call costs `fixed` seconds and one of a full batch `full`; at most `most`.

    None at all where that is less than a call: whoever is held waits for one at least.
    """
    hold = CALLS * fixed
    return min(most, hold) if hold >= full else 0.0


class FixedCosts:
    """What a call of each stage costs whatever its samples, learned from the calls; `hold` follows from it.

    A line through the fastest calls of each size; slower ones say more of the machine than of the stage. The stage that
    is worth the longest wait decides.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._fastest: dict[int, dict[int, float]] = {}
        self._calls: dict[int, int] = {}
        self._holds: dict[int, float] = {}
        self.hold = most

    def add(self, stage: int, samples: int, seconds: float) -> float:
        """A stage was run: how long to hold from now on."""
        fastest = self._fastest.setdefault(stage, {})
        before = fastest.get(samples, np.inf) * _FADING
        fastest[samples] = min(before, seconds)
        self._calls[stage] = self._calls.get(stage, 0) + 1
        if seconds < before * _CHANGED or self._calls[stage] % _REFIT == 0:
            self._fit(stage)
        return self.hold

    def _fit(self, stage: int) -> None:
        sizes = np.array(list(self._fastest[stage]), dtype=np.float64)
        if sizes.max() < 2 * sizes.min():
            return  # all calls were alike, so there is no telling
        seconds = np.array(list(self._fastest[stage].values()))
        off = sizes - sizes.mean()
        slope = max(float(off @ seconds / (off @ off)), 0.0)
        fixed = max(float(seconds.mean() - slope * sizes.mean()), 0.0)
        self._holds[stage] = hold_of(fixed, fixed + slope * float(sizes.max()), self._most)
        self.hold = max(self._holds.values())
