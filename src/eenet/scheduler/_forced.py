"""A policy that lets as many samples exit as it is told, for measurements: it decides at the cost of another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eenet.scheduler._policy import Ensemble, ExitHistory, Score, ThresholdPolicy

Floats = NDArray[np.float64]


def forced(policy: ThresholdPolicy, exiting: Sequence[int], observed: Sequence[bool]) -> ThresholdPolicy:
    """A policy with the score of another one, under which `exiting[k]` of the running samples exit at exit k.

    `observed` says at which early exits it looks.
    """
    score = (_ForcedEnsemble if policy.ensemble is not None else _Forced)(policy.score, exiting)
    on = np.array(observed, dtype=np.bool_)
    return ThresholdPolicy(score, np.full(len(on), 0.5), on, policy.num_classes)


class _Forced(Score):
    """Computes a score, and then lets as many of the running samples exit as it was told."""

    def __init__(self, score: Score, exiting: Sequence[int]) -> None:
        self.score, self.exiting = score, exiting

    def __call__(self, history: ExitHistory) -> Floats:
        self.score(history)
        scores = np.zeros(len(history.evidence[-1]))
        scores[: self.exiting[history.exit_index]] = 1.0
        return scores


class _ForcedEnsemble(_Forced, Ensemble):
    """The same of a score that also answers."""

    def answers(self, history: ExitHistory) -> NDArray[np.float32]:
        assert isinstance(self.score, Ensemble)
        return self.score.answers(history)
