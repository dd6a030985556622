"""Schedulers side by side on fresh data, at equal realised cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.evaluation._bounds import oracle, random_mixture
from eenet.records import ExitRecords
from eenet.scheduler import Scheduler

_SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One scheduler fitted to one budget on one resplit, and what it did on the held-out samples.

    Costs and `budget` are per sample, in the unit of the costs. Where the budget could not be met, `reason` says why
    and the numbers are None.
    """

    scheduler: str
    budget: float
    resplit: int
    accuracy: float | None = None
    held_out_cost: float | None = None
    calibration_cost: float | None = None
    planned_cost: float | None = None
    fit_seconds: float | None = None
    reason: str | None = None


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

    `budget` is None for the mean over all budgets that both met. `standard_error` is None with a single resplit.
    """

    scheduler: str
    budget: float | None
    mean: float
    standard_error: float | None
    resplits: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a row for each scheduler, budget and resplit, and the bounds beside them."""

    rows: tuple[Row, ...]
    bounds: tuple[BoundRow, ...]
    ends: tuple[tuple[float, float], ...]
    """For each resplit the held-out accuracy of the first and of the last exit."""
    costs: ExitCosts
    fraction: float
    bootstrap: bool = False
    """Whether the held-out samples are bootstrap samples of records that nothing is fitted on."""

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Their names, in the order given."""
        return tuple(dict.fromkeys(row.scheduler for row in self.rows))

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets, in the order given."""
        return tuple(dict.fromkeys(row.budget for row in self.rows))

    def curve(self, scheduler: str, resplit: int) -> tuple[list[float], list[float]]:
        """Held-out costs, rising, and accuracies of a scheduler: its budgets, and the first and the last exit.

        Every scheduler is the first exit at the smallest budget and can be the last exit at the largest, so both
        belong to its curve. Budgets that came to the same cost are averaged.
        """
        points: dict[float, list[float]] = {}
        first, last = self.ends[resplit]
        for cost, accuracy in ((self.costs[0], first), (self.costs[-1], last)):
            points.setdefault(cost, []).append(accuracy)
        for row in self.rows:
            if (row.scheduler, row.resplit) == (scheduler, resplit) and row.reason is None:
                assert row.held_out_cost is not None
                assert row.accuracy is not None
                if self.costs[0] < row.held_out_cost < self.costs[-1]:
                    points.setdefault(row.held_out_cost, []).append(row.accuracy)
        ordered = sorted(points)
        return ordered, [statistics.fmean(points[cost]) for cost in ordered]

    def differences(self, reference: str) -> list[Difference]:
        """Paired differences to a reference scheduler at equal realised cost, for each budget and over all budgets.

        Two schedulers with one budget differ in what they really spend on fresh samples, and one that spends more
        should not win by it. So each is compared, on each resplit, with the reference's accuracy at the cost it
        really had: the reference's own `curve`, straight between its points. Differences are then averaged over the
        resplits, as pairs. Resplits share samples, so their differences are not independent; the variance of the mean
        is therefore taken as (1/R + held-out / calibration) times the sample variance. Source: Nadeau and Bengio,
        "Inference for the Generalization Error", Machine Learning 52 (2003), section 5. With bootstrap samples it is
        (1/R + 1) times: what varies from one to the next varies as much from the records to the population.
        """
        if reference not in self.schedulers:
            raise InvalidInputError(f"reference {reference!r} was not compared; choose from {list(self.schedulers)}")
        resplits = range(len(self.ends))
        curves = [self.curve(reference, resplit) for resplit in resplits]
        found = []
        for name in self.schedulers:
            pairs: dict[float, dict[int, float]] = {budget: {} for budget in self.budgets}
            for row in self.rows:
                if row.scheduler == name and row.accuracy is not None:
                    equal = float(np.interp(row.held_out_cost or 0.0, *curves[row.resplit]))
                    pairs[row.budget][row.resplit] = row.accuracy - equal
            for budget, by_resplit in pairs.items():
                found += self._summary(name, budget, list(by_resplit.values()))
            means = []
            for resplit in resplits:
                values = [by_resplit[resplit] for by_resplit in pairs.values() if resplit in by_resplit]
                if values:
                    means.append(statistics.fmean(values))
            found += self._summary(name, None, means)
        return found

    def _summary(self, name: str, budget: float | None, values: Sequence[float]) -> list[Difference]:
        if not values:
            return []
        error = None
        if len(values) > 1:
            inflation = 1 / len(values) + (1.0 if self.bootstrap else (1 - self.fraction) / self.fraction)
            error = math.sqrt(inflation * statistics.variance(values))
        return [Difference(name, budget, statistics.fmean(values), error, len(values))]

    def to_dict(self, reference: str | None = None) -> dict[str, Any]:
        """A JSON-ready description; the reference of the differences defaults to the first scheduler."""
        reference = reference or self.schedulers[0]
        return {
            "schema": _SCHEMA,
            "unit": self.costs.unit,
            "costs": self.costs.to_dict(),
            "fraction": self.fraction,
            "bootstrap": self.bootstrap,
            "reference": reference,
            "rows": [asdict(row) for row in self.rows],
            "bounds": [asdict(bound) for bound in self.bounds],
            "differences": [asdict(difference) for difference in self.differences(reference)],
        }

    def to_text(self, reference: str | None = None) -> str:
        """Two tables, means over the resplits: held-out accuracy, and differences to the reference at equal cost."""
        reference = reference or self.schedulers[0]
        unit = self.costs.unit
        share = [f"{budget / self.costs[-1]:.0%}" for budget in self.budgets]
        width = max(len(name) for name in (*self.schedulers, "best random mixture"))
        lines = [
            f"held-out accuracy in %, mean of {len(self.ends)} resplits; budget in {unit} and in % of the last exit",
            _line("", [f"{budget:.4g}" for budget in self.budgets], ["cost/budget", "fit s"], width),
            _line("", share, ["mean   max", "median"], width),
        ]
        reasons: dict[str, int] = {}
        for name in self.schedulers:
            rows = [row for row in self.rows if row.scheduler == name]
            ratios, seconds = [], []
            for row in rows:
                if row.reason is not None:
                    reasons[f"{name}: {row.reason}"] = reasons.get(f"{name}: {row.reason}", 0) + 1
                elif row.held_out_cost is not None and row.fit_seconds is not None:
                    ratios.append(row.held_out_cost / row.budget)
                    seconds.append(row.fit_seconds)
            extra = ["-", "-"]
            if ratios:
                extra = [f"{statistics.fmean(ratios):.3f} {max(ratios):.3f}", f"{statistics.median(seconds):.2f}"]
            cells = [_percent(r.accuracy for r in rows if r.budget == budget) for budget in self.budgets]
            lines.append(_line(name, cells, extra, width))
        for name, attribute in (("oracle", "oracle"), ("best random mixture", "random_mixture")):
            cells = [
                _percent(getattr(bound, attribute) for bound in self.bounds if bound.budget == budget)
                for budget in self.budgets
            ]
            lines.append(_line(name, cells, [], width))
        lines += ["", f"difference to {reference} at the same held-out cost, in points, with its standard error"]
        lines.append(_line("", [*share, "all"], [], width, cell=14))
        differences = self.differences(reference)
        for name in self.schedulers:
            if name != reference:
                by_budget = {d.budget: d for d in differences if d.scheduler == name}
                cells = [_signed(by_budget.get(budget)) for budget in (*self.budgets, None)]
                lines.append(_line(name, cells, [], width, cell=14))
        lines += [f"infeasible, {count} of the fits: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines)


def compare(
    records: ExitRecords,
    costs: ExitCosts,
    schedulers: Mapping[str, Callable[[], Scheduler]],
    budgets: Sequence[float],
    *,
    resplits: int = 5,
    fraction: float = 2 / 3,
    seed: int = 0,
    held_out: ExitRecords | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Fit each scheduler to each budget on random parts of the records and try it on the rest.

    `schedulers` maps a name to what makes an unfitted scheduler; `budgets` are per sample in the unit of `costs`.
    `resplits` times the records are divided into `fraction` for calibration and the rest held out, the same for all
    schedulers. With `held_out`, which nothing is ever fitted on, the rest is not used, and each resplit is judged on a
    bootstrap sample of those records. A budget that cannot be met becomes a row with a reason. `progress` is told how
    many fits of how many are done. The same seed gives the same rows, fit times apart. Raises `InvalidInputError` for
    records without labels, or without a scheduler, budget or resplit.
    """
    costs.require_exits(records.num_exits)
    records.require_utility()
    if held_out is not None:
        costs.require_exits(held_out.num_exits)
        held_out.require_utility()
    if not schedulers or not len(budgets) or resplits < 1:
        raise InvalidInputError(
            f"{len(schedulers)} schedulers, {len(budgets)} budgets, {resplits} resplits: expected at least one of each"
        )
    amounts = [float(budget) for budget in budgets]
    if len(set(amounts)) < len(amounts):
        raise InvalidInputError(f"budgets {amounts} repeat; give each once")
    rows: list[Row] = []
    bounds: list[BoundRow] = []
    ends: list[tuple[float, float]] = []
    total = resplits * len(schedulers) * len(amounts)
    for resplit in range(resplits):
        calibration, fresh = records.split(fraction, seed=seed + resplit)
        if held_out is not None:
            draws = np.random.default_rng([seed, resplit]).integers(0, len(held_out), len(held_out))
            fresh = held_out.subset(np.sort(draws))
        ends.append((float(fresh.accuracies[0]), float(fresh.accuracies[-1])))
        bounds += _bound_rows(fresh, costs, amounts, resplit)
        for name, make in schedulers.items():
            for budget in amounts:
                rows.append(_one(name, make, budget, resplit, calibration, fresh, costs))
                if progress is not None:
                    progress(len(rows), total)
    return Comparison(tuple(rows), tuple(bounds), tuple(ends), costs, fraction, held_out is not None)


def _one(
    name: str,
    make: Callable[[], Scheduler],
    budget: float,
    resplit: int,
    calibration: ExitRecords,
    held_out: ExitRecords,
    costs: ExitCosts,
) -> Row:
    start = time.perf_counter()
    try:
        scheduler = make().fit(calibration, costs, budget=budget)
    except InfeasibleBudgetError as error:
        return Row(name, budget, resplit, reason=str(error))
    seconds = time.perf_counter() - start
    decisions = scheduler.replay(held_out)
    return Row(
        name,
        budget,
        resplit,
        decisions.accuracy,
        decisions.mean_cost,
        scheduler.calibration_cost,
        scheduler.planned_cost,
        seconds,
    )


def _bound_rows(held_out: ExitRecords, costs: ExitCosts, budgets: Sequence[float], resplit: int) -> list[BoundRow]:
    return [
        BoundRow(
            budget,
            resplit,
            oracle(held_out, costs, budget).accuracy,
            random_mixture(held_out, costs, budget).accuracy,
        )
        for budget in budgets
        if budget >= costs[0]
    ]


def _line(name: str, cells: Sequence[str], extra: Sequence[str], width: int, cell: int = 7) -> str:
    text = [f"{name:<{width}}", *(f"{value:>{cell}}" for value in cells), *(f"{value:>13}" for value in extra)]
    return " ".join(text).rstrip()


def _percent(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * statistics.fmean(known):.2f}" if known else "-"


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    error = "" if difference.standard_error is None else f" ± {100 * difference.standard_error:.2f}"
    return f"{100 * difference.mean:+.2f}{error}"
