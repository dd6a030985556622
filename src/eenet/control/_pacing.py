"""What a controller steers by: the pace of spending, the quotas of exits, and the test for drift.

**Pacing** says what mean cost to plan for next, so that what is spent keeps to the budget.
The controller aims at a planned cost x. Traffic that is harder or easier than the calibration records costs more or
less than planned, by an offset that is learned as an exponential mean of (observed - planned). What was spent above the
budget so far, the debt, is paid back over a horizon:

    x = budget - debt / horizon - offset.

With the offset's memory at a quarter of the horizon both vanish without swinging: for an offset that is constant, the
debt obeys a linear equation with the real poles 1 / horizon and 4 / horizon. This is integral control of the cost, or
online dual ascent on the multiplier of the budget's constraint, with the planned cost as the coordinate.

**Drift**: whether samples take the exits that the calibration records say, by a test that may be read after each batch.
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
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.scheduler._policy import Bools, Floats, Ints, ThresholdPolicy

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
        """The planned cost of the next samples."""
        # A batch is decided before its cost is seen: what one batch pays back must not overshoot.
        most = _LARGEST_PAYBACK * (self.high - self.low)
        payback = min(max(self.debt / max(self.horizon, 2 * self.batch), -most), most)
        return min(max(self.budget - payback - self.offset, self.low), self.high)

    def observe(self, samples: int, spent: float, planned: float | None) -> None:
        """Note that `samples` cost `spent` each on average and were planned to cost `planned`, if known."""
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
        """Continue from what `to_dict` gave."""
        self.budget, self.offset = float(data["budget"]), float(data["offset"])
        self.debt, self.batch = float(data["debt"]), float(data["batch"])


class Alternation:
    """Which of several planned costs, ascending, to take next, so that their mean over samples is the aim.

    Only the two neighbors of the aim are taken; what one was off by is carried to the next choice (as in Bresenham's
    line), so that nothing is random.
    """

    def __init__(self, planned: list[float]) -> None:
        self._planned = planned
        self.carry = 0.0

    def served(self, samples: int, aim: float, step: int) -> None:
        """Note that `samples` were planned at the cost of `step` while `aim` was the aim."""
        self.carry += samples * (aim - self._planned[step])

    def choose(self, aim: float, samples: float) -> int:
        """The index of the planned cost for about this number of samples."""
        planned = self._planned
        upper = min(bisect_left(planned, aim), len(planned) - 1)
        lower = max(upper - 1, 0)
        if lower == upper:
            return upper
        # What is carried is at most what a batch twice as large as this one could have left.
        most = 2 * samples * (planned[upper] - planned[lower])
        self.carry = min(max(self.carry, -most), most)
        below = abs(self.carry + samples * (aim - planned[lower]))
        above = abs(self.carry + samples * (aim - planned[upper]))
        return upper if above < below else lower


_SLACK = 1e-9  # the rounding of sums of shares


class Quotas:
    """What is owed to each exit by its floor, and what each has above its ceiling, in samples.

    Both are counted up and down with every sample and never saved up beyond `burst` samples: an exit that had more than
    its share earlier soon gets samples again. So in any stretch of n samples at least floor n - burst - b take an exit,
    and at most ceiling n + burst + b, where b is the samples of K batches; from the start, without the burst.
    """

    def __init__(self, floor: Floats, ceiling: Floats, burst: float) -> None:
        self.floor = floor
        self.ceiling = ceiling
        self._burst = burst
        self.owed: Floats = np.zeros(len(floor))
        self.above: Floats = np.zeros(len(floor))

    @classmethod
    def parse(cls, floor: Sequence[float] | None, ceiling: Sequence[float] | None, exits: int, burst: float) -> Quotas:
        """Check what a user gave; raises `InvalidInputError` for shares that cannot all be kept."""
        least = _shares("floor", floor, exits, 0.0)
        most = _shares("ceiling", ceiling, exits, 1.0)
        if (least > most + _SLACK).any():
            k = int(np.flatnonzero(least > most + _SLACK)[0])
            raise InvalidInputError(
                f"exit {k} has the floor {least[k]:g} and the ceiling {most[k]:g}: the floor must be the smaller"
            )
        if least.sum() > 1 + _SLACK:
            raise InvalidInputError(f"the floors {least.tolist()} add up to {least.sum():g}, more than all samples")
        if most.sum() < 1 - _SLACK:
            raise InvalidInputError(
                f"the ceilings {most.tolist()} add up to {most.sum():g}: some samples could not exit"
            )
        return cls(least, np.maximum(most, least), burst)

    def require_affordable(self, budget: float, costs: ExitCosts) -> None:
        """Raise `InfeasibleBudgetError` where even the cheapest shares within the quotas cost more than the budget."""
        shares, rest = self.floor.copy(), 1 - self.floor.sum()
        for k in range(len(shares)):
            more = min(rest, self.ceiling[k] - shares[k])
            shares[k] += more
            rest -= more
        smallest = float(shares @ costs.values)
        if smallest > budget * (1 + _SLACK):
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {costs.unit} cannot be kept with these floors and ceilings; the smallest that "
                f"can is {smallest:.6g} {costs.unit}",
                smallest=smallest,
            )

    @property
    def any(self) -> bool:
        """Whether there is anything to keep."""
        return bool((self.floor > 0).any() or (self.ceiling < 1).any())

    def observe(self, counts: Ints) -> None:
        """Count the samples that exited at each exit, (K,)."""
        total = counts.sum()
        self.owed = np.maximum(self.owed + self.floor * total - counts, -self._burst)
        self.above = np.maximum(self.above + counts - self.ceiling * total, -self._burst)

    def overrule(self, policy: ThresholdPolicy) -> tuple[str, ThresholdPolicy]:
        """The policy, or one that serves an exit that is owed samples, or skips those with too many; and its name.

        An exit that is owed takes all samples. Exits above their ceiling are switched off; where the last exit is above
        its own, the deepest other that is not takes all samples that come to it.
        """
        last = len(self.floor) - 1
        if self.owed.max() > _SLACK:
            k = int(self.owed.argmax())
            return f"all:{k}", _taking(policy, k, off=np.arange(last) < k)
        over = self.above > _SLACK
        if not over.any():
            return "", policy
        name = "off:" + ",".join(str(k) for k in np.flatnonzero(over))
        if not over[last]:
            return name, replace(policy, enabled=policy.enabled & ~over[:last])
        return name, _taking(policy, int(np.flatnonzero(~over)[-1]), off=over[:last])


def _taking(policy: ThresholdPolicy, exit_index: int, off: Bools) -> ThresholdPolicy:
    """The policy with some exits off, and all samples exiting at one of the others (unless not finite)."""
    enabled = policy.enabled & ~off
    thresholds = policy.thresholds.copy()
    if exit_index < len(enabled):
        enabled[exit_index] = True
        thresholds[exit_index] = -np.inf
    return replace(policy, thresholds=thresholds, enabled=enabled)


def _shares(name: str, given: Sequence[float] | None, exits: int, default: float) -> Floats:
    if given is None:
        return np.full(exits, default)
    try:
        shares = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):  # words, lists within the list
        shares = np.empty(0)
    if shares.shape != (exits,) or not ((shares >= 0) & (shares <= 1)).all():
        raise InvalidInputError(f"{name}={given!r}: expected {exits} shares from 0 to 1, one for each exit")
    return shares


_EFFECTS = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])  # in log odds
_LARGEST = 1e40  # capital beyond this is given away: it changes nothing that is ever asked
_LARGEST_GAIN = 600.0  # its logarithm, in one batch


@dataclass(frozen=True)
class DriftReport:
    """Whether traffic still takes the exits that were planned.

    `samples` were tested; `shares` of them left at each exit, (K,), where `planned` was planned for the policies they
    went by; both None before the first. `evidence` against no drift: the largest so far; `p_value` is its inverse, at
    most 1. `alarm` where it is at most the level; `alarm_at` is the number of samples after which it first was.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> controller = eenet.BudgetController(eenet.MaxProbability().fit(toy_records(), toy_costs()), 2.0)
    >>> controller.drift().alarm
    False
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
