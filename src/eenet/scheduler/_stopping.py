"""The score of optimal stopping, as it is used: the estimated gain of going on, from the evidence so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import FileFormatError
from eenet.scheduler._policy import ExitHistory, Floats
from eenet.tasks import Evidence

HINGED = 3
"""The first three features also enter as hinges: the log odds, the margin and the entropy."""

KNOTS = 4
CLIP = 6.0  # standard deviations
_TINY = 1e-12
_MANY = 16  # classes, from which on a partial sort is quicker than a whole one


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


@dataclass(frozen=True)
class GainModel:
    """The gain of going on at one exit: a linear function of standardised features, their hinges and the class.

    `centre`, `scale` and `weights` are (F,), `knots` and `hinge_weights` (12,), `class_effects` (C,).
    """

    centre: Floats
    scale: Floats
    knots: Floats
    weights: Floats
    hinge_weights: Floats
    class_effects: Floats
    intercept: float

    def __call__(self, evidence: Sequence[Evidence]) -> Floats:
        """Estimated gains (n,), in units of utility; the extra cost is already taken off."""
        z = standardised(features(evidence), self.centre, self.scale)
        bent = hinges(z, self.knots)
        # Products summed row by row, not a BLAS product: see tasks/_evidence.py.
        z *= self.weights
        bent *= self.hinge_weights
        gains: Floats = np.add.reduce(z, axis=1)
        gains += np.add.reduce(bent, axis=1)
        gains += self.class_effects[evidence[-1].predictions]
        gains += self.intercept
        return gains


def standardised(values: Floats, centre: Floats, scale: Floats) -> Floats:
    """Features with the mean 0 and the standard deviation 1 on the calibration records, clipped."""
    z: Floats = values - centre
    z *= scale
    return np.minimum(np.maximum(z, -CLIP, out=z), CLIP, out=z)


def hinges(z: Floats, knots: Floats) -> Floats:
    """max(0, feature - knot) for the knots of the first features, (n, 12)."""
    bent: Floats = z[:, :HINGED, None] - knots.reshape(HINGED, -1)
    return np.maximum(bent, 0.0, out=bent).reshape(len(z), -1)


_ARRAYS = ("centre", "scale", "knots", "weights", "hinge_weights", "class_effects")


@dataclass(frozen=True)
class StoppingScore:
    """How much stopping is better than going on, for one price of cost: minus the gain of going on.

    Source: early exit as optimal stopping, by least-squares backward induction (Longstaff and Schwartz, Review of
    Financial Studies 14, 2001).
    """

    models: tuple[GainModel, ...]
    name: str = "stopping"
    uses_history: bool = True

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        return -self.models[trail.exit_index](trail.evidence)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights, to be saved."""
        arrays: dict[str, NDArray[Any]] = {"intercepts": np.array([model.intercept for model in self.models])}
        for k, model in enumerate(self.models):
            arrays |= {f"{name}.{k}": getattr(model, name) for name in _ARRAYS}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> StoppingScore:
        """The score of what `to_arrays` gave."""
        try:
            intercepts = arrays["intercepts"].reshape(-1)
            parts = [{name: arrays[f"{name}.{k}"] for name in _ARRAYS} for k in range(len(intercepts))]
        except KeyError as error:
            raise FileFormatError(f"a stopping score needs {error.args[0]!r}; found {sorted(arrays)}") from error
        for part in parts:
            width = {part[name].shape for name in ("centre", "scale", "weights")}
            bent = {part[name].shape for name in ("knots", "hinge_weights")}
            if len(width) > 1 or bent != {(HINGED * KNOTS,)}:
                raise FileFormatError("the arrays of a stopping score do not fit each other; save the scheduler again")
        return cls(tuple(GainModel(**part, intercept=float(b)) for part, b in zip(parts, intercepts, strict=True)))
