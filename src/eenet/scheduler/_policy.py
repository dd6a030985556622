"""The decision: which samples exit where.

`ThresholdPolicy.leaves` is the one function that decides it. Replays, the runtimes and the server all reach it through
`DecisionState`, which also does the bookkeeping: every sample exits exactly once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InvalidInputError
from eenet.records import ExitRecords
from eenet.tasks import LOG_ODDS_LIMIT, Evidence

if TYPE_CHECKING:
    from typing_extensions import Self  # not installed beside a bundle without torch

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

RESOLUTION = 1e-5
"""Scores closer than this are one tie: the same network rounds a log-odds score by up to about as much when its batch
size or back end changes, and no threshold is ever put between two samples that rounding could swap."""


class ExitHistory:
    """What a policy knows of n samples that are still running: their evidence and scores at the exits so far.

    Parameters
    ----------
    evidence : sequence of Evidence
        Of each exit so far, for the same n samples.
    scores : sequence of ndarray
        The scores (n,) of each exit so far.

    Examples
    --------
    >>> from eenet.scheduler import ExitHistory
    >>> from eenet.testing import toy_records
    >>> ExitHistory(toy_records(5).all_evidence()[:2])
    ExitHistory(2 exits, 5 samples)
    """

    def __init__(self, evidence: Sequence[Evidence] = (), scores: Sequence[Floats] = ()) -> None:
        self.evidence = list(evidence)
        self.scores = list(scores)

    @property
    def exit_index(self) -> int:
        """The exit the samples are at, from 0."""
        return len(self.evidence) - 1

    @property
    def finite(self) -> Bools:
        """Which samples have had finite evidence at all exits so far, (n,)."""
        finite = self.evidence[0].finite
        for evidence in self.evidence[1:]:
            finite = finite & evidence.finite
        return finite

    def __repr__(self) -> str:
        samples = len(self.evidence[0]) if self.evidence else 0
        return f"ExitHistory({len(self.evidence)} exits, {samples} samples)"

    def skip(self, samples: int, classes: int) -> None:
        """Pass an exit that is not observed, with evidence that says nothing."""
        uniform = np.full((samples, classes), 1 / classes, dtype=np.float32)
        self.evidence.append(Evidence(uniform, np.zeros(samples, dtype=np.intp)))
        self.scores.append(np.zeros(samples))

    def take(self, rows: Ints) -> ExitHistory:
        """The history of some of the samples."""
        taken: list[Evidence] = []
        for evidence in self.evidence:
            taken.append(evidence.take(rows, taken))
        return ExitHistory(taken, [scores[rows] for scores in self.scores])

    @classmethod
    def join(cls, parts: Sequence[ExitHistory]) -> ExitHistory:
        """The history of the samples of several, in order; all must be at the same exit."""
        if len(parts) == 1:  # evidence does not change, so only the lists, which grow, are copied
            return cls(parts[0].evidence, parts[0].scores)
        joined: list[Evidence] = []
        for k in range(len(parts[0].evidence)):
            joined.append(Evidence.join([part.evidence[k] for part in parts], joined))
        scores = [np.concatenate([part.scores[k] for part in parts]) for k in range(len(parts[0].scores))]
        return cls(joined, scores)


SCORES: dict[str, type[Score]] = {}
"""The classes of scores by the name in files: every subclass of `Score` that sets `name` is here."""


class Score(ABC):
    """How sure the network is, at an exit, that stopping there is right. Higher is surer; finite where evidence is.

    A subclass is one method: how it scores, how it is fitted, how it is saved. It sets `name` and is then known by it,
    in `Scheduler(score=...)` and in files.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.Entropy().fit(toy_records(), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.policy.score.name
    'entropy'
    """

    name: ClassVar[str] = ""
    uses_history: ClassVar[bool] = False
    """Whether the score at an exit depends on the exits before it."""
    needs_labels: ClassVar[bool] = False
    """Whether it is fitted to labels."""
    whole_samples: ClassVar[bool] = False
    """Whether it reads class probabilities, and so refuses evidence that is pooled over the parts of a sample."""
    fewest: ClassVar[int] = 0
    """How many calibration samples it takes: with fewer, what is learned is worse than the simple rule."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__dict__.get("name"):
            require_free_name("score", cls.name, cls, SCORES)
            SCORES[cls.name] = cls

    @abstractmethod
    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,) of the samples at the exit they are at; each row independent of the others.

        `Scheduler.fit` checks it: n real numbers, finite where the evidence is, the same for a part of the samples.
        """

    @classmethod
    def fit(cls, records: ExitRecords, costs: ExitCosts, seed: int) -> Sequence[Score]:  # noqa: ARG003 - for subclasses
        """Fit to calibration records; of several, each budget takes the most accurate."""
        return (cls(),)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, to be saved."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:  # noqa: ARG003 - for subclasses
        """The score of what `to_arrays` gave."""
        return cls()

    def readable(self, threshold: float) -> float:
        """A threshold on the scale of the method's paper, for display."""
        return threshold


class Ensemble(Score):
    """A score that also answers: with the exits so far combined, in place of the exit's own prediction."""

    @abstractmethod
    def answers(self, history: ExitHistory) -> NDArray[np.float32]:
        """Logits (n, C), finite, of the samples at the exit they are at; each row independent of the others.

        The largest is the prediction. What is not finite in the evidence counts for nothing. `Scheduler.fit` checks it:
        real numbers of this shape, finite as float32, the same for a part of the samples.
        """


def require_free_name(kind: str, name: str, cls: type, known: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` where a class of one's own would take the place of one of eenet's.

    A class of one's own may be defined again, as in a notebook.
    """
    ours = __name__.partition(".")[0]
    modules = [getattr(one, "__module__", "").partition(".")[0] for one in (known.get(name), cls)]
    if modules[0] == ours != modules[1]:
        raise InvalidInputError(
            f"{kind} {name!r} of {cls.__module__}.{cls.__qualname__}: eenet has one of this name; give yours another"
        )


def score_class(name: str) -> type[Score]:
    """The class of scores with this name; raises `InvalidInputError` where there is none."""
    if name not in SCORES:
        raise InvalidInputError(
            f"score {name!r} is not known; choose from {sorted(SCORES)}, or, where it is your own, import the module "
            "that defines it first"
        )
    return SCORES[name]


def score_from_arrays(name: str, arrays: Mapping[str, NDArray[Any]]) -> Score:
    """The score of what its `to_arrays` gave; raises `FileFormatError` for a name that is not known."""
    if name not in SCORES:
        raise FileFormatError(
            f"score {name!r} is not known to this eenet; upgrade it, or, where the score is your own, import the "
            "module that defines it before loading (on the command line --import MODULE), or fit the scheduler again"
        )
    return SCORES[name].from_arrays(arrays)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    y: Floats = np.exp(-np.logaddexp(0.0, -x))
    return y


def probability(log_odds: float) -> float:
    """The probability that has these log odds."""
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


def leaves_at(scores: Floats, finite: Bools, threshold: float | Floats, enabled: bool) -> Bools:
    """Whether samples (n,) exit: the rule itself, also used to try thresholds, G of them as (G, 1), while fitting."""
    leaving: Bools = scores >= threshold
    leaving &= finite if enabled else False
    return leaving


@array_value
@dataclass(frozen=True, repr=False)
class ThresholdPolicy:
    """Exit at the first exit that is on and whose score reaches its threshold; the last exit takes the rest.

    Parameters
    ----------
    score : Score
        How sure the network is at an exit.
    thresholds : array of shape (K-1,)
        On the scale of the score; that of an exit that is off is not read.
    enabled : array of bool, shape (K-1,)
        Which exits are on.
    num_classes : int
        C.
    abstains_below : float, optional
        Samples of the last exit whose largest probability there has log odds below this, or is not finite, are handed
        back: no exit is sure of them. Of an ensemble it is the largest probability of the combined answer. None: every
        sample is answered.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> policy = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0, fallback=False).policy
    >>> policy.num_exits, len(policy.thresholds)
    (3, 2)
    """

    score: Score
    thresholds: Floats
    enabled: Bools
    num_classes: int
    abstains_below: float | None = None

    def __repr__(self) -> str:
        shown = [
            f"{self.score.readable(t):.4g}" if on else "off"
            for t, on in zip(self.thresholds.tolist(), self.enabled.tolist(), strict=True)
        ]
        below = self.abstains_below
        shown_below = "where not finite" if below is not None and below < -LOG_ODDS_LIMIT else None
        abstains = "" if below is None else f", abstains {shown_below or f'below probability {probability(below):.4g}'}"
        return f"ThresholdPolicy({self.score.name!r}, [{', '.join(shown)}], {self.num_classes} classes{abstains})"

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.thresholds) + 1

    @cached_property
    def ensemble(self) -> Ensemble | None:
        """The score, where it also answers in place of the exits."""
        return self.score if isinstance(self.score, Ensemble) else None

    def require(self, exits: int, classes: int, whose: str) -> None:
        """Raise `InvalidInputError` unless it is for these numbers of exits and classes; `whose`: "the model has"."""
        if (exits, classes) != (self.num_exits, self.num_classes):
            raise InvalidInputError(
                f"the scheduler was fitted for {self.num_exits} exits and {self.num_classes} classes, {whose} {exits} "
                f"exits and {classes} classes; fit it on records of this network"
            )

    def observes(self, exit_index: int) -> bool:
        """Whether the exit's output is read; if not, its head need not run."""
        if exit_index == self.num_exits - 1 or self.ensemble is not None:
            return True
        if self.score.uses_history:
            return bool(self.enabled[exit_index:].any())
        return bool(self.enabled[exit_index])

    def leaves(self, history: ExitHistory) -> Bools:
        """Whether each sample exits where it is, (n,). Adds the exit's scores to the history."""
        k = history.exit_index
        if k == self.num_exits - 1:
            return np.ones(len(history.evidence[k]), dtype=np.bool_)
        scores = self.score(history)
        history.scores.append(scores)
        return leaves_at(scores, history.finite, self.thresholds[k], bool(self.enabled[k]))

    def hands_back(self, evidence: Evidence) -> Bools:
        """Whether each sample of the last exit is handed back, (n,), given the evidence of its answer there."""
        if self.abstains_below is None:
            return np.zeros(len(evidence), dtype=np.bool_)
        unsure: Bools = (evidence.log_odds < self.abstains_below) | ~evidence.finite
        return unsure


_NONE: Ints = np.zeros(0, dtype=np.intp)
_FIRST: Ints = np.zeros(1, dtype=np.intp)


class DecisionState:
    """The decisions of a policy for n samples, exit by exit.

    Call `observe` with the evidence of the running samples at each exit in turn, or `skip` where the policy does not
    observe, and `finish` at the last, until `running` is empty. Then `exits` (n,) says where each sample exited, and
    `abstained` (n,) which of those at the last exit are handed back. Where the policy is an ensemble, `left` are the
    logits of those that have just exited, in place of the exit's own; otherwise, and where none has, None.

    Parameters
    ----------
    policy : ThresholdPolicy
        What decides.
    samples : int
        How many there are.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> from eenet.scheduler import DecisionState
    >>> records = toy_records(100)
    >>> scheduler = eenet.MaxProbability().fit(records, toy_costs(), budget=2.0, fallback=False)
    >>> state = DecisionState(scheduler.policy, len(records))
    >>> for k in range(2):
    ...     leave, stay = state.observe(records.evidence(k, state.running, state.earlier))
    >>> state.finish(lambda: records.evidence(2, state.running, state.earlier))
    >>> bool((state.exits == scheduler.replay(records).exits).all())
    True
    """

    def __init__(self, policy: ThresholdPolicy, samples: int) -> None:
        self._policy = policy
        self._history = ExitHistory()
        self.running: Ints = np.arange(samples)
        self.exits: Ints = np.empty(samples, dtype=np.intp)
        self.exits.fill(-1)
        self.abstained: Bools = np.zeros(samples, dtype=np.bool_)
        self._ensemble = policy.ensemble
        self.left: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return f"DecisionState({len(self.running)} of {len(self.exits)} samples before exit {self.exit_index})"

    @classmethod
    def onward(cls, policy: ThresholdPolicy, samples: int, history: ExitHistory) -> DecisionState:
        """The state of n samples that have this history: what goes from one process to another."""
        state = cls(policy, samples)
        state._history = history
        return state

    @classmethod
    def join(cls, states: Sequence[DecisionState]) -> DecisionState:
        """The state of the running samples of several, in order, numbered again from 0.

        This is how samples of different requests go on together. The given states stay as they are. Raises
        `InvalidInputError` unless they are at the same exit under the same policy.
        """
        first = states[0]
        if any(state._policy is not first._policy or state.exit_index != first.exit_index for state in states):
            at = [state.exit_index for state in states]
            raise InvalidInputError(f"samples before exits {at} cannot be joined, expected one exit and one policy")
        history = ExitHistory.join([state._history for state in states])
        return cls.onward(first._policy, sum(len(state.running) for state in states), history)

    def take(self, rows: Ints) -> DecisionState:
        """The state of some of the running samples (positions among them), numbered again from 0."""
        return DecisionState.onward(self._policy, len(rows), self._history.take(rows))

    @property
    def policy(self) -> ThresholdPolicy:
        """The policy that decides."""
        return self._policy

    @property
    def history(self) -> ExitHistory:
        """What is known of the running samples."""
        return self._history

    @property
    def exit_index(self) -> int:
        """The exit that comes next, from 0."""
        return len(self._history.evidence)

    @property
    def earlier(self) -> list[Evidence]:
        """The evidence of the running samples at the exits so far."""
        return self._history.evidence

    def observe(self, evidence: Evidence) -> tuple[Ints, Ints | None]:
        """Let samples exit; return the positions, among those that were running, of those that exit and that stay.

        The second is None where no sample exits, so that the caller need not copy anything.
        """
        count = len(self.running)
        if len(evidence) != count:
            raise InvalidInputError(f"evidence of {len(evidence)} samples, {count} are running")
        history = self._history
        if evidence.is_pooled:
            require_whole(self._policy.score, pooled=True)
        k = len(history.evidence)
        history.evidence.append(evidence)
        leaves = self._policy.leaves(history)
        leaving = leaves.nonzero()[0] if count != 1 else _FIRST.copy() if leaves[0] else _NONE  # of one, in less time
        if len(leaving) == 0:
            self.left = None
            return leaving, None
        if self._ensemble is not None:
            answers = self._ensemble.answers(history if len(leaving) == count else history.take(leaving))
            self.left = answers.astype(np.float32, copy=False)  # one of one's own may give other numbers
        self.exits[self.running[leaving]] = k
        if self._policy.abstains_below is not None and k == self._policy.num_exits - 1:
            answer = evidence if self.left is None else Evidence.from_logits(self.left)
            self.abstained[self.running] = self._policy.hands_back(answer)
        if len(leaving) == count:
            self.running = _NONE
            return leaving, _NONE
        staying = (~leaves).nonzero()[0]
        self.running = self.running[staying]
        self._history = history.take(staying)
        return leaving, staying

    def finish(self, evidence: Callable[[], Evidence]) -> None:
        """The last exit takes all samples that are still running.

        Only an ensemble, and a policy that may abstain, ask for their evidence.
        """
        if self._ensemble is not None or self._policy.abstains_below is not None:
            self.observe(evidence())
            return
        self.exits[self.running] = self._policy.num_exits - 1
        self.running = _NONE

    def skip(self) -> None:
        """Pass an exit that the policy does not observe: no sample exits."""
        self._history.skip(len(self.running), self._policy.num_classes)


def require_whole(score: Score | type[Score], *, pooled: bool) -> None:
    """Raise `InvalidInputError` where evidence is pooled over the parts of a sample and the score cannot use that."""
    if pooled and score.whole_samples:
        raise InvalidInputError(
            f"{score.name} reads the class probabilities of whole samples, and this evidence is pooled over the parts "
            "of each, as in segmentation; choose max_prob, entropy, patience, voting or searched"
        )
