"""Schedulers side by side on fresh data, at equal realised cost."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.evaluation._bounds import oracle, random_mixture
from eenet.evaluation._cells import Cell, CellFolder, Setting
from eenet.evaluation._processes import fill_here, fill_in_processes
from eenet.evaluation._results import BoundRow, Comparison
from eenet.records import ExitRecords
from eenet.scheduler import SCHEDULERS, Scheduler


def compare(
    records: ExitRecords,
    costs: ExitCosts,
    schedulers: Mapping[str, Callable[[], Scheduler]] | Sequence[str],
    budgets: Sequence[float],
    *,
    resplits: int = 5,
    fraction: float = 2 / 3,
    seed: int = 0,
    held_out: ExitRecords | None = None,
    jobs: int | None = 1,
    out: str | Path | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Fit each scheduler on random parts of the records and try it at each budget on the rest.

    `schedulers` are names of `eenet.scheduler.SCHEDULERS`, or map a name to what makes an unfitted scheduler; `budgets`
    are per sample in the unit of `costs`. `resplits` times the records are divided into `fraction` for calibration and
    the rest held out, the same for all schedulers. With `held_out`, which nothing is ever fitted on, the rest is not
    used, and each resplit is judged on those records. A budget that cannot be met becomes a row with a reason.

    `jobs` processes share the work, None is one for each core; each uses one thread, and the rows are the same for any
    number. `out` is a folder that keeps what one scheduler did on one resplit as soon as it is finished: the same call
    again does not repeat it, more schedulers or resplits add to it, and anything else changed is refused, or with
    `restart` begins anew. There a scheduler is known by its name alone. `progress` is told how many fits of how many
    are done. The same seed gives the same rows, fit times apart. Raises `InvalidInputError` for records without labels,
    without a scheduler, budget or resplit, and for schedulers that other processes cannot be given.
    """
    costs.require_exits(records.num_exits)
    records.require_utility()
    if held_out is not None:
        costs.require_exits(held_out.num_exits)
        held_out.require_utility()
    makers = _makers(schedulers, seed)
    if not makers or not len(budgets) or resplits < 1:
        raise InvalidInputError(
            f"{len(makers)} schedulers, {len(budgets)} budgets, {resplits} resplits: expected at least one of each"
        )
    amounts = [float(budget) for budget in budgets]
    if len(set(amounts)) < len(amounts):
        raise InvalidInputError(f"budgets {amounts} repeat; give each once")
    if jobs is not None and jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, expected 1 or more, or None for one for each core")
    setting = Setting(records, costs, tuple(amounts), fraction, seed, held_out, makers)
    held = [setting.rows_of(resplit)[1] for resplit in range(resplits)]  # refuses a fraction that leaves nothing
    _warn_of_doubles(records, held_out)
    keys = [(name, resplit) for resplit in range(resplits) for name in makers]
    cells = _filled(setting, keys, jobs or _cores(), out, progress, restart=restart)
    ordered = tuple(cells[key] for key in keys)
    return Comparison(
        rows=tuple(row for cell in ordered for row in cell.rows),
        bounds=tuple(bound for resplit in range(resplits) for bound in _bound_rows(setting, resplit)),
        costs=costs,
        fraction=fraction,
        cells=ordered,
        held=tuple(held),
        pool=len(records if held_out is None else held_out),
        seed=seed,
        separate=held_out is not None,
    )


def _warn_of_doubles(records: ExitRecords, held_out: ExitRecords | None) -> None:
    """Say so where samples that are judged have doubles among those that schedulers are fitted on."""
    digests, times = np.unique(records.digests(), return_counts=True)
    if held_out is None:
        doubles, pool = int(times[times > 1].sum()), len(records)
        where = "have a double among them, and the two may come to both sides of a resplit"
    else:
        doubles, pool = int(np.isin(held_out.digests(), digests).sum()), len(held_out)
        where = "held out have a double among those to calibrate on"
    if doubles:
        warnings.warn(
            f"{doubles} of the {pool} samples {where}: schedulers are judged on samples that they have seen; remove "
            "the doubles, unless equal outputs are chance, as with few classes and rounded probabilities",
            ReliabilityWarning,
            stacklevel=3,
        )


def _makers(
    schedulers: Mapping[str, Callable[[], Scheduler]] | Sequence[str], seed: int
) -> Mapping[str, Callable[[], Scheduler]]:
    if isinstance(schedulers, Mapping):
        return schedulers
    makers: dict[str, Callable[[], Scheduler]] = {}
    for name in schedulers:
        if name not in SCHEDULERS:
            raise InvalidInputError(f"scheduler {name!r} is not known; choose from {', '.join(SCHEDULERS)}")
        make: Callable[..., Scheduler] = SCHEDULERS[name]
        makers[name] = partial(make, seed=seed) if "seed" in inspect.signature(make).parameters else make
    return makers


def _filled(
    setting: Setting,
    keys: Sequence[tuple[str, int]],
    jobs: int,
    out: str | Path | None,
    progress: Callable[[int, int], None] | None,
    *,
    restart: bool,
) -> dict[tuple[str, int], Cell]:
    """All cells, those that a folder keeps and those that are filled now."""
    folder = None if out is None else CellFolder(Path(out), setting, restart=restart)
    cells: dict[tuple[str, int], Cell] = {}
    if folder is not None:
        for key in keys:
            kept = folder.load(*key)
            if kept is not None:
                cells[key] = kept
    missing = [key for key in keys if key not in cells]
    done, total = len(cells) * len(setting.budgets), len(keys) * len(setting.budgets)

    def told(fits: int) -> None:
        nonlocal done
        done += fits
        if progress is not None:
            progress(done, total)

    if cells:
        told(0)
    if missing:
        several = min(jobs, len(missing)) > 1
        filling = (
            fill_in_processes(setting, missing, folder, told, jobs)
            if several
            else fill_here(setting, missing, folder, told)
        )
        for cell in filling:
            cells[cell.scheduler, cell.resplit] = cell
    return cells


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _bound_rows(setting: Setting, resplit: int) -> list[BoundRow]:
    fresh, costs = setting.fresh(resplit), setting.costs
    return [
        BoundRow(
            budget,
            resplit,
            oracle(fresh, costs, budget).accuracy,
            random_mixture(fresh, costs, budget).accuracy,
        )
        for budget in setting.budgets
        if budget >= costs[0]
    ]
