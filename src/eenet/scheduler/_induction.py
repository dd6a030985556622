"""Optimal stopping fitted to records: least-squares backward induction over a grid of prices."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Calibration, GeometricAssignment
from eenet.scheduler._family import Family, Planned, ThresholdFamily, planned
from eenet.scheduler._folds import fold_numbers
from eenet.scheduler._policy import Floats
from eenet.scheduler._ridge import fit_ridge
from eenet.scheduler._scores import PLAIN_SCORES
from eenet.scheduler._stopping import HINGED, KNOTS, GainModel, StoppingScore, features, hinges, standardised
from eenet.scheduler._thresholds import ScoreTable, geometric_shares, within
from eenet.tasks import Evidence

FEWEST = 60
"""Samples below which nothing is regressed: fewer than about two for each weight."""

_FOLDS = 5
_COMPARED = 8  # costs at which the gain over the simple rule is looked at


@dataclass(frozen=True)
class StoppingOptions:
    """How finely optimal stopping is fitted: the number of prices of cost, and the range they cover."""

    prices: int = 40
    lowest: float = 0.003
    """The smallest positive price, in utility for the cost between the first and the last exit."""
    highest: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.prices, int) or self.prices < 3:
            raise InvalidInputError(f"StoppingOptions(prices={self.prices!r}): expected a whole number, 3 or more")
        if not 0 < self.lowest < self.highest < math.inf:
            raise InvalidInputError(
                f"StoppingOptions(lowest={self.lowest!r}, highest={self.highest!r}): expected 0 < lowest < highest"
            )


@dataclass(frozen=True)
class StoppingMethod:
    """Early exit as optimal stopping: go on where the estimated gain is worth its cost."""

    options: StoppingOptions

    def fit(self, records: ExitRecords, costs: ExitCosts, seed: int) -> Family:
        """Regress the gains of all exits, the last first, for every price; needs labels.

        With fewer than 60 samples it is the geometric rule on max probability instead, and says so.
        """
        utility = records.require_utility()
        if len(records) < FEWEST:
            warnings.warn(
                f"{len(records)} calibration samples are too few to learn from (fewer than {FEWEST}): max probability "
                "with a geometric exit distribution is used instead",
                ReliabilityWarning,
                stacklevel=4,
            )
            calibration = Calibration(PLAIN_SCORES["max_prob"], records, costs)
            return ThresholdFamily(calibration, GeometricAssignment(), seed)
        return _Induction(records, utility.astype(np.float64), costs, self.options, seed).family()


class _Induction:
    def __init__(
        self, records: ExitRecords, utility: Floats, costs: ExitCosts, options: StoppingOptions, seed: int
    ) -> None:
        self.records = records
        self.utility = utility
        self.costs = costs
        span = costs[-1] - costs[0]
        prices = np.geomspace(options.lowest, options.highest, options.prices - 1)
        self.prices: Floats = np.concatenate([[0.0], prices]) / span
        self.seed = seed
        self.folds = fold_numbers(records, seed, _FOLDS)
        self.models: list[_GainModels] = []

    def family(self) -> Family:
        evidence = self.records.all_evidence()
        c, prices = self.costs.values, self.prices
        samples, early = len(self.records), self.records.num_exits - 1
        # What the exits after k bring, for every sample and price, when the later decisions are made out of fold.
        worth = np.repeat(self.utility[-1][:, None], len(prices), axis=1)
        spent = np.full((samples, len(prices)), c[-1])
        gains: list[Floats] = []
        finite = np.logical_and.accumulate([e.finite for e in evidence], axis=0)
        for k in reversed(range(early)):
            models, now, out_of_fold = self._at(evidence[: k + 1], worth - prices * spent, k, finite[k])
            self.models.insert(0, models)
            gains.insert(0, now)
            stop = (out_of_fold <= 0) & finite[k][:, None]
            worth = np.where(stop, self.utility[k][:, None], worth)
            spent = np.where(stop, c[k], spent)
        plain = ThresholdFamily(
            Calibration(PLAIN_SCORES["max_prob"], self.records, self.costs), GeometricAssignment(), self.seed
        )
        gained = self._gained(worth, spent, plain)
        if gained < 0:
            warnings.warn(
                f"on the {samples} calibration samples optimal stopping gains nothing over max probability with a "
                f"geometric exit distribution ({100 * gained:+.2f} points, out of fold): that is used instead",
                ReliabilityWarning,
                stacklevel=5,
            )
            return plain
        return StoppingFamily(self.records, self.costs, prices, tuple(self.models), tuple(gains), finite[:-1])

    def _gained(self, worth: Floats, spent: Floats, plain: ThresholdFamily) -> float:
        """Mean accuracy, out of fold, above that of the simple rule at the same costs."""
        table, everybody = plain.calibration.table, np.arange(len(self.records))
        found = []
        costs = spent.mean(axis=0)
        for place in np.linspace(costs.min(), costs.max(), _COMPARED + 2)[1:-1]:
            price = int(np.abs(costs - place).argmin())
            cost = max(float(costs[price]), table.mean_cost(table.cheapest()))
            exits = table.exits(table.meet(cost, geometric_shares(len(self.costs))))
            found.append(float((worth[:, price] - self.utility[exits, everybody]).mean()))
        return float(np.mean(found))

    def _at(
        self, evidence: list[Evidence], onward: Floats, k: int, finite: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    ) -> tuple[_GainModels, Floats, Floats]:
        """The models of exit k for all prices; the gains (N, L) of the final models and out of fold."""
        values = features(evidence)
        classes = evidence[-1].predictions
        # Who is not finite goes on whatever the model says; where nobody is finite it is a model of nothing.
        rows = np.flatnonzero(finite) if finite.any() else np.arange(len(values))
        centre, spread = values[rows].mean(axis=0), values[rows].std(axis=0)
        scale = np.where(spread > 1e-9 * np.maximum(1, np.abs(centre)), 1 / np.maximum(spread, 1e-300), 0.0)
        z = standardised(values, centre, scale)
        levels = np.arange(1, KNOTS + 1) / (KNOTS + 1)
        knots = np.quantile(z[rows, :HINGED], levels, axis=0).T.reshape(-1)
        x = np.concatenate([z, hinges(z, knots)], axis=1)
        here = self.utility[k][:, None] - self.prices * self.costs[k]
        width = z.shape[1]
        free = np.array([0, *range(width, width + KNOTS)])
        found = fit_ridge(
            x[rows], (onward - here)[rows], classes[rows], self.records.num_classes, self.folds[rows], free
        )
        models = _GainModels(centre, scale, knots, found.weights, found.class_effects, found.intercepts)
        out_of_fold = np.zeros_like(onward)
        out_of_fold[rows] = found.out_of_fold
        return models, x @ found.weights + found.class_effects[classes] + found.intercepts, out_of_fold


@dataclass(frozen=True)
class _GainModels:
    """The models of one exit for all L prices: weights (F, L), class effects (C, L), intercepts (L,)."""

    centre: Floats
    scale: Floats
    knots: Floats
    weights: Floats
    class_effects: Floats
    intercepts: Floats

    def between(self, low: int, share: float) -> GainModel:
        """The model between two neighbouring prices."""

        def mixed(values: Floats) -> Floats:
            high = min(low + 1, values.shape[-1] - 1)
            both: Floats = (1 - share) * values[..., low] + share * values[..., high]
            return both

        width, weights = len(self.centre), mixed(self.weights)
        return GainModel(
            self.centre,
            self.scale,
            self.knots,
            weights[:width],
            weights[width:],
            mixed(self.class_effects),
            float(mixed(self.intercepts)),
        )


class StoppingFamily:
    """Optimal stopping for every budget: a price of cost, then one common shift that spends the budget."""

    points = 101

    def __init__(
        self,
        records: ExitRecords,
        costs: ExitCosts,
        prices: Floats,
        models: tuple[_GainModels, ...],
        gains: tuple[Floats, ...],
        finite: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    ) -> None:
        self.records = records
        self.costs = costs
        self._prices = prices
        self._models = models
        self._gains = gains
        self._finite = finite
        spent = [self._table(i, 0.0).mean_cost_at(0.0) for i in range(len(prices))]
        # A higher price never spends more; what noise there is is levelled.
        self._spent: Floats = np.minimum.accumulate(spent)

    def _table(self, low: int, share: float) -> ScoreTable:
        high = min(low + 1, len(self._prices) - 1)
        scores = [-((1 - share) * g[:, low] + share * g[:, high]) for g in self._gains]
        return ScoreTable(np.stack(scores), self._finite, self.costs)

    def plan(self, budget: float) -> Planned:
        """The policy for a budget: never more on the calibration records, and less by at most one sample.

        Where nothing is gained any more the rest of the budget is left, and the plan's note says so.
        """
        low, share = self._price_of(budget)
        table = self._table(low, share)
        table.require_feasible(budget)
        score = StoppingScore(tuple(models.between(low, share) for models in self._models))
        note = None
        if budget >= self._spent[0]:
            thresholds = table.recentred(table.common(0.0))
            if table.mean_cost(thresholds) > within(budget):
                thresholds = table.meet_common(budget)
            cost = table.mean_cost(thresholds)
            note = "on the calibration records going further gains nothing"
        else:
            thresholds = table.meet_common(budget)
            cost = min(budget, self.costs[-1])
        return planned(Calibration(score, self.records, self.costs, table), thresholds, cost, note)

    def _price_of(self, budget: float) -> tuple[int, float]:
        """The price at which about the budget is spent, as a place between two prices of the grid."""
        last = len(self._prices) - 1
        place = float(np.interp(-budget, -self._spent, np.arange(last + 1)))
        low = min(int(place), last)
        return low, place - low
