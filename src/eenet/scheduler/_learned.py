"""The learned score of EENet, as it is used: a linear function of the evidence at each exit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import FileFormatError, InvalidInputError
from eenet.scheduler._policy import ExitHistory, Floats
from eenet.tasks import Evidence

TIE_WEIGHT = 1e-3
"""The log odds enter the ranking with this weight: samples that the linear score cannot tell apart, because their
probabilities round to 1, stay in the order of their confidence. A difference of 0.02 in the score outweighs it."""

NUM_CONFIDENCES = 4
LOG_ODDS_SCALE = 0.1
"""Brings the log odds to the size of the other confidences."""


WEIGHT_DECAYS = (1e-5, 1e-3, 3e-2)
"""From many samples for each class to few."""

TARGETS = ("right", "lossless")
"""What an exit score may learn: that the exit is right, or that no later exit is worth more than it."""


@dataclass(frozen=True)
class LearningOptions:
    """How EENet learns: the weights of its loss, and how long and how often it tries.

    `kl_weight` and `cost_weight` are the paper's a_KL and a_cost; `hidden_factor` is the width of the assignment's
    hidden layer over its input. Scores and assignment take turns: the scores are fitted to the end, with
    `weight_decay`, the assignment for `turn` epochs, `epochs` in all. `target` is "right" (the paper's) or "lossless".
    Where target or weight decay is None, each of several is tried, from `restarts` beginnings, and what does best on
    `folds` held-out folds is kept.
    """

    kl_weight: float = 1e-3
    cost_weight: float = 1e-2
    hidden_factor: float = 2.0
    epochs: int = 60
    turn: int = 20
    assignment_rate: float = 2e-2
    weight_decay: float | None = None
    restarts: int = 1
    folds: int = 3
    target: str | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_factor", "epochs", "turn", "assignment_rate", "restarts"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InvalidInputError(f"LearningOptions({name}={value!r}): expected a number above 0")
        for name in ("kl_weight", "cost_weight", "weight_decay"):
            value = getattr(self, name)
            if value is None and name == "weight_decay":
                continue
            if not 0 <= value < math.inf:
                raise InvalidInputError(f"LearningOptions({name}={value!r}): expected a number, 0 or more")
        if not 2 <= self.folds < math.inf:
            raise InvalidInputError(f"LearningOptions(folds={self.folds!r}): expected a number, 2 or more")
        if self.target is not None and self.target not in TARGETS:
            raise InvalidInputError(
                f"LearningOptions(target={self.target!r}): expected {' or '.join(map(repr, TARGETS))}, or None"
            )


def confidences(evidence: Evidence) -> Floats:
    """The confidences a_k (n, 4): max p, 1 - normalised entropy, vote share, scaled log odds.

    Source: EENet, section 3.2, which has the first three. All three saturate where a network is overconfident, and a
    linear score of them can then no longer tell the sure from the less sure; the log odds can.
    """
    return _with_confidences(evidence, 0)


def _with_confidences(evidence: Evidence, more: int) -> Floats:
    """The confidences, and room for more columns after them: (n, 4 + more)."""
    values = np.empty((len(evidence), NUM_CONFIDENCES + more))
    values[:, 0] = evidence.max_probability
    np.subtract(1, evidence.entropy, out=values[:, 1])
    values[:, 2] = evidence.vote_share
    np.multiply(LOG_ODDS_SCALE, evidence.log_odds, out=values[:, 3])
    return values


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    y: Floats = np.exp(-np.logaddexp(0.0, -x))
    return y


@dataclass(frozen=True)
class LearnedScore:
    """EENet's exit scores: q_k = sigmoid(w_k . p_k + v_k . [a_k, q_1 .. q_{k-1}] + b_k).

    `class_weights` (K-1, C), `evidence_weights` K-1 arrays (4 + k,), `biases` (K-1,). `shares` (K,) is the exit
    assignment it was trained with, if it was.
    """

    class_weights: Floats
    evidence_weights: Sequence[Floats]
    biases: Floats
    shares: Floats | None = None
    name: str = "learned"
    uses_history: bool = True

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,): the argument of the sigmoid, which orders samples as q_k does."""
        k = trail.exit_index
        evidence = trail.evidence[k]
        scalars = _with_confidences(evidence, k)
        for column, earlier in enumerate(trail.scores, NUM_CONFIDENCES):
            scalars[:, column] = sigmoid(earlier)
        scalars *= self.evidence_weights[k]
        # Products summed row by row, not a BLAS product: see tasks/_evidence.py.
        scores: Floats = np.add.reduce(evidence.probabilities * self.class_weights[k], axis=1)
        scores += np.add.reduce(scalars, axis=1)
        scores += self.biases[k]
        scores += TIE_WEIGHT * evidence.log_odds
        return scores

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
