"""What a scheduler brings on samples that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError
from eenet.records import ExitRecords
from eenet.scheduler._fitted import Outcome, fold_numbers
from eenet.scheduler._policy import Ints
from eenet.scheduler._scheduler import Scheduler


def folds_of(records: ExitRecords, seed: int, folds: int) -> list[Ints]:
    """The numbers of the samples of each fold, at random; samples with equal outputs at all exits share one.

    There are fewer folds where there are fewer different samples.
    """
    numbers = fold_numbers(records, seed, folds)
    return [np.flatnonzero(numbers == number) for number in range(int(numbers.max()) + 1)]


def out_of_fold(
    scheduler: Scheduler,
    records: ExitRecords,
    costs: ExitCosts,
    parts: Sequence[Ints],
    budgets: Sequence[float],
    *,
    fallback: bool = True,
    lift: bool = False,
) -> list[list[Outcome]]:
    """For each part of the records the outcome at each budget, of the scheduler fitted to all other parts.

    `parts` are numbers of samples, such as `folds_of` gives; a single part is judged by a fit to itself. A budget that
    cannot be met raises `InfeasibleBudgetError`; with `lift` the smallest that can be met is taken in its place.
    """
    found = []
    for number, rows in enumerate(parts):
        others = [*parts[:number], *parts[number + 1 :]] or parts
        fitted = scheduler._copy().fit(records.subset(np.concatenate(others)), costs, fallback=fallback)
        judging = records.subset(rows)
        found.append([_outcome(fitted, judging, budget, lift=lift) for budget in budgets])
    return found


def _outcome(fitted: Scheduler, judging: ExitRecords, budget: float, *, lift: bool) -> Outcome:
    try:
        decided = fitted.at(budget).replay(judging)
    except InfeasibleBudgetError as error:
        if not lift:
            raise
        decided = fitted.at(error.smallest).replay(judging)
    assert decided.utility is not None, "records that are judged have labels"
    return Outcome(decided.utility.astype(np.float64), decided.mean_cost)


def pooled(parts: Sequence[Ints], outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """For each budget the outcome of all samples, in the order of the records, from those of the parts."""
    back, sizes = np.argsort(np.concatenate(parts)), [len(rows) for rows in parts]
    return [
        Outcome(
            np.concatenate([one.utility for one in of_parts])[back],
            float(np.average([one.cost for one in of_parts], weights=sizes)),
        )
        for of_parts in zip(*outcomes, strict=True)
    ]
