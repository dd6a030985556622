"""Ridge regression with an effect for each class, out-of-fold predictions, and a strength chosen by the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eenet._values import array_value
from eenet.scheduler._policy import Floats, Ints

STRENGTHS: Floats = np.asarray(10.0 ** np.arange(-4, 2.5, 0.5))
_FREE = 0.1
_TEMPERATURE = 2.0


@array_value
@dataclass(frozen=True)
class Ridge:
    """Weights (F, L) and class effects (C, L), intercepts (L,), for L targets at once; out-of-fold values (n, L)."""

    weights: Floats
    class_effects: Floats
    intercepts: Floats
    out_of_fold: Floats
    strength: float


@array_value
@dataclass(frozen=True)
class _Sums:
    """What the normal equations need of some samples: they add up over folds."""

    count: float
    x: Floats
    y: Floats
    xx: Floats
    xy: Floats
    class_counts: Floats
    class_x: Floats
    class_y: Floats

    def __sub__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))

    @classmethod
    def of(cls, x: Floats, y: Floats, classes: Ints, num_classes: int) -> _Sums:
        order = np.argsort(classes, kind="stable")
        present, starts = np.unique(classes[order], return_index=True)
        class_x, class_y = np.zeros((num_classes, x.shape[1])), np.zeros((num_classes, y.shape[1]))
        if len(present):
            class_x[present] = np.add.reduceat(x[order], starts, axis=0)
            class_y[present] = np.add.reduceat(y[order], starts, axis=0)
        counts = np.bincount(classes, minlength=num_classes).astype(np.float64)
        return cls(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y, counts, class_x, class_y)

    def solve(self, strength: float, penalty: Floats) -> tuple[Floats, Floats, Floats]:
        """Weights, class effects and intercepts. The classes are eliminated first, so that many cost little."""
        n = self.count
        if n == 0:  # nothing is known: no gain is expected
            return np.zeros_like(self.xy), np.zeros_like(self.class_y), np.zeros_like(self.y)
        mean_x, mean_y = self.x / n, self.y / n
        xx = self.xx - n * np.outer(mean_x, mean_x)
        xy = self.xy - n * np.outer(mean_x, mean_y)
        centered_x = self.class_x - self.class_counts[:, None] * mean_x
        centered_y = self.class_y - self.class_counts[:, None] * mean_y
        # Class effects are shrunk like any other weight; their intercept is the common one.
        shrink = 1 / (self.class_counts + strength * n)[:, None]
        weights = np.linalg.solve(
            xx - centered_x.T @ (shrink * centered_x) + np.diag(strength * n * penalty),
            xy - centered_x.T @ (shrink * centered_y),
        )
        effects = shrink * (centered_y - centered_x @ weights)
        return weights, effects, mean_y - mean_x @ weights


def fit_ridge(x: Floats, y: Floats, classes: Ints, num_classes: int, folds: Ints, free: Ints) -> Ridge:
    """Regress targets (n, L) on features (n, F) and the class (n,), all with one strength.

    The columns `free` are hardly penalized. The weights are a mean over all strengths, each weighted by the likelihood
    of its out-of-fold errors: with few samples the choice of one would be noise.
    """
    penalty = np.ones(x.shape[1])
    penalty[free] = _FREE
    count = int(folds.max(initial=0)) + 1
    members = [np.flatnonzero(folds == fold) for fold in range(count)]
    parts = [_Sums.of(x[rows], y[rows], classes[rows], num_classes) for rows in members]
    whole = _Sums.of(x, y, classes, num_classes)
    errors, values = np.zeros(len(STRENGTHS)), []
    for i, strength in enumerate(STRENGTHS.tolist()):
        out_of_fold = np.empty_like(y)
        for rows, part in zip(members, parts, strict=True):
            weights, effects, intercepts = (whole - part).solve(strength, penalty)
            out_of_fold[rows] = x[rows] @ weights + effects[classes[rows]] + intercepts
        errors[i] = np.square(out_of_fold - y).sum() / max(1, y.size)
        values.append(out_of_fold)
    smallest = max(float(errors.min()), 1e-30)
    likelihoods = np.exp(-(errors - errors.min()) / smallest * len(x) / _TEMPERATURE)
    likelihoods /= likelihoods.sum()
    solved = [whole.solve(strength, penalty) for strength in STRENGTHS.tolist()]
    weights, effects, intercepts = (sum(w * s[i] for w, s in zip(likelihoods, solved, strict=True)) for i in range(3))
    return Ridge(
        weights,
        effects,
        intercepts,
        sum(w * v for w, v in zip(likelihoods, values, strict=True)),
        float(np.exp(likelihoods @ np.log(STRENGTHS))),
    )
