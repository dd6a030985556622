"""Confidence made comparable between exits: one temperature for each, fitted on the calibration set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._policy import ExitHistory, Floats, Ints, Score, probability, require_whole
from eenet.scheduler._scheduler import Scheduler
from eenet.scheduler.methods._plain import TINY
from eenet.tasks import Evidence

_SMALLEST = float(np.finfo(np.float32).tiny)
_COLDEST, _HOTTEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 50
"""Golden sections of the logarithm of the temperature: the interval shrinks to 2e-10 of its width."""


@array_value
@dataclass(frozen=True)
class TemperatureScore(Score):
    """The largest class probability after scaling with the exit's temperature, as log odds.

    `temperatures` (K-1,). Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML
    2017; for each exit on its own, Pacheco et al., "Calibration-Aided Edge Inference Offloading via Adaptive Model
    Partitioning of Deep Neural Networks", ICC 2021.
    """

    name = "temperature"
    needs_labels = True
    whole_samples = True

    temperatures: Floats

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        k = history.exit_index
        return largest_log_odds(log_probabilities(history.evidence[k]) / self.temperatures[k])

    def readable(self, threshold: float) -> float:
        """The calibrated probability."""
        return probability(threshold)

    @classmethod
    def fit(cls, records: ExitRecords, costs: ExitCosts, seed: int) -> Sequence[TemperatureScore]:  # noqa: ARG003
        """The temperature of each early exit that gives the labels the highest likelihood."""
        labels = require_labels(records, cls)
        fitted = []
        for evidence in records.all_evidence()[:-1]:
            known = np.flatnonzero(evidence.finite)
            fitted.append(_best_temperature(log_probabilities(evidence)[known], labels[known]) if len(known) else 1.0)
        return (cls(np.array(fitted)),)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The temperatures, to be saved."""
        return {"temperatures": self.temperatures}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TemperatureScore:
        """The score of what `to_arrays` gave."""
        temperatures = arrays.get("temperatures")
        if temperatures is None or temperatures.ndim != 1:
            raise FileFormatError(
                f"a temperature score needs 'temperatures', one for each early exit; found {sorted(arrays)}"
            )
        return cls(temperatures)


def log_probabilities(evidence: Evidence) -> Floats:
    """The logarithms of the class probabilities (n, C), as float64; none below that of the smallest normal float32.

    Below it float32 keeps so few digits that the logarithm would change with the rounding of the network.
    """
    logs: Floats = np.log(np.maximum(evidence.probabilities.astype(np.float64), _SMALLEST))
    return logs


def largest_log_odds(z: Floats) -> Floats:
    """The log odds (n,) of the largest class probability, from logits (n, C), which this overwrites."""
    rows, largest = np.arange(len(z)), z.argmax(axis=-1)
    z -= z[rows, largest][:, None]
    others = np.exp(z)
    others[rows, largest] = 0.0
    odds: Floats = -np.log(np.maximum(others.sum(axis=-1), TINY))
    return odds


def require_labels(records: ExitRecords, score: type[Score]) -> Ints:
    """The labels (N,) of records of whole samples; raises `InvalidInputError` for pooled or unlabeled ones."""
    require_whole(score, pooled=bool(records.pooled))
    records.require_utility()
    if records.labels is None:
        raise InvalidInputError(f"{score.name} is fitted to labels, and these records have none but a utility")
    return records.labels


def _best_temperature(logs: Floats, labels: Ints) -> float:
    """Golden section search of the mean negative log likelihood, which has one minimum along the temperature."""

    def loss(x: float) -> float:
        z = logs * math.exp(-x)
        z -= z.max(axis=1, keepdims=True)
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]).mean())

    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


class TemperatureScaled(Scheduler, method="temperature"):
    """Max probability calibrated exit by exit, with one threshold (Pacheco et al., ICC 2021). Needs labels.

    Examples
    --------
    >>> from eenet.scheduler import TemperatureScaled
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = TemperatureScaled().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("temperature", "shared")
