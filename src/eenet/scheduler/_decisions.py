"""Decisions: what a scheduler did with N samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._policy import DecisionState, Floats, Ints, ThresholdPolicy
from eenet.tasks import mean_iou


@dataclass(frozen=True)
class Decisions:
    """Where each of N samples left and what it was answered.

    `exits` (N,) from 0; `predictions` (N,), of an ensemble the combined ones; `utility` (N,) in [0, 1] or None without
    labels; `costs` of the K exits.
    """

    exits: Ints
    predictions: Ints
    utility: NDArray[np.float32] | None
    costs: ExitCosts
    pixel_counts: NDArray[np.int64] | None = None

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes; raises `InvalidInputError` where there are no pixels."""
        if self.pixel_counts is None:
            raise InvalidInputError("these records have no pixel counts: only segmentation with labels has a mean IoU")
        return mean_iou(self.pixel_counts)

    @property
    def accuracy(self) -> float:
        """Mean utility; raises `InvalidInputError` for records without labels."""
        if self.utility is None:
            raise InvalidInputError("these records have no labels, so there is no accuracy; costs and exits are known")
        return float(self.utility.mean(dtype=np.float64))

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
        """The share of samples that left at each exit, (K,)."""
        shares: Floats = np.bincount(self.exits, minlength=len(self.costs)) / len(self.exits)
        return shares


def replay(policy: ThresholdPolicy, records: ExitRecords, costs: ExitCosts) -> Decisions:
    """Send all records through a policy, as a runtime would."""
    policy.require(records.num_exits, records.num_classes, "the records have")
    costs.require_exits(records.num_exits)
    route = DecisionState(policy, len(records))
    samples = np.arange(len(records))
    combined = np.zeros(len(records), dtype=np.intp)
    for k in range(policy.num_exits):
        running = route.running
        if len(running) == 0:
            break
        if policy.observes(k):
            leaving, _ = route.observe(records.evidence(k, running, route.earlier))
            if route.left is not None:
                combined[running[leaving]] = route.left.argmax(axis=1)
        else:
            route.skip()
    if policy.ensemble is not None:
        right = None if records.labels is None else (combined == records.labels).astype(np.float32)
        return Decisions(route.exits, combined, right, costs)
    utility = None if records.utility is None else records.utility[route.exits, samples]
    counts = None if records.pixel_counts is None else records.pixel_counts[route.exits, samples]
    return Decisions(route.exits, records.predictions[route.exits, samples], utility, costs, counts)
