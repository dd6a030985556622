"""The baselines' scores that are fitted to calibration records, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Assignment
from eenet.scheduler._ensembles import fit_beem, fit_ztw
from eenet.scheduler._family import ThresholdFamily, ThresholdMethod
from eenet.scheduler._gate import fit_gate
from eenet.scheduler._policy import Score
from eenet.scheduler._temperature import fit_temperatures

FITTED_SCORES: dict[str, Callable[[ExitRecords], Score]] = {
    "temperature": fit_temperatures,
    "gate": fit_gate,
    "ztw": fit_ztw,
    "beem": fit_beem,
}
"""What fits each; none looks at the costs or the budget."""

_ENSEMBLES = frozenset({"ztw", "beem"})


@dataclass(frozen=True)
class FittedScoreMethod:
    """One of these scores and an assignment."""

    score: str
    assignment: Assignment

    @property
    def changes_predictions(self) -> bool:
        """Whether the score will answer in place of the exits."""
        return self.score in _ENSEMBLES

    def fit(self, records: ExitRecords, costs: ExitCosts, seed: int) -> ThresholdFamily:
        """Fit the score once."""
        return ThresholdMethod(FITTED_SCORES[self.score](records), self.assignment).fit(records, costs, seed)
