"""A controller that never changes its mind."""

from __future__ import annotations

from typing import Any

from eenet.errors import InvalidInputError
from eenet.scheduler import Scheduler, ThresholdPolicy


class FixedBudget:
    """The policy a scheduler was fitted to, whatever the traffic."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.policy: ThresholdPolicy = scheduler.policy

    def observe(self, exits: Any) -> None:
        """Nothing is learned from traffic."""

    def set_budget(self, budget: Any) -> None:
        """Raise `InvalidInputError`: there is one budget only."""
        raise InvalidInputError(f"the budget cannot be changed to {budget!r}: the scheduler was fitted for one only")
