"""Optimal stopping: continue where the estimated gain is worth its cost, by least-squares backward induction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Calibration, fold_numbers
from eenet.scheduler._fallback import simple_rule
from eenet.scheduler._fitted import Fitted, Outcome, PlannedPolicy, planned
from eenet.scheduler._policy import Bools, ExitHistory, Floats, Score
from eenet.scheduler._scheduler import Scheduler
from eenet.scheduler._thresholds import ScoreTable, geometric_shares, within
from eenet.scheduler.methods._ridge import fit_ridge
from eenet.tasks import Evidence

HINGED = 3
"""The first three features also enter as hinges: the log odds, the margin and the entropy."""

KNOTS = 4
CLIP = 6.0  # standard deviations
_TINY = 1e-12
_MANY = 16  # classes, from which on a partial sort is quicker than a whole one

FEWEST = 200
"""Samples below which nothing is regressed: what is learned from fewer spends up to 14 % more than the budget."""

_FOLDS = 5
_COMPARED = 8  # costs at which the gain over the simple rule is measured


def features(evidence: Sequence[Evidence]) -> Floats:
    """What the gain of going on is estimated from at the last of these exits, (n, F), row by row.

    The log odds of the largest probability, the margin to the second, the entropy, the logarithms of the second and
    third probability; after the first exit also for how many exits the prediction has held, that times the log odds,
    the vote share and the log odds of the exits before.
    """
    now = evidence[-1]
    log_odds = now.log_odds
    best = _largest(now.probabilities)
    runners_up = min(best.shape[1], 3) - 1
    if len(now) == 1:  # the same, in less time
        odds: float = log_odds.item()
        second, first = best[0, -2:].tolist()
        logs = np.log(np.maximum(best[0, -1 - runners_up : -1], _TINY)).tolist()
        row = [odds, first - second, now.entropy.item(), *logs]
        if len(evidence) > 1:
            streak = now.streak.item()
            row += [streak, streak * odds, now.vote_share.item(), *(e.log_odds.item() for e in evidence[:-1])]
        return np.array([row])
    values = np.empty((len(now), 3 + runners_up + (len(evidence) > 1) * (2 + len(evidence))))
    values[:, 0] = log_odds
    np.subtract(best[:, -1], best[:, -2], out=values[:, 1], dtype=np.float64)
    values[:, 2] = now.entropy
    values[:, 3 : 3 + runners_up] = np.log(np.maximum(best[:, -1 - runners_up : -1], _TINY))
    if len(evidence) > 1:
        at = 3 + runners_up
        values[:, at] = now.streak
        np.multiply(values[:, at], log_odds, out=values[:, at + 1])
        values[:, at + 2] = now.vote_share
        for column, earlier in enumerate(evidence[:-1], at + 3):
            values[:, column] = earlier.log_odds
    return values


def _largest(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The three largest of each row or, where there are fewer, all of them; ascending, (n, 3)."""
    if probabilities.shape[1] > _MANY:
        probabilities = np.partition(probabilities, -3, axis=1)[:, -3:]
    return np.sort(probabilities, axis=1)


@array_value
@dataclass(frozen=True)
class GainModel:
    """The gain of going on at one exit: a linear function of standardized features, their hinges and the class.

    `center`, `scale` and `weights` are (F,), `knots` and `hinge_weights` (12,), `class_effects` (C,).
    """

    center: Floats
    scale: Floats
    knots: Floats
    weights: Floats
    hinge_weights: Floats
    class_effects: Floats
    intercept: float

    def __call__(self, evidence: Sequence[Evidence]) -> Floats:
        """Estimated gains (n,), in units of utility; the extra cost is already taken off."""
        z = standardized(features(evidence), self.center, self.scale)
        bent = hinges(z, self.knots)
        # Products summed row by row, not a BLAS product: see eenet/tasks/_evidence.py.
        z *= self.weights
        bent *= self.hinge_weights
        if len(z) == 1:  # the same, in less time
            of_one = np.add.reduce(z, axis=1).item() + np.add.reduce(bent, axis=1).item()
            return np.array([of_one + self.class_effects[evidence[-1].predictions.item()] + self.intercept])
        gains: Floats = np.add.reduce(z, axis=1)
        gains += np.add.reduce(bent, axis=1)
        gains += self.class_effects[evidence[-1].predictions]
        gains += self.intercept
        return gains


def standardized(values: Floats, center: Floats, scale: Floats) -> Floats:
    """Features with the mean 0 and the standard deviation 1 on the calibration records, clipped."""
    z: Floats = values - center
    z *= scale
    return np.minimum(np.maximum(z, -CLIP, out=z), CLIP, out=z)


def hinges(z: Floats, knots: Floats) -> Floats:
    """max(0, feature - knot) for the knots of the first features, (n, 12)."""
    bent: Floats = z[:, :HINGED, None] - knots.reshape(HINGED, -1)
    return np.maximum(bent, 0.0, out=bent).reshape(len(z), -1)


_ARRAYS = {
    "centre": "center",
    "scale": "scale",
    "knots": "knots",
    "weights": "weights",
    "hinge_weights": "hinge_weights",
    "class_effects": "class_effects",
}
"""The arrays of a gain model: by the name in files, the name of the attribute."""


@array_value
@dataclass(frozen=True)
class StoppingScore(Score):
    """How much stopping is better than going on, for one price of cost: minus the gain of going on.

    Source: early exit as optimal stopping, by least-squares backward induction (Longstaff and Schwartz, Review of
    Financial Studies 14, 2001).
    """

    name = "stopping"
    uses_history = True
    needs_labels = True
    fewest = FEWEST

    models: tuple[GainModel, ...]

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        return -self.models[history.exit_index](history.evidence)

    @classmethod
    def fit(cls, records: ExitRecords, costs: ExitCosts, seed: int) -> NoReturn:  # noqa: ARG003 - see Score
        """Refused: there is a score for each budget, which goes with no assignment."""
        raise InvalidInputError("the score 'stopping' is fitted for each budget by OptimalStopping alone; use that")

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights, to be saved."""
        arrays: dict[str, NDArray[Any]] = {"intercepts": np.array([model.intercept for model in self.models])}
        for k, model in enumerate(self.models):
            arrays |= {f"{name}.{k}": getattr(model, attribute) for name, attribute in _ARRAYS.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> StoppingScore:
        """The score of what `to_arrays` gave."""
        try:
            intercepts = arrays["intercepts"].reshape(-1)
            parts = [
                {attribute: arrays[f"{name}.{k}"] for name, attribute in _ARRAYS.items()}
                for k in range(len(intercepts))
            ]
        except KeyError as error:
            raise FileFormatError(f"a stopping score needs {error.args[0]!r}; found {sorted(arrays)}") from error
        for part in parts:
            width = {part[name].shape for name in ("center", "scale", "weights")}
            bent = {part[name].shape for name in ("knots", "hinge_weights")}
            if len(width) > 1 or bent != {(HINGED * KNOTS,)}:
                raise FileFormatError("the arrays of a stopping score do not fit each other; save the scheduler again")
        return cls(tuple(GainModel(**part, intercept=float(b)) for part, b in zip(parts, intercepts, strict=True)))


class OptimalStopping(Scheduler, method="stopping"):
    """Optimal stopping: continue where the gain, estimated by backward induction, is worth its cost. Needs labels.

    With fewer than 200 samples, or where it gains nothing, it is max probability with a geometric exit distribution
    instead, with a warning. Source: least-squares backward induction, Longstaff and Schwartz, Review of Financial
    Studies 14 (2001).

    Parameters
    ----------
    seed : int
        Of the folds.
    prices : int
        How many prices of cost are solved.
    lowest, highest : float
        The smallest positive price and the largest, in utility for the cost between the first and the last exit.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.OptimalStopping().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self, *, seed: int = 0, prices: int = 40, lowest: float = 0.003, highest: float = 5.0) -> None:
        self.prices = prices
        self.lowest = lowest
        self.highest = highest
        super().__init__("stopping", seed=seed)

    def _check(self) -> None:
        if not isinstance(self.prices, int) or self.prices < 3:
            raise InvalidInputError(f"OptimalStopping(prices={self.prices!r}): expected a whole number, 3 or more")
        if not 0 < self.lowest < self.highest < math.inf:
            raise InvalidInputError(
                f"OptimalStopping(lowest={self.lowest!r}, highest={self.highest!r}): expected 0 < lowest < highest"
            )

    def _fit(self, records: ExitRecords, costs: ExitCosts, live: Bools | None = None) -> Fitted:
        """Regress the gains of all exits, the last first, for every price."""
        utility = records.require_utility().astype(np.float64)
        grid = np.geomspace(self.lowest, self.highest, self.prices - 1)
        return _Induction(records, utility, costs, grid, self.seed, live).fitted()


class _Induction:
    """The regressions of one fit."""

    def __init__(
        self,
        records: ExitRecords,
        utility: Floats,
        costs: ExitCosts,
        prices: Floats,
        seed: int,
        live: Bools | None,
    ) -> None:
        self.live: Bools = np.ones(len(costs) - 1, dtype=np.bool_) if live is None else live
        self.records = records
        self.utility = utility
        self.costs = costs
        self.prices: Floats = np.concatenate([[0.0], prices]) / (costs[-1] - costs[0])
        self.folds = fold_numbers(records, seed, _FOLDS)
        self.models: list[_GainModels] = []

    def fitted(self) -> Fitted:
        """The policies for all budgets."""
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
            stop = (out_of_fold <= 0) & finite[k][:, None] & self.live[k]
            worth = np.where(stop, self.utility[k][:, None], worth)
            spent = np.where(stop, c[k], spent)
        gained = self._gained(worth, spent)
        if gained < 0:
            why = (
                f"on the {samples} calibration samples optimal stopping gains nothing over max probability with a "
                f"geometric exit distribution ({100 * gained:+.2f} points, out of fold)"
            )
            return simple_rule(self.records, self.costs, self.live, why)
        held_out = worth, spent.mean(axis=0)
        return _StoppingFit(
            self.records, self.costs, prices, tuple(self.models), tuple(gains), finite[:-1], self.live, held_out
        )

    def _gained(self, worth: Floats, spent: Floats) -> float:
        """Mean accuracy, out of fold, above that of the simple rule at the same costs."""
        table, samples = (
            simple_rule(self.records, self.costs, self.live, "").calibrations[0].table,
            np.arange(len(worth)),
        )
        gains = []
        costs = spent.mean(axis=0)
        for place in np.linspace(costs.min(), costs.max(), _COMPARED + 2)[1:-1]:
            price = int(np.abs(costs - place).argmin())
            cost = max(float(costs[price]), table.mean_cost(table.cheapest()))
            exits = table.exits(table.meet(cost, geometric_shares(len(self.costs))))
            gains.append(float((worth[:, price] - self.utility[exits, samples]).mean()))
        return float(np.mean(gains))

    def _at(
        self, evidence: list[Evidence], onward: Floats, k: int, finite: Bools
    ) -> tuple[_GainModels, Floats, Floats]:
        """The models of exit k for all prices; the gains (N, L) of the final models and out of fold."""
        values = features(evidence)
        classes = evidence[-1].predictions
        # Samples that are not finite go on whatever the model says; where all are, the model is of no use.
        rows = np.flatnonzero(finite) if finite.any() else np.arange(len(values))
        center, spread = values[rows].mean(axis=0), values[rows].std(axis=0)
        scale = np.where(spread > 1e-9 * np.maximum(1, np.abs(center)), 1 / np.maximum(spread, 1e-300), 0.0)
        z = standardized(values, center, scale)
        levels = np.arange(1, KNOTS + 1) / (KNOTS + 1)
        knots = np.quantile(z[rows, :HINGED], levels, axis=0).T.reshape(-1)
        x = np.concatenate([z, hinges(z, knots)], axis=1)
        here = self.utility[k][:, None] - self.prices * self.costs[k]
        width = z.shape[1]
        free = np.array([0, *range(width, width + KNOTS)])
        fit = fit_ridge(x[rows], (onward - here)[rows], classes[rows], self.records.num_classes, self.folds[rows], free)
        models = _GainModels(center, scale, knots, fit.weights, fit.class_effects, fit.intercepts)
        out_of_fold = np.zeros_like(onward)
        out_of_fold[rows] = fit.out_of_fold
        return models, x @ fit.weights + fit.class_effects[classes] + fit.intercepts, out_of_fold


@array_value
@dataclass(frozen=True)
class _GainModels:
    """The models of one exit for all L prices: weights (F, L), class effects (C, L), intercepts (L,)."""

    center: Floats
    scale: Floats
    knots: Floats
    weights: Floats
    class_effects: Floats
    intercepts: Floats

    def between(self, low: int, share: float) -> GainModel:
        """The model between two neighboring prices."""

        def mixed(values: Floats) -> Floats:
            high = min(low + 1, values.shape[-1] - 1)
            both: Floats = (1 - share) * values[..., low] + share * values[..., high]
            return both

        width, weights = len(self.center), mixed(self.weights)
        return GainModel(
            self.center,
            self.scale,
            self.knots,
            weights[:width],
            weights[width:],
            mixed(self.class_effects),
            float(mixed(self.intercepts)),
        )


class _StoppingFit(Fitted):
    """Optimal stopping for every budget: a price of cost, then one common shift that spends the budget."""

    def __init__(
        self,
        records: ExitRecords,
        costs: ExitCosts,
        prices: Floats,
        models: tuple[_GainModels, ...],
        gains: tuple[Floats, ...],
        finite: Bools,
        live: Bools,
        held_out: tuple[Floats, Floats],
    ) -> None:
        self.records = records
        self.costs = costs
        self._prices = prices
        self._models = models
        self._gains = gains
        self._finite = finite
        self._live = live
        self._held_out = held_out
        tables = (self._table(i, 0.0) for i in range(len(prices)))
        spent = [table.mean_cost(table.common(0.0)) for table in tables]
        # A higher price never spends more; noise is leveled.
        self._spent: Floats = np.minimum.accumulate(spent)

    def _table(self, low: int, share: float) -> ScoreTable:
        high = min(low + 1, len(self._prices) - 1)
        scores = [-((1 - share) * g[:, low] + share * g[:, high]) for g in self._gains]
        return ScoreTable(np.stack(scores), self._finite, self.costs, self._live)

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy for a budget: never more on the calibration records, and less by at most one sample.

        Where no more is gained the rest of the budget is left, and the plan's note says so.
        """
        low, share = self._price_of(budget)
        table = self._table(low, share)
        table.require_feasible(budget)
        score = StoppingScore(tuple(models.between(low, share) for models in self._models))
        note = None
        if budget >= self._spent[0]:
            thresholds = table.recentered(table.common(0.0))
            if table.mean_cost(thresholds) > within(budget):
                thresholds = table.meet_common(budget)
            cost = table.mean_cost(thresholds)
            note = "on the calibration records going further gains nothing"
        else:
            thresholds = table.meet_common(budget)
            cost = min(budget, self.costs[-1])
        return planned(Calibration(score, self.records, self.costs, table, self._live), thresholds, cost, note)

    def outcome(self, budget: float) -> Outcome | None:
        """What the policy for a budget brings, when every decision is made by a model that was fitted without it."""
        utility, costs = self._held_out
        order = np.flatnonzero(np.minimum.accumulate(costs) == costs)[::-1]  # a higher price never spends more
        first = self._table(len(self._prices) - 1, 0.0).first
        # Cheaper than the highest price: some of the samples at the first exit, at random.
        least = Outcome(self.records.require_utility()[first].astype(np.float64), self.costs[first])
        points = [least, *(Outcome(utility[:, price], float(costs[price])) for price in order)]
        return Outcome.spending(budget, points) or least

    def _price_of(self, budget: float) -> tuple[int, float]:
        """The price at which about the budget is spent, as a place between two prices of the grid."""
        last = len(self._prices) - 1
        place = float(np.interp(-budget, -self._spent, np.arange(last + 1)))
        low = min(int(place), last)
        return low, place - low
