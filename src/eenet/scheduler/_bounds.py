"""Tests of a mean on samples, and the policies that are tested, in an order that does not depend on those samples.

A bettor on "the mean is below the limit" multiplies his capital by 1/error with probability `error` at most where it is
not, whatever the distribution. Source: the capital process of Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", Journal of the Royal Statistical Society B 86 (2024), with their predictable plug-in bets.
A promise in the mean needs no test: it is conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, 2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler._fitted import PolicyTable
from eenet.scheduler._policy import RESOLUTION, Bools, Floats, Ints, Score, ThresholdPolicy, leaves_at
from eenet.scheduler._replay import as_answered, replay
from eenet.scheduler._reports import Fallback
from eenet.scheduler._thresholds import ScoreTable

MEAN = "mean"
"""The guarantee that a promise holds on average over the draws of the calibration records."""

_BOLDNESS = 0.9
"""The largest bet, as a share of the one that could lose the whole capital."""

BOLDEST = 0.9
"""The largest bet on a mean cost: the same for all budgets, so that what holds at one holds at any larger one."""

ROWS = 64
"""Policies that are tested together."""

_EXACT = 1024  # scores, up to which each of them is a level of the path
_STEP = 1 / 32  # between the levels of a path, where there are more
_MAIN = 0.95  # of the error that may be made: for the path of all exits; the rest for those of one exit


def mean_is_below(values: Floats, limit: float, error: float, *, boldest: float | None = None) -> Bools:
    """For each row of values in [0, 1], (G, n), whether its mean in the population is below the limit.

    A row whose population mean is at the limit or above it is called below with probability `error` at most, and never
    where the mean of the samples is above it. The samples must be independent draws, in an order that was not chosen by
    their values.
    """
    if limit >= 1:
        return np.ones(len(values), dtype=np.bool_)
    if limit <= 0 or values.shape[1] == 0:
        return np.zeros(len(values), dtype=np.bool_)
    bets = _bets(values, error, _BOLDNESS / (1 - limit) if boldest is None else boldest)
    shown = _most(bets, values, limit) >= math.log(1 / error)
    return np.asarray(shown & (values.mean(axis=1) <= limit))


def _bets(values: Floats, error: float, boldest: float) -> Floats:
    """What is bet on each sample, (G, n), before it is seen."""
    samples = values.shape[1]
    seen = np.arange(1, samples + 1)
    means = (0.5 + np.cumsum(values, axis=1)) / (seen + 1)
    variances = (0.25 + np.cumsum(np.square(values - means), axis=1)) / (seen + 1)
    before = np.concatenate([np.full((len(values), 1), 0.25), variances[:, :-1]], axis=1)
    bets: Floats = np.minimum(np.sqrt(2 * math.log(1 / error) / (samples * before)), boldest)
    return bets


def _most(bets: Floats, values: Floats, limit: float | Floats) -> Floats:
    """The logarithm of the most capital that each row ever has, (G,)."""
    most: Floats = np.cumsum(np.log1p(bets * (limit - values)), axis=1).max(axis=1)
    return most


def upper_limits(values: Floats, error: float | None) -> Floats:
    """The smallest limit that the mean of each row (G, n) of values in [0, 1] is shown to be below; 1 where none is.

    By `mean_is_below` with bets that no limit makes bolder, so that what is below a limit is below any larger one.
    Without an error the limit that holds in the mean, for rows in which no value ever falls.
    """
    if error is None:
        mean: Floats = (values.sum(axis=1) + 1) / (values.shape[1] + 1)
        return mean
    bets, goal = _bets(values, error, BOLDEST), math.log(1 / error)
    low, high = np.zeros(len(values)), np.ones(len(values))
    for _ in range(32):
        middle = (low + high) / 2
        below = _most(bets, values, middle[:, None]) >= goal
        low, high = np.where(below, low, middle), np.where(below, middle, high)
    limits: Floats = np.maximum(high, values.mean(axis=1))
    return limits


@array_value
@dataclass(frozen=True)
class Tested:
    """The samples that test policies: their utility at each exit as answered, (K, n), and that of the last exit."""

    costs: ExitCosts
    samples: int
    answered: Floats | None
    last: Floats | None

    @classmethod
    def of(cls, score: Score, records: ExitRecords, costs: ExitCosts) -> Tested:
        """From records, with or without labels, of which the score's answers are judged."""
        judged = as_answered(score, records)
        if records.utility is None:
            return cls(costs, len(records), None, None)
        answered = judged.require_utility().astype(np.float64)
        return cls(costs, len(records), answered, records.utility[-1].astype(np.float64))

    def gained(self, exits: Ints) -> Floats:
        """The utility of each sample, (G, n), where it exits there."""
        assert self.answered is not None
        worth: Floats = self.answered[exits, np.arange(self.samples)]
        return worth

    def share_spent(self, exits: Ints) -> Floats:
        """What samples cost, from 0 at the first exit to 1 at the last, of the shape of `exits`."""
        c = self.costs.values
        spent: Floats = ((c - c[0]) / (c[-1] - c[0]))[exits]
        return spent


class Path(ABC):
    """Policies in a fixed order, G of them, the most expensive first; `share` of the error may be made on it."""

    share: float = 1.0

    def __init__(self, usable: Bools) -> None:
        self.usable = usable

    def __len__(self) -> int:
        return len(self.usable)

    @abstractmethod
    def policy(self, row: int) -> ThresholdPolicy:
        """One of the policies."""

    @abstractmethod
    def planned_cost(self, row: int) -> float:
        """What it was planned to cost, where it was; otherwise 0."""

    def fallback(self, row: int) -> Fallback | None:  # noqa: ARG002 - for subclasses
        """The simple rule that a policy is in place of the method's own, where it is."""
        return None

    @abstractmethod
    def exits(self, first: int, stop: int) -> Ints:
        """Where each tested sample exits under some of the policies, (stop - first, n)."""

    def chunks(self) -> Iterator[tuple[int, Ints]]:
        """All of them in parts: the number of the first, and the exits under each."""
        for first in range(0, len(self), ROWS):
            yield first, self.exits(first, min(first + ROWS, len(self)))


class TablePath(Path):
    """The policies of a fit to other samples."""

    def __init__(self, table: PolicyTable, records: ExitRecords) -> None:
        super().__init__(np.ones(len(table), dtype=np.bool_))
        self._table = table
        self._records = records

    @cached_property
    def _exits(self) -> Ints:
        policies = self._table.policies[::-1]
        return np.stack([replay(policy, self._records, self._table.costs).exits for policy in policies])

    def policy(self, row: int) -> ThresholdPolicy:
        """The policy of a row, counted from the end of the table."""
        return self._table.policies[len(self) - 1 - row]

    def planned_cost(self, row: int) -> float:
        """As in the table."""
        return float(self._table.planned_costs[len(self) - 1 - row])

    def fallback(self, row: int) -> Fallback | None:
        """As in the table."""
        return self._table.fallback(len(self) - 1 - row)

    def exits(self, first: int, stop: int) -> Ints:
        """Where the samples exit."""
        return self._exits[first:stop]


class ThresholdPath(Path):
    """One threshold for the exits that are on, from one that no sample reaches to one that all do.

    The path is known before any sample is seen: its levels are all numbers, of which those between two neighboring
    scores cannot be told apart, or, where there are many scores, all multiples of one number.
    """

    def __init__(self, score: Score, table: ScoreTable, on: Bools, share: float, classes: int) -> None:
        self._score, self._scores, self._finite, self._on, self._classes = (
            score,
            table.scores,
            table.finite,
            on,
            classes,
        )
        levels = np.unique(table.scores[on][table.finite[on]])[::-1]
        if len(levels) <= _EXACT:
            ends = [levels[:1] + 1, (levels[:-1] + levels[1:]) / 2, levels[-1:] - 1]
            self._thresholds: Floats = np.concatenate(ends) if len(levels) else np.zeros(1)
        else:
            steps = np.unique(np.floor(levels / _STEP))[::-1]
            self._thresholds = np.concatenate([steps[:1] + 1, steps]) * _STEP
        super().__init__(_apart(self._thresholds, levels[::-1]))
        self.share = share

    def policy(self, row: int) -> ThresholdPolicy:
        """The policy with one of the thresholds."""
        values = np.full(len(self._on), self._thresholds[row])
        return ThresholdPolicy(self._score, values, self._on.copy(), self._classes)

    def planned_cost(self, row: int) -> float:  # noqa: ARG002 - see Path
        """Not planned."""
        return 0.0

    def exits(self, first: int, stop: int) -> Ints:
        """Where the samples exit."""
        thresholds = self._thresholds[first:stop, None]
        early, samples = self._scores.shape
        exits = np.full((len(thresholds), samples), early, dtype=np.intp)
        for k in reversed(range(early)):
            exits[leaves_at(self._scores[k][None], self._finite[k], thresholds, bool(self._on[k]))] = k
        return exits


def _apart(thresholds: Floats, ascending: Floats) -> Bools:
    """Which thresholds no score is so near that rounding could take it to the other side."""
    if len(ascending) == 0:
        return np.ones(len(thresholds), dtype=np.bool_)
    at = np.searchsorted(ascending, thresholds)
    above = ascending[np.minimum(at, len(ascending) - 1)]
    below = ascending[np.maximum(at - 1, 0)]
    apart: Bools = np.minimum(np.abs(above - thresholds), np.abs(thresholds - below)) > RESOLUTION / 2
    return apart


def threshold_paths(
    score: Score, tables: Sequence[ScoreTable], costs: ExitCosts, classes: int, *, each: bool
) -> list[ThresholdPath]:
    """The paths of a score that is not fitted to the samples of these tables: of all exits, and, of each exit alone.

    Those of single exits are for networks with an exit that is sure and wrong.
    """
    table = tables[0]
    if len(tables) > 1:
        parts = [np.concatenate([getattr(t, name) for t in tables], axis=1) for name in ("scores", "finite")]
        table = ScoreTable(parts[0], parts[1], costs)
    early = table.early
    if not each or early == 1 or not table.finite.all():
        return [ThresholdPath(score, table, np.ones(early, dtype=np.bool_), 1.0, classes)]
    on = [np.ones(early, dtype=np.bool_), *np.eye(early, dtype=np.bool_)]
    shares = [_MAIN, *[(1 - _MAIN) / early] * early]
    return [ThresholdPath(score, table, which, share, classes) for which, share in zip(on, shares, strict=True)]


def first_within(path: Path, tested: Tested, limit: float, error: float | None) -> int:
    """The number of the first policy from which on all have a mean cost below the limit; tested from the cheapest."""
    first = len(path)
    for start, values in _costs_upwards(path, tested, grow=error is None):
        if error is None:
            below = upper_limits(values, None) <= limit
        else:
            below = mean_is_below(values, limit, error, boldest=BOLDEST)
        if not below.all():
            return start + len(below) - int(below[::-1].argmin())
        first = start
    return first


def cost_limits(path: Path, tested: Tested, error: float | None) -> Floats:
    """The smallest limits for which `first_within` gives each policy, (G,): from the cheapest on they never fall."""
    parts = [upper_limits(values, error) for _, values in _costs_upwards(path, tested, grow=error is None)]
    limits: Floats = np.maximum.accumulate(np.concatenate(parts[::-1])[::-1])[::-1]
    return limits


def _costs_upwards(path: Path, tested: Tested, *, grow: bool) -> Iterator[tuple[int, Floats]]:
    """The costs of the samples, from 0 to 1, in parts of the path from its cheap end; `grow`: none falls on the way."""
    most = np.zeros((1, tested.samples))
    for first in reversed(range(0, len(path), ROWS)):
        values = tested.share_spent(path.exits(first, min(first + ROWS, len(path))))
        if grow:
            values = np.maximum.accumulate(np.concatenate([values, most])[::-1], axis=0)[1:][::-1]
            most = values[:1]
        yield first, values


def count_within(path: Path, tested: Tested, drop: float, error: float | None) -> int:
    """How many policies, tested from the most expensive, have an accuracy within `drop` of the last exit's.

    In the mean, the most that each sample has lost on the way counts, since accuracy may rise again.
    """
    assert tested.last is not None
    most = np.full((1, tested.samples), -1.0)
    for first, exits in path.chunks():
        lost = tested.last - tested.gained(exits)
        if error is None:
            lost = np.maximum.accumulate(np.concatenate([most, lost]), axis=0)[1:]
            most = lost[-1:]
            within = upper_limits(lost, None) <= drop
        else:
            new = np.concatenate([[True], (lost[1:] != lost[:-1]).any(axis=1)])  # few rows differ from the one before
            within = mean_is_below((lost[new] + 1) / 2, (drop + 1) / 2, error)[np.cumsum(new) - 1]
        if not within.all():
            return first + int(within.argmin())
    return len(path)
