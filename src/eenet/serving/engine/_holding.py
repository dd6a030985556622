"""How long survivors stand before a deep stage for others to join them: as long as a call's fixed cost is worth.

Where that is large, waiting for a full batch saves it for everybody behind. Where it is small, as on most CPUs, waiting
gains little, and those who wait are the slowest answers there are.
"""

from __future__ import annotations

import numpy as np

CALLS = 12.0
"""Survivors wait for at most so many fixed costs of a call."""

SHARE = 1 / 6
"""They wait where the fixed cost is at least this share of what a call of a full batch costs.

By simulation (exits 40/30/20/10 %, batches of 8 and 16), against survivors that never wait: from this share on the
throughput is 1.09 to 1.44 times as high, and p99 at 0.9 load 0.67 to 1.05 times; at half of it 1.04 and up to 1.15.
"""

_FADING = 1.01  # a fastest call counts for so much more with each call of its size: what a stage takes may change
_CHANGED = 0.95
_REFIT = 32  # calls of a stage


def hold_of(fixed: float, full: float, most: float) -> float:
    """Seconds to hold survivors where a call costs `fixed` seconds and one of a full batch `full`; at most `most`.

    None at all where the fixed cost is a small part: whoever is held waits for another call at least.
    """
    return min(most, CALLS * fixed) if fixed >= SHARE * full else 0.0


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
