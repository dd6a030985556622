"""Replay: what a policy decides on records, where each sample exited and what it was answered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value, short
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._checks import checked_answers
from eenet.scheduler._policy import (
    Bools,
    DecisionState,
    Ensemble,
    ExitHistory,
    Floats,
    Ints,
    Score,
    ThresholdPolicy,
    require_whole,
)
from eenet.tasks import mean_iou


@array_value
@dataclass(frozen=True, repr=False)
class Decisions:
    """Where each of N samples exited and what it was answered.

    Parameters
    ----------
    exits : array of int, shape (N,)
        From 0.
    predictions : array of int, shape (N,)
        Of an ensemble the combined ones; -1 for samples that are handed back.
    utility : array of shape (N,), or None
        What each answer is worth, in [0, 1], and 0 where there is none; None without labels.
    costs : ExitCosts
        Of the K exits.
    pixel_counts : array of int, shape (N, C, 3), or None
        For segmentation with labels: the pixels that are right, predicted and labeled; 0 where there is no answer.
    abstained : array of bool, shape (N,), optional
        Which samples are handed back, since no exit is sure of them; by default none.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> decisions = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0).replay(toy_records(seed=1))
    >>> decisions.exit_shares.shape, len(decisions.exits), decisions.handed_back
    ((3,), 600, 0.0)
    """

    exits: Ints
    predictions: Ints
    utility: NDArray[np.float32] | None
    costs: ExitCosts
    pixel_counts: NDArray[np.int64] | None = None
    abstained: Bools = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        given: Bools | None = self.abstained
        if given is None:
            object.__setattr__(self, "abstained", np.zeros(len(self.exits), dtype=np.bool_))

    def __repr__(self) -> str:
        accuracy = "no labels" if self.utility is None else f"accuracy={self.accuracy:.4f}"
        shares = short([round(share, 4) for share in self.exit_shares.tolist()])
        cost = f"mean_cost={self.mean_cost:.4g} {self.costs.unit}"
        back = f", handed_back={self.handed_back:.4f}" if self.abstained.any() else ""
        return f"Decisions({len(self.exits)} samples, {accuracy}, {cost}, exit_shares={shares}{back})"

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes; raises `InvalidInputError` where there are no pixels."""
        if self.pixel_counts is None:
            raise InvalidInputError("these records have no pixel counts: only segmentation with labels has a mean IoU")
        return mean_iou(self.pixel_counts)

    @property
    def accuracy(self) -> float:
        """Mean utility of the samples that are answered, NaN where none is.

        Raises `InvalidInputError` for records without labels.
        """
        if self.utility is None:
            raise InvalidInputError("these records have no labels, so there is no accuracy; costs and exits are known")
        answered = int((~self.abstained).sum())
        return float(self.utility.sum(dtype=np.float64) / answered) if answered else math.nan

    @property
    def handed_back(self) -> float:
        """The share of the samples that are handed back."""
        return float(self.abstained.mean())

    @property
    def sample_costs(self) -> Floats:
        """Cost of each sample, (N,), in the unit of the costs."""
        return self.costs.values[self.exits]

    @property
    def mean_cost(self) -> float:
        """Mean cost per sample, in the unit of the costs."""
        return float(np.bincount(self.exits, minlength=len(self.costs)) @ self.costs.values / len(self.exits))

    @property
    def exit_shares(self) -> Floats:
        """The share of samples that exited at each exit, (K,)."""
        shares: Floats = np.bincount(self.exits, minlength=len(self.costs)) / len(self.exits)
        return shares


def replay(policy: ThresholdPolicy, records: ExitRecords, costs: ExitCosts) -> Decisions:
    """Send all records through a policy, as a runtime would."""
    policy.require(records.num_exits, records.num_classes, "the records have")
    costs.require_exits(records.num_exits)
    state = DecisionState(policy, len(records))
    samples = np.arange(len(records))
    combined = np.zeros(len(records), dtype=np.intp)
    for k in range(policy.num_exits):
        running = state.running
        if len(running) == 0:
            break
        if policy.observes(k):
            leaving, _ = state.observe(records.evidence(k, running, state.earlier))
            if state.left is not None:
                combined[running[leaving]] = state.left.argmax(axis=1)
        else:
            state.skip()
    if policy.ensemble is not None:
        predictions, counts = combined, None
        utility = None if records.labels is None else (combined == records.labels).astype(np.float32)
    else:
        predictions = records.predictions[state.exits, samples]
        utility = None if records.utility is None else records.utility[state.exits, samples]
        counts = None if records.pixel_counts is None else records.pixel_counts[state.exits, samples]
    back = state.abstained
    if back.any():
        predictions[back] = -1
        for values in (utility, counts):
            if values is not None:
                values[back] = 0
    return Decisions(state.exits, predictions, utility, costs, counts, back)


def answers(score: Ensemble, records: ExitRecords) -> Iterator[NDArray[np.float32]]:
    """What an ensemble answers at each exit, (N, C); raises `InvalidInputError` unless it is what it must be."""
    history = ExitHistory()
    for evidence in records.all_evidence():
        history.evidence.append(evidence)
        if history.exit_index < records.num_exits - 1:
            history.scores.append(score(history))
        yield checked_answers(score, history)


def as_answered(score: Score, records: ExitRecords) -> ExitRecords:
    """The records with the utility that a score's answers have: of an ensemble, whether the combined answer is right.

    What scores see of them is unchanged. Raises `InvalidInputError` for pooled records that the score cannot use, and
    for answers that are not what an `Ensemble` must give.
    """
    require_whole(score, pooled=bool(records.pooled))
    if not isinstance(score, Ensemble):
        return records
    predicted = [logits.argmax(axis=1) for logits in answers(score, records)]  # which checks them, labels or not
    if records.labels is None:
        return records
    utility = (np.stack(predicted) == records.labels).astype(np.float32)
    return ExitRecords(records.probabilities, records.predictions, records.labels, utility)
