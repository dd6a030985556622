"""Ensembles of the exits so far: scores that also answer, in place of the exit a sample leaves at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import FileFormatError
from eenet.records import ExitRecords
from eenet.scheduler._policy import Ensemble, ExitHistory, Floats, Score, require_whole
from eenet.scheduler._scores import TINY
from eenet.scheduler._temperature import log_probabilities, require_labels
from eenet.tasks import Evidence

_SPREAD = 0.5
"""The prior spread of ZTW's logarithms of class biases, and of weights about equal ones: a few samples move neither."""


@dataclass(frozen=True)
class ZTWScore:
    """Zero Time Waste: the exits so far multiplied, each to the power of a learned weight.

    q_k proportional to b_k prod_{j<=k} p_j^w_kj, with `weights` (K, K), of which row k holds w_k1 .. w_kk, and
    `log_biases` (K, C). The score is the largest of q_k, as log odds. Source: Wolczyk et al., "Zero Time Waste:
    Recycling Predictions in Early Exit Neural Networks", NeurIPS 2021, its geometric ensembles. The paper's cascade
    connections between heads are a matter of training them, not of the scheduler.
    """

    weights: Floats
    log_biases: Floats
    name: str = "ztw"
    uses_history: bool = True
    whole_samples: bool = True

    def answers(self, trail: ExitHistory) -> NDArray[np.float32]:
        """log q_k (n, C), shifted so that the largest is 0."""
        return self._product(trail).astype(np.float32)

    def _product(self, trail: ExitHistory) -> Floats:
        k = trail.exit_index
        z: Floats = np.broadcast_to(self.log_biases[k], trail.evidence[k].probabilities.shape).copy()
        for j, evidence in enumerate(trail.evidence):
            z += self.weights[k, j] * log_probabilities(evidence)
        z -= z.max(axis=-1, keepdims=True)
        return z

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        z = self._product(trail)
        others = np.exp(z)
        others[np.arange(len(z)), z.argmax(axis=-1)] = 0.0
        scores: Floats = -np.log(np.maximum(others.sum(axis=-1), TINY))
        return scores

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


@dataclass(frozen=True)
class BEEMScore:
    """Exits as experts: each votes for its class with its confidence times its weight, and votes for one class add up.

    The class with most votes is the answer, and its share s of all votes that could have been given is the score, as
    -log(1 - s); `weights` (K,) are the exits' calibration accuracies. Source: Bajpai and Hanawal, "BEEM: Boosting
    Performance of Early Exit DNNs using Multi-Exit Classifiers as Experts", ICLR 2025, with its weights by accuracy.
    The paper begins its sum anew where two neighbours disagree; here votes for every class are kept, so that sure
    early experts can outvote a later one.
    """

    weights: Floats
    name: str = "beem"
    uses_history: bool = True
    whole_samples: bool = True

    def answers(self, trail: ExitHistory) -> NDArray[np.float32]:
        """The logarithm of each class's share of the possible votes, (n, C)."""
        votes = np.zeros(trail.evidence[-1].probabilities.shape)
        for weight, evidence in zip(self.weights, trail.evidence, strict=False):
            votes[np.arange(len(votes)), evidence.predictions] += weight * evidence.max_probability * evidence.finite
        possible = max(float(self.weights[: len(trail.evidence)].sum()), TINY)
        shares: NDArray[np.float32] = np.log(np.maximum(votes / possible, TINY)).astype(np.float32)
        return shares

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        winner = self.answers(trail).argmax(axis=-1)
        missing, possible = np.zeros(len(winner)), 0.0
        for weight, evidence in zip(self.weights, trail.evidence, strict=False):
            missing += weight * np.where(evidence.predictions == winner, _rest(evidence), 1.0)
            possible += float(weight)
        scores: Floats = -np.log(np.maximum(missing / max(possible, TINY), TINY))
        return scores

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


def as_answered(score: Score, records: ExitRecords) -> ExitRecords:
    """The records with the utility that a score's answers have: of an ensemble, whether the combined answer is right.

    What scores see of them is unchanged. Raises `InvalidInputError` for pooled records that the score cannot use.
    """
    require_whole(score, pooled=bool(records.pooled))
    if not isinstance(score, Ensemble) or records.labels is None:
        return records
    trail, utility = ExitHistory(), []
    for evidence in records.all_evidence():
        trail.evidence.append(evidence)
        utility.append(score.answers(trail).argmax(axis=1) == records.labels)
    return ExitRecords(records.probabilities, records.predictions, records.labels, np.stack(utility).astype(np.float32))


def fit_beem(records: ExitRecords) -> BEEMScore:
    """Weights by accuracy on the calibration set."""
    require_labels(records, "beem")
    return BEEMScore(records.accuracies)


def fit_ztw(records: ExitRecords) -> ZTWScore:
    """The weights and biases that give the labels the highest posterior likelihood, exit by exit."""
    import torch  # deciding does not need it
    from torch.nn import functional

    labels = require_labels(records, "ztw")
    exits, classes = records.num_exits, records.num_classes
    weights, log_biases = np.zeros((exits, exits)), np.zeros((exits, classes))
    trail = records.all_evidence()
    logs = torch.from_numpy(np.stack([log_probabilities(evidence) for evidence in trail]))
    known = np.logical_and.accumulate(np.stack([evidence.finite for evidence in trail]))
    with torch.inference_mode(mode=False), torch.enable_grad():
        for k in range(exits):
            rows = torch.from_numpy(np.flatnonzero(known[k]))
            x, y = logs[: k + 1, rows], torch.from_numpy(labels[known[k]])
            tilt = torch.zeros(k + 1, dtype=torch.float64, requires_grad=True)
            bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
            optimiser = torch.optim.LBFGS([tilt, bias], max_iter=100, line_search_fn="strong_wolfe")

            def loss(
                x: torch.Tensor = x, y: torch.Tensor = y, tilt: torch.Tensor = tilt, bias: torch.Tensor = bias
            ) -> torch.Tensor:
                z = torch.einsum("j,jnc->nc", tilt.exp() / len(tilt), x) + bias
                prior = (tilt.square().sum() + bias.square().sum()) / (2 * _SPREAD**2)
                return (functional.cross_entropy(z, y, reduction="sum") + prior) / max(1, len(y))

            def closure(optimiser: torch.optim.Optimizer = optimiser, loss: Any = loss) -> torch.Tensor:
                optimiser.zero_grad()
                value: torch.Tensor = loss()
                value.backward()  # type: ignore[no-untyped-call]
                return value.detach()

            optimiser.step(closure)  # type: ignore[no-untyped-call]
            weights[k, : k + 1] = (tilt.exp() / len(tilt)).detach().numpy()
            log_biases[k] = bias.detach().numpy()
    return ZTWScore(weights, log_biases)
