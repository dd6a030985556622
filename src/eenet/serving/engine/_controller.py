"""A controller that keeps to its scheduler, whatever the traffic."""

from __future__ import annotations

from typing import Any

from eenet.costs import Budget
from eenet.scheduler import Scheduler, ThresholdPolicy


class FixedBudget:
    """The policy of a scheduler, for its own budget or the one that was set last."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.policy: ThresholdPolicy = scheduler.policy

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._scheduler.budget

    def observe(self, exits: Any, policy: ThresholdPolicy | None = None) -> None:
        """Nothing is learned from traffic."""

    def set_budget(self, budget: Budget) -> None:
        """Take the scheduler's policy for another budget; raises `InfeasibleBudgetError` where there is none."""
        self._scheduler = self._scheduler.at(budget)
        self.policy = self._scheduler.policy
