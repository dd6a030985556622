"""A policy under which a given number of samples exits, for measurements: it decides at the cost of another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.scheduler._fitted import PolicyTable, State
from eenet.scheduler._policy import Ensemble, ExitHistory, Score, ThresholdPolicy
from eenet.scheduler._scheduler import Scheduler

Floats = NDArray[np.float64]


def forced(policy: ThresholdPolicy, exiting: Sequence[int], observed: Sequence[bool]) -> ThresholdPolicy:
    """A policy with the score of another one, under which `exiting[k]` of the running samples exit at exit k.

    `observed` says at which early exits it looks.
    """
    score = (_ForcedEnsemble if policy.ensemble is not None else _Forced)(policy.score, exiting)
    on = np.array(observed, dtype=np.bool_)
    return ThresholdPolicy(score, np.full(len(on), 0.5), on, policy.num_classes)


def at_every_exit(policy: ThresholdPolicy) -> ThresholdPolicy:
    """A policy with the score of another one that looks at all exits, and at none lets a sample exit."""
    early = len(policy.enabled)
    return ThresholdPolicy(policy.score, np.full(early, np.inf), np.ones(early, dtype=np.bool_), policy.num_classes)


def scheduler_of(policy: ThresholdPolicy) -> Scheduler:
    """A scheduler that was fitted to nothing and decides by a policy."""
    costs = ExitCosts(np.arange(1, policy.num_exits + 1))
    one = np.ones(1)
    scheduler = Scheduler()
    scheduler._state = State(PolicyTable(one, one, one, (policy,), costs), policy)
    return scheduler


class _Forced(Score):
    """Computes a score, and then lets a given number of the running samples exit."""

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
