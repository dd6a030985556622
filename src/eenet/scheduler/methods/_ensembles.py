"""Ensembles of the exits so far: scores that also answer, in place of the exit that a sample takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError
from eenet.records import ExitRecords
from eenet.scheduler._policy import Ensemble, ExitHistory, Floats, Ints, probability
from eenet.scheduler._scheduler import Scheduler
from eenet.scheduler.methods._plain import TINY
from eenet.scheduler.methods._temperature import largest_log_odds, log_probabilities, require_labels
from eenet.tasks import Evidence

_SPREAD = 0.5
"""The prior spread of ZTW's logarithms of class biases, and of weights about equal ones: a few samples move neither."""


@array_value
@dataclass(frozen=True)
class ZTWScore(Ensemble):
    """Zero Time Waste: the exits so far multiplied, each to the power of a learned weight.

    q_k proportional to b_k prod_{j<=k} p_j^w_kj, with `weights` (K, K), of which row k holds w_k1 .. w_kk, and
    `log_biases` (K, C). The score is the largest of q_k, as log odds. Source: Wolczyk et al., "Zero Time Waste:
    Recycling Predictions in Early Exit Neural Networks", NeurIPS 2021, its geometric ensembles. The paper's cascade
    connections between heads are a matter of training them, not of the scheduler.
    """

    name = "ztw"
    uses_history = True
    needs_labels = True
    whole_samples = True

    weights: Floats
    log_biases: Floats

    def answers(self, history: ExitHistory) -> NDArray[np.float32]:
        """log q_k (n, C), shifted so that the largest is 0."""
        return self._product(history).astype(np.float32)

    def _product(self, history: ExitHistory) -> Floats:
        k = history.exit_index
        z: Floats = np.broadcast_to(self.log_biases[k], history.evidence[k].probabilities.shape).copy()
        for j, evidence in enumerate(history.evidence):
            z += self.weights[k, j] * log_probabilities(evidence)
        z -= z.max(axis=-1, keepdims=True)
        return z

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        return largest_log_odds(self._product(history))

    def readable(self, threshold: float) -> float:
        """The probability of the ensemble's answer."""
        return probability(threshold)

    @classmethod
    def fit(cls, records: ExitRecords, costs: ExitCosts, seed: int) -> Sequence[ZTWScore]:  # noqa: ARG003 - see Score
        """The weights and biases that give the labels the highest posterior likelihood, exit by exit."""
        labels = require_labels(records, cls)
        exits, classes = records.num_exits, records.num_classes
        weights, log_biases = np.zeros((exits, exits)), np.zeros((exits, classes))
        history = records.all_evidence()
        logs = np.stack([log_probabilities(evidence) for evidence in history])
        known = np.logical_and.accumulate(np.stack([evidence.finite for evidence in history]))
        for k in range(exits):
            rows = np.flatnonzero(known[k])
            weights[k, : k + 1], log_biases[k] = _fit_product(logs[: k + 1, rows], labels[rows])
        return (cls(weights, log_biases),)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights and biases, to be saved."""
        return {"weights": self.weights, "log_biases": self.log_biases}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ZTWScore:
        """The score of what `to_arrays` gave."""
        weights, biases = arrays.get("weights"), arrays.get("log_biases")
        if weights is None or biases is None or biases.ndim != 2 or weights.shape != (len(biases), len(biases)):
            raise FileFormatError(
                f"a ztw score needs 'weights' (exits, exits) and 'log_biases' (exits, classes); found {_shapes(arrays)}"
            )
        return cls(weights, biases)


@array_value
@dataclass(frozen=True)
class BEEMScore(Ensemble):
    """Exits as experts: each votes for its class with its confidence times its weight, and votes for one class add up.

    The class with most votes is the answer, and its share s of all votes that could have been given is the score, as
    -log(1 - s); `weights` (K,) are the exits' calibration accuracies. Source: Bajpai and Hanawal, "BEEM: Boosting
    Performance of Early Exit DNNs using Multi-Exit Classifiers as Experts", ICLR 2025, with its weights by accuracy.
    The paper starts its sum again where two neighbors disagree; here votes for every class are kept, so that sure early
    experts can outvote a later one.
    """

    name = "beem"
    uses_history = True
    needs_labels = True
    whole_samples = True

    weights: Floats

    def answers(self, history: ExitHistory) -> NDArray[np.float32]:
        """The logarithm of each class's share of the possible votes, (n, C)."""
        votes = np.zeros(history.evidence[-1].probabilities.shape)
        for weight, evidence in zip(self.weights, history.evidence, strict=False):
            votes[np.arange(len(votes)), evidence.predictions] += weight * evidence.max_probability * evidence.finite
        possible = max(float(self.weights[: len(history.evidence)].sum()), TINY)
        shares: NDArray[np.float32] = np.log(np.maximum(votes / possible, TINY)).astype(np.float32)
        return shares

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        winner = self.answers(history).argmax(axis=-1)
        missing, possible = np.zeros(len(winner)), 0.0
        for weight, evidence in zip(self.weights, history.evidence, strict=False):
            missing += weight * np.where(evidence.predictions == winner, _rest(evidence), 1.0)
            possible += float(weight)
        scores: Floats = -np.log(np.maximum(missing / max(possible, TINY), TINY))
        return scores

    def readable(self, threshold: float) -> float:
        """The winner's share of the possible votes."""
        return -math.expm1(-threshold)

    @classmethod
    def fit(cls, records: ExitRecords, costs: ExitCosts, seed: int) -> Sequence[BEEMScore]:  # noqa: ARG003 - see Score
        """Weights by accuracy on the calibration set."""
        require_labels(records, cls)
        return (cls(records.accuracies),)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights, to be saved."""
        return {"weights": self.weights}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> BEEMScore:
        """The score of what `to_arrays` gave."""
        weights = arrays.get("weights")
        if weights is None or weights.ndim != 1:
            raise FileFormatError(f"a beem score needs 'weights', one for each exit; found {_shapes(arrays)}")
        return cls(weights)


def _rest(evidence: Evidence) -> Floats:
    """1 minus the largest probability, (n,), exact where that rounds to 1."""
    rest: Floats = 1 / (1 + np.exp(evidence.log_odds))
    return rest


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _fit_product(logs: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """ZTW's weights (k,) and log biases (C,) for log probabilities (k, n, C) of the exits so far."""
    from scipy.optimize import minimize  # takes longer to import than to decide

    exits, samples, classes = logs.shape
    rows, count = np.arange(samples), max(1, samples)

    def loss(vector: Floats) -> tuple[float, Floats]:
        tilt, bias = vector[:exits], vector[exits:]
        weights = np.exp(tilt) / exits
        z = np.tensordot(weights, logs, axes=1)
        z += bias
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        value = np.log(total).sum() - z[rows, labels].sum() + vector @ vector / (2 * _SPREAD**2)
        p /= total
        p[rows, labels] -= 1
        gradient = np.concatenate([weights * np.tensordot(logs, p, axes=2), p.sum(axis=0)]) + vector / _SPREAD**2
        return float(value) / count, gradient / count

    options = {"maxiter": 100, "gtol": 1e-7, "ftol": 1e-10}
    solution: Floats = minimize(loss, np.zeros(exits + classes), jac=True, method="L-BFGS-B", options=options).x
    return np.exp(solution[:exits]) / exits, solution[exits:]


class ZTW(Scheduler, method="ztw"):
    """The exits so far multiplied to a learned ensemble, one threshold (Wolczyk et al., NeurIPS 2021). Needs labels.

    It changes predictions: a sample is answered by the ensemble, not by the exit it exits at.

    Examples
    --------
    >>> from eenet.scheduler import ZTW
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = ZTW().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("ztw", "shared")


class BEEM(Scheduler, method="beem"):
    """Exits as experts, whose weighted confidences add up (Bajpai and Hanawal, ICLR 2025). Needs labels.

    It changes predictions: a sample is answered by the experts so far, not by the exit it exits at alone.

    Examples
    --------
    >>> from eenet.scheduler import BEEM
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = BEEM().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("beem", "geometric")
