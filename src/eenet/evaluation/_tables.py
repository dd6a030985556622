"""A comparison as text and as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet._files import atomic_path

if TYPE_CHECKING:
    from eenet.evaluation._results import Comparison, Difference

_CHANGES = " *"


def text(found: Comparison, reference: str) -> str:
    """Two tables, means over the resplits: held-out accuracy, and differences to the reference at equal cost."""
    unit = found.costs.unit
    share = [f"{budget / found.costs[-1]:.0%}" for budget in found.budgets]
    titles = {name: name + (_CHANGES if name in found.changing else "") for name in found.schedulers}
    width = max(len(name) for name in (*titles.values(), "best random mixture"))
    lines = [
        f"held-out accuracy in %, mean of {found.resplits} resplits; budget in {unit} and in % of the last exit",
        _line("", [f"{budget:.4g}" for budget in found.budgets], ["cost/budget", "fit s"], width),
        _line("", share, ["mean   max", "median"], width),
    ]
    reasons: dict[str, int] = {}
    for name in found.schedulers:
        rows = [row for row in found.rows if row.scheduler == name]
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
        cells = [_percent(r.accuracy for r in rows if r.budget == budget) for budget in found.budgets]
        lines.append(_line(titles[name], cells, extra, width))
    for name, attribute in (("oracle", "oracle"), ("best random mixture", "random_mixture")):
        cells = [
            _percent(getattr(bound, attribute) for bound in found.bounds if bound.budget == budget)
            for budget in found.budgets
        ]
        lines.append(_line(name, cells, [], width))
    lines += ["", f"difference to {reference} at the same held-out cost, in points, with its standard error"]
    lines.append(_line("", [*share, "all"], [], width, cell=14))
    differences = found.differences(reference)
    for name in found.schedulers:
        if name != reference:
            by_budget = {d.budget: d for d in differences if d.scheduler == name}
            cells = [_signed(by_budget.get(budget)) for budget in (*found.budgets, None)]
            lines.append(_line(titles[name], cells, [], width, cell=14))
    if found.changing:
        lines += ["", "* changes predictions: answers are the exits so far combined"]
    lines += [f"infeasible, {count} of the fits: {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)


def write_csv(found: Comparison, reference: str, folder: Path) -> tuple[Path, Path]:
    """Write `rows.csv`, a line for each scheduler, budget and resplit, and `differences.csv`; returns their paths."""
    bounds = {(bound.budget, bound.resplit): bound for bound in found.bounds}
    rows = []
    for row in found.rows:
        line: dict[str, Any] = {**asdict(row), "changes_predictions": row.scheduler in found.changing}
        bound = bounds.get((row.budget, row.resplit))
        line["oracle"] = None if bound is None else bound.oracle
        line["random_mixture"] = None if bound is None else bound.random_mixture
        rows.append(line)
    differences = [{"reference": reference, **asdict(difference)} for difference in found.differences(reference)]
    return _write(folder / "rows.csv", rows), _write(folder / "differences.csv", differences)


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path


def _line(name: str, cells: Sequence[str], extra: Sequence[str], width: int, cell: int = 7) -> str:
    parts = [f"{name:<{width}}", *(f"{value:>{cell}}" for value in cells), *(f"{value:>13}" for value in extra)]
    return " ".join(parts).rstrip()


def _percent(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * statistics.fmean(known):.2f}" if known else "-"


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.mean:+.2f} ± {100 * difference.standard_error:.2f}"
