"""The decision: which samples leave at which exit.

`ThresholdPolicy.leaves` is the one function that decides it. Replays, the runtimes and the server all reach it through
`DecisionState`, which also does the bookkeeping: every sample leaves at exactly one exit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.tasks import Evidence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]


class ExitHistory:
    """What a policy knows of n samples that are still running: their evidence and scores at the exits so far."""

    def __init__(self, evidence: Sequence[Evidence] = (), scores: Sequence[Floats] = ()) -> None:
        self.evidence = list(evidence)
        self.scores = list(scores)

    @property
    def exit_index(self) -> int:
        """The exit the samples are at, from 0."""
        return len(self.evidence) - 1

    @property
    def finite(self) -> Bools:
        """Which samples have had finite evidence all the way, (n,)."""
        finite = self.evidence[0].finite
        for evidence in self.evidence[1:]:
            finite = finite & evidence.finite
        return finite

    def skip(self, samples: int, classes: int) -> None:
        """Pass an exit that nobody looks at, with evidence that says nothing."""
        uniform = np.full((samples, classes), 1 / classes, dtype=np.float32)
        self.evidence.append(Evidence(uniform, np.zeros(samples, dtype=np.intp)))
        self.scores.append(np.zeros(samples))

    def take(self, rows: Ints) -> ExitHistory:
        """The trail of some of the samples."""
        taken: list[Evidence] = []
        for evidence in self.evidence:
            taken.append(evidence.take(rows, taken))
        return ExitHistory(taken, [scores[rows] for scores in self.scores])

    @classmethod
    def join(cls, parts: Sequence[ExitHistory]) -> ExitHistory:
        """The trail of the samples of several, in order; all must have come to the same exit."""
        if len(parts) == 1:  # evidence does not change, so only the lists, which grow, are copied
            return cls(parts[0].evidence, parts[0].scores)
        joined: list[Evidence] = []
        for k in range(len(parts[0].evidence)):
            joined.append(Evidence.join([part.evidence[k] for part in parts], joined))
        scores = [np.concatenate([part.scores[k] for part in parts]) for k in range(len(parts[0].scores))]
        return cls(joined, scores)


class Score(Protocol):
    """How sure we are, at an exit, that stopping there is right. Higher is surer; finite wherever the evidence is."""

    @property
    def name(self) -> str:
        """What it is called in files and messages."""
        ...

    @property
    def uses_history(self) -> bool:
        """Whether the score at an exit depends on the exits before it."""
        ...

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,) of the samples at the exit the trail has come to; each row independent of the others."""
        ...

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, to be saved."""
        ...


@runtime_checkable
class Ensemble(Score, Protocol):
    """A score that also answers: with the exits so far combined, in place of the exit's own prediction."""

    def answers(self, trail: ExitHistory) -> NDArray[np.float32]:
        """Logits (n, C), finite, of the samples at the exit the trail has come to; each row independent of the others.

        The largest is the prediction. What is not finite in the evidence counts for nothing.
        """
        ...


def leaves_at(scores: Floats, finite: Bools, threshold: float, enabled: bool) -> Bools:
    """Whether samples (n,) leave an exit: the rule itself, also used to try thresholds while fitting."""
    if not enabled:
        return np.zeros(len(scores), dtype=np.bool_)
    leaving: Bools = (scores >= threshold) & finite
    return leaving


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at the first exit that is on and whose score reaches its threshold; the last exit takes the rest.

    `thresholds` and `enabled` are (K-1,); the threshold of an exit that is off is not looked at.
    """

    score: Score
    thresholds: Floats
    enabled: Bools
    num_classes: int

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.thresholds) + 1

    @cached_property
    def ensemble(self) -> Ensemble | None:
        """The score, where it also answers in place of the exits."""
        # Asked once: whether a class has all that a protocol names takes longer than the rest of a decision.
        return self.score if isinstance(self.score, Ensemble) else None

    def require(self, exits: int, classes: int, whose: str) -> None:
        """Raise `InvalidInputError` unless it is for so many exits and classes; `whose`: "the model has"."""
        if (exits, classes) != (self.num_exits, self.num_classes):
            raise InvalidInputError(
                f"the scheduler was fitted for {self.num_exits} exits and {self.num_classes} classes, {whose} {exits} "
                f"exits and {classes} classes; fit it on records of this network"
            )

    def observes(self, exit_index: int) -> bool:
        """Whether the exit's output is looked at; if not, its head need not run."""
        if exit_index == self.num_exits - 1 or self.ensemble is not None:
            return True
        if self.score.uses_history:
            return bool(self.enabled[exit_index:].any())
        return bool(self.enabled[exit_index])

    def leaves(self, trail: ExitHistory) -> Bools:
        """Whether each sample leaves at the exit it is at, (n,). Adds the exit's scores to the trail."""
        k = trail.exit_index
        if k == self.num_exits - 1:
            return np.ones(len(trail.evidence[k]), dtype=np.bool_)
        scores = self.score(trail)
        trail.scores.append(scores)
        return leaves_at(scores, trail.finite, self.thresholds[k], bool(self.enabled[k]))


class DecisionState:
    """The way of n samples through the exits under a policy.

    Call `observe` with the evidence of the running samples at each exit in turn, or `skip` where the policy does not
    look, and `finish` at the last, until `running` is empty. Then `exits` (n,) says where each left. Where the policy
    is an ensemble, `left` are the logits of those who have just left, in place of the exit's own; otherwise None.
    """

    def __init__(self, policy: ThresholdPolicy, samples: int) -> None:
        self._policy = policy
        self._trail = ExitHistory()
        self.running: Ints = np.arange(samples)
        self.exits: Ints = np.empty(samples, dtype=np.intp)
        self.exits.fill(-1)
        self._ensemble = policy.ensemble
        self.left: NDArray[np.float32] | None = None

    @classmethod
    def onward(cls, policy: ThresholdPolicy, samples: int, trail: ExitHistory) -> DecisionState:
        """The way from here on of n samples that have this trail: what goes from one process to another."""
        route = cls(policy, samples)
        route._trail = trail
        return route

    @classmethod
    def join(cls, routes: Sequence[DecisionState]) -> DecisionState:
        """The way from here on of the running samples of several routes, in order, numbered anew.

        This is how samples of different requests go on together. The routes themselves stay as they are. Raises
        `InvalidInputError` unless they are at the same exit under the same policy.
        """
        first = routes[0]
        if any(route._policy is not first._policy or route.exit_index != first.exit_index for route in routes):
            at = [route.exit_index for route in routes]
            raise InvalidInputError(f"routes before exits {at} cannot be joined, expected one exit and one policy")
        joined = cls(first._policy, sum(len(route.running) for route in routes))
        joined._trail = ExitHistory.join([route._trail for route in routes])
        return joined

    def take(self, rows: Ints) -> DecisionState:
        """The way from here on of some of the running samples (positions among them), numbered anew."""
        taken = DecisionState(self._policy, len(rows))
        taken._trail = self._trail.take(rows)
        return taken

    @property
    def policy(self) -> ThresholdPolicy:
        """The policy that decides."""
        return self._policy

    @property
    def trail(self) -> ExitHistory:
        """What is known of the running samples."""
        return self._trail

    @property
    def exit_index(self) -> int:
        """The exit that comes next, from 0."""
        return self._trail.exit_index + 1

    @property
    def earlier(self) -> list[Evidence]:
        """The evidence of the running samples at the exits so far."""
        return self._trail.evidence

    def observe(self, evidence: Evidence) -> tuple[Ints, Ints | None]:
        """Let samples leave; return the positions, among those running until now, of who leaves and who stays.

        The second is None when nobody leaves, so that the caller need not copy anything.
        """
        if len(evidence) != len(self.running):
            raise InvalidInputError(f"evidence of {len(evidence)} samples, {len(self.running)} are running")
        require_whole(self._policy.score, pooled=evidence.is_pooled)
        k = self.exit_index
        self._trail.evidence.append(evidence)
        leaves = self._policy.leaves(self._trail)
        leaving = leaves.nonzero()[0]
        if self._ensemble is not None:
            self.left = self._ensemble.answers(self._trail.take(leaving))
        if len(leaving) == 0:
            return leaving, None
        self.exits[self.running[leaving]] = k
        staying = (~leaves).nonzero()[0]
        self.running = self.running[staying]
        if len(staying):
            self._trail = self._trail.take(staying)
        return leaving, staying

    def finish(self, evidence: Callable[[], Evidence]) -> None:
        """The last exit: it takes everybody who is still there, whatever it says; only an ensemble asks what."""
        if self._ensemble is not None:
            self.observe(evidence())
            return
        self.exits[self.running] = self._policy.num_exits - 1
        self.running = self.running[:0]

    def skip(self) -> None:
        """Pass an exit that the policy does not look at: nobody leaves."""
        self._trail.skip(len(self.running), self._policy.num_classes)


def require_whole(score: Score, *, pooled: bool) -> None:
    """Raise `InvalidInputError` where evidence is pooled over the parts of a sample and the score cannot use that."""
    if pooled and getattr(score, "whole_samples", False):
        raise refuse_pooled(score.name)


def refuse_pooled(name: str) -> InvalidInputError:
    """What to raise for a score that reads the probabilities of a whole sample, given means over its parts."""
    return InvalidInputError(
        f"{name} reads the class probabilities of whole samples, and this evidence is pooled over the parts of each, "
        "as in segmentation; choose max_prob, entropy, patience, voting or searched"
    )
