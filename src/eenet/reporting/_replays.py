"""Every scheduler of a run at every budget of a grid, replayed once; all analyses start from this."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.reporting._runs import Run
from eenet.scheduler import Decisions, Scheduler, ThresholdPolicy

GRID = 41
"""How many budgets the slider has."""


@dataclass(frozen=True)
class Replay:
    """One scheduler at one budget: `Scheduler.at(budget)`, and what it decides for the records of the run."""

    scheduler: Scheduler
    decisions: Decisions

    @property
    def policy(self) -> ThresholdPolicy:
        """The policy at this budget."""
        return self.scheduler.policy


@array_value
@dataclass(frozen=True)
class Replays:
    """A run, the budgets of the slider (G,), and for each scheduler its G replays, None where it has no policy for it.

    Budgets are mean costs per sample in the unit of the run's costs. `draws` is how many calibration sets are simulated
    to see how often a guarantee holds.
    """

    run: Run
    budgets: NDArray[np.float64]
    of: dict[str, tuple[Replay | None, ...]]
    draws: int = 0

    @property
    def records(self) -> ExitRecords:
        """The records of the run."""
        return self.run.records

    @property
    def costs(self) -> ExitCosts:
        """The costs of the run."""
        return self.run.costs

    @cached_property
    def utility(self) -> NDArray[np.float64] | None:
        """What stopping at each exit is worth, (K, N); None without labels."""
        utility = self.records.utility
        return None if utility is None else utility.astype(np.float64)

    @cached_property
    def themselves(self) -> Replays:
        """The same with every method itself, where a simple rule stands in for it at some budget.

        Without calibration records, methods cannot be fitted again, and stay as they are.
        """
        calibration = self.run.calibration
        of = dict(self.of)
        for title, replays in self.of.items():
            if calibration is None or all(one is None or one.scheduler.fallback is None for one in replays):
                continue
            known = self.run.schedulers[title]
            again = type(known)(**known.get_params())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReliabilityWarning)
                again.fit(calibration, self.costs, fallback=False)
            of[title] = tuple(_replay(again, budget, self.run) for budget in self.budgets.tolist())
        return replace(self, of=of)


def replay_all(
    run: Run,
    grid: int = GRID,
    *,
    draws: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Replays:
    """Every scheduler of a run at budgets evenly spaced from the first exit's cost to the last one's."""
    budgets = np.linspace(run.costs[0], run.costs[-1], grid)
    of: dict[str, tuple[Replay | None, ...]] = {}
    for number, (title, scheduler) in enumerate(run.schedulers.items()):
        progress(f"{run.name}: {title} at {grid} budgets, scheduler {number + 1} of {len(run.schedulers)}")
        of[title] = tuple(_replay(scheduler, budget, run) for budget in budgets.tolist())
    return Replays(run, budgets, of, draws)


def _replay(scheduler: Scheduler, budget: float, run: Run) -> Replay | None:
    with warnings.catch_warnings():  # what a budget leaves unspent, and simple rules taken, are said on the page
        warnings.simplefilter("ignore", ReliabilityWarning)
        try:
            at = scheduler.at(budget)
        except InfeasibleError:
            return None
    return Replay(at, at.replay(run.records, run.costs))
