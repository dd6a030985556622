"""Drift: whether samples take the exits that the calibration records say, by a test that may be read after each batch.

For each early exit k, each side (more or fewer than planned exit at exits 0..k) and several effect sizes a bettor
starts with the same small capital and bets, before each batch, that the share is beyond the planned one by more than
the calibration records' own uncertainty; each batch multiplies the capital by its likelihood ratio. While the true
share under each policy in force is within that uncertainty, the total capital is a supermartingale, whatever chooses
the policies, and reaches 1 / error at any time with probability at most `error` (Ville's inequality). A part of the
capital is put in before every batch, so that a drift that begins late is found as well.

The uncertainty of the planned shares is the Dvoretzky-Kiefer-Wolfowitz band with Massart's constant: it holds for all
nested policies of one score at once. Half of the allowed error is spent on the band, half on the test.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024); Shin, Ramdas and
Rinaldo, "E-detectors" (2023), for starting again at every time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eenet.scheduler._policy import Floats, Ints

_EFFECTS = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])  # in log odds
_LARGEST = 1e40  # capital beyond this is given away: it changes nothing that is ever asked
_LARGEST_GAIN = 600.0  # its logarithm, in one batch


@dataclass(frozen=True)
class DriftReport:
    """Whether traffic still takes the exits that were planned.

    `samples` were tested; `shares` of them left at each exit, (K,), where `planned` was planned for the policies they
    went by; both None before the first. `evidence` against no drift: the largest so far; `p_value` is its inverse, at
    most 1. `alarm` where it is at most the level; `alarm_at` is the number of samples after which it first was.
    """

    samples: int
    shares: tuple[float, ...] | None
    planned: tuple[float, ...] | None
    evidence: float
    p_value: float
    alarm: bool
    alarm_at: int | None


class DriftTest:
    """A sequential test of exit shares against those of a table of policies, (G, K), from `samples` records."""

    def __init__(self, shares: Floats, samples: int, level: float) -> None:
        self._shares = shares
        self._error = level / 2
        early = shares.shape[1] - 1
        band = math.sqrt(math.log(2 * early / (level / 2)) / (2 * samples))
        reached = np.cumsum(shares, axis=1)[:, :early]
        # (G, 2, K-1): the null's edge on either side; beyond 0 or 1 nothing can be said.
        edge = np.stack([reached + band, 1 - reached + band], axis=1)
        known = edge < 1
        edge = np.where(known, edge, 0.5)[..., None]
        odds = edge / (1 - edge) * np.exp(_EFFECTS)
        bet = odds / (1 + odds)
        self._inside: Floats = np.where(known[..., None], np.log(bet / edge), 0.0)
        self._outside: Floats = np.where(known[..., None], np.log((1 - bet) / (1 - edge)), 0.0)
        self.restart()

    def restart(self) -> None:
        """Forget everything observed."""
        self._capital: Floats = np.zeros(self._inside.shape[1:])
        self._rounds = 0
        self._counts: Ints = np.zeros(self._shares.shape[1], dtype=np.intp)
        self._expected: Floats = np.zeros(self._shares.shape[1])
        self._evidence = 1.0
        self._alarm_at: int | None = None

    def observe(self, row: int, counts: Ints) -> None:
        """Count the samples that exited at each exit, (K,), under the policy of a row."""
        samples = counts.sum()
        left = counts.cumsum()[:-1]
        split = np.stack([left, samples - left])[..., None]
        gain = split * self._inside[row] + (samples - split) * self._outside[row]
        self._rounds += 1
        stake = 1 / (self._rounds * (self._rounds + 1))  # all of them add up to 1
        self._capital = np.minimum((self._capital + stake) * np.exp(np.minimum(gain, _LARGEST_GAIN)), _LARGEST)
        self._counts = self._counts + counts
        self._expected = self._expected + samples * self._shares[row]
        self._evidence = max(self._evidence, float(self._capital.mean()) + 1 / (self._rounds + 1))
        if self._alarm_at is None and self._evidence * self._error >= 1:
            self._alarm_at = int(self._counts.sum())

    def report(self) -> DriftReport:
        """What is known so far."""
        total = int(self._counts.sum())
        return DriftReport(
            samples=total,
            shares=tuple((self._counts / total).tolist()) if total else None,
            planned=tuple((self._expected / total).tolist()) if total else None,
            evidence=self._evidence,
            p_value=min(1.0, 1 / self._evidence + self._error),
            alarm=self._alarm_at is not None,
            alarm_at=self._alarm_at,
        )

    def to_dict(self) -> dict[str, Any]:
        """What `take` reads back."""
        return {
            "capital": self._capital.tolist(),
            "rounds": self._rounds,
            "counts": self._counts.tolist(),
            "expected": self._expected.tolist(),
            "evidence": self._evidence,
            "alarm_at": self._alarm_at,
        }

    def take(self, data: Mapping[str, Any]) -> None:
        """Go on where `to_dict` was called."""
        self._capital = np.array(data["capital"], dtype=np.float64).reshape(self._capital.shape)
        self._rounds = int(data["rounds"])
        self._counts = np.array(data["counts"], dtype=np.intp).reshape(self._counts.shape)
        self._expected = np.array(data["expected"], dtype=np.float64).reshape(self._expected.shape)
        self._evidence = float(data["evidence"])
        self._alarm_at = None if data["alarm_at"] is None else int(data["alarm_at"])
