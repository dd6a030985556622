"""The result of a comparison: rows, bounds, and paired differences at equal realized cost."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eenet._files import atomic_path, write_json
from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.evaluation._cells import Cell, Floats, Ints, Means, Row, bootstrap_means, interpolated
from eenet.evaluation._figures import Curve, Gain, Point, write_comparison_figure

SCHEMA = 2

_BOUNDS = {"oracle": "oracle", "best random mixture": "random_mixture"}
_CHANGES = " *"


@dataclass(frozen=True)
class BoundRow:
    """Accuracy of the oracle and of the best random mixture on the held-out samples of one resplit, at one budget.

    The mixture is that of `random_mixture`: of the exits, and of the plain network where its cost is known.
    """

    budget: float
    resplit: int
    oracle: float
    random_mixture: float


@dataclass(frozen=True)
class StaticRow:
    """One exit, or the plain network with the last exit's answers, for all samples: "exit 0" and so on, or "plain".

    `accuracy` is the mean over the resplits, `standard_error` that over the samples of the pool.
    """

    name: str
    cost: float
    accuracy: float
    standard_error: float


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


@array_value
@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`.

    Attributes
    ----------
    rows : tuple of Row
        One for each scheduler, budget and resplit.
    bounds : tuple of BoundRow
        For each budget and resplit the oracle and the best random mixture of exits and, where its cost is known, the
        plain network.
    costs : ExitCosts
        The costs of the exits.
    fraction : float
        The share of the records that calibrates.
    cells : tuple of Cell
        The decisions behind the rows, sample by sample.
    held : tuple of ndarray
        For each resplit the numbers of its held-out samples in the pool.
    pool : int
        The number of samples that may be held out.
    seed : int
        The seed of the resplits and of the bootstrap.
    separate : bool
        Whether the pool is of records that nothing is fitted on.
    statics : tuple of StaticRow
        Each exit and, where its cost is known, the plain network, for all samples.

    Examples
    --------
    >>> from eenet.evaluation import compare
    >>> from eenet.testing import toy_costs, toy_records
    >>> comparison = compare(toy_records(300), toy_costs(), ["max_prob", "entropy"], budgets=[2.0], resplits=2)
    >>> comparison.schedulers, comparison.resplits
    (('max_prob', 'entropy'), 2)
    """

    rows: tuple[Row, ...]
    bounds: tuple[BoundRow, ...]
    costs: ExitCosts
    fraction: float
    cells: tuple[Cell, ...]
    held: tuple[Ints, ...]
    pool: int
    seed: int = 0
    separate: bool = False
    statics: tuple[StaticRow, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Comparison({', '.join(self.schedulers)}; {len(self.budgets)} budgets, {self.resplits} resplits, "
            f"{self.pool} samples)"
        )

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
        """The number of resplits."""
        return len(self.held)

    def ends(self, scheduler: str, resplit: int) -> tuple[float, float]:
        """The held-out accuracy of a scheduler's answers if all samples left at the first exit, and at the last."""
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
        """Paired differences to a reference scheduler at equal realized cost, for each budget and over all budgets.

        Two schedulers with one budget differ in what they really spend on held-out samples, and spending more is no
        merit. So each is compared, on each resplit, with the reference's accuracy at the same cost: the reference's
        `curve`, straight between its points. Differences are then averaged over the resplits, as pairs.

        The standard error is the spread of these means over bootstrap samples of the pool. A sample that was held out
        in several resplits is drawn or left out in all of them at once, with its share of the costs and of the
        reference's curve. Policies are held fixed; in simulations the error was within a tenth of the spread over new
        pools (tests/evaluation/test_comparison_errors.py).

        Parameters
        ----------
        reference : str
            The name of the scheduler to compare with.

        Returns
        -------
        list of Difference
            For each scheduler one for each budget that both met, and one over all of them.

        Raises
        ------
        InvalidInputError
            If the reference was not compared.
        """
        if reference not in self.schedulers:
            raise InvalidInputError(f"reference {reference!r} was not compared; choose from {list(self.schedulers)}")
        differences = []
        for name in self.schedulers:
            values, spreads = self._differences(name, reference)
            for number, budget in enumerate(self.budgets):
                met = [r for r, per_budget in enumerate(values) if not np.isnan(per_budget[number])]
                if met:
                    mean = statistics.fmean(float(values[r][number]) for r in met)
                    error = np.mean([spreads[r][:, number] for r in met], axis=0).std(ddof=1)
                    differences.append(Difference(name, budget, mean, float(error), len(met)))
            met = [r for r, per_budget in enumerate(values) if not np.isnan(per_budget).all()]
            if met:
                mean = statistics.fmean(float(np.nanmean(values[r])) for r in met)
                error = np.mean([np.nanmean(spreads[r], axis=1) for r in met], axis=0).std(ddof=1)
                differences.append(Difference(name, None, mean, float(error), len(met)))
        return differences

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

    def accuracy_error(self, scheduler: str, budget: float) -> float | None:
        """The standard error of a scheduler's mean accuracy at a budget, by the bootstrap over the samples of the pool.

        None where no resplit met the budget.
        """
        number = self.budgets.index(budget)
        met = [r for r in range(self.resplits) if self._cell(scheduler, r).rows[number].accuracy is not None]
        if not met:
            return None
        means = self._means.accuracies[scheduler]
        return float(np.mean([means[r][:, number] for r in met], axis=0).std(ddof=1))

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
            "accuracy_errors": {
                name: [self.accuracy_error(name, budget) for budget in self.budgets] for name in self.schedulers
            },
            "statics": [asdict(one) for one in self.statics],
            "bounds": [asdict(bound) for bound in self.bounds],
            "differences": [asdict(difference) for difference in self.differences(reference)],
        }

    def to_text(self, reference: str | None = None, *, width: int | None = None) -> str:
        """Two tables, means over the resplits: held-out accuracy, and differences to the reference at equal cost.

        With a `width`, tables of more characters are written in parts, some budgets in each.
        """
        reference = reference or self.schedulers[0]
        lines = [f"{self._accuracies_are}; {self._budgets_are}", text_table(self._accuracies(), width)]
        if len(self.schedulers) > 1:
            lines += ["", self._differences_are(reference), text_table(self._signed(reference), width)]
        return "\n".join(lines + self._remarks() + self._reasons())

    def to_latex(self, reference: str | None = None) -> str:
        """The tables of `to_text` as LaTeX, each a `table` with a caption; they need the package booktabs.

        Parameters
        ----------
        reference : str, optional
            The reference of the differences; the first scheduler by default.

        Returns
        -------
        str

        Examples
        --------
        >>> from eenet.evaluation import compare
        >>> from eenet.testing import toy_costs, toy_records
        >>> found = compare(toy_records(300), toy_costs(), ["max_prob", "patience"], ["60%"], resplits=2)
        >>> print(found.to_latex())
        \\begin{table}
        ...
        """
        reference = reference or self.schedulers[0]
        notes = " ".join(f"{one}." for one in self._remarks() if one)
        tables = [latex_table(self._accuracies(), f"{self._accuracies_are}; {self._budgets_are}. {notes}")]
        if len(self.schedulers) > 1:
            tables.append(latex_table(self._signed(reference), f"{self._differences_are(reference)}."))
        return "\n\n".join(tables)

    @property
    def _accuracies_are(self) -> str:
        return f"held-out accuracy in % with its standard error, mean of {self.resplits} resplits"

    @property
    def _budgets_are(self) -> str:
        return f"budget in {self.costs.unit} and in % of {self.costs.reference_name}"

    def _differences_are(self, reference: str) -> str:
        return f"difference to {reference} at the same held-out cost, in points, with its standard error"

    @property
    def _abstains(self) -> bool:
        return any(row.handed_back for row in self.rows)

    def _remarks(self) -> list[str]:
        found = []
        if self._abstains:
            found += ["", "where samples are handed back, the accuracy is of the others"]
        if self.changing:
            found += ["", "* changes predictions: answers are the exits so far combined"]
        for name in self.schedulers:
            notes = {row.resplit: row.note for row in self.rows if row.scheduler == name and row.note}
            if notes:
                found += ["", f"{name}, on {len(notes)} of {self.resplits} resplits: {next(iter(notes.values()))}"]
        return found

    def _share(self, budget: float) -> str:
        return f"{budget / self.costs.reference:.0%}"

    def _accuracies(self) -> list[list[str]]:
        """The lines of the table of accuracies, the first of titles."""
        accuracies = [
            [
                "",
                *(f"{budget:.4g}\n{self._share(budget)}" for budget in self.budgets),
                "cost/budget\nmean   max",
                "fit s\nmedian",
            ]
        ]
        abstains = self._abstains
        if abstains:
            accuracies[0].append("handed back %\nmean")
        for name in self.schedulers:
            rows = [row for row in self.rows if row.scheduler == name]
            ratios = [row.held_out_cost / row.budget for row in rows if row.held_out_cost is not None]
            seconds = [row.fit_seconds for row in rows if row.fit_seconds is not None]
            spent = f"{statistics.fmean(ratios):.3f} {max(ratios):.3f}" if ratios else "-"
            median = f"{statistics.median(seconds):.2f}" if seconds else "-"
            means = []
            for budget in self.budgets:
                error = self.accuracy_error(name, budget)
                mean = _percent(row.accuracy for row in rows if row.budget == budget)
                means.append(mean if error is None else f"{mean} ± {100 * error:.2f}")
            accuracies.append([self._titles[name], *means, spent, median])
            back = [row.handed_back for row in rows if row.handed_back is not None]
            accuracies[-1] += [f"{100 * statistics.fmean(back):.2f}" if back else "-"] if abstains else []
        for title, attribute in _BOUNDS.items():
            values = {
                budget: [getattr(bound, attribute) for bound in self.bounds if bound.budget == budget]
                for budget in self.budgets
            }
            if attribute == "random_mixture" and self.costs.plain is not None:
                title += ", with plain"
            accuracies.append([title, *(_percent(values[budget]) for budget in self.budgets), "", ""])
        for one in self.statics:
            shown = f"{100 * one.accuracy:.2f} ± {100 * one.standard_error:.2f}"
            fits = (shown if one.cost <= budget * (1 + 1e-9) else "-" for budget in self.budgets)
            accuracies.append([f"{one.name} at {one.cost:.4g} {self.costs.unit}", *fits, "", ""])
        return [line + [""] * (len(accuracies[0]) - len(line)) for line in accuracies]

    def _signed(self, reference: str) -> list[list[str]]:
        """The lines of the table of differences, the first of titles."""
        by_key = {(d.scheduler, d.budget): d for d in self.differences(reference)}
        return [
            ["", *map(self._share, self.budgets), "all"],
            *(
                [title, *(_signed(by_key.get((name, budget))) for budget in (*self.budgets, None))]
                for name, title in self._titles.items()
                if name != reference
            ),
        ]

    def _reasons(self) -> list[str]:
        """Why there are no numbers, a line for each scheduler and reason; of budgets the first resplit's reason."""
        found: dict[tuple[str, str], Counter[float]] = {}
        for name in self.schedulers:
            for budget in self.budgets:
                refused = [
                    row.reason for row in self.rows if (row.scheduler, row.budget) == (name, budget) and row.reason
                ]
                if refused:
                    others = " (and others on other resplits)" if len(set(refused)) > 1 else ""
                    found.setdefault((name, f"{refused[0]}{others}"), Counter())[budget] += len(refused)
        said = []
        for (name, reason), counts in found.items():
            at = ", ".join(f"{budget:.4g}" for budget in counts)
            said.append(f"infeasible, {counts.total()} of the fits: {name} at {at}: {reason}")
        return said

    @property
    def _titles(self) -> dict[str, str]:
        return {name: name + (_CHANGES if name in self.changing else "") for name in self.schedulers}

    def write(self, folder: str | Path, reference: str | None = None) -> None:
        """Write table.txt, table.tex, rows.csv, differences.csv and comparison.json into a folder.

        Parameters
        ----------
        folder : path
            It is made where it is not there.
        reference : str, optional
            The reference of the differences; the first scheduler by default.
        """
        folder, reference = Path(folder), reference or self.schedulers[0]
        bounds = {(bound.budget, bound.resplit): bound for bound in self.bounds}
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            bound = bounds.get((row.budget, row.resplit))
            rows.append({**asdict(row), "changes_predictions": row.scheduler in self.changing})
            rows[-1] |= {name: None if bound is None else getattr(bound, name) for name in _BOUNDS.values()}
        _write_csv(folder / "rows.csv", rows)
        _write_csv(
            folder / "differences.csv", [{"reference": reference, **asdict(d)} for d in self.differences(reference)]
        )
        write_json(folder / "comparison.json", self.to_dict(reference))
        for name, text in (("table.txt", self.to_text(reference)), ("table.tex", self.to_latex(reference))):
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")

    def write_figure(self, path: str | Path, reference: str | None = None) -> None:
        """Write a PNG: accuracy against realized cost, and differences to the reference with their errors.

        Parameters
        ----------
        path : path
            The file to write.
        reference : str, optional
            The reference of the differences; the first scheduler by default.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        """
        reference = reference or self.schedulers[0]
        differences = self.differences(reference)
        curves, gains = [], []
        for name, title in self._titles.items():
            points = []
            for budget in self.budgets:
                rows = [row for row in self.rows if (row.scheduler, row.budget) == (name, budget)]
                known = [(row.held_out_cost, row.accuracy) for row in rows if row.accuracy is not None]
                if known:
                    cost, accuracy = (statistics.fmean(values) for values in zip(*known, strict=True))
                    points.append(Point(cost, accuracy, error=self.accuracy_error(name, budget) or 0.0))
            curves.append(Curve(title, points))
            theirs = [d for d in differences if d.scheduler == name != reference]
            single = [d.mean for d in theirs if d.budget is not None]
            gains += [Gain(title, d.mean, d.standard_error, single) for d in theirs if d.budget is None]
        bounds = []
        for title, attribute in reversed(_BOUNDS.items()):
            values: dict[float, list[float]] = {}
            for bound in self.bounds:
                values.setdefault(bound.budget, []).append(getattr(bound, attribute))
            mixed = ", with plain" if attribute == "random_mixture" and self.costs.plain is not None else ""
            bounds.append(Curve(title + mixed, [Point(budget, statistics.fmean(of)) for budget, of in values.items()]))
        write_comparison_figure(
            path,
            curves,
            bounds,
            gains,
            statics=[Point(one.cost, one.accuracy, one.name, error=one.standard_error) for one in self.statics],
            reference=reference,
            title=f"{self.pool:,} samples, {self.resplits} resplits",
            cost_label=f"realized cost per sample ({self.costs.unit})",
        )


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def text_table(lines: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lines of cells, the first of titles, as text: the first column to the left, the others to the right.

    Where it is wider than `width`, the columns follow in parts below each other, the first in each part.
    """
    parts: list[list[int]] = [[0]]
    widths = [max(len(word) for line in lines for word in line[n].split("\n")) + 2 for n in range(len(lines[0]))]
    for n in range(1, len(widths)):
        if width is not None and len(parts[-1]) > 1 and sum(widths[k] for k in (*parts[-1], n)) - 2 > width:
            parts.append([0])
        parts[-1].append(n)
    return "\n\n".join(_text_table([[line[n] for n in part] for line in lines]) for part in parts)


def latex_table(lines: Sequence[Sequence[str]], caption: str) -> str:
    """Lines of cells, the first of titles, as a LaTeX table of the package booktabs."""
    first, *rows = (" & ".join(_latex(cell.replace("\n", ", ")) for cell in line) + r" \\" for line in lines)
    parts = [
        r"\begin{table}",
        rf"\caption{{{_latex(caption[0].upper() + caption[1:].strip())}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
    ]
    return "\n".join([*parts, r"\toprule", first, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _latex(text: str) -> str:
    text = re.sub(r"[&%#$_{}]", r"\\\g<0>", text)
    text = re.sub(r"(?<![\w.])[+-](?=\d)", r"$\g<0>$", text)
    return re.sub(" +", " ", text).replace("±", r"$\pm$")


def _text_table(lines: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(lines[0]):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    text = io.StringIO()
    Console(file=text, width=10_000, color_system=None, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _percent(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * statistics.fmean(known):.2f}" if known else "-"


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.mean:+.2f} ± {100 * difference.standard_error:.2f}"
