"""A learned gate at each exit, in the manner of JEI-DNN, trained on exits that are frozen."""

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
from eenet.scheduler._policy import Bools, ExitHistory, Floats, Score, require_whole
from eenet.scheduler._scheduler import Scheduler
from eenet.scheduler.methods._eenet import TIE_WEIGHT
from eenet.scheduler.methods._plain import margin_left
from eenet.tasks import Evidence

NUM_METRICS = 4
_NEWTON_STEPS = 12
_RIDGE = 1e-2


def uncertainty(evidence: Evidence) -> Floats:
    """The uncertainty metrics of JEI-DNN (n, 4): max probability, entropy, margin, entropy of what is sharpened.

    Sharpened probabilities are the squares, normalized. Both entropies are divided by log C.
    """
    squared = evidence.probabilities.astype(np.float64) ** 2
    squared /= squared.sum(axis=-1, keepdims=True)
    terms = squared * np.log(np.maximum(squared, 1e-300))
    sharpened = -terms.sum(axis=-1) / math.log(squared.shape[1])
    return np.stack([evidence.max_probability, evidence.entropy, 1 - margin_left(evidence), sharpened], axis=1)


@array_value
@dataclass(frozen=True)
class GateScore(Score):
    """The logit of a linear gate on the uncertainty metrics, high where nothing is gained by going on.

    `weights` (K-1, 4) and `biases` (K-1,). A small multiple of the log odds distinguishes samples that saturated
    metrics tie. Source: Regol, Chataoui and Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network:
    JEI-DNN", ICLR 2024, section 4; there gates and exits are trained together.
    """

    name = "gate"
    needs_labels = True
    whole_samples = True

    weights: Floats
    biases: Floats

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        k = history.exit_index
        evidence = history.evidence[k]
        linear = (uncertainty(evidence) * self.weights[k]).sum(axis=1)
        scores: Floats = linear + self.biases[k] + TIE_WEIGHT * evidence.log_odds
        return scores

    @classmethod
    def fit(cls, records: ExitRecords, costs: ExitCosts, seed: int) -> Sequence[GateScore]:  # noqa: ARG003 - see Score
        """Gates that say which samples gain nothing by continuing, by logistic regression on the calibration set.

        A sample's best exit is the first of the highest utility, and the gate of an exit learns whether it is this one
        or an earlier one. The paper subtracts a price of cost and takes the cross-entropy for the loss, since its exits
        are trained together with the gates. Here the budget sets the price; and on frozen exits the cross-entropy has
        most to gain where an exit is surely wrong, which its uncertainty cannot distinguish from surely right.
        """
        require_whole(cls, pooled=bool(records.pooled))
        best = records.require_utility().argmax(axis=0)
        history = records.all_evidence()
        weights, biases = np.zeros((len(history) - 1, NUM_METRICS)), np.zeros(len(history) - 1)
        finite = np.ones(len(records), dtype=np.bool_)
        for k, evidence in enumerate(history[:-1]):
            finite &= evidence.finite
            offset = TIE_WEIGHT * evidence.log_odds[finite]
            weights[k], biases[k] = _logistic(uncertainty(evidence)[finite], best[finite] <= k, offset)
        return (cls(weights, biases),)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights and biases, to be saved."""
        return {"weights": self.weights, "biases": self.biases}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> GateScore:
        """The score of what `to_arrays` gave."""
        weights, biases = arrays.get("weights"), arrays.get("biases")
        if weights is None or biases is None or weights.shape != (len(biases), NUM_METRICS):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise FileFormatError(
                f"a gate score needs 'weights' (early exits, {NUM_METRICS}) and 'biases' (early exits,); found {shapes}"
            )
        return cls(weights, biases)


def _logistic(x: Floats, targets: Bools, offset: Floats) -> tuple[Floats, float]:
    """Ridge logistic regression by Newton's method on standardized columns; weights and bias for the plain ones."""
    if len(x) == 0 or targets.all() or not targets.any():
        # Nothing to learn: the same for all samples, on the right side of 0.
        return np.zeros(NUM_METRICS), 10.0 if len(x) and targets.all() else -10.0
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-3)
    z = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    beta = np.zeros(NUM_METRICS + 1)
    penalty = np.full(NUM_METRICS + 1, _RIDGE * len(x))
    penalty[-1] = 1e-6 * len(x)
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ beta + offset, -30, 30)))
        gradient = z.T @ (p - targets) + penalty * beta
        curvature = (z * (p * (1 - p) + 1e-9)[:, None]).T @ z + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        beta -= np.clip(step, -4.0, 4.0)
        if np.abs(step).max() < 1e-8:
            break
    weights = beta[:-1] / scale
    return weights, float(beta[-1] - weights @ mean)


class LearnedGate(Scheduler, method="gate"):
    """A learned gate at each exit, in the manner of JEI-DNN (Regol et al., ICLR 2024) on frozen exits. Needs labels.

    Examples
    --------
    >>> from eenet.scheduler import LearnedGate
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = LearnedGate().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("gate", "geometric")
