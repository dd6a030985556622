"""How EENet's scores are fitted once for every budget: learned at a few, each budget takes the best of those."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Assignment, Calibration
from eenet.scheduler._family import Planned, assigned
from eenet.scheduler._learned import LearningOptions

REFERENCES = (0.3, 0.5, 0.7)
"""Where scores and shares are learned: budgets as shares of the way from the first exit's cost to the last's."""


@dataclass(frozen=True)
class LearnedMethod:
    """EENet's exit scores with an assignment; needs labels."""

    assignment: Assignment
    options: LearningOptions

    def fit(self, records: ExitRecords, costs: ExitCosts, seed: int) -> LearnedFamily:
        """Learn scores and shares for each of the reference budgets."""
        from eenet.scheduler._training import train_scores  # brings in torch, which deciding does not need

        budgets = costs[0] + np.array(REFERENCES) * (costs[-1] - costs[0])
        scores = train_scores(records, costs, budgets.tolist(), self.options, seed)
        calibrations = tuple(Calibration(score, records, costs) for score in scores)
        return LearnedFamily(calibrations, self.assignment, seed)


@dataclass(frozen=True)
class LearnedFamily:
    """Scores learned at several budgets; for each budget the one that is most accurate on the calibration records."""

    calibrations: tuple[Calibration, ...]
    assignment: Assignment
    seed: int

    @property
    def costs(self) -> ExitCosts:
        """Of the exits."""
        return self.calibrations[0].costs

    @property
    def points(self) -> int:
        """How many budgets a table of the family has."""
        return self.assignment.table_points

    def plan(self, budget: float) -> Planned:
        """The policy for a budget."""
        best: Planned | None = None
        for calibration in self.calibrations:
            found = assigned(self.assignment, calibration, budget, self.seed)
            if best is None or (found.accuracy or 0.0) > (best.accuracy or 0.0):
                best = found
        assert best is not None, "there is at least one score"
        return best
