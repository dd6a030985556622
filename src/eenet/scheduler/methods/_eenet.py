"""EENet: learned exit scores and a learned exit assignment (Ilhan et al., WACV 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Calibration, exit_assignment, fold_numbers
from eenet.scheduler._fitted import Fitted, ThresholdFit
from eenet.scheduler._policy import Bools, ExitHistory, Floats, Score, probability, sigmoid
from eenet.scheduler._scheduler import Scheduler
from eenet.scheduler._thresholds import ScoreTable, tilted_shares
from eenet.tasks import Evidence

TIE_WEIGHT = 1e-3
"""The log odds enter the ranking with this weight: samples that the linear score cannot distinguish, because their
probabilities round to 1, stay in the order of their confidence. A difference of 0.02 in the score outweighs it."""

NUM_CONFIDENCES = 4
LOG_ODDS_SCALE = 0.1
"""Brings the log odds to the size of the other confidences."""

WEIGHT_DECAYS = (1e-5, 1e-3, 3e-2)
"""From many samples for each class to few."""

TARGETS = ("right", "lossless")
"""What an exit score may learn: that the exit is right, or that no later exit is worth more than it."""

REFERENCES = (0.3, 0.5, 0.7)
"""Where scores and shares are learned: budgets as shares of the way from the first exit's cost to the last's."""

_ITERATIONS = 40


def with_confidences(evidence: Evidence, more: int) -> Floats:
    """The confidences a_k and space for more columns after them, (n, 4 + more).

    They are max p, 1 - normalized entropy, vote share, scaled log odds. Source: EENet, section 3.2, which has the first
    three. All three saturate where a network is overconfident, and a linear score of them can then no longer tell the
    sure from the less sure; the log odds can.
    """
    if len(evidence) == 1:  # the same, in less time
        of_one = (evidence.max_probability.item(), 1 - evidence.entropy.item(), evidence.vote_share.item())
        return np.array([[*of_one, LOG_ODDS_SCALE * evidence.log_odds.item(), *[0.0] * more]])
    values = np.empty((len(evidence), NUM_CONFIDENCES + more))
    values[:, 0] = evidence.max_probability
    np.subtract(1, evidence.entropy, out=values[:, 1])
    values[:, 2] = evidence.vote_share
    np.multiply(LOG_ODDS_SCALE, evidence.log_odds, out=values[:, 3])
    return values


@array_value
@dataclass(frozen=True)
class LearnedScore(Score):
    """EENet's exit scores: q_k = sigmoid(w_k . p_k + v_k . [a_k, q_1 .. q_{k-1}] + b_k).

    `class_weights` (K-1, C), `evidence_weights` K-1 arrays (4 + k,), `biases` (K-1,). `shares` (K,) is the mean of the
    exit assignment it was trained with, if it was.
    """

    name = "learned"
    uses_history = True
    needs_labels = True
    fewest = 200

    class_weights: Floats
    evidence_weights: Sequence[Floats]
    biases: Floats
    shares: Floats | None = None

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,): the argument of the sigmoid, which orders samples as q_k does."""
        k = history.exit_index
        evidence = history.evidence[k]
        scalars = with_confidences(evidence, k)
        for column, earlier in enumerate(history.scores, NUM_CONFIDENCES):
            scalars[:, column] = sigmoid(earlier)
        scalars *= self.evidence_weights[k]
        # Products summed row by row, not a BLAS product: see eenet/tasks/_evidence.py.
        scores: Floats = np.add.reduce(evidence.probabilities * self.class_weights[k], axis=1)
        if len(scores) == 1:  # the same, in less time
            of_one = scores.item() + np.add.reduce(scalars, axis=1).item() + self.biases[k]
            return np.array([of_one + TIE_WEIGHT * evidence.log_odds.item()])
        scores += np.add.reduce(scalars, axis=1)
        scores += self.biases[k]
        scores += TIE_WEIGHT * evidence.log_odds
        return scores

    def readable(self, threshold: float) -> float:
        """The q_k."""
        return probability(threshold)

    @classmethod
    def fit(
        cls, records: ExitRecords, costs: ExitCosts, seed: int, options: LearningOptions | None = None
    ) -> Sequence[LearnedScore]:
        """Learn scores and shares together for each of the reference budgets."""
        return _train_best(records, costs, _references(costs), options or LearningOptions(), seed)[0]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights, to be saved."""
        arrays: dict[str, NDArray[Any]] = {"class_weights": self.class_weights, "biases": self.biases}
        for k, weights in enumerate(self.evidence_weights):
            arrays[f"evidence_weights.{k}"] = weights
        if self.shares is not None:
            arrays["shares"] = self.shares
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LearnedScore:
        """The score of what `to_arrays` gave."""
        try:
            biases, class_weights = arrays["biases"], arrays["class_weights"]
            weights = [arrays[f"evidence_weights.{k}"] for k in range(len(biases))]
        except KeyError as error:
            raise FileFormatError(f"a learned score needs {error.args[0]!r}; found {sorted(arrays)}") from error
        widths = [(NUM_CONFIDENCES + k,) for k in range(len(biases))]
        if len(class_weights) != len(biases) or [w.shape for w in weights] != widths:
            raise FileFormatError(
                f"a learned score of {len(biases)} exits needs as many class weights and evidence weights of shapes "
                f"{widths}; found {len(class_weights)} and {[w.shape for w in weights]}"
            )
        return cls(class_weights, weights, biases, arrays.get("shares"))


@dataclass(frozen=True)
class LearningOptions:
    """The parameters of `EENet` but for the seed."""

    kl_weight: float = 1e-3
    cost_weight: float = 1e-2
    turns: int = 3
    weight_decay: float | None = None
    target: str | None = None
    folds: int = 3

    def __post_init__(self) -> None:
        if not (isinstance(self.turns, (int, np.integer)) and self.turns >= 1):
            raise InvalidInputError(f"EENet(turns={self.turns!r}): expected a whole number, 1 or more")
        for name in ("kl_weight", "cost_weight", "weight_decay"):
            value = getattr(self, name)
            if not (value is None and name == "weight_decay") and not 0 <= value < math.inf:
                raise InvalidInputError(f"EENet({name}={value!r}): expected a number, 0 or more")
        if not (isinstance(self.folds, (int, np.integer)) and self.folds >= 2):
            raise InvalidInputError(f"EENet(folds={self.folds!r}): expected a whole number, 2 or more")
        if self.target is not None and self.target not in TARGETS:
            raise InvalidInputError(
                f"EENet(target={self.target!r}): expected {' or '.join(map(repr, TARGETS))}, or None"
            )


class EENet(Scheduler, method="eenet"):
    """EENet: learned exit scores and a learned exit assignment (Ilhan et al., WACV 2024). Needs labels.

    Parameters
    ----------
    seed : int
        Of the folds.
    kl_weight, cost_weight : float
        The paper's a_KL and a_cost, of the assignment's loss.
    turns : int
        How often scores and assignment are fitted in turn.
    weight_decay : float, optional
        Of the scores. None: of several, the one that is best on held-out folds.
    target : {"right", "lossless"}, optional
        What a score learns: that the exit is right (the paper's), or that no later exit is worth more. None: the one
        that is best on held-out folds.
    folds : int
        How many held-out folds there are.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.EENet(turns=1, weight_decay=1e-3).fit(toy_records(), toy_costs(), budget="60%")
    >>> bool(scheduler.calibration_cost <= 1.8)
    True
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        kl_weight: float = LearningOptions.kl_weight,
        cost_weight: float = LearningOptions.cost_weight,
        turns: int = LearningOptions.turns,
        weight_decay: float | None = LearningOptions.weight_decay,
        target: str | None = LearningOptions.target,
        folds: int = LearningOptions.folds,
    ) -> None:
        self.kl_weight = kl_weight
        self.cost_weight = cost_weight
        self.turns = turns
        self.weight_decay = weight_decay
        self.target = target
        self.folds = folds
        super().__init__("learned", "learned", seed=seed)

    def _options(self) -> LearningOptions:
        return LearningOptions(**{option.name: getattr(self, option.name) for option in fields(LearningOptions)})

    def _check(self) -> None:
        super()._check()
        self._options()

    def _scores(self, records: ExitRecords, costs: ExitCosts) -> Sequence[Score]:
        return LearnedScore.fit(records, costs, self.seed, self._options())

    def _fit(self, records: ExitRecords, costs: ExitCosts, live: Bools | None = None) -> Fitted:
        """Fit to records, for all budgets."""
        scores, tried = _train_best(records, costs, _references(costs), self._options(), self.seed)
        calibrations = [Calibration(score, records, costs, live=live, seed=self.seed) for score in scores]
        if tried is None:
            return ThresholdFit(calibrations, self._assignment(), partial(self._held_out, records, costs, live))
        table = ScoreTable(tried.table.scores, tried.table.finite, costs, live)
        score = replace(scores[0], shares=tried.shares)
        held_out = Calibration(score, records, costs, table, live, self.seed)
        return ThresholdFit(calibrations, self._assignment(), held_out)


class _Data:
    """The records as the training reads them: probabilities, confidences and log odds of each exit, and its worth."""

    def __init__(self, records: ExitRecords) -> None:
        history = records.all_evidence()
        self.probabilities = [e.probabilities for e in history]
        self.confidences = [with_confidences(e, 0) for e in history]
        self.offsets = [TIE_WEIGHT * e.log_odds for e in history]
        self.worth = records.require_utility().astype(np.float64)

    def targets(self, name: str) -> Floats:
        """What the exit scores should be, (K, N)."""
        if name == "right":
            return self.worth
        later = np.maximum.accumulate(self.worth[::-1], axis=0)[::-1]
        return (self.worth >= later).astype(np.float64)


@dataclass(frozen=True)
class _Way:
    """What is left to the data: the target and the weight decay."""

    target: str
    weight_decay: float


class _Scores:
    """The exit scores being trained; the last exit has one too, for the assignment only."""

    def __init__(self, data: _Data, way: _Way) -> None:
        self._data, self._decay = data, way.weight_decay
        self._targets = data.targets(way.target)
        # By exit: class weights, evidence weights and the bias, in one vector.
        self._vectors = [np.zeros(p.shape[1] + NUM_CONFIDENCES + k + 1) for k, p in enumerate(data.probabilities)]

    def learn(self, r: Floats) -> Floats:
        """Fit each exit's score in turn, weighted by the assignment r (K, N); gives q (K, N)."""
        q: list[Floats] = []
        for k, probabilities in enumerate(self._data.probabilities):
            problem = _Logistic(
                # In float32 rounding, which differs between processors, would decide where the solver ends.
                probabilities.astype(np.float64),
                np.column_stack([self._data.confidences[k], *q]),
                self._data.offsets[k],
                self._targets[k],
                r[k] / r[k].sum(),
                self._decay,
            )
            self._vectors[k] = problem.solve(self._vectors[k])
            q.append(sigmoid(problem.scores(self._vectors[k])))
        return np.stack(q)

    def copy(self) -> _Scores:
        """The same, to be trained on in another way."""
        other = _Scores.__new__(_Scores)
        other.__dict__.update(self.__dict__, _vectors=list(self._vectors))
        return other

    def frozen(self, shares: Floats) -> LearnedScore:
        """The scores as they are used."""
        classes, vectors = self._data.probabilities[0].shape[1], self._vectors[:-1]
        return LearnedScore(
            np.stack([v[:classes] for v in vectors]),
            [v[classes:-1] for v in vectors],
            np.array([v[-1] for v in vectors]),
            shares,
        )


@array_value
@dataclass(frozen=True)
class _Logistic:
    """The convex problem of one exit's score: weighted cross-entropy plus weight decay.

    `probabilities` (N, C), `scalars` (N, 4 + k), `offset`, `targets` and `weights` (N,); the weights sum to 1.
    """

    probabilities: Floats
    scalars: Floats
    offset: Floats
    targets: Floats
    weights: Floats
    decay: float

    def scores(self, vector: Floats) -> Floats:
        """The arguments of the sigmoids, (N,)."""
        classes = self.probabilities.shape[1]
        z: Floats = self.probabilities @ vector[:classes]
        z += self.scalars @ vector[classes:-1]
        z += self.offset + vector[-1]
        return z

    def loss(self, vector: Floats) -> tuple[float, Floats]:
        """The loss and its gradient."""
        z = self.scores(vector)
        e = np.exp(-np.abs(z))
        q = np.where(z >= 0, 1.0, e)
        q /= 1 + e
        value = self.weights @ (np.maximum(z, 0) + np.log1p(e) - self.targets * z)
        g = self.weights * (q - self.targets)
        shrunk = vector[:-1]
        gradient = np.concatenate([g @ self.probabilities, g @ self.scalars, [g.sum()]])
        gradient[:-1] += 2 * self.decay * shrunk
        return float(value + self.decay * (shrunk @ shrunk)), gradient

    def solve(self, start: Floats) -> Floats:
        """The vector of the smallest loss, from a first guess."""
        from scipy.optimize import minimize  # takes longer to import than to decide

        options = {"maxiter": _ITERATIONS, "gtol": 1e-6, "ftol": 1e-8}
        solution: Floats = minimize(self.loss, start, jac=True, method="L-BFGS-B", options=options).x
        return solution if np.isfinite(solution).all() else start


def _references(costs: ExitCosts) -> list[float]:
    budgets: list[float] = (costs[0] + np.array(REFERENCES) * (costs[-1] - costs[0])).tolist()
    return budgets


@array_value
@dataclass(frozen=True)
class _Tried:
    """The scores that a way gives each sample in a training without it, and their shares."""

    way: _Way
    table: ScoreTable
    shares: Floats


def _train_best(
    records: ExitRecords, costs: ExitCosts, budgets: Sequence[float], options: LearningOptions, seed: int
) -> tuple[list[LearnedScore], _Tried | None]:
    """Learn scores and assignment together for each budget, in the way that does best on held-out folds."""
    targets = TARGETS if options.target is None else (options.target,)
    decays = WEIGHT_DECAYS if options.weight_decay is None else (options.weight_decay,)
    ways = [_Way(t, d) for t in targets for d in decays]
    best = _best_way(records, costs, budgets, options, seed, ways) if len(ways) > 1 else None
    return _train(_Data(records), costs, budgets, options, ways[0] if best is None else best.way), best


def _best_way(
    records: ExitRecords,
    costs: ExitCosts,
    budgets: Sequence[float],
    options: LearningOptions,
    seed: int,
    ways: Sequence[_Way],
) -> _Tried | None:
    """The way whose scores, each given by a training without the sample, choose best; None for one distinct sample."""
    folds = fold_numbers(records, seed, options.folds)
    if int(folds.max()) + 1 < 2:
        return None
    brief = replace(options, turns=1)  # one turn is enough to choose
    middle = budgets[len(budgets) // 2]
    held_out = [np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]
    parts = [_Data(records.subset(np.flatnonzero(folds != fold))) for fold in range(len(held_out))]
    values, tried = [], []
    for way in ways:
        scores, finite = np.zeros((len(costs) - 1, len(records))), np.ones((len(costs) - 1, len(records)), np.bool_)
        shares = []
        for rows, part in zip(held_out, parts, strict=True):
            (trained,) = _train(part, costs, [middle], brief, way)
            table = ScoreTable.of(trained, records.subset(rows), costs)
            scores[:, rows], finite[:, rows] = table.scores, table.finite
            shares.append(trained.shares)
        mean: Floats = np.mean(shares, axis=0)  # type: ignore[arg-type]
        tried.append(_Tried(way, ScoreTable(scores, finite, costs), mean))
        values.append(_value(tried[-1].table, mean, records, costs, budgets))
    return tried[int(np.argmax(values))]


def _value(
    table: ScoreTable, shares: Floats, records: ExitRecords, costs: ExitCosts, budgets: Sequence[float]
) -> float:
    """Mean accuracy over the budgets that can be met."""
    family = tilted_shares(shares, costs.values)
    smallest = table.mean_cost(table.cheapest())
    utilities = []
    for budget in budgets:
        exits = table.exits(table.meet(max(budget, smallest), family))
        utilities.append(float(records.require_utility()[exits, np.arange(len(exits))].mean()))
    return float(np.mean(utilities))


def _train(
    data: _Data, costs: ExitCosts, budgets: Sequence[float], options: LearningOptions, way: _Way
) -> list[LearnedScore]:
    """Scores and assignment in turns, for each budget."""
    first = _Scores(data, way)
    first_q = first.learn(np.full(data.worth.shape, 1 / len(costs)))  # the first turn is the same for all budgets
    scores_of_budgets = []
    for budget in budgets:
        scores, q = first.copy(), first_q
        weights = {"kl_weight": options.kl_weight, "cost_weight": options.cost_weight}
        r = exit_assignment(q, costs, budget, **weights)
        for _ in range(options.turns - 1):
            q = scores.learn(r)
            r = exit_assignment(q, costs, budget, **weights)
        shares = r.mean(axis=1)
        scores_of_budgets.append(scores.frozen(shares / shares.sum()))
    return scores_of_budgets
