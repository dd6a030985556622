"""Schedulers side by side on held-out samples, at equal realized cost."""

from __future__ import annotations

import importlib
import inspect
import logging
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.synchronize import Lock
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eenet._progress import by_itself
from eenet._warn import warn
from eenet.costs import Budget, ExitCosts, budget_and_whole
from eenet.errors import InvalidInputError, ReliabilityWarning, kind_of
from eenet.evaluation._cells import Cell, CellFolder, Setting
from eenet.evaluation._comparison import BoundRow, Comparison, StaticRow
from eenet.evaluation._oracle import oracle, random_mixture, static_bounds
from eenet.records import ExitRecords, require_same_network
from eenet.scheduler import SCHEDULERS, SCORES, Scheduler

_log = logging.getLogger("eenet.evaluation")


def compare(
    records: ExitRecords,
    costs: ExitCosts,
    schedulers: Mapping[str, Callable[[], Scheduler]] | Sequence[str],
    budgets: Sequence[Budget],
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

    Parameters
    ----------
    records : ExitRecords
        Records with labels. On each resplit a random part of them calibrates, and the rest is held out.
    costs : ExitCosts
        The costs of the exits.
    schedulers : sequence of str, or mapping of str to callable
        Names of `eenet.scheduler.SCHEDULERS`, or for each name what makes an unfitted scheduler.
    budgets : sequence of float or str
        Average costs per sample, each as for `parse_budget`: 2.5, "60%". One that cannot be met becomes a row with a
        reason, and so does one at which a scheduler cannot do what else it asks for, such as `max_error`.
    resplits : int
        How often the records are divided, in the same way for all schedulers.
    fraction : float
        The share of the records that calibrates.
    seed : int
        The same seed gives the same rows, except for fit times.
    held_out : ExitRecords, optional
        Records to judge every resplit on, in place of the rest. Nothing is fitted on them.
    jobs : int, optional
        Processes that share the work, each with one thread; None is one for each core. The rows do not depend on it.
    out : path, optional
        A folder that keeps what one scheduler did on one resplit as soon as it is finished. The same call again does
        not repeat it, and more schedulers or resplits add to it. What is there of the same name, but of another class
        or other parameters, is computed again, with a warning.
    restart : bool
        Whether to discard what `out` holds. Otherwise a folder of other records, costs or budgets is refused.
    progress : callable, optional
        Called with the number of fits that are done, and of all.

    Returns
    -------
    Comparison
        Rows, bounds, paired differences; its `to_text` is a table.

    Raises
    ------
    InvalidInputError
        If there are no labels, no scheduler, no budget or no resplit; if `held_out` is of a network with other weights;
        if `out` is of another comparison; if a scheduler cannot be sent to other processes.

    Warns
    -----
    ReliabilityWarning
        If samples that are judged have doubles among those that schedulers are fitted on, or `out` holds results of
        another scheduler by the same name.

    Examples
    --------
    >>> from eenet.testing import toy_costs, toy_records
    >>> comparison = compare(toy_records(300), toy_costs(), ["max_prob", "patience"], budgets=[1.5, 2.0], resplits=2)
    >>> comparison
    Comparison(max_prob, patience; 2 budgets, 2 resplits, 300 samples)
    >>> print(comparison.to_text())
    held-out accuracy in % with its standard error, mean of 2 resplits; budget in ms and in % of the last exit
    ...
    """
    costs.require_exits(records.num_exits)
    records.require_utility()
    if held_out is not None:
        costs.require_exits(held_out.num_exits)
        held_out.require_utility()
        require_same_network("the records are", records.network, held_out.network, "the held-out ones have")
    makers = _makers(schedulers, seed)
    if isinstance(budgets, (str, float, int)):
        raise InvalidInputError(f"budgets are {budgets!r}, expected a list such as ['40%', '60%']")
    if not makers or not len(budgets) or resplits < 1:
        raise InvalidInputError(
            f"{len(makers)} schedulers, {len(budgets)} budgets, {resplits} resplits: expected at least one of each"
        )
    amounts = [budget_and_whole(budget, costs)[0] for budget in budgets]
    if len(set(amounts)) < len(amounts):
        raise InvalidInputError(f"budgets {amounts} repeat; give each once")
    if jobs is not None and jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, expected 1 or more, or None for one for each core")
    setting = Setting(records, costs, tuple(amounts), fraction, seed, held_out, makers)
    held = [setting.rows_of(resplit)[1] for resplit in range(resplits)]  # refuses a fraction that leaves nothing
    _warn_of_doubles(records, held_out)
    keys = [(name, resplit) for resplit in range(resplits) for name in makers]
    with by_itself("fitting and judging", len(keys) * len(amounts), given=progress) as show:
        cells = _filled(setting, keys, jobs or _cores(), out, progress or show, restart=restart)
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
        statics=_static_rows(records if held_out is None else held_out, costs, held),
    )


def _static_rows(pool: ExitRecords, costs: ExitCosts, held: Sequence[NDArray[np.intp]]) -> tuple[StaticRow, ...]:
    """Each exit and the plain network: the mean over the resplits, in which a sample counts by how often it is held."""
    weights = np.zeros(len(pool))
    for rows in held:
        weights[rows] += 1 / (len(rows) * len(held))
    utility = pool.require_utility().astype(np.float64)
    found = []
    for one in static_bounds(pool, costs):
        of_exit = utility[-1 if one.of == ("plain",) else int(one.of[0].removeprefix("exit "))]
        mean = float(weights @ of_exit)
        error = float(np.sqrt((weights**2) @ (of_exit - mean) ** 2))
        found.append(StaticRow(one.of[0], one.cost, mean, error))
    return tuple(found)


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
        warn(
            f"{doubles} of the {pool} samples {where}: schedulers are judged on samples that they have seen; remove "
            "the doubles, unless equal outputs are chance, as with few classes and rounded probabilities",
            ReliabilityWarning,
        )


def _makers(
    schedulers: Mapping[str, Callable[[], Scheduler]] | Sequence[str], seed: int
) -> Mapping[str, Callable[[], Scheduler]]:
    if isinstance(schedulers, Mapping):
        for name, given in schedulers.items():
            if not callable(given):
                raise InvalidInputError(
                    f"scheduler {name!r} is {kind_of(given)}, expected what makes an unfitted one: its class, or "
                    "functools.partial of that"
                )
        return schedulers
    makers: dict[str, Callable[[], Scheduler]] = {}
    for name in schedulers:
        if name not in SCHEDULERS:
            raise InvalidInputError(
                f"scheduler {name!r} is not known; choose from {', '.join(SCHEDULERS)}, or, where it is your own, "
                "import the module that defines it first, or give its class by name: {name: class}"
            )
        make: Callable[..., Scheduler] = SCHEDULERS[name]
        makers[name] = partial(make, seed=seed) if "seed" in inspect.signature(make).parameters else make
    return makers


def _filled(
    setting: Setting,
    keys: Sequence[Key],
    jobs: int,
    out: str | Path | None,
    progress: Callable[[int, int], None] | None,
    *,
    restart: bool,
) -> dict[Key, Cell]:
    """All cells, those that a folder keeps and those that are filled now."""
    folder = None if out is None else CellFolder(Path(out), setting, restart=restart)
    cells: dict[Key, Cell] = {}
    if folder is not None:
        for key in keys:
            kept = folder.load(*key)
            if kept is not None:
                cells[key] = kept
    missing = [key for key in keys if key not in cells]
    done, total = len(cells) * len(setting.budgets), len(keys) * len(setting.budgets)

    def report(fits: int) -> None:
        nonlocal done
        done += fits
        if progress is not None:
            progress(done, total)

    if cells:
        _log.info("%d of %d fits are kept in %s", done, total, out)
        report(0)
    if missing:
        several = min(jobs, len(missing)) > 1
        filling = (
            _fill_in_processes(setting, missing, folder, report, jobs)
            if several
            else _fill_here(setting, missing, folder, report)
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
    held_out, costs = setting.held_out_records(resplit), setting.costs
    return [
        BoundRow(
            budget,
            resplit,
            oracle(held_out, costs, budget).accuracy,
            random_mixture(held_out, costs, budget).accuracy,
        )
        for budget in setting.budgets
        if budget >= costs[0]
    ]


Key = tuple[str, int]
"""A cell: the name of its scheduler, the number of its resplit."""

_worker: list[tuple[Setting, CellFolder | None, Lock]] = []
"""In a worker process: what it was started with."""

_SAVED_WITHIN = 30.0  # seconds, for a file of some kB


def _fill_here(
    setting: Setting, keys: Sequence[Key], folder: CellFolder | None, report: Callable[[int], None]
) -> Iterator[Cell]:
    """Fill cells in this process; `report` gets the number of new fits."""
    with _one_thread():
        for name, resplit in keys:
            cell = setting.fill(name, resplit, lambda: report(1))
            if folder is not None:
                folder.save(cell)
            yield cell


def _fill_in_processes(
    setting: Setting, keys: Sequence[Key], folder: CellFolder | None, report: Callable[[int], None], jobs: int
) -> Iterator[Cell]:
    """Fill cells in `jobs` processes, each with one thread, as they are done; `report` gets the number of new fits.

    A worker keeps its cell in the folder itself, so that an interruption here loses no finished one. Raises
    `InvalidInputError` for schedulers that other processes cannot be given, and where a process was killed.
    """
    _require_sendable(setting)
    context = multiprocessing.get_context("spawn")  # a fork of a process with running threads can hang
    others = set(multiprocessing.active_children())
    count = min(jobs, len(keys))
    # By a queue, which a thread fills: a process that ends before it reads its arguments is waited for forever where
    # these do not fit in a pipe.
    settings: multiprocessing.Queue[Setting] = context.Queue()
    for _ in range(count):
        settings.put(setting)
    saving = context.Lock()
    start = settings, folder, saving, _own_modules()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=start)
    try:
        for future in as_completed([pool.submit(_fill_in_worker, key) for key in keys]):
            cell = future.result()
            report(len(cell.rows))
            yield cell
        pool.shutdown()
    except BrokenProcessPool as error:
        raise InvalidInputError(
            "a process of the comparison ended: perhaps it was killed for want of memory (run it again with fewer "
            "jobs), or the script that compares does so outside of `if __name__ == '__main__':`, and each process "
            "runs it (put it there, or use jobs=1); what is finished is kept where there is a folder for it"
        ) from error
    finally:
        # After an interruption the unfinished cells are of no use; after the last one no process is left.
        settings.cancel_join_thread()
        settings.close()
        pool.shutdown(wait=False, cancel_futures=True)
        # A process that is ended while it writes a file would leave half of it; one that was killed may hold the lock.
        held = saving.acquire(timeout=_SAVED_WITHIN)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if held:
            saving.release()


def _own_modules() -> list[str]:
    """The modules beside eenet that define scores and schedulers, which are found by their names."""
    modules = {made.__module__ for known in (SCORES, SCHEDULERS) for made in known.values()}
    return sorted(name for name in modules if name.partition(".")[0] not in ("eenet", "__main__"))


def _start_worker(
    settings: multiprocessing.Queue[Setting], folder: CellFolder | None, saving: Lock, modules: Sequence[str]
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in modules:
        with suppress(ImportError):  # of a name that no file has, which no other process knows
            importlib.import_module(name)
    _worker.append((settings.get(), folder, saving))


def _end_with_parent() -> None:
    """Where the process that compares is killed, nothing else ends this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fill_in_worker(key: Key) -> Cell:
    setting, folder, saving = _worker[0]
    cell = next(iter(_fill_here(setting, [key], None, lambda _: None)))
    if folder is not None:
        with saving:
            folder.save(cell)
    return cell


def _require_sendable(setting: Setting) -> None:
    for name, make in setting.makers.items():
        _require_one_sendable(name, make)


def _require_one_sendable(name: str, make: Callable[[], Scheduler]) -> None:
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"scheduler {name!r} cannot be given to other processes ({error}); use a function of a module, "
            "functools.partial of one, or a name of eenet.scheduler.SCHEDULERS instead of a lambda; or jobs=1"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Numerical libraries use one thread: sums come out the same in every process, and processes do not crowd."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")  # a scheduler of one's own may use it
    before = None if torch is None else torch.get_num_threads()
    if torch is not None:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)
