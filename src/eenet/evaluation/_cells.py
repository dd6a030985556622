"""The cells of a comparison, one scheduler on one resplit at all budgets; their files, and their bootstrap means.

The uncertainty of a comparison is that of bootstrap samples of the pool that all resplits were drawn from.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import existing_file, read_arrays, write_arrays, write_json
from eenet._values import array_value
from eenet._version import __version__
from eenet._warn import warn
from eenet.costs import ExitCosts
from eenet.errors import FallbackWarning, FileFormatError, InfeasibleError, InvalidInputError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import Decisions, Scheduler, Score
from eenet.scheduler._replay import as_answered

_SCHEMA = 1
_INPUTS, _FOLDER = "inputs.json", "cells"

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Row:
    """One scheduler fitted to one budget on one resplit, and what it did on the held-out samples.

    Costs and `budget` are per sample, in the unit of the costs. `fit_seconds` is this budget's share of the one fit for
    all, and what choosing its policy took. `handed_back` is the share of the held-out samples that is handed back, by a
    scheduler of one's own that asks for that; `accuracy` is of the others. Where the budget, or what else a scheduler
    of one's own asks for, could not be met, `reason` says why and the numbers are None. Where a method took a simple
    rule in its own place, as `OptimalStopping` does where it gains nothing over it, `note` says so.
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
    handed_back: float | None = None
    note: str | None = None


@array_value
@dataclass(frozen=True)
class Cell:
    """What a scheduler did with the n held-out samples of a resplit, at each of B budgets.

    `exits` (B, n) from 0 and `utility` (B, n), both 0 where there is a reason in place of numbers,
    and a utility NaN where the sample is handed back; `ends` (2, n) is the utility
    if all samples left at the first exit, and at the last.
    """

    rows: tuple[Row, ...]
    exits: NDArray[np.uint16]
    utility: NDArray[np.float32]
    ends: NDArray[np.float32]
    changes_predictions: bool

    @property
    def scheduler(self) -> str:
        """Its name."""
        return self.rows[0].scheduler

    @property
    def resplit(self) -> int:
        """Its number."""
        return self.rows[0].resplit


@dataclass(frozen=True)
class Setting:
    """What all cells of a comparison have in common; enough to fill any of them, in any process."""

    records: ExitRecords
    costs: ExitCosts
    budgets: tuple[float, ...]
    fraction: float
    seed: int
    held_out: ExitRecords | None
    makers: Mapping[str, Callable[[], Scheduler]]

    def rows_of(self, resplit: int) -> tuple[Ints, Ints]:
        """The numbers of the samples to calibrate on, and of those held out: of `held_out`, where there is one."""
        calibration, rest = self.records.split_rows(self.fraction, seed=self.seed + resplit)
        return calibration, rest if self.held_out is None else np.arange(len(self.held_out))

    def held_out_records(self, resplit: int) -> ExitRecords:
        """The held-out records of a resplit."""
        return self.held_out if self.held_out is not None else self.records.subset(self.rows_of(resplit)[1])

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the cells depend on, but for the schedulers: each cell says of which it is."""
        return {
            "schema": _SCHEMA,
            "eenet": __version__,
            "records": _digest(self.records),
            "held_out": None if self.held_out is None else _digest(self.held_out),
            "costs": {"values": self.costs.values.tolist(), "unit": self.costs.unit},
            "budgets": list(self.budgets),
            "fraction": self.fraction,
            "seed": self.seed,
        }

    def made(self, name: str) -> str:
        """What identifies the scheduler of a name: its class and parameters, and the arrays of a score."""
        scheduler = self.makers[name]()
        said = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(scheduler))
        arrays = scheduler.score.to_arrays() if isinstance(scheduler.score, Score) else {}
        code = _code_of([type(scheduler), scheduler._score_class])
        return " ".join([said, *([_digest_of(arrays)] if arrays else []), *([f"with code {code}"] if code else [])])

    def fill(self, name: str, resplit: int, fitted_one: Callable[[], None] = lambda: None) -> Cell:
        """Fit one scheduler on one resplit and try it on the held-out samples at every budget.

        `fitted_one` is called after each. What a scheduler warns of, such as an unspent budget, is in the rows.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)
            return self._fill(name, resplit, fitted_one)

    def _fill(self, name: str, resplit: int, fitted_one: Callable[[], None]) -> Cell:
        calibration, held_out = self.records.subset(self.rows_of(resplit)[0]), self.held_out_records(resplit)
        shape = len(self.budgets), len(held_out)
        exits, utility = np.zeros(shape, dtype=np.uint16), np.zeros(shape, dtype=np.float32)
        ends = held_out.require_utility()[[0, -1]]
        rows, changes = [], False
        for number, (budget, fitted, seconds, note) in enumerate(self._fits(name, calibration)):
            if isinstance(fitted, InfeasibleError):
                rows.append(Row(name, budget, resplit, reason=str(fitted)))
            else:
                decisions = fitted.replay(held_out)
                rows.append(replace(_row(name, resplit, budget, fitted, decisions, seconds), note=note))
                exits[number] = decisions.exits
                assert decisions.utility is not None, "records that are judged have labels"
                utility[number] = np.where(decisions.abstained, np.nan, decisions.utility)
                changes = fitted.changes_predictions
                if changes:
                    ends = as_answered(fitted.policy.score, held_out).require_utility()[[0, -1]]
            fitted_one()
        return Cell(tuple(rows), exits, utility, ends, changes)

    def _fits(
        self, name: str, calibration: ExitRecords
    ) -> Iterator[tuple[float, Scheduler | InfeasibleError, float, str | None]]:
        start = time.perf_counter()
        try:
            unbudgeted, note = self._fitted(name, calibration)
        except InfeasibleError as error:  # what a scheduler of one's own asks for, at any budget
            yield from ((budget, error, 0.0, None) for budget in self.budgets)
            return
        shared = (time.perf_counter() - start) / len(self.budgets)
        for budget in self.budgets:
            start = time.perf_counter()
            fitted: Scheduler | InfeasibleError
            try:
                fitted = unbudgeted.at(budget)
            except InfeasibleError as error:
                fitted = error
            yield budget, fitted, shared + time.perf_counter() - start, note

    def _fitted(self, name: str, calibration: ExitRecords) -> tuple[Scheduler, str | None]:
        """The method itself, for all budgets, and what it says where it took a simple rule in its own place."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", FallbackWarning)
            unbudgeted = self.makers[name]().fit(calibration, self.costs, fallback=False)  # methods are compared
        for one in said:
            if not issubclass(one.category, FallbackWarning):
                warn(one.message, one.category)
        return unbudgeted, next((str(o.message) for o in said if issubclass(o.category, FallbackWarning)), None)


def _row(name: str, resplit: int, budget: float, fitted: Scheduler, decisions: Decisions, seconds: float) -> Row:
    return Row(
        name,
        budget,
        resplit,
        decisions.accuracy,
        decisions.mean_cost,
        fitted.calibration_cost,
        fitted.planned_cost,
        seconds,
        handed_back=decisions.handed_back,
    )


def _digest(records: ExitRecords) -> str:
    """SHA-256 of everything in records that a result can depend on."""
    arrays: dict[str, NDArray[Any] | None] = {
        "probabilities": records.probabilities,
        "predictions": records.predictions,
        "labels": records.labels,
        "utility": records.utility,
        **{f"pooled.{name}": values for name, values in sorted(records.pooled.items())},
    }
    return _digest_of(arrays)


def _digest_of(arrays: Mapping[str, NDArray[Any] | None]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        if array is not None:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class CellFolder:
    """A folder of finished cells, one file each, all of the same inputs."""

    def __init__(self, folder: Path, setting: Setting, *, restart: bool) -> None:
        """Continue with a folder, or begin it.

        Raises `InvalidInputError` where it holds cells of other inputs; with `restart` they are removed instead.
        """
        self._cells, self._setting = folder / _FOLDER, setting
        self._told: set[str] = set()
        inputs = setting.inputs
        if restart:
            for path in self._cells.glob("*.safetensors"):
                path.unlink()
        elif (folder / _INPUTS).is_file():
            before = _read_inputs(folder / _INPUTS)
            changed = [name for name, value in inputs.items() if before.get(name) != value]
            if changed:
                raise InvalidInputError(
                    f"{str(folder)!r} holds a comparison of other {' and '.join(changed)}; name another folder, or "
                    "restart it (--restart), which discards that one"
                )
        write_json(folder / _INPUTS, inputs)

    def path(self, scheduler: str, resplit: int) -> Path:
        """The file of a cell."""
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", scheduler)[:40]
        unique = hashlib.sha256(scheduler.encode()).hexdigest()[:8]
        return self._cells / f"{slug}-{unique}-{resplit}.safetensors"

    def load(self, scheduler: str, resplit: int) -> Cell | None:
        """A finished cell; None where it is not there, is damaged, or, with a warning, is of another scheduler."""
        path = self.path(scheduler, resplit)
        if not path.is_file():
            return None
        try:
            arrays, header = read_arrays(path, kind="cell", schema=_SCHEMA)
            rows = tuple(Row(**row) for row in header["rows"])
            cell = Cell(rows, arrays["exits"], arrays["utility"], arrays["ends"], bool(header["changes_predictions"]))
        except (FileFormatError, KeyError, TypeError):
            return None
        before, now = header.get("made"), self._setting.made(scheduler)
        if before != now:
            if scheduler not in self._told:
                self._told.add(scheduler)
                was = f"was {before}, now it is {now}" if before else "is not said to be the same"
                warn(
                    f"{str(self._cells)!r} holds results of {scheduler!r} that are not used: it {was}; they are "
                    "computed again",
                    ReliabilityWarning,
                )
            return None
        shape = len(self._setting.budgets), len(self._setting.rows_of(resplit)[1])
        whole = cell.exits.shape == cell.utility.shape == shape and cell.ends.shape == (2, shape[1])
        budgets = tuple(row.budget for row in rows)
        if not whole or budgets != self._setting.budgets or (cell.scheduler, cell.resplit) != (scheduler, resplit):
            return None
        return cell

    def save(self, cell: Cell) -> None:
        """Keep a finished cell; its file appears whole or not at all."""
        header = {
            "rows": [asdict(row) for row in cell.rows],
            "changes_predictions": cell.changes_predictions,
            "made": self._setting.made(cell.scheduler),
        }
        arrays: dict[str, NDArray[Any]] = {"exits": cell.exits, "utility": cell.utility, "ends": cell.ends}
        write_arrays(self.path(cell.scheduler, cell.resplit), arrays, kind="cell", schema=_SCHEMA, header=header)


def _code_of(classes: Sequence[type]) -> str:
    """A digest of the files of the modules that define the classes, but for those of eenet; "" where there are none."""
    modules = {base.__module__ for cls in classes for base in cls.__mro__}
    own = sorted(name for name in modules if name.partition(".")[0] not in {"eenet", *sys.stdlib_module_names})
    files = [getattr(sys.modules.get(name), "__file__", None) for name in own]
    texts = [Path(file).read_bytes() for file in files if file is not None and Path(file).is_file()]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12] if texts else ""


def _read_inputs(path: Path) -> Mapping[str, Any]:
    try:
        inputs = json.loads(existing_file(path).read_text(encoding="utf-8"))
    except ValueError:
        inputs = None
    if not isinstance(inputs, dict):
        raise FileFormatError(f"{str(path)!r} is not what eenet compare wrote; name another folder, or restart it")
    return inputs


Floats = NDArray[np.float64]

REPLICATES = 1000
_CHUNK = 50  # replicates at once, so that their weights of the samples need little memory


@array_value
@dataclass(frozen=True)
class Means:
    """Held-out means of every scheduler on every bootstrap sample, one mapping of resplits for each scheduler.

    `costs[name][resplit]` and `accuracies[name][resplit]` are (replicates, B); `ends[name][resplit]` (replicates, 2).
    """

    costs: Mapping[str, Mapping[int, Floats]]
    accuracies: Mapping[str, Mapping[int, Floats]]
    ends: Mapping[str, Mapping[int, Floats]]


def bootstrap_means(cells: Sequence[Cell], held: Sequence[Ints], pool: int, costs: ExitCosts, *, seed: int) -> Means:
    """Draw samples of the pool with replacement, and weigh each resplit's held-out samples by their counts.

    `held` are the numbers in the pool of each resplit's held-out samples. One draw is used for all resplits and all
    schedulers: what is held out in several resplits counts as one sample there, and differences are paired.
    """
    result = Means({}, {}, {})
    by_resplit: dict[int, list[Cell]] = {}
    for cell in cells:
        by_resplit.setdefault(cell.resplit, []).append(cell)
    for resplit, of_resplit in by_resplit.items():
        columns = [np.concatenate([costs.values[c.exits], c.utility, c.ends]).astype(np.float64) for c in of_resplit]
        means = _weighted(np.concatenate(columns), held[resplit], pool, seed)
        start = 0
        for cell in of_resplit:
            count = len(cell.rows)
            parts = np.split(means[:, start : start + 2 * count + 2], [count, 2 * count], axis=1)
            for mapping, part in zip((result.costs, result.accuracies, result.ends), parts, strict=True):
                mapping.setdefault(cell.scheduler, {})[resplit] = part  # type: ignore[attr-defined]
            start += 2 * count + 2
    return result


def _weighted(columns: Floats, held: Ints, pool: int, seed: int) -> Floats:
    """Weighted means (REPLICATES, columns) of what is not NaN in columns (columns, n)."""
    known = ~np.isnan(columns)
    values, counted = np.where(known, columns, 0.0).T, known.T.astype(np.float64)
    return np.concatenate([(w @ values) / np.maximum(w @ counted, 1) for w in _weights(held, pool, seed)])


def _weights(held: Ints, pool: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, REPLICATES, _CHUNK):
        size = min(_CHUNK, REPLICATES - start)
        drawn = rng.multinomial(pool, np.full(pool, 1 / pool), size=size)
        yield drawn[:, held].astype(np.float64)


def interpolated(x: Floats, costs: Floats, accuracies: Floats) -> Floats:
    """Accuracies (replicates, Q) at costs `x` (replicates, Q), straight between points (replicates, P), row by row."""
    order = np.argsort(costs, axis=1, kind="stable")
    xs, ys = np.take_along_axis(costs, order, axis=1), np.take_along_axis(accuracies, order, axis=1)
    right = np.clip((xs[:, None, :] < x[:, :, None]).sum(axis=2), 1, xs.shape[1] - 1)
    x0, x1 = np.take_along_axis(xs, right - 1, axis=1), np.take_along_axis(xs, right, axis=1)
    y0, y1 = np.take_along_axis(ys, right - 1, axis=1), np.take_along_axis(ys, right, axis=1)
    width = x1 - x0
    share = np.divide(x - x0, width, out=np.full_like(width, 0.5), where=width > 0)
    return y0 + np.clip(share, 0, 1) * (y1 - y0)
