"""What a comparison found: rows, bounds, and paired differences at equal realised cost."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.evaluation._bootstrap import Floats, Means, bootstrap_means, interpolated
from eenet.evaluation._cells import Cell, Ints, Row
from eenet.evaluation._tables import text

SCHEMA = 2


@dataclass(frozen=True)
class BoundRow:
    """Accuracy of the oracle and of the best random mixture on the held-out samples of one resplit, at one budget."""

    budget: float
    resplit: int
    oracle: float
    random_mixture: float


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of a scheduler minus the reference's at the same held-out cost, in [-1, 1].

    `budget` is None for the mean over all budgets that both met. `standard_error` is by the bootstrap over the samples
    of the pool.
    """

    scheduler: str
    budget: float | None
    mean: float
    standard_error: float
    resplits: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a row for each scheduler, budget and resplit, and the bounds beside them."""

    rows: tuple[Row, ...]
    bounds: tuple[BoundRow, ...]
    costs: ExitCosts
    fraction: float
    cells: tuple[Cell, ...]
    """The decisions behind the rows, sample by sample."""
    held: tuple[Ints, ...]
    """For each resplit the numbers of its held-out samples in the pool."""
    pool: int
    """How many samples there are to be held out, in all."""
    seed: int = 0
    separate: bool = False
    """Whether the pool is of records that nothing is fitted on."""

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Their names, in the order given."""
        return tuple(dict.fromkeys(row.scheduler for row in self.rows))

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets, in the order given."""
        return tuple(dict.fromkeys(row.budget for row in self.rows))

    @property
    def changing(self) -> frozenset[str]:
        """The schedulers that change predictions."""
        return frozenset(cell.scheduler for cell in self.cells if cell.changes_predictions)

    @property
    def resplits(self) -> int:
        """How many there are."""
        return len(self.held)

    def ends(self, scheduler: str, resplit: int) -> tuple[float, float]:
        """The held-out accuracy if everybody left at the first exit, and at the last, answered as it answers."""
        first, last = self._cell(scheduler, resplit).ends.mean(axis=1, dtype=np.float64)
        return float(first), float(last)

    def _cell(self, scheduler: str, resplit: int) -> Cell:
        return self._by_key[scheduler, resplit]

    @cached_property
    def _by_key(self) -> dict[tuple[str, int], Cell]:
        return {(cell.scheduler, cell.resplit): cell for cell in self.cells}

    def curve(self, scheduler: str, resplit: int) -> tuple[list[float], list[float]]:
        """Held-out costs, rising, and accuracies of a scheduler: its budgets, and the first and the last exit.

        Every scheduler is the first exit at the smallest budget and can be the last exit at the largest, so both
        belong to its curve. Budgets that came to the same cost are averaged.
        """
        points: dict[float, list[float]] = {}
        first, last = self.ends(scheduler, resplit)
        for cost, accuracy in ((self.costs[0], first), (self.costs[-1], last)):
            points.setdefault(cost, []).append(accuracy)
        for row in self._cell(scheduler, resplit).rows:
            if row.accuracy is not None and self.costs[0] < (row.held_out_cost or 0.0) < self.costs[-1]:
                points.setdefault(row.held_out_cost or 0.0, []).append(row.accuracy)
        ordered = sorted(points)
        return ordered, [statistics.fmean(points[cost]) for cost in ordered]

    def differences(self, reference: str) -> list[Difference]:
        """Paired differences to a reference scheduler at equal realised cost, for each budget and over all budgets.

        Two schedulers with one budget differ in what they really spend on fresh samples, and one that spends more
        should not win by it. So each is compared, on each resplit, with the reference's accuracy at the cost it
        really had: the reference's own `curve`, straight between its points. Differences are then averaged over the
        resplits, as pairs.

        The standard error is the spread of these means over bootstrap samples of the pool. A sample that was held out
        in several resplits, by whom the resplits depend on each other, is drawn or left out in all of them at once, and
        with it its share of costs and of the reference's curve. Policies are held fixed, but in simulations the error
        was within a tenth of the spread over pools drawn anew (tests/test_comparison_errors.py).
        """
        if reference not in self.schedulers:
            raise InvalidInputError(f"reference {reference!r} was not compared; choose from {list(self.schedulers)}")
        found = []
        for name in self.schedulers:
            values, spreads = self._differences(name, reference)
            for number, budget in enumerate(self.budgets):
                met = [r for r, per_budget in enumerate(values) if not np.isnan(per_budget[number])]
                if met:
                    mean = statistics.fmean(float(values[r][number]) for r in met)
                    error = np.mean([spreads[r][:, number] for r in met], axis=0).std(ddof=1)
                    found.append(Difference(name, budget, mean, float(error), len(met)))
            met = [r for r, per_budget in enumerate(values) if not np.isnan(per_budget).all()]
            if met:
                mean = statistics.fmean(float(np.nanmean(values[r])) for r in met)
                error = np.mean([np.nanmean(spreads[r], axis=1) for r in met], axis=0).std(ddof=1)
                found.append(Difference(name, None, mean, float(error), len(met)))
        return found

    def _differences(self, name: str, reference: str) -> tuple[list[Floats], list[Floats]]:
        """For each resplit the differences (B,), NaN where a budget was not met, and those of each replicate."""
        values, spreads = [], []
        for resplit in range(self.resplits):
            rows = self._cell(name, resplit).rows
            missing = np.array([row.accuracy is None for row in rows])
            costs = np.array([row.held_out_cost or 0.0 for row in rows])
            accuracies = np.array([row.accuracy or 0.0 for row in rows])
            value = accuracies - np.interp(costs, *self.curve(reference, resplit))
            value[missing] = np.nan
            values.append(value)
            met = [row.accuracy is not None for row in self._cell(reference, resplit).rows]
            means = self._means
            fixed = np.broadcast_to(self.costs.values[[0, -1]], (len(means.ends[reference][resplit]), 2))
            xs = np.concatenate([fixed, means.costs[reference][resplit][:, met]], axis=1)
            ys = np.concatenate([means.ends[reference][resplit], means.accuracies[reference][resplit][:, met]], axis=1)
            spread = means.accuracies[name][resplit] - interpolated(means.costs[name][resplit], xs, ys)
            spread[:, missing] = np.nan
            spreads.append(spread)
        return values, spreads

    @cached_property
    def _means(self) -> Means:
        return bootstrap_means(self.cells, self.held, self.pool, self.costs, seed=self.seed)

    def to_dict(self, reference: str | None = None) -> dict[str, Any]:
        """A JSON-ready description; the reference of the differences defaults to the first scheduler."""
        reference = reference or self.schedulers[0]
        return {
            "schema": SCHEMA,
            "unit": self.costs.unit,
            "costs": self.costs.to_dict(),
            "fraction": self.fraction,
            "samples": self.pool,
            "separate": self.separate,
            "reference": reference,
            "changing_predictions": [name for name in self.schedulers if name in self.changing],
            "rows": [asdict(row) for row in self.rows],
            "bounds": [asdict(bound) for bound in self.bounds],
            "differences": [asdict(difference) for difference in self.differences(reference)],
        }

    def to_text(self, reference: str | None = None) -> str:
        """Two tables, means over the resplits: held-out accuracy, and differences to the reference at equal cost."""
        return text(self, reference or self.schedulers[0])
